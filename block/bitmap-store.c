/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * The rule: whatever happens to this process or its host, a block that was changed while a bitmap recorded is dirty in
 * what is read from the file afterwards. To sync a bit ahead of every write would cost each of them a sync; so the file
 * says it twice. The *bits* are what memory had when the file was last cleaned. The *intents*, a bit for each region of
 * 4 MiB or more, say where memory may have more; after a crash such a region is dirty as a whole.
 *
 *   mark (submitter) ...... bits and intents in memory
 *   commit (I/O thread) ... intents that the file does not have yet: written, synced; then the write goes to the disk
 *   clean (each 5 s) ...... bits that differ: written, synced; then intents are dropped of regions that nobody has
 *                           changed since, and nothing is under way in. This is not synced: it may as well be lost
 *
 * So a sync is paid by the first write to a region that was at rest, and by nobody in the steady state.
 *
 * Every sector is written whole and is old or new after a crash (as of any disk; a sector that is neither is damage,
 * and is found by its sum). Old or new intents both hold: a bit is added ahead of the write that needs it, and dropped
 * after the bits are synced. Old or new bits both hold where there is an intent. So nothing here needs a journal.
 *
 * What bitmaps there are, and which record, changes rarely: then the whole file is written anew beside the old one and
 * takes its name. Writes to regions at rest wait for that; those to others do not, since both files have their intents.
 *
 * A file that cannot be written would go on saying that all is as it was. It is removed then: its bitmaps are in memory
 * only from there on, and that is stated. One that can be neither written nor removed is to take all anew: what it has
 * of what it was given is not known, a sync that succeeds later does not say. Until then it may take intents, and no
 * intent is dropped; the guest's writes that need one fail where it cannot have it.
 *
 * The file is locked (bitmap-lock.h), so that nobody has it as well by another disk's option, or replaces it. A new one is locked
 * ahead of its taking the name, and takes none that another has come to.
 *
 * Stored at the disk's release, the file is no longer in use, has no intents, and has the time at which the disk's file
 * was changed last: whoever changes that without recording it makes what records inconsistent.
 */
#include "block/bitmap-set.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "block/bitmap-lock.h"
#include "stream/partial-file.h"

#define CLEAN_SECONDS 5
#define BATCH 128u /* sectors in one write */

/* What others call says whose error it is; within here it is not said. */
static bool named(const VmfBitmaps *set, bool done, GError **error)
{
    if (!done)
        g_prefix_error(error, "disk %s: bitmaps: ", set->disk);
    return done;
}

/* ---- giving it up ------------------------------------------------------------------------------------------------ */

/* One that is another's says nothing of this disk. */
static bool remove_file(const VmfBitmaps *set, GError **error)
{
    g_autoptr(GError) failed = NULL;
    int other;

    if (!vmf_bitmaps_hold_name(set->path, set->lock_fd, &other, &failed) && g_error_matches(failed, VMF_ERROR, VMF_ERROR_LOCKED))
        return true;
    int err = unlink(set->path) < 0 && errno != ENOENT ? errno : vmf_sync_directory_of(set->path);
    vmf_bitmaps_unlock(&other);
    if (err)
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "remove %s: %s", set->path, g_strerror(err));
    return err == 0;
}

/* File held. What it has of what was given to it is not known: it says all of it again. */
static void note_all_stale(VmfBitmaps *set)
{
    pthread_mutex_lock(&set->lock);
    for (guint i = 0; i < set->bitmaps->len; i++) {
        VmfBitmap *bitmap = g_ptr_array_index(set->bitmaps, i);

        memset(bitmap->stale, 0xff, (bitmap->n_pieces / 64 + 1) * 8);
    }
    set->header.in_use = false;
    set->stores = set->storage || set->broken;
    set->unsynced = (1ull << set->header.n_intent_pieces) - 1;
    atomic_store(&set->waits, true);
    vmf_bitmaps_set_records(set);
    pthread_mutex_unlock(&set->lock);
}

/* Lock held. */
static void stop_storing(VmfBitmaps *set)
{
    set->stores = false;
    set->unsynced = 0;
    atomic_store(&set->waits, false);
    vmf_bitmaps_set_records(set);
}

/* File held. @cause: why it could not be written. False: it could not be removed either, and @error says so. */
static bool give_up(VmfBitmaps *set, const GError *cause, GError **error)
{
    set->broken = !remove_file(set, error);
    pthread_mutex_lock(&set->lock);
    g_free(set->problem);
    set->problem = g_strdup_printf(
        "its file %s: %s", set->broken ? "cannot be written or removed" : "could not be written and was removed",
        cause->message);
    for (guint i = 0; i < set->bitmaps->len && !set->broken; i++)
        ((VmfBitmap *)g_ptr_array_index(set->bitmaps, i))->persistent = false;
    if (!set->broken)
        stop_storing(set);
    pthread_mutex_unlock(&set->lock);
    if (set->broken)
        note_all_stale(set);
    return !set->broken;
}

/* File held. It has all that memory has. */
static void end_broken(VmfBitmaps *set)
{
    if (!set->broken)
        return;
    set->broken = false;
    pthread_mutex_lock(&set->lock);
    g_clear_pointer(&set->problem, g_free);
    pthread_mutex_unlock(&set->lock);
}

/* ---- the file's sectors: file held ------------------------------------------------------------------------------- */

/* Lock held. NULL: no more. */
static VmfBitmap *persistent_at(const VmfBitmaps *set, uint32_t index)
{
    for (guint i = 0; i < set->bitmaps->len; i++) {
        VmfBitmap *bitmap = g_ptr_array_index(set->bitmaps, i);

        if (bitmap->persistent && index-- == 0)
            return bitmap;
    }
    return NULL;
}

static bool write_header(VmfStorage *storage, const VmfBitmapHeader *header, uint64_t n_sectors, GError **error)
{
    uint8_t sector[VMF_BITMAP_SECTOR];

    vmf_bitmap_encode_header(sector, header, n_sectors);
    return vmf_storage_write(storage, 0, sector, sizeof(sector), error);
}

/* Those of the pieces in @which. */
static bool write_intents(VmfBitmaps *set, VmfStorage *storage, const VmfBitmapHeader *header, uint64_t which,
                          GError **error)
{
    uint8_t sector[VMF_BITMAP_SECTOR];

    for (uint32_t piece = 0; piece < header->n_intent_pieces; piece++) {
        if (!(which >> piece & 1))
            continue;
        pthread_mutex_lock(&set->lock);
        vmf_bitmap_encode(sector, header, VMF_BITMAP_INTENTS, piece, set->intents + piece * VMF_BITMAP_PIECE_WORDS,
                          VMF_BITMAP_PIECE_WORDS);
        pthread_mutex_unlock(&set->lock);
        if (!vmf_storage_write(storage, (uint64_t)(1 + piece) * VMF_BITMAP_SECTOR, sector, sizeof(sector), error))
            return false;
    }
    return true;
}

/* Up to BATCH pieces in a row, from @piece on, as far as they are stale or @all. Returns how many. */
static unsigned take_pieces(VmfBitmaps *set, VmfBitmap *bitmap, uint64_t piece, uint32_t index, bool all,
                            const VmfBitmapHeader *header, uint8_t *sectors)
{
    uint64_t words[VMF_BITMAP_PIECE_WORDS];
    unsigned n = 0;

    pthread_mutex_lock(&set->lock);
    for (; n < BATCH && piece < bitmap->n_pieces && (all || vmf_bitmap_next_stale(bitmap, piece) == piece);
         n++, piece++) {
        vmf_bitmap_take_piece(bitmap, piece, words);
        vmf_bitmap_encode(sectors + n * VMF_BITMAP_SECTOR, header, VMF_BITMAP_BITS + index, (uint32_t)piece, words,
                          VMF_BITMAP_PIECE_WORDS);
    }
    pthread_mutex_unlock(&set->lock);
    return n;
}

static uint64_t first_stale(VmfBitmaps *set, const VmfBitmap *bitmap, uint64_t from)
{
    pthread_mutex_lock(&set->lock);
    uint64_t piece = vmf_bitmap_next_stale(bitmap, from);
    pthread_mutex_unlock(&set->lock);
    return piece;
}

static bool write_bits(VmfBitmaps *set, VmfStorage *storage, const VmfBitmapHeader *header, VmfBitmap *bitmap,
                       uint32_t index, uint64_t first_sector, bool all, GError **error)
{
    g_autofree uint8_t *sectors = g_malloc(BATCH * VMF_BITMAP_SECTOR);

    for (uint64_t piece = 0, n; piece < bitmap->n_pieces; piece += n) {
        piece = all ? piece : first_stale(set, bitmap, piece);
        n = take_pieces(set, bitmap, piece, index, all, header, sectors);
        if (n > 0 && !vmf_storage_write(storage, (first_sector + piece) * VMF_BITMAP_SECTOR, sectors,
                                        n * VMF_BITMAP_SECTOR, error))
            return false;
    }
    return true;
}

/* Admin held: which are persistent does not change, but by giving up, and then the file is nobody's. */
static bool write_all_bits(VmfBitmaps *set, VmfStorage *storage, const VmfBitmapHeader *header, bool all,
                           GError **error)
{
    uint64_t at = vmf_bitmap_file_bits(header);

    for (uint32_t i = 0; i < header->n_bitmaps; i++) {
        pthread_mutex_lock(&set->lock);
        VmfBitmap *bitmap = persistent_at(set, i);
        pthread_mutex_unlock(&set->lock);
        if (!bitmap)
            break;
        /* What is inconsistent stays as it is: it says nothing. */
        if ((all || !bitmap->problem) && !write_bits(set, storage, header, bitmap, i, at, all, error))
            return false;
        at += bitmap->n_pieces;
    }
    return true;
}

/* ---- commit ------------------------------------------------------------------------------------------------------ */

static uint64_t take_unsynced(VmfBitmaps *set)
{
    pthread_mutex_lock(&set->lock);
    uint64_t which = set->unsynced;
    set->unsynced = 0;
    atomic_store(&set->waits, false);
    pthread_mutex_unlock(&set->lock);
    return which;
}

static void put_unsynced(VmfBitmaps *set, uint64_t which)
{
    pthread_mutex_lock(&set->lock);
    set->unsynced |= which;
    atomic_store(&set->waits, true);
    pthread_mutex_unlock(&set->lock);
}

static uint64_t n_sectors_of(VmfBitmaps *set, const VmfBitmapHeader *header)
{
    uint64_t n = vmf_bitmap_file_bits(header);

    pthread_mutex_lock(&set->lock);
    for (uint32_t i = 0; i < header->n_bitmaps; i++) {
        const VmfBitmap *bitmap = persistent_at(set, i);

        n += bitmap ? bitmap->n_pieces : 0;
    }
    pthread_mutex_unlock(&set->lock);
    return n;
}

/* File held. Who marks or looks at intents has the lock alone. */
static void take_header(VmfBitmaps *set, const VmfBitmapHeader *header)
{
    pthread_mutex_lock(&set->lock);
    set->header = *header;
    pthread_mutex_unlock(&set->lock);
}

static bool write_use(VmfBitmaps *set, bool in_use, int64_t mtime_ns, GError **error)
{
    VmfBitmapHeader header = set->header;

    header.in_use = in_use;
    header.mtime_ns = in_use ? 0 : mtime_ns;
    if (!write_header(set->storage, &header, n_sectors_of(set, &header), error))
        return false;
    take_header(set, &header);
    return true;
}

static bool refuse_without_file(VmfBitmaps *set, uint64_t which, GError **error)
{
    put_unsynced(set, which);
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s", set->problem);
    return false;
}

/* One that is broken may take intents again, and has not taken the bits with that. */
static bool commit(VmfBitmaps *set, GError **error)
{
    g_autoptr(GError) cause = NULL;
    uint64_t which = take_unsynced(set);

    if (set->broken && !set->storage)
        return refuse_without_file(set, which, error);
    if (!which || !set->storage)
        return true;
    if ((set->header.in_use || write_use(set, true, 0, &cause)) &&
        write_intents(set, set->storage, &set->header, which, &cause) && vmf_storage_flush(set->storage, &cause))
        return true;
    if (give_up(set, cause, error))
        return true;
    put_unsynced(set, which);
    return false;
}

bool vmf_bitmaps_commit(VmfBitmaps *set, GError **error)
{
    if (!atomic_load(&set->waits))
        return true;
    pthread_mutex_lock(&set->file);
    bool done = commit(set, error);
    pthread_mutex_unlock(&set->file);
    return named(set, done, error);
}

/* ---- clean ------------------------------------------------------------------------------------------------------- */

static void forget_touched(VmfBitmaps *set)
{
    pthread_mutex_lock(&set->lock);
    memset(set->touched, 0, set->header.n_intent_pieces * VMF_BITMAP_PIECE_WORDS * 8);
    pthread_mutex_unlock(&set->lock);
}

/* Returns in which pieces. */
static uint64_t drop_intents_at_rest(VmfBitmaps *set)
{
    uint64_t which = 0;

    pthread_mutex_lock(&set->lock);
    for (uint32_t r = 0; r < set->header.n_regions; r++) {
        uint64_t bit = 1ull << (r & 63);

        if (!(set->intents[r / 64] & bit) || set->touched[r / 64] & bit || set->under_way[r])
            continue;
        set->intents[r / 64] &= ~bit;
        which |= 1ull << r / 64 / VMF_BITMAP_PIECE_WORDS;
    }
    pthread_mutex_unlock(&set->lock);
    return which;
}

static bool file_unlock(VmfBitmaps *set, bool done)
{
    pthread_mutex_unlock(&set->file);
    return done;
}

static bool write_stale(VmfBitmaps *set, GError **error)
{
    pthread_mutex_lock(&set->file);
    return file_unlock(set, write_all_bits(set, set->storage, &set->header, false, error));
}

static bool write_rest(VmfBitmaps *set, GError **error)
{
    pthread_mutex_lock(&set->file);
    if (!set->broken)
        return file_unlock(set, write_intents(set, set->storage, &set->header, drop_intents_at_rest(set), error));
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s", set->problem); /* it may have been this sync that failed */
    return file_unlock(set, false);
}

static bool is_storing(VmfBitmaps *set)
{
    pthread_mutex_lock(&set->lock);
    bool stores = set->stores && set->storage;
    pthread_mutex_unlock(&set->lock);
    return stores;
}

static bool is_broken(VmfBitmaps *set)
{
    pthread_mutex_lock(&set->file);
    return file_unlock(set, set->broken);
}

static bool heal(VmfBitmaps *set, GError **error);

/* The file is not held while it syncs: whoever commits meanwhile syncs himself. */
static bool clean(VmfBitmaps *set, GError **error)
{
    g_autoptr(GError) cause = NULL;

    if (is_broken(set))
        return heal(set, error);
    if (!is_storing(set))
        return true;
    forget_touched(set);
    if (write_stale(set, &cause) && vmf_storage_flush(set->storage, &cause) && write_rest(set, &cause))
        return true;
    pthread_mutex_lock(&set->file);
    give_up(set, cause, NULL);
    pthread_mutex_unlock(&set->file);
    g_propagate_error(error, g_steal_pointer(&cause));
    return false;
}

bool vmf_bitmaps_clean(VmfBitmaps *set, GError **error)
{
    return named(set, clean(set, error), error);
}

/* Lock held; it sleeps without. */
static bool sleep_until_clean(VmfBitmaps *set)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += CLEAN_SECONDS;
    while (!set->quit)
        if (pthread_cond_timedwait(&set->wake, &set->lock, &until) == ETIMEDOUT)
            break;
    return !set->quit;
}

static bool has_intents(const VmfBitmaps *set)
{
    for (uint32_t word = 0; word < set->header.n_intent_pieces * VMF_BITMAP_PIECE_WORDS; word++)
        if (set->intents[word])
            return true;
    return false;
}

static void *cleaner_main(void *opaque)
{
    VmfBitmaps *set = opaque;

    pthread_mutex_lock(&set->lock);
    while (sleep_until_clean(set)) {
        bool due = has_intents(set) || set->unsynced; /* of a broken one too */

        pthread_mutex_unlock(&set->lock);
        /* Who has it may be waiting for this thread to end. */
        if (due && pthread_mutex_trylock(&set->admin) == 0) {
            vmf_bitmaps_clean(set, NULL);
            pthread_mutex_unlock(&set->admin);
        }
        pthread_mutex_lock(&set->lock);
    }
    pthread_mutex_unlock(&set->lock);
    return NULL;
}

/* ---- writing it anew --------------------------------------------------------------------------------------------- */

/* @lock_fd: of a new one; NULL: it is not to be new. */
static VmfStorage *open_file(VmfBitmaps *set, int *lock_fd, GError **error)
{
    g_autofree char *uri = g_strconcat("file:", set->path, NULL);
    VmfStorageOptions options = {
        .mode = lock_fd ? VMF_STORAGE_CREATE : VMF_STORAGE_MODIFY, .buffered = true, .backend = "threads"};
    g_autoptr(VmfStorage) storage = vmf_storage_open(uri, &options, error);

    if (!storage || (lock_fd && !vmf_bitmaps_lock_new(storage, lock_fd, error)))
        return NULL;
    return set->wrap ? set->wrap(g_steal_pointer(&storage), set->wrap_opaque, error) : g_steal_pointer(&storage);
}

static bool write_entries(VmfBitmaps *set, VmfStorage *storage, const VmfBitmapHeader *header, GError **error)
{
    uint64_t at = vmf_bitmap_file_bits(header);
    uint8_t sector[VMF_BITMAP_SECTOR];

    for (uint32_t i = 0; i < header->n_bitmaps; i++) {
        pthread_mutex_lock(&set->lock);
        const VmfBitmap *bitmap = persistent_at(set, i);
        vmf_bitmap_encode_entry(sector, header, i, bitmap, at);
        at += bitmap->n_pieces;
        pthread_mutex_unlock(&set->lock);
        if (!vmf_storage_write(storage, (vmf_bitmap_file_entries(header) + i) * VMF_BITMAP_SECTOR, sector,
                               sizeof(sector), error))
            return false;
    }
    return true;
}

/*
 * From now on marks leave intents, which wait for the file; what is under way has left none, where nothing recorded.
 * Returns how many bitmaps the file will have.
 */
static uint32_t begin_storing(VmfBitmaps *set)
{
    uint32_t n = 0;

    pthread_mutex_lock(&set->lock);
    while (persistent_at(set, n))
        n++;
    set->stores |= n > 0;
    vmf_bitmaps_set_records(set);
    for (uint32_t r = 0; r < set->header.n_regions && set->records; r++)
        if (set->under_way[r])
            set->intents[r / 64] |= 1ull << (r & 63);
    pthread_mutex_unlock(&set->lock);
    return n;
}

static bool fill_file(VmfBitmaps *set, VmfStorage *storage, const VmfBitmapHeader *header, GError **error)
{
    uint64_t n_sectors = n_sectors_of(set, header);

    return vmf_storage_set_size(storage, n_sectors * VMF_BITMAP_SECTOR, error) &&
           write_header(storage, header, n_sectors, error) && write_intents(set, storage, header, ~0ull, error) &&
           write_entries(set, storage, header, error) && write_all_bits(set, storage, header, true, error) &&
           vmf_storage_flush(storage, error);
}

/* File held. As long as the other name is ours nobody else gives a file this one. */
static bool take_name(VmfBitmaps *set, VmfStorage *storage, GError **error)
{
    g_autoptr(GError) cause = NULL;
    int other;

    if (!vmf_bitmaps_hold_name(set->path, set->lock_fd, &other, error)) {
        note_all_stale(set);
        return false;
    }
    bool done = vmf_storage_commit(storage, &cause);
    vmf_bitmaps_unlock(&other);
    if (done)
        return true;
    if (!give_up(set, cause, NULL)) /* which of the two has the name now is not known */
        g_clear_pointer(&set->storage, vmf_storage_free);
    g_propagate_error(error, g_steal_pointer(&cause));
    return false;
}

/* File held. */
static bool replace_file(VmfBitmaps *set, uint32_t n, GError **error)
{
    VmfBitmapHeader header = set->header;
    int lock_fd = -1;

    header.id = g_random_int();
    header.in_use = true;
    header.mtime_ns = 0;
    header.n_bitmaps = n;
    g_autoptr(VmfStorage) storage = open_file(set, &lock_fd, error);
    bool filled = storage && fill_file(set, storage, &header, error);
    if (!filled)
        note_all_stale(set);
    if (!filled || !take_name(set, storage, error)) {
        vmf_bitmaps_unlock(&lock_fd);
        return false;
    }
    g_clear_pointer(&set->storage, vmf_storage_free);
    vmf_bitmaps_unlock(&set->lock_fd);
    set->storage = g_steal_pointer(&storage);
    set->lock_fd = lock_fd;
    take_header(set, &header);
    end_broken(set);
    return true;
}

static bool drop_file(VmfBitmaps *set, GError **error)
{
    if (!remove_file(set, error))
        return false;
    pthread_mutex_lock(&set->lock);
    stop_storing(set);
    pthread_mutex_unlock(&set->lock);
    g_clear_pointer(&set->storage, vmf_storage_free);
    vmf_bitmaps_unlock(&set->lock_fd);
    end_broken(set);
    return true;
}

static bool start_cleaner(VmfBitmaps *set, GError **error);

static bool rewrite(VmfBitmaps *set, GError **error)
{
    uint32_t n;

    if (set->early)
        return true;
    if (!start_cleaner(set, error))
        return false;
    pthread_mutex_lock(&set->file);
    n = begin_storing(set);
    return file_unlock(set, n > 0 ? replace_file(set, n, error) : drop_file(set, error));
}

bool vmf_bitmaps_rewrite(VmfBitmaps *set, GError **error)
{
    return named(set, rewrite(set, error), error);
}

/* File held. The one that is there takes all that it is to have, where it is. */
static bool refill(VmfBitmaps *set, GError **error)
{
    VmfBitmapHeader header = set->header;

    header.in_use = true;
    header.mtime_ns = 0;
    if (!fill_file(set, set->storage, &header, error)) {
        note_all_stale(set);
        return false;
    }
    take_header(set, &header);
    end_broken(set);
    return true;
}

/* Admin held. */
static bool heal(VmfBitmaps *set, GError **error)
{
    pthread_mutex_lock(&set->file);
    if (set->storage)
        return file_unlock(set, refill(set, error));
    pthread_mutex_unlock(&set->file);
    return rewrite(set, error);
}

/* ---- beginning and end ------------------------------------------------------------------------------------------- */

static bool start_cleaner(VmfBitmaps *set, GError **error)
{
    int err;

    if (set->cleaner)
        return true;
    set->quit = false;
    err = pthread_create(&set->cleaner, NULL, cleaner_main, set);
    if (err)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "thread: %s", g_strerror(err));
    return err == 0;
}

static void end_cleaner(VmfBitmaps *set)
{
    if (!set->cleaner)
        return;
    pthread_mutex_lock(&set->lock);
    set->quit = true;
    pthread_cond_broadcast(&set->wake);
    pthread_mutex_unlock(&set->lock);
    pthread_join(set->cleaner, NULL);
    set->cleaner = 0;
}

/* A region with an intent is dirty, whatever the bits say. */
static void replay(VmfBitmaps *set, VmfBitmap *bitmap)
{
    for (uint64_t r = 0; r < set->header.n_regions; r++) {
        uint64_t offset = r * set->header.region_bytes;

        if (set->intents[r / 64] >> (r & 63) & 1)
            vmf_bitmap_set(bitmap, offset, MIN(set->header.region_bytes, set->size_bytes - offset));
    }
}

static void settle(VmfBitmaps *set, VmfBitmap *bitmap, int64_t mtime_ns)
{
    if (!bitmap->recording)
        return;
    replay(set, bitmap);
    if (!set->header.in_use && set->header.mtime_ns != mtime_ns && !bitmap->problem)
        bitmap->problem = g_strdup("the disk was written by somebody who did not record it");
}

static unsigned n_problems(const GPtrArray *bitmaps)
{
    unsigned n = 0;

    for (guint i = 0; i < bitmaps->len; i++)
        n += ((const VmfBitmap *)g_ptr_array_index(bitmaps, i))->problem != NULL;
    return n;
}

/* Two of one name: the one that was here says what it has to the one from the file. */
static void adopt(VmfBitmaps *set, GPtrArray *found, int64_t mtime_ns)
{
    for (guint i = 0; i < found->len; i++) {
        VmfBitmap *bitmap = g_ptr_array_index(found, i), *here = vmf_bitmaps_find(set, bitmap->name);

        settle(set, bitmap, mtime_ns);
        if (here) {
            vmf_bitmap_merge(bitmap, here);
            g_ptr_array_remove(set->bitmaps, here);
        }
        g_ptr_array_add(set->bitmaps, bitmap);
    }
    set->stores = true;
    vmf_bitmaps_set_records(set);
}

/* What cannot be trusted is to be so for the next reader too, when what gave it away has gone. */
static bool load(VmfBitmaps *set, int64_t mtime_ns, GError **error)
{
    g_autoptr(GPtrArray) found = g_ptr_array_new();
    g_autoptr(GError) cause = NULL;

    if (!vmf_bitmaps_hold_file(set->path, &set->lock_fd, error) || !(set->storage = open_file(set, NULL, error)))
        return false;
    pthread_mutex_lock(&set->lock);
    if (vmf_bitmap_file_read(set->storage, set->size_bytes, &set->header, set->intents, found, &cause))
        adopt(set, found, mtime_ns);
    else
        set->problem = g_strdup(cause->message);
    pthread_mutex_unlock(&set->lock);
    if (!cause)
        return n_problems(found) > 0 ? rewrite(set, error) : start_cleaner(set, error);
    g_clear_pointer(&set->storage, vmf_storage_free);
    vmf_bitmap_header_init(&set->header, set->size_bytes);
    return true;
}

/* The file's lock held: a write that finds the disk released may be at its commit. */
static void forget(VmfBitmaps *set)
{
    pthread_mutex_lock(&set->lock);
    stop_storing(set);
    for (guint i = set->bitmaps->len; i-- > 0;)
        if (((VmfBitmap *)g_ptr_array_index(set->bitmaps, i))->persistent)
            g_ptr_array_remove_index(set->bitmaps, i);
    memset(set->intents, 0, set->header.n_intent_pieces * VMF_BITMAP_PIECE_WORDS * 8);
    g_clear_pointer(&set->problem, g_free);
    pthread_mutex_unlock(&set->lock);
    g_clear_pointer(&set->storage, vmf_storage_free);
    vmf_bitmaps_unlock(&set->lock_fd);
    g_clear_pointer(&set->path, g_free);
    vmf_bitmap_header_init(&set->header, set->size_bytes);
    set->broken = set->attached = set->early = false;
}

/* Of a file that is there. One that is no use is the business of whoever put it there, or of the next full backup. */
static bool load_or_say(VmfBitmaps *set, int64_t mtime_ns, GError **error)
{
    GError *failed = NULL;

    if (load(set, mtime_ns, &failed))
        return true;
    if (g_error_matches(failed, VMF_ERROR, VMF_ERROR_IO))
        failed->code = VMF_ERROR_BITMAP_FILE;
    g_propagate_error(error, failed);
    return named(set, false, error);
}

static bool attach(VmfBitmaps *set, const char *path, int64_t mtime_ns, GError **error)
{
    set->path = g_strdup(path);
    set->attached = true;
    if ((!path || (access(path, F_OK) < 0 && errno == ENOENT) || load_or_say(set, mtime_ns, error)) && vmf_bitmaps_install(set, error))
        return true;
    end_cleaner(set);
    pthread_mutex_lock(&set->file);
    forget(set);
    pthread_mutex_unlock(&set->file);
    return false;
}

bool vmf_bitmaps_attach(VmfBitmaps *set, const char *path, int64_t mtime_ns, GError **error)
{
    pthread_mutex_lock(&set->admin);
    bool done = set->attached;
    if (!done)
        done = attach(set, path, mtime_ns, error);
    pthread_mutex_unlock(&set->admin);
    return done;
}

bool vmf_bitmaps_attach_early(VmfBitmaps *set, GError **error)
{
    pthread_mutex_lock(&set->admin);
    set->early = !set->attached;
    pthread_mutex_unlock(&set->admin);
    return vmf_bitmaps_attach(set, NULL, 0, error);
}

static bool has_persistent(VmfBitmaps *set)
{
    pthread_mutex_lock(&set->lock);
    bool has = persistent_at(set, 0) != NULL;
    pthread_mutex_unlock(&set->lock);
    return has;
}

void vmf_bitmaps_take_place(VmfBitmaps *set, const char *path)
{
    g_autoptr(GError) cause = NULL;

    pthread_mutex_lock(&set->admin);
    if (set->attached && set->early) {
        set->early = false;
        set->path = g_strdup(path);
        if (has_persistent(set) && !rewrite(set, &cause)) {
            pthread_mutex_lock(&set->file);
            give_up(set, cause, NULL);
            pthread_mutex_unlock(&set->file);
        }
    }
    pthread_mutex_unlock(&set->admin);
}

bool vmf_bitmaps_discard(VmfBitmaps *set)
{
    pthread_mutex_lock(&set->admin);
    end_cleaner(set);
    pthread_mutex_lock(&set->file);
    bool done = !set->attached || !set->storage || remove_file(set, NULL);
    if (done && set->attached)
        forget(set);
    pthread_mutex_unlock(&set->file);
    pthread_mutex_unlock(&set->admin);
    return done;
}

/* First the bits, then what makes them the whole truth. */
static bool store(VmfBitmaps *set, int64_t mtime_ns, GError **error)
{
    return vmf_bitmaps_clean(set, error) && vmf_storage_flush(set->storage, error) &&
           write_use(set, false, mtime_ns, error) && vmf_storage_flush(set->storage, error);
}

void vmf_bitmaps_detach(VmfBitmaps *set, int64_t mtime_ns)
{
    pthread_mutex_lock(&set->admin);
    end_cleaner(set);
    if (set->attached && is_storing(set) && !set->broken)
        store(set, mtime_ns, NULL); /* if not, the next one finds it in use, and its intents */
    pthread_mutex_lock(&set->file);
    if (set->attached)
        forget(set);
    pthread_mutex_unlock(&set->file);
    pthread_mutex_unlock(&set->admin);
}
