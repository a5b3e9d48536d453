/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/bitmap-set.h"

#include <string.h>
#include <vmferry/error.h>

#include "block/disk-private.h"

#define INTENT_AHEAD 8u /* regions, where a disk is written from one end to the other */

/* ---- the set ----------------------------------------------------------------------------------------------------- */

VmfBitmaps *vmf_bitmaps_new(const char *disk)
{
    VmfBitmaps *set = g_new0(VmfBitmaps, 1);
    pthread_condattr_t monotonic;

    set->disk = g_strdup(disk);
    set->lock_fd = -1;
    set->bitmaps = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_bitmap_free);
    pthread_mutex_init(&set->admin, NULL);
    pthread_mutex_init(&set->file, NULL);
    pthread_mutex_init(&set->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&set->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return set;
}

static void set_size(VmfBitmaps *set, uint64_t size_bytes)
{
    g_ptr_array_set_size(set->bitmaps, 0);
    g_clear_pointer(&set->under_way, g_free);
    g_clear_pointer(&set->touched, g_free);
    g_clear_pointer(&set->intents, g_free);
    set->header = (VmfBitmapHeader){0};
    set->size_bytes = size_bytes;
    if (!size_bytes)
        return;
    vmf_bitmap_header_init(&set->header, size_bytes);
    set->under_way = g_new0(uint32_t, set->header.n_regions);
    set->touched = g_new0(uint64_t, set->header.n_intent_pieces * VMF_BITMAP_PIECE_WORDS);
    set->intents = g_new0(uint64_t, set->header.n_intent_pieces * VMF_BITMAP_PIECE_WORDS);
}

void vmf_bitmaps_set_size(VmfBitmaps *set, uint64_t size_bytes)
{
    pthread_mutex_lock(&set->lock);
    if (size_bytes != set->size_bytes)
        set_size(set, size_bytes);
    pthread_mutex_unlock(&set->lock);
}

void vmf_bitmaps_free(VmfBitmaps *set)
{
    if (!set)
        return;
    pthread_cond_destroy(&set->wake);
    pthread_mutex_destroy(&set->lock);
    pthread_mutex_destroy(&set->file);
    pthread_mutex_destroy(&set->admin);
    g_free(set->intents);
    g_free(set->touched);
    g_free(set->under_way);
    if (set->staged)
        g_ptr_array_unref(set->staged);
    g_ptr_array_unref(set->bitmaps);
    g_free(set->problem);
    g_free(set->path);
    g_free(set->disk);
    g_free(set);
}

void vmf_bitmaps_set_wrap(VmfBitmaps *set, VmfBitmapsWrap wrap, void *opaque)
{
    set->wrap = wrap;
    set->wrap_opaque = opaque;
}

VmfBitmap *vmf_bitmaps_find(const VmfBitmaps *set, const char *name)
{
    for (guint i = 0; i < set->bitmaps->len; i++) {
        VmfBitmap *bitmap = g_ptr_array_index(set->bitmaps, i);

        if (strcmp(bitmap->name, name) == 0)
            return bitmap;
    }
    return NULL;
}

void vmf_bitmaps_set_records(VmfBitmaps *set)
{
    set->records = false;
    for (guint i = 0; i < set->bitmaps->len; i++) {
        const VmfBitmap *bitmap = g_ptr_array_index(set->bitmaps, i);

        set->records |= set->stores && bitmap->persistent && bitmap->recording;
    }
}

/* ---- marks: lock held -------------------------------------------------------------------------------------------- */

static bool test_bit(const uint64_t *words, uint64_t bit)
{
    return words[bit / 64] >> (bit & 63) & 1;
}

static void intend(VmfBitmaps *set, uint64_t region)
{
    if (test_bit(set->intents, region))
        return;
    set->intents[region / 64] |= 1ull << (region & 63);
    set->unsynced |= 1ull << region / 64 / VMF_BITMAP_PIECE_WORDS;
    atomic_store(&set->waits, true);
}
G_STATIC_ASSERT(VMF_BITMAP_INTENT_PIECES_MAX <= 64);

/* One who writes on where he was writing is expected to go on: that saves him syncs. */
static void intend_ahead(VmfBitmaps *set, uint64_t region)
{
    bool goes_on = region > 0 && test_bit(set->intents, region - 1);
    uint64_t end = MIN(region + (goes_on ? INTENT_AHEAD : 1), set->header.n_regions);

    if (test_bit(set->intents, region))
        return;
    for (; region < end; region++)
        intend(set, region);
}

static void mark_region(VmfBitmaps *set, uint64_t region, VmfBitmapsMoment moment)
{
    set->touched[region / 64] |= 1ull << (region & 63);
    if (set->records)
        intend_ahead(set, region);
    set->under_way[region] += moment == VMF_BITMAPS_BEGINS ? 1 : -1;
}

void vmf_bitmaps_mark(VmfBitmaps *set, uint64_t offset, uint64_t length, VmfBitmapsMoment moment)
{
    if (length == 0 || !set->size_bytes)
        return;
    pthread_mutex_lock(&set->lock);
    for (guint i = 0; i < set->bitmaps->len; i++) {
        VmfBitmap *bitmap = g_ptr_array_index(set->bitmaps, i);

        if (bitmap->recording)
            vmf_bitmap_set(bitmap, offset, length);
    }
    for (uint64_t r = offset / set->header.region_bytes; r <= (offset + length - 1) / set->header.region_bytes; r++)
        mark_region(set, r, moment);
    pthread_mutex_unlock(&set->lock);
}

/* ---- what people do with them ------------------------------------------------------------------------------------ */

static bool refuse(const VmfBitmaps *set, VmfErrorCode code, const char *name, const char *operation, const char *why,
                   GError **error)
{
    g_set_error(error, VMF_ERROR, code, "disk %s: bitmap %s: %s: %s", set->disk, name, operation, why);
    return false;
}

/* Lock held. */
static VmfBitmap *find(const VmfBitmaps *set, const char *name, const char *operation, GError **error)
{
    VmfBitmap *bitmap = vmf_bitmaps_find(set, name);

    if (!bitmap)
        refuse(set, VMF_ERROR_USAGE, name, operation, set->problem ? set->problem : "there is none of this name",
               error);
    return bitmap;
}

static VmfBitmap *find_idle(const VmfBitmaps *set, const char *name, const char *operation, GError **error)
{
    VmfBitmap *bitmap = find(set, name, operation, error);

    if (bitmap && bitmap->aside) {
        refuse(set, VMF_ERROR_STATE, name, operation, "a backup uses it", error);
        return NULL;
    }
    return bitmap;
}

static VmfBitmap *find_sound(const VmfBitmaps *set, const char *name, const char *operation, GError **error)
{
    VmfBitmap *bitmap = find(set, name, operation, error);

    if (bitmap && bitmap->problem) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_BITMAP, "disk %s: bitmap %s: %s: it is inconsistent: %s", set->disk,
                    name, operation, bitmap->problem);
        return NULL;
    }
    return bitmap;
}

static VmfBitmaps *admin_begin(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->bitmaps->admin);
    return disk->bitmaps;
}

static bool admin_end(VmfBitmaps *set, bool done)
{
    pthread_mutex_unlock(&set->admin);
    return done;
}

/* Admin held. */
static bool may_persist(const VmfBitmaps *set, const char *name, GError **error)
{
    if (!set->attached)
        return refuse(set, VMF_ERROR_STATE, name, "create", "the disk is released", error);
    if (!set->path && !set->early)
        return refuse(set, VMF_ERROR_USAGE, name, "create",
                      "it is to be said in which file a device's or an export's persistent bitmaps are", error);
    if (set->problem)
        return refuse(set, VMF_ERROR_BITMAP_FILE, name, "create", set->problem, error);
    return true;
}

/* Takes over @bitmap. */
static bool append(VmfBitmaps *set, VmfBitmap *bitmap, GError **error)
{
    const char *why = NULL;

    pthread_mutex_lock(&set->lock);
    if (vmf_bitmaps_find(set, bitmap->name))
        why = "there is one of this name";
    else if (set->bitmaps->len == VMF_DISK_BITMAPS_MAX)
        why = "a disk has at most 64";
    else
        g_ptr_array_add(set->bitmaps, bitmap);
    pthread_mutex_unlock(&set->lock);
    if (!why)
        return true;
    refuse(set, VMF_ERROR_USAGE, bitmap->name, "create", why, error);
    vmf_bitmap_free(bitmap);
    return false;
}

static void drop(VmfBitmaps *set, VmfBitmap *bitmap)
{
    pthread_mutex_lock(&set->lock);
    g_ptr_array_remove(set->bitmaps, bitmap);
    vmf_bitmaps_set_records(set);
    pthread_mutex_unlock(&set->lock);
}

static bool add(VmfBitmaps *set, const VmfBitmapOptions *own, GError **error)
{
    uint32_t granularity = own->granularity_bytes ? own->granularity_bytes : VMF_BITMAP_GRANULARITY_DEFAULT;
    VmfBitmap *bitmap;

    if (!set->size_bytes)
        return refuse(set, VMF_ERROR_STATE, own->name, "create", "the disk has not arrived", error);
    if (own->persistent && !may_persist(set, own->name, error))
        return false;
    bitmap = vmf_bitmap_new(own->name, set->size_bytes, granularity, error);
    if (!bitmap)
        return false;
    bitmap->recording = bitmap->file_records = !own->disabled;
    bitmap->persistent = own->persistent;
    if (!append(set, bitmap, error))
        return false;
    if (!own->persistent || vmf_bitmaps_rewrite(set, error))
        return true;
    drop(set, bitmap);
    return false;
}

bool vmf_disk_add_bitmap(VmfDisk *disk, const VmfBitmapOptions *options, GError **error)
{
    VmfBitmapOptions own = {0};

    memcpy(&own, options, MIN(options->size, sizeof(own)));
    VmfBitmaps *set = admin_begin(disk);
    return admin_end(set, add(set, &own, error));
}

/* It goes on recording until its file has forgotten it. */
static bool remove_one(VmfBitmaps *set, const char *name, GError **error)
{
    pthread_mutex_lock(&set->lock);
    VmfBitmap *bitmap = find_idle(set, name, "remove", error);
    bool was_persistent = bitmap && bitmap->persistent;
    if (bitmap)
        bitmap->persistent = false;
    pthread_mutex_unlock(&set->lock);
    if (!bitmap)
        return false;
    if (!was_persistent || vmf_bitmaps_rewrite(set, error)) {
        drop(set, bitmap);
        return true;
    }
    pthread_mutex_lock(&set->lock);
    bitmap->persistent = set->stores;
    pthread_mutex_unlock(&set->lock);
    return false;
}

bool vmf_disk_remove_bitmap(VmfDisk *disk, const char *name, GError **error)
{
    VmfBitmaps *set = admin_begin(disk);

    return admin_end(set, remove_one(set, name, error));
}

/* What its file has becomes less with the next cleaning: until then it says too much, which does no harm. */
static bool clear(VmfBitmaps *set, const char *name, GError **error)
{
    bool anew = false;

    pthread_mutex_lock(&set->lock);
    VmfBitmap *bitmap = find_idle(set, name, "clear", error);
    if (bitmap) {
        vmf_bitmap_clear(bitmap);
        anew = bitmap->problem && bitmap->persistent;
        g_clear_pointer(&bitmap->problem, g_free);
    }
    pthread_mutex_unlock(&set->lock);
    return bitmap && (!anew || vmf_bitmaps_rewrite(set, error));
}

bool vmf_disk_clear_bitmap(VmfDisk *disk, const char *name, GError **error)
{
    VmfBitmaps *set = admin_begin(disk);

    return admin_end(set, clear(set, name, error));
}

/* It records before its file says so, and until its file says no longer. */
static bool enable(VmfBitmaps *set, const char *name, bool wanted, GError **error)
{
    bool writes = false;

    pthread_mutex_lock(&set->lock);
    VmfBitmap *bitmap = find_idle(set, name, wanted ? "enable" : "disable", error);
    if (bitmap) {
        writes = bitmap->persistent && bitmap->recording != wanted;
        bitmap->recording |= wanted;
        bitmap->file_records = wanted;
    }
    pthread_mutex_unlock(&set->lock);
    if (!bitmap)
        return false;
    bool done = !writes || vmf_bitmaps_rewrite(set, error);
    pthread_mutex_lock(&set->lock);
    bitmap->recording = bitmap->file_records = done == wanted;
    vmf_bitmaps_set_records(set);
    pthread_mutex_unlock(&set->lock);
    return done;
}

bool vmf_disk_enable_bitmap(VmfDisk *disk, const char *name, bool wanted, GError **error)
{
    VmfBitmaps *set = admin_begin(disk);

    return admin_end(set, enable(set, name, wanted, error));
}

/* Lock held. All or nothing: sources are looked up first. */
static bool merge(VmfBitmaps *set, const char *target, const char *const *sources, unsigned n, bool *writes,
                  GError **error)
{
    VmfBitmap *bitmap = find_sound(set, target, "merge", error);

    if (!bitmap || !find_idle(set, target, "merge", error))
        return false;
    for (unsigned i = 0; i < n; i++)
        if (!find_sound(set, sources[i], "merge", error) || !find_idle(set, sources[i], "merge", error))
            return false;
    for (unsigned i = 0; i < n; i++)
        vmf_bitmap_merge(bitmap, vmf_bitmaps_find(set, sources[i]));
    *writes = bitmap->persistent;
    return true;
}

bool vmf_disk_merge_bitmaps(VmfDisk *disk, const char *target, const char *const *sources, unsigned n, GError **error)
{
    VmfBitmaps *set = admin_begin(disk);
    bool writes = false;

    pthread_mutex_lock(&set->lock);
    bool done = merge(set, target, sources, n, &writes, error);
    pthread_mutex_unlock(&set->lock);
    return admin_end(set, done && (!writes || vmf_bitmaps_clean(set, error)));
}

static bool are_within(const VmfBitmaps *set, const VmfBitmapExtent *extents, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t end;

        if (__builtin_add_overflow(extents[i].offset, extents[i].length, &end) || end > set->size_bytes)
            return false;
    }
    return true;
}

bool vmf_disk_set_bitmap(VmfDisk *disk, const char *name, const VmfBitmapExtent *extents, size_t n, GError **error)
{
    VmfBitmaps *set = admin_begin(disk);
    bool writes = false;

    if (!are_within(set, extents, n))
        return admin_end(set, refuse(set, VMF_ERROR_USAGE, name, "set", "it reaches past the disk's end", error));
    pthread_mutex_lock(&set->lock);
    VmfBitmap *bitmap = find_sound(set, name, "set", error);
    for (size_t i = 0; i < n && bitmap; i++)
        vmf_bitmap_set(bitmap, extents[i].offset, extents[i].length);
    writes = bitmap && bitmap->persistent;
    pthread_mutex_unlock(&set->lock);
    return admin_end(set, bitmap && (!writes || vmf_bitmaps_clean(set, error)));
}

/* ---- those that arrive ------------------------------------------------------------------------------------------- */

VmfBitmaps *vmf_disk_bitmap_set(VmfDisk *disk)
{
    return disk->bitmaps;
}

/* Lock held. @n_new: how many there are of names that are not here, with @bitmap. */
static bool may_come(const VmfBitmaps *set, const VmfBitmap *bitmap, unsigned *n_new, GError **error)
{
    const VmfBitmap *here = vmf_bitmaps_find(set, bitmap->name);

    *n_new += !here;
    if (bitmap->size_bytes != set->size_bytes)
        return refuse(set, VMF_ERROR_USAGE, bitmap->name, "arrive", "it is of a disk of another size", error);
    if (here && here->aside)
        return refuse(set, VMF_ERROR_STATE, bitmap->name, "arrive", "a backup uses the one that is here", error);
    if (!here && set->bitmaps->len + *n_new > VMF_DISK_BITMAPS_MAX)
        return refuse(set, VMF_ERROR_USAGE, bitmap->name, "arrive", "a disk has at most 64", error);
    return !bitmap->persistent || may_persist(set, bitmap->name, error);
}

/* All of them or none, so that those of a guest that does not come leave nothing here. */
static bool may_all_come(VmfBitmaps *set, GError **error)
{
    unsigned n_new = 0;
    bool may = true;

    pthread_mutex_lock(&set->lock);
    for (guint i = 0; i < set->staged->len && may; i++)
        may = may_come(set, g_ptr_array_index(set->staged, i), &n_new, error);
    pthread_mutex_unlock(&set->lock);
    return may;
}

/* Lock held. @bitmap comes beside those that are here, and has what one of its name had. */
static void put_in(VmfBitmaps *set, VmfBitmap *bitmap)
{
    VmfBitmap *here = vmf_bitmaps_find(set, bitmap->name);

    if (here) {
        vmf_bitmap_merge(bitmap, here);
        if (here->problem && !bitmap->problem)
            bitmap->problem = g_strdup(here->problem);
        bitmap->persistent |= here->persistent;
        g_ptr_array_remove(set->bitmaps, here);
    }
    g_ptr_array_add(set->bitmaps, bitmap);
}

/* Returns whether some of them are persistent. */
static bool put_all_in(VmfBitmaps *set)
{
    bool writes = false;

    pthread_mutex_lock(&set->lock);
    while (set->staged->len > 0) {
        VmfBitmap *bitmap = g_ptr_array_steal_index(set->staged, 0);

        put_in(set, bitmap);
        writes |= bitmap->persistent;
    }
    pthread_mutex_unlock(&set->lock);
    return writes;
}

bool vmf_bitmaps_install(VmfBitmaps *set, GError **error)
{
    if (!set->staged)
        return true;
    bool done = may_all_come(set, error) && (!put_all_in(set) || vmf_bitmaps_rewrite(set, error));
    g_clear_pointer(&set->staged, g_ptr_array_unref);
    return done;
}

bool vmf_bitmaps_stage(VmfBitmaps *set, GPtrArray *bitmaps, GError **error)
{
    pthread_mutex_lock(&set->admin);
    g_clear_pointer(&set->staged, g_ptr_array_unref);
    set->staged = bitmaps;
    return admin_end(set, !bitmaps || !set->attached || vmf_bitmaps_install(set, error));
}

/* ---- what they are ----------------------------------------------------------------------------------------------- */

static void describe(const VmfBitmap *bitmap, VmfBitmapInfo *info)
{
    VmfBitmapInfo own = {
        .size = MIN(info->size, sizeof(own)),
        .granularity_bytes = bitmap->granularity_bytes,
        .dirty_bytes = vmf_bitmap_count(bitmap) * bitmap->granularity_bytes,
        .recording = bitmap->recording,
        .persistent = bitmap->persistent,
        .busy = bitmap->aside != NULL,
        .inconsistent = bitmap->problem != NULL,
    };

    g_strlcpy(own.name, bitmap->name, sizeof(own.name));
    g_strlcpy(own.problem, bitmap->problem ? bitmap->problem : "", sizeof(own.problem));
    memcpy(info, &own, own.size);
}

unsigned vmf_disk_list_bitmaps(VmfDisk *disk, VmfBitmapInfo *infos, unsigned max)
{
    VmfBitmaps *set = disk->bitmaps;

    pthread_mutex_lock(&set->lock);
    for (guint i = 0; i < set->bitmaps->len && i < max; i++)
        describe(g_ptr_array_index(set->bitmaps, i), &infos[i]);
    unsigned n = set->bitmaps->len;
    pthread_mutex_unlock(&set->lock);
    return n;
}

bool vmf_disk_next_dirty(VmfDisk *disk, const char *name, uint64_t from, uint64_t *offset, uint64_t *length,
                         GError **error)
{
    VmfBitmaps *set = disk->bitmaps;

    *offset = *length = 0;
    pthread_mutex_lock(&set->lock);
    const VmfBitmap *bitmap = find_sound(set, name, "read", error);
    if (bitmap)
        vmf_bitmap_next(bitmap, from, offset, length);
    pthread_mutex_unlock(&set->lock);
    return bitmap != NULL;
}

char *vmf_disk_bitmaps_problem(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->bitmaps->lock);
    char *problem = g_strdup(disk->bitmaps->problem);
    pthread_mutex_unlock(&disk->bitmaps->lock);
    return problem;
}

/* ---- backups ----------------------------------------------------------------------------------------------------- */

bool vmf_bitmaps_check_source(VmfBitmaps *set, const char *name, GError **error)
{
    pthread_mutex_lock(&set->lock);
    bool good = find_sound(set, name, "backup", error) && find_idle(set, name, "backup", error);
    pthread_mutex_unlock(&set->lock);
    return good;
}

bool vmf_bitmaps_is_clean(VmfBitmaps *set, const char *name, uint64_t offset, uint64_t length)
{
    pthread_mutex_lock(&set->lock);
    const VmfBitmap *bitmap = vmf_bitmaps_find(set, name);
    bool clean = bitmap && bitmap->recording && !bitmap->problem && !bitmap->aside;
    for (uint64_t at = offset; clean && at < offset + length; at += bitmap->granularity_bytes)
        clean = !vmf_bitmap_is_set(bitmap, at);
    pthread_mutex_unlock(&set->lock);
    return clean;
}

bool vmf_bitmaps_check_base(VmfBitmaps *set, const char *name, GError **error)
{
    static const char operation[] = "copy what it has";

    pthread_mutex_lock(&set->lock);
    const VmfBitmap *bitmap = find_sound(set, name, operation, error);
    bool good = bitmap && find_idle(set, name, operation, error);
    if (good && !bitmap->recording)
        refuse(set, VMF_ERROR_STATE, name, operation, "it is disabled: what was written meanwhile is not in it", error);
    good = good && bitmap->recording;
    pthread_mutex_unlock(&set->lock);
    return good;
}

bool vmf_bitmaps_set_aside(VmfBitmaps *set, const char *name, GError **error)
{
    pthread_mutex_lock(&set->lock);
    VmfBitmap *bitmap = find_sound(set, name, "backup", error);
    bool done = bitmap && find_idle(set, name, "backup", error) && vmf_bitmap_set_aside(bitmap, error);
    pthread_mutex_unlock(&set->lock);
    return done;
}

bool vmf_bitmaps_next_aside(VmfBitmaps *set, const char *name, uint64_t from, uint64_t *offset, uint64_t *length)
{
    pthread_mutex_lock(&set->lock);
    const VmfBitmap *bitmap = vmf_bitmaps_find(set, name);
    bool found = bitmap && bitmap->aside;
    if (found) {
        VmfBitmap aside = *bitmap;

        aside.words = bitmap->aside;
        found = vmf_bitmap_next(&aside, from, offset, length);
    }
    pthread_mutex_unlock(&set->lock);
    return found;
}

/* It may have gone meanwhile: its disk was released, and its file has both. */
void vmf_bitmaps_end_aside(VmfBitmaps *set, const char *name, bool keep)
{
    pthread_mutex_lock(&set->lock);
    VmfBitmap *bitmap = vmf_bitmaps_find(set, name);
    if (bitmap && bitmap->aside)
        vmf_bitmap_end_aside(bitmap, keep);
    pthread_mutex_unlock(&set->lock);
}
