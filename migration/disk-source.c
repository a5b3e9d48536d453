/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * Each disk has one bitmap of granules that are to be sent. It is set to what the storage has allocated, and the disk's
 * tracker sets in it what the guest writes, from before that on. A pass goes over it once, from the beginning to the
 * end: it takes runs of granules, reads them ahead, and sends them in that order. The first pass is the bulk, those
 * that follow are rounds, the one after the stop is the rest; there is no difference between them but in what is left
 * to do.
 *
 *   tracker on . holes are sent as zeros, all else is marked . pass . pass ... stop . pass . DISK_SYNC (last)
 *
 * That a granule is taken before it is read is what makes it right: a write that comes after its bit was taken sets it
 * again, and one that was under way sets it again when it ends (block/dirty.h).
 *
 * Where the target has a base, what a bitmap has is marked instead; the rest is compared ahead of the first pass
 * (disk-base.c), and goes on like that.
 *
 * What was sent is as good as there once the target has answered the DISK_SYNC that ends each round; until then it
 * counts as pending, so that the stop is not taken while the target's storage lags behind.
 */
#include "migration/disk-base.h"
#include "migration/disk-mirror.h"

#include <vmferry/error.h>

#include "block/bitmap-set.h"
#include "block/tee.h"
#include "stream/clock.h"

#define BUFFERS 8 /* with as many writes of the target this fills a disk; more only make the guest wait */
#define LOOK_EVERY 64 /* pieces: counting what is left takes a while on a large disk */
#define RUN_GRANULES (VMF_READ_AHEAD_BYTES / VMF_GRANULE_BYTES)
#define IN_TOUCH_NS (1 * VMF_NS_PER_S)
#define ASK_AGAIN_NS (1 * VMF_NS_PER_S)
#define VERIFY_BYTES_PER_SECOND                                                                                        \
    20000000u /* slower than any storage reads: how long looking at all of it again may take */

G_STATIC_ASSERT(VMF_READ_AHEAD_BYTES == VMF_EXTENT_DATA_MAX);
G_STATIC_ASSERT(BUFFERS <= VMF_TEE_RANGES_MAX);

/* ---- which ------------------------------------------------------------------------------------------------------- */

static bool is_all(char **names)
{
    return g_strcmp0(names[0], "all") == 0 && !names[1];
}

static bool is_named(char **names, const char *name)
{
    return is_all(names) || g_strv_contains((const char *const *)names, name);
}

/* Of a name in a list; NULL: it is fine. */
static const char *name_fault(const VmfGuest *guest, char **name)
{
    if (strcmp(*name, "all") == 0 || strcmp(*name, "none") == 0)
        return "it stands alone, not among names";
    if (!vmf_guest_find_disk(guest, *name))
        return "the guest has no disk of this name that it can write";
    return g_strv_contains((const char *const *)name + 1, *name) ? "it is named twice" : NULL;
}

static bool check_names(const VmfGuest *guest, char **names, GError **error)
{
    const char *fault = NULL;

    if (is_all(names))
        return true;
    for (; *names; names++) {
        fault = name_fault(guest, names);
        if (fault)
            break;
    }
    if (fault)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "disks: '%s': %s", *names, fault);
    return !fault;
}

static bool check_disk(const VmfGuestDisk *disk, GError **error)
{
    VmfDisk *own = disk->ops.disk ? disk->ops.disk(disk->opaque) : NULL;
    VmfDiskInfo info = {.size = sizeof(info)};

    if (!own) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "disk %s: copy: its VMM does not let it be read",
                    disk->name);
        return false;
    }
    vmf_disk_get_info(own, &info);
    if (info.acquired)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "disk %s: copy: it is not in use here", disk->name);
    return false;
}

static bool add_disk(VmfDiskSource *source, uint32_t index, const VmfGuestDisk *guest_disk, GError **error)
{
    VmfDiskSourceOne *one = &source->disks[source->n_disks];

    if (!check_disk(guest_disk, error))
        return false;
    if (source->bitmap &&
        !vmf_bitmaps_check_base(vmf_disk_bitmap_set(guest_disk->ops.disk(guest_disk->opaque)), source->bitmap, error))
        return false;
    source->indexes[source->n_disks++] = index;
    one->disk = guest_disk->ops.disk(guest_disk->opaque);
    one->dirty = vmf_disk_dirty_new(vmf_disk_size(one->disk), error);
    return one->dirty && vmf_disk_proof_init(&one->proof, guest_disk->name, vmf_disk_size(one->disk), error);
}

static bool check_no_bitmap(const VmfDiskSource *source, GError **error)
{
    if (!source->bitmap)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "disks: bitmap %s: no disk is copied", source->bitmap);
    return false;
}

bool vmf_disk_source_choose(VmfDiskSource *source, VmfSession *session, GError **error)
{
    const char *wanted = session->parameters.copy_disks;
    VmfGuest *guest = session->guest;
    unsigned n = vmf_guest_n_disks(guest);

    if (session->parameters.incremental_bitmap && *session->parameters.incremental_bitmap)
        source->bitmap = session->parameters.incremental_bitmap;
    if (!wanted || !*wanted || strcmp(wanted, "none") == 0)
        return check_no_bitmap(source, error);
    g_auto(GStrv) names = g_strsplit(wanted, ",", -1);
    if (!check_names(guest, names, error))
        return false;
    source->disks = g_new0(VmfDiskSourceOne, n + 1);
    source->indexes = g_new0(uint32_t, n + 1);
    source->sums = g_new0(uint64_t, n + 1);
    source->answered = g_new0(uint64_t, n + 1);
    pthread_mutex_init(&source->order, NULL);
    for (unsigned i = 0; i < n; i++)
        if (is_named(names, vmf_guest_disk(guest, i)->name) && !add_disk(source, i, vmf_guest_disk(guest, i), error))
            return false;
    source->verify = session->parameters.verify_disks;
    source->may_mirror = session->parameters.mirror_disks;
    if (source->n_disks > 0)
        source->ahead = vmf_read_ahead_new(BUFFERS, error);
    return source->n_disks == 0 || source->ahead;
}

static void untrack(VmfDiskSource *source)
{
    for (unsigned i = 0; i < source->n_disks; i++) {
        VmfDiskSourceOne *one = &source->disks[i];
        if (one->tracked)
            vmf_disk_untrack(one->disk, one->dirty);
        one->tracked = false;
    }
}

void vmf_disk_source_clear(VmfDiskSource *source)
{
    untrack(source);
    g_clear_pointer(&source->ahead, vmf_read_ahead_free);
    for (unsigned i = 0; i < source->n_disks; i++) {
        vmf_disk_proof_clear(&source->disks[i].proof);
        g_clear_pointer(&source->disks[i].dirty, vmf_disk_dirty_free);
    }
    if (source->disks)
        pthread_mutex_destroy(&source->order);
    g_clear_pointer(&source->disks, g_free);
    g_clear_pointer(&source->indexes, g_free);
    g_clear_pointer(&source->sums, g_free);
    g_clear_pointer(&source->answered, g_free);
    source->n_disks = 0;
}

bool vmf_disk_source_has(const VmfDiskSource *source, const char *name)
{
    for (unsigned i = 0; i < source->n_disks; i++)
        if (strcmp(source->disks[i].proof.name, name) == 0)
            return true;
    return false;
}

/* ---- sending ----------------------------------------------------------------------------------------------------- */

/* @data NULL: zeros. All of it is of one kind, and named before or not. */
static bool send_extent(VmfDiskSource *source, unsigned i, VmfRecordWriter *writer, uint64_t offset,
                        const uint8_t *data, uint64_t length, bool first, GError **error)
{
    VmfWireExtent extent = {
        .disk = source->indexes[i],
        .flags = (first ? VMF_EXTENT_FIRST : 0) | (data ? 0 : VMF_EXTENT_IS_ZERO),
        .offset = offset,
        .length = length,
    };

    vmf_disk_proof_set(&source->disks[i].proof, offset, data, length);
    source->sent_bytes += data ? length : 0;
    source->zero_bytes += data ? 0 : length;
    source->unsynced_bytes += data ? length : 0;
    if (source->place_ops)
        return source->place_ops->put(source->place, i, offset, data, length, first, error);
    return vmf_record_write_extent(writer, &extent, data, data ? length : 0, error);
}

/* Splits what may have been named in part. */
static bool send_range(VmfDiskSource *source, unsigned i, VmfRecordWriter *writer, uint64_t offset, const uint8_t *data,
                       uint64_t length, GError **error)
{
    const VmfDiskProof *proof = &source->disks[i].proof;
    uint64_t end = offset + length;

    for (uint64_t at = offset; at < end;) {
        uint64_t granule = at / VMF_GRANULE_BYTES, left = (end - at + VMF_GRANULE_BYTES - 1) / VMF_GRANULE_BYTES;
        bool first;
        uint64_t n = vmf_disk_proof_run(proof, granule, MIN(left, VMF_EXTENT_ZERO_MAX / VMF_GRANULE_BYTES), &first);
        uint64_t bytes = MIN(n * VMF_GRANULE_BYTES, end - at);
        if (!send_extent(source, i, writer, at, data ? data + (at - offset) : NULL, bytes, first, error))
            return false;
        at += bytes;
    }
    return true;
}

/* Of what was read, runs of zeros and runs of data. */
static bool send_piece(VmfDiskSource *source, const VmfReadPiece *piece, VmfRecordWriter *writer, GError **error)
{
    const VmfDiskProof *proof = &source->disks[piece->tag].proof;
    uint64_t begin = 0, at = 0;
    bool zero = false;

    if (piece->error) {
        g_propagate_error(error, g_error_copy(piece->error));
        return false;
    }
    for (; at < piece->length; at += VMF_GRANULE_BYTES) {
        bool here = vmf_disk_proof_is_zero(proof, piece->data + at, MIN(VMF_GRANULE_BYTES, piece->length - at));
        if (here != zero && at > begin) {
            if (!send_range(source, piece->tag, writer, piece->offset + begin, zero ? NULL : piece->data + begin,
                            at - begin, error))
                return false;
            begin = at;
        }
        zero = here;
    }
    return send_range(source, piece->tag, writer, piece->offset + begin, zero ? NULL : piece->data + begin,
                      piece->length - begin, error);
}

/* ---- a pass ------------------------------------------------------------------------------------------------------ */

static void watch_latency(VmfDiskSource *source, uint64_t goal_ns)
{
    vmf_disk_pace_init(&source->pace, goal_ns > 0, BUFFERS, RUN_GRANULES);
    source->depth = source->pace.depth;
    for (unsigned i = 0; i < source->n_disks; i++)
        vmf_disk_watch_latency(source->disks[i].disk, goal_ns, &source->copied_ns);
}

/* Between two reads. */
static void keep_pace(VmfDiskSource *source)
{
    uint64_t n = 0, n_late = 0;
    int64_t now = vmf_now_ns();

    if (!source->pace.on)
        return;
    if (vmf_read_ahead_under_way(source->ahead) == 0)
        source->copied_ns = now;
    if (now - source->paced_ns >= VMF_DISK_PACE_WINDOW_NS) {
        for (unsigned i = 0; i < source->n_disks; i++) {
            uint64_t of_disk, late;
            vmf_disk_take_latency(source->disks[i].disk, &of_disk, &late);
            n += of_disk;
            n_late += late;
        }
        vmf_disk_pace_look(&source->pace, n, n_late);
        source->paced_ns = now;
        source->depth = source->pace.depth;
    }
    if (source->pace.pause_ns > 0)
        g_usleep(source->pace.pause_ns / 1000);
}

bool vmf_disk_source_has_room(const VmfDiskSource *source)
{
    return vmf_read_ahead_under_way(source->ahead) < source->pace.depth;
}

/* Begins the next read of the pass. False: it has come to its end. */
static bool read_next(VmfDiskSource *source)
{
    while (source->at < source->n_disks) {
        VmfDiskSourceOne *one = &source->disks[source->at];
        uint64_t granule, n = vmf_disk_dirty_take(one->dirty, one->at, source->pace.granules, &granule);
        if (n > 0) {
            uint64_t offset = granule * VMF_GRANULE_BYTES,
                     length = MIN(n * VMF_GRANULE_BYTES, one->proof.size - offset);
            vmf_disk_tee_exclude(one->disk, offset, length);
            source->copied_ns = INT64_MAX;
            vmf_read_ahead_begin(source->ahead, one->disk, source->at, offset, length);
            one->at = granule + n;
            return true;
        }
        one->at = 0;
        source->at++;
    }
    return false;
}

static bool check_alive(void *opaque, GError **error)
{
    VmfDiskSource *source = opaque;

    return vmf_session_check_cancelled(source->session, error);
}

bool vmf_disk_source_between_reads(VmfDiskSource *source, GError **error)
{
    keep_pace(source);
    return check_alive(source, error);
}

/*
 * Goes on with the pass until it ends (then the next one begins anew), or until no more than @leave_bytes are pending.
 * What was begun to be read is sent in either case.
 */
static bool send_pass(VmfDiskSource *source, VmfSaveStream *stream, uint64_t leave_bytes, GError **error)
{
    const VmfReadPiece *piece = NULL;
    int64_t begin_ns = vmf_now_ns();
    bool good = true, more = true;

    for (unsigned n = 0; n == 0 || piece; n++) {
        more =
            more && !(leave_bytes > 0 && n % LOOK_EVERY == 0 && vmf_disk_source_pending_bytes(source) <= leave_bytes);
        while (good && more && vmf_disk_source_has_room(source)) {
            more = read_next(source);
            source->under_way_bytes = vmf_read_ahead_pending(source->ahead);
        }
        piece = vmf_read_ahead_next(source->ahead);
        if (piece) {
            good = good && send_piece(source, piece, stream->writer, error) && check_alive(source, error);
            vmf_disk_tee_include(piece->disk, piece->offset, piece->length);
            vmf_read_ahead_give_back(source->ahead);
            keep_pace(source);
            source->under_way_bytes = vmf_read_ahead_pending(source->ahead);
        }
    }
    if (source->at == source->n_disks)
        source->at = 0;
    source->pass_ns += (uint64_t)(vmf_now_ns() - begin_ns);
    return good && vmf_record_flush(stream->writer, error);
}

/* ---- what the bulk pass is to send ------------------------------------------------------------------------------- */

/* The granules that lie in a hole as a whole are zeros, and said so at once; they are never read. */
static bool send_hole(VmfDiskSource *source, unsigned i, VmfSaveStream *stream, uint64_t begin, uint64_t end,
                      GError **error)
{
    const VmfDiskSourceOne *one = &source->disks[i];

    begin = (begin + VMF_GRANULE_BYTES - 1) / VMF_GRANULE_BYTES * VMF_GRANULE_BYTES;
    if (end < one->proof.size)
        end = end / VMF_GRANULE_BYTES * VMF_GRANULE_BYTES;
    return begin >= end || send_range(source, i, stream->writer, begin, NULL, end - begin, error);
}

/* Marks what is allocated, and sends the rest as zeros. Extents of one kind may come in pieces. */
static bool look_for_extents(VmfDiskSource *source, unsigned i, VmfSaveStream *stream, GError **error)
{
    VmfDiskSourceOne *one = &source->disks[i];
    uint64_t hole = 0, at = 0, length;
    VmfExtentKind kind;

    while (at < one->proof.size) {
        if (!check_alive(source, error) || !vmf_disk_extent(one->disk, at, one->proof.size - at, &kind, &length, error))
            return false;
        if (kind == VMF_EXTENT_DATA) {
            if (!send_hole(source, i, stream, hole, at, error))
                return false;
            vmf_disk_dirty_mark(one->dirty, at, length);
            hole = at + length;
        }
        at += length;
    }
    return send_hole(source, i, stream, hole, at, error);
}

/* Tracked already: what comes after a bit was read is known from that. */
static bool mark_dirty_since_base(const VmfDiskSource *source, unsigned i, GError **error)
{
    const VmfDiskSourceOne *one = &source->disks[i];
    VmfBitmaps *set = vmf_disk_bitmap_set(one->disk);
    uint64_t at = 0, length = 1;

    for (uint64_t from = 0; length > 0; from = at + length) {
        if (!vmf_disk_next_dirty(one->disk, source->bitmap, from, &at, &length, error))
            return false;
        vmf_disk_dirty_mark(one->dirty, at, length);
    }
    return vmf_bitmaps_check_base(set, source->bitmap, error); /* still: a backup takes away what it has */
}

static bool compare_bases(VmfDiskSource *source, VmfSaveStream *stream, GError **error)
{
    for (unsigned i = 0; source->bitmap && i < source->n_disks; i++)
        if (!vmf_disk_base_tell(source, i, stream, error))
            return false;
    return true;
}

/* ---- DISK_SYNC --------------------------------------------------------------------------------------------------- */

/* The order held. */
static bool ask_in_order(VmfDiskSource *source, VmfSaveStream *stream, uint32_t flags, GError **error)
{
    VmfSession *session = source->session;
    VmfDiskSync message = {.flags = flags, .n_disks = source->n_disks, .disks = source->indexes, .sums = source->sums};

    pthread_mutex_lock(&session->lock);
    for (unsigned i = 0; i < source->n_disks; i++)
        source->sums[i] = vmf_disk_proof_sum(&source->disks[i].proof);
    message.cookie = ++source->cookie;
    source->waiting = source->two_way;
    source->compare_later = flags & VMF_DISK_SYNC_VERIFY;
    source->asked_ns = vmf_now_ns();
    pthread_mutex_unlock(&session->lock);
    if (!source->two_way)
        source->unsynced_bytes = 0;
    if (source->place_ops)
        return source->place_ops->flush(source->place, error);
    return vmf_disk_sync_send(stream->writer, VMF_RECORD_DISK_SYNC, &message, error);
}

static bool ask(VmfDiskSource *source, VmfSaveStream *stream, uint32_t flags, GError **error)
{
    pthread_mutex_lock(&source->order);
    bool asked = ask_in_order(source, stream, flags, error);
    pthread_mutex_unlock(&source->order);
    return asked;
}

/* False: cancelled, or the target will not answer; then the return path knows why. */
static bool await_answer(VmfDiskSource *source, GError **error)
{
    VmfSession *session = source->session;

    pthread_mutex_lock(&session->lock);
    while (source->waiting && !source->gone && !session->expiry && !vmf_session_is_cancelled(session))
        vmf_session_wait_locked(session, vmf_now_ns() + VMF_NS_PER_S);
    bool answered = !source->waiting;
    pthread_mutex_unlock(&session->lock);
    if (answered)
        return vmf_session_check_cancelled(session, error);
    if (vmf_session_check_cancelled(session, error))
        g_set_error(error, VMF_ERROR, VMF_ERROR_CUT, "target: disks: the connection ended");
    return false;
}

/* Lock held. */
static const VmfDiskProof *find_damaged(const VmfDiskSource *source, const uint64_t *theirs)
{
    for (unsigned i = 0; i < source->n_disks; i++)
        if (theirs[i] != source->sums[i])
            return &source->disks[i].proof;
    return NULL;
}

static bool is_damaged(const VmfDiskProof *damaged, GError **error)
{
    if (damaged)
        g_set_error(error, VMF_ERROR, VMF_ERROR_DISK_SUM, "target: disk %s: its sum differs", damaged->name);
    return damaged != NULL;
}

static bool take_synced(VmfDiskSource *source, const VmfRecord *record, bool swap, GError **error)
{
    const VmfDiskProof *damaged = NULL;
    VmfDiskSync message;

    if (!vmf_disk_sync_decode(record, swap, source->n_disks, source->indexes, &message, error))
        return false;
    pthread_mutex_lock(&source->session->lock);
    bool due = source->waiting && message.cookie == source->cookie;
    if (due && source->compare_later)
        memcpy(source->answered, message.sums, source->n_disks * sizeof(message.sums[0]));
    else if (due)
        damaged = find_damaged(source, message.sums);
    if (due && !damaged) {
        source->waiting = false;
        source->unsynced_bytes = 0;
        source->sync_ns = (uint64_t)(vmf_now_ns() - source->asked_ns);
        pthread_cond_broadcast(&source->session->changed);
    }
    pthread_mutex_unlock(&source->session->lock);
    vmf_disk_sync_clear(&message);
    if (!due)
        vmf_record_set_order_error(error, record->type, "without a DISK_SYNC that it answers");
    return due && !is_damaged(damaged, error);
}

/* What the mirror was let go of may be answered still. */
static bool take_mirrored(VmfDiskSource *source, const VmfRecord *record, bool swap, GError **error)
{
    uint64_t number;

    if (!vmf_u64_decode(record, swap, &number, error))
        return false;
    pthread_mutex_lock(&source->session->lock);
    bool due = number < source->n_mirrored && (!source->mirror || vmf_disk_mirror_arrived(source->mirror, number));
    pthread_mutex_unlock(&source->session->lock);
    if (!due)
        vmf_record_set_order_error(error, record->type, "of what was not mirrored");
    return due;
}

static bool take_answer(void *opaque, const VmfRecord *record, bool swap, bool *taken, GError **error)
{
    *taken = record->type == VMF_RECORD_DISK_SYNCED || record->type == VMF_RECORD_MIRRORED;
    if (record->type == VMF_RECORD_MIRRORED)
        return take_mirrored(opaque, record, swap, error);
    return !*taken || take_synced(opaque, record, swap, error);
}

static void lost(void *opaque)
{
    VmfDiskSource *source = opaque;

    pthread_mutex_lock(&source->session->lock);
    source->gone = true;
    if (source->mirror)
        vmf_disk_mirror_let_go(source->mirror);
    pthread_cond_broadcast(&source->session->changed);
    pthread_mutex_unlock(&source->session->lock);
}

/* The answer to the last DISK_SYNC comes ahead of READY, or never. */
static bool proven(void *opaque, GError **error)
{
    VmfDiskSource *source = opaque;

    pthread_mutex_lock(&source->session->lock);
    bool waiting = source->waiting;
    pthread_mutex_unlock(&source->session->lock);
    if (waiting)
        vmf_record_set_order_error(error, VMF_RECORD_READY, "ahead of DISK_SYNCED");
    return !waiting;
}

/* ---- verifying --------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfDiskSource *source;
    VmfRecordWriter *writer;
    int64_t said_ns;
} Verifying;

/* A target gives up a source that says nothing for long. */
static bool stay_in_touch(void *opaque, GError **error)
{
    Verifying *verifying = opaque;
    int64_t now = vmf_now_ns();

    if (!check_alive(verifying->source, error))
        return false;
    if (!verifying->source->two_way || now - verifying->said_ns < IN_TOUCH_NS)
        return true;
    verifying->said_ns = now;
    return vmf_u64_send(verifying->writer, VMF_RECORD_PING, (uint64_t)now, error);
}

/* Of granules in which something was mirrored only now both sides know the digests. */
static bool compare_sums(VmfDiskSource *source, GError **error)
{
    pthread_mutex_lock(&source->session->lock);
    for (unsigned i = 0; i < source->n_disks; i++)
        source->sums[i] = vmf_disk_proof_sum(&source->disks[i].proof);
    const VmfDiskProof *damaged = source->two_way ? find_damaged(source, source->answered) : NULL;
    pthread_mutex_unlock(&source->session->lock);
    return !is_damaged(damaged, error);
}

static bool verify(VmfDiskSource *source, VmfSaveStream *stream, GError **error)
{
    Verifying verifying = {source, stream->writer, vmf_now_ns()};

    for (unsigned i = 0; i < source->n_disks; i++)
        if (!vmf_disk_proof_audit(&source->disks[i].proof, source->disks[i].disk, source->ahead, stay_in_touch,
                                  &verifying, error))
            return false;
    return true;
}

/* ---- handlers ---------------------------------------------------------------------------------------------------- */

static bool disks_setup(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfDiskSource *source = opaque;

    source->two_way = !stream->writer->format.one_way;
    watch_latency(source, source->session->parameters.disk_latency_goal_ns);
    for (unsigned i = 0; i < source->n_disks; i++) {
        VmfDiskSourceOne *one = &source->disks[i];
        vmf_disk_track(one->disk, one->dirty);
        one->tracked = true;
        source->total_bytes += one->proof.size;
        if (!(source->bitmap ? mark_dirty_since_base(source, i, error) : look_for_extents(source, i, stream, error)))
            return false;
    }
    return vmf_record_flush(stream->writer, error);
}

static bool disks_ahead(void *opaque, VmfSaveStream *stream, uint64_t leave_bytes, GError **error)
{
    return compare_bases(opaque, stream, error) && send_pass(opaque, stream, leave_bytes, error);
}

static void set_mirror(VmfDiskSource *source, VmfDiskMirror *mirror)
{
    pthread_mutex_lock(&source->session->lock);
    source->mirror = mirror;
    pthread_mutex_unlock(&source->session->lock);
}

/* A pass, and it is written at the target. */
static bool send_turn(VmfDiskSource *source, VmfSaveStream *stream, GError **error)
{
    return send_pass(source, stream, 0, error) && ask(source, stream, VMF_DISK_SYNC_WRITTEN, error) &&
           await_answer(source, error);
}

/* What was under way when it began makes another pass necessary, and nothing else does. */
static bool catch_up(VmfDiskSource *source, VmfSaveStream *stream, GError **error)
{
    while (vmf_disk_mirror_is_on(source->mirror) && vmf_disk_source_pending_bytes(source) > 0)
        if (!send_turn(source, stream, error))
            return false;
    if (!vmf_disk_mirror_is_on(source->mirror))
        return true;
    vmf_disk_mirror_caught_up(source->mirror);
    vmf_session_event(source->session, "disk.mirror", "the guest's writes go to both ends");
    return true;
}

/* After the bulk pass. Without a mirror it goes on in rounds. */
static bool begin_to_mirror(VmfDiskSource *source, VmfSaveStream *stream, GError **error)
{
    g_autoptr(GError) why = NULL;

    if (!source->may_mirror || !source->two_way)
        return true;
    source->may_mirror = false;
    if (!await_answer(source, error))
        return false;
    set_mirror(source, vmf_disk_mirror_start(source, stream, &why));
    if (source->mirror)
        return catch_up(source, stream, error);
    vmf_session_event(source->session, "disk.mirror-ended", "%s", why->message);
    return true;
}

static bool end_mirror(VmfDiskSource *source, GError **error)
{
    VmfDiskMirror *mirror = source->mirror;

    if (!mirror)
        return true;
    set_mirror(source, NULL);
    source->mirrored_writes += vmf_disk_mirror_writes(mirror);
    return vmf_disk_mirror_end(mirror, error);
}

static bool rounds_again(VmfDiskSource *source, GError **error)
{
    vmf_session_event(source->session, "disk.mirror-ended",
                      "the target does not keep up: what the guest writes is sent in rounds again");
    return end_mirror(source, error);
}

/* A round of nothing would only make the target sync again. That is done where the forecast rests on how long it took once, and it may have
 * been busy then. */
static bool has_nothing_to_ask(const VmfDiskSource *source)
{
    return vmf_disk_source_pending_bytes(source) == 0 && source->cookie > 0 &&
           (!source->two_way || source->sync_ns < source->session->downtime_limit_ns / 2 || vmf_now_ns() - source->asked_ns < ASK_AGAIN_NS);
}

static bool disks_iterate(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfDiskSource *source = opaque;

    if (source->mirror && vmf_disk_mirror_is_on(source->mirror))
        return vmf_disk_source_pending_bytes(source) > 0 ? send_turn(source, stream, error) : check_alive(source, error);
    if (source->mirror && !rounds_again(source, error))
        return false;
    if (has_nothing_to_ask(source))
        return begin_to_mirror(source, stream, error);
    return send_pass(source, stream, 0, error) && await_answer(source, error) && ask(source, stream, 0, error) &&
           begin_to_mirror(source, stream, error);
}

bool vmf_disk_source_waits(const VmfDiskSource *source)
{
    return source->unsynced_bytes > 0 && source->session->stop_allowance_ns == 0;
}

void vmf_disk_source_look(VmfDiskSource *source, int64_t now_ns)
{
    pthread_mutex_lock(&source->session->lock);
    if (source->mirror)
        vmf_disk_mirror_look(source->mirror, now_ns);
    pthread_mutex_unlock(&source->session->lock);
}

/* The guest stands: nothing of it waits any more, and nothing is to wait for it. */
static bool disks_quiesce(void *opaque, GError **error)
{
    bool ended = end_mirror(opaque, error);

    watch_latency(opaque, 0);
    return ended;
}

uint64_t vmf_disk_source_pending_bytes(const VmfDiskSource *source)
{
    uint64_t bytes = source->under_way_bytes;

    for (unsigned i = 0; i < source->n_disks; i++)
        bytes += vmf_disk_dirty_count(source->disks[i].dirty) * VMF_GRANULE_BYTES;
    return bytes;
}

/* Storage has a rate of its own, which may be far below that of the channel, and syncing takes its time whatever there
 * is. */
static void disks_pending_estimate(void *opaque, VmfPending *pending)
{
    VmfDiskSource *source = opaque;
    uint64_t bytes = vmf_disk_source_pending_bytes(source) + source->unsynced_bytes, sent = source->sent_bytes;

    pending->precopy_bytes += bytes;
    pending->state_ns += source->sync_ns;
    if (sent > 0)
        pending->state_ns += (uint64_t)((double)bytes * (double)source->pass_ns / (double)sent);
}

/* What is on its way is on the target's storage first: only then it is known how much is left. */
static bool disks_pending_exact(void *opaque, VmfPending *pending, GError **error)
{
    VmfDiskSource *source = opaque;

    if (!await_answer(source, error))
        return false;
    disks_pending_estimate(source, pending);
    return true;
}

static bool disks_complete(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfDiskSource *source = opaque;
    uint32_t flags = VMF_DISK_SYNC_LAST | (source->verify ? VMF_DISK_SYNC_VERIFY : 0);

    if (source->verify)
        source->session->stop_allowance_ns =
            (int64_t)(source->total_bytes * (uint64_t)VMF_NS_PER_S / VERIFY_BYTES_PER_SECOND);
    return send_pass(source, stream, 0, error) && await_answer(source, error) && ask(source, stream, flags, error) &&
           (!source->verify ||
            (verify(source, stream, error) && await_answer(source, error) && compare_sums(source, error)));
}

static void disks_cleanup(void *opaque)
{
    VmfDiskSource *source = opaque;

    end_mirror(source, NULL);
    for (unsigned i = 0; i < source->n_disks; i++)
        vmf_disk_watch_latency(source->disks[i].disk, 0, NULL);
    untrack(source);
}

VmfOwner vmf_disk_source_owner(VmfDiskSource *source)
{
    static const VmfSaveHandlers handlers = {
        .size = sizeof(VmfSaveHandlers),
        .save_setup = disks_setup,
        .save_ahead = disks_ahead,
        .save_iterate = disks_iterate,
        .pending_estimate = disks_pending_estimate,
        .pending_exact = disks_pending_exact,
        .quiesce = disks_quiesce,
        .save_complete = disks_complete,
        .save_cleanup = disks_cleanup,
    };
    static const VmfOwnRecords records = {.answer = take_answer, .lost = lost, .proven = proven};

    return (VmfOwner){.name = "disks",
                      .handlers = &handlers,
                      .records = &records,
                      .opaque = source,
                      .downtime = offsetof(VmfStatistics, downtime_disk_ns)};
}

void vmf_disk_source_gather(const VmfDiskSource *source, VmfStatistics *statistics)
{
    statistics->disk_total_bytes = source->total_bytes;
    statistics->disk_depth = source->depth;
    statistics->disk_mirrored_writes =
        source->mirrored_writes + (source->mirror ? vmf_disk_mirror_writes(source->mirror) : 0);
    statistics->disk_sent_bytes = source->sent_bytes;
    statistics->disk_zero_bytes = source->zero_bytes;
    statistics->disk_base_bytes = source->base_bytes;
    statistics->disk_remaining_bytes = vmf_disk_source_pending_bytes(source) + source->unsynced_bytes;
}
