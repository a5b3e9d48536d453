/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files of dirty bitmaps: one is read, and where the disk is small also by a disk that is acquired with it and released again: then the
 * next one to acquire it finds the same.
 *
 * An input is u64 the size of the disk (little-endian), and the file. Its sums are right whatever they are (VMF_FUZZ_ANY_CRC).
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/bitmap.h>
#include <vmferry/error.h>

#include "block/bitmap-set.h"
#include "stream/storage-private.h"
#include "tests/fuzz/fuzz.h"

#define DISK_BYTES_MAX (UINT64_C(1) << 50)
#define PIECES_MAX 256u /* of all bitmaps of a file that is read and written on a disk */

/* ---- the storage: octets in memory ------------------------------------------------------------------------------- */

typedef struct {
    VmfStorage base;
    const uint8_t *data;
} FuzzStorage;

static void storage_free(VmfStorage *storage)
{
}

static bool storage_execute(VmfStorage *storage, VmfStorageRequest *request, GError **error)
{
    const uint8_t *at = ((const FuzzStorage *)storage)->data + request->offset;

    FUZZ_CHECK(request->kind == VMF_REQUEST_READ && request->offset + request->length <= vmf_storage_size(storage));
    for (unsigned i = 0; i < request->n_iov; i++) {
        memcpy(request->iov[i].iov_base, at, request->iov[i].iov_len);
        at += request->iov[i].iov_len;
    }
    return true;
}

static VmfStorage *storage_of(const uint8_t *data, size_t size)
{
    static const VmfStorageOps ops = {.free = storage_free, .execute = storage_execute};
    FuzzStorage *fuzz = g_new0(FuzzStorage, 1);

    fuzz->base = (VmfStorage){
        .ops = &ops, .name = g_strdup("fuzz"), .backend = "fuzz", .mode = VMF_STORAGE_READ, .alignment = 1};
    atomic_store(&fuzz->base.size, size);
    fuzz->data = data;
    return &fuzz->base;
}

/* ---- what was read ----------------------------------------------------------------------------------------------- */

static uint64_t check_bitmap(const VmfBitmap *bitmap, uint64_t disk_bytes)
{
    uint64_t offset, length, from = 0;

    FUZZ_CHECK(bitmap->size_bytes == disk_bytes && bitmap->persistent && bitmap->recording == bitmap->file_records);
    FUZZ_CHECK((bitmap->granularity_bytes & (bitmap->granularity_bytes - 1)) == 0 && *bitmap->name);
    FUZZ_CHECK(bitmap->n_granules == (disk_bytes - 1) / bitmap->granularity_bytes + 1);
    for (unsigned n = 0; n < 100 && vmf_bitmap_next(bitmap, from, &offset, &length); n++, from = offset + length)
        FUZZ_CHECK(offset >= from && length > 0 && length <= disk_bytes - offset);
    return bitmap->n_pieces;
}

/* How many sectors of bits there are; 0: the file is damaged as a whole. */
static uint64_t check_read(const uint8_t *data, size_t size, uint64_t disk_bytes)
{
    g_autoptr(GPtrArray) bitmaps = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_bitmap_free);
    static uint64_t intents[VMF_BITMAP_INTENT_PIECES_MAX * VMF_BITMAP_PIECE_WORDS];
    g_autoptr(GError) error = NULL;
    VmfStorage *storage = storage_of(data, size);
    VmfBitmapHeader header;
    uint64_t n_pieces = 0;

    bool done = vmf_bitmap_file_read(storage, disk_bytes, &header, intents, bitmaps, &error);
    FUZZ_CHECK(done == !error && (done || bitmaps->len == 0));
    for (guint i = 0; i < bitmaps->len; i++)
        n_pieces += check_bitmap(g_ptr_array_index(bitmaps, i), disk_bytes);
    if (done) {
        FUZZ_CHECK(header.disk_bytes == disk_bytes && header.n_bitmaps == bitmaps->len && bitmaps->len <= VMF_DISK_BITMAPS_MAX);
        FUZZ_CHECK(vmf_bitmap_file_bits(&header) + n_pieces <= size / VMF_BITMAP_SECTOR);
    }
    vmf_storage_free(storage);
    return done ? MAX(n_pieces, 1) : 0;
}

/* ---- by a disk --------------------------------------------------------------------------------------------------- */

typedef struct {
    unsigned n, n_inconsistent;
    uint64_t dirty_bytes; /* of those that are sound */
} Held;

static Held held_by(const VmfBitmaps *set)
{
    Held held = {.n = set->bitmaps->len};

    for (guint i = 0; i < set->bitmaps->len; i++) {
        const VmfBitmap *bitmap = g_ptr_array_index(set->bitmaps, i);

        FUZZ_CHECK(bitmap->persistent);
        held.n_inconsistent += bitmap->problem != NULL;
        held.dirty_bytes += bitmap->problem ? 0 : vmf_bitmap_count(bitmap) * bitmap->granularity_bytes;
    }
    return held;
}

/* A write meanwhile, so that the file is in use, and intents and bits are stored. */
static void use(VmfBitmaps *set, uint64_t disk_bytes)
{
    uint64_t length = MIN(disk_bytes, 512);

    vmf_bitmaps_mark(set, disk_bytes - length, length, VMF_BITMAPS_BEGINS);
    FUZZ_CHECK(vmf_bitmaps_commit(set, NULL));
    vmf_bitmaps_mark(set, disk_bytes - length, length, VMF_BITMAPS_ENDS);
}

static Held acquire(const char *path, uint64_t disk_bytes, bool writes)
{
    VmfBitmaps *set = vmf_bitmaps_new("fuzz");
    g_autoptr(GError) error = NULL;

    vmf_bitmaps_set_size(set, disk_bytes);
    bool done = vmf_bitmaps_attach(set, path, 1, &error);
    FUZZ_CHECK(done && !set->problem);
    if (writes)
        use(set, disk_bytes);
    Held held = held_by(set);
    vmf_bitmaps_detach(set, 1);
    vmf_bitmaps_free(set);
    return held;
}

static char *path;

static void remove_file(void)
{
    g_autofree char *directory = g_path_get_dirname(path);

    unlink(path);
    rmdir(directory);
}

static void make_path(void)
{
    g_autofree char *directory = g_build_filename(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : g_get_tmp_dir(), "vmf-fuzz-XXXXXX", NULL);

    if (!g_mkdtemp(directory))
        g_error("%s: cannot be made", directory);
    path = g_build_filename(directory, "bitmaps", NULL);
    atexit(remove_file);
}

static void check_disk(const uint8_t *data, size_t size, uint64_t disk_bytes)
{
    if (!path)
        make_path();
    if (!g_file_set_contents_full(path, (const char *)data, (gssize)size, G_FILE_SET_CONTENTS_NONE, 0600, NULL))
        g_error("%s: cannot be written", path);
    Held first = acquire(path, disk_bytes, data[size - 1] & 1), again = acquire(path, disk_bytes, false);
    FUZZ_CHECK(again.n == first.n && again.n_inconsistent == first.n_inconsistent && again.dirty_bytes == first.dirty_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t disk_bytes = 0;

    if (size < 8)
        return 0;
    for (unsigned i = 0; i < 8; i++)
        disk_bytes |= (uint64_t)data[i] << 8 * i;
    disk_bytes = disk_bytes % DISK_BYTES_MAX + 1;
    uint64_t n_pieces = check_read(data + 8, size - 8, disk_bytes);
    if (n_pieces > 0 && n_pieces <= PIECES_MAX)
        check_disk(data + 8, size - 8, disk_bytes);
    return 0;
}
