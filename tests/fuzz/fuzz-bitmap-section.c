/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The section dirty-bitmaps on its way in, into two disks that are acquired already, or one of them once all is there.
 *
 * An input is an octet of how it comes (bit 0: by a map, bit 1: what is unknown is left out, bit 2: the first disk is acquired late, bits 4
 * to 7: how it is cut), and the content.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/bitmap-mover.h>
#include <vmferry/block.h>
#include <vmferry/error.h>

#include "tests/fuzz/fuzz.h"

enum { BY_MAP = 1, SKIPS = 2, LATE = 4 };

#define DISK0_BYTES (5 * 65536u + 512)
#define DISK1_BYTES (1u << 20)

static char *directory;
static VmfDisk *disks[2];
static VmfBitmapMover *mover;

static void remove_disks(void)
{
    static const char *const names[] = {"disk0", "disk0.bitmaps", "disk1", "disk1.bitmaps"};

    vmf_bitmap_mover_free(mover);
    for (unsigned i = 0; i < 2; i++)
        vmf_disk_free(disks[i]);
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(directory, names[i], NULL);
        unlink(path);
    }
    rmdir(directory);
    g_free(directory);
}

static VmfDisk *open_disk(const char *name, uint64_t bytes)
{
    g_autofree char *uri = g_strdup_printf("file:%s/%s", directory, name);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = bytes, .buffered = true, .backend = "threads"};
    g_autoptr(GError) error = NULL;
    VmfDisk *disk = vmf_disk_open(name, &options, &error);

    if (!disk || !vmf_disk_acquire(disk, &error))
        g_error("%s", error->message);
    vmf_bitmap_mover_add_disk(mover, disk);
    return disk;
}

static void make_disks(void)
{
    directory = g_build_filename(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : g_get_tmp_dir(), "vmf-fuzz-XXXXXX", NULL);
    if (!g_mkdtemp(directory))
        g_error("%s: cannot be made", directory);
    mover = vmf_bitmap_mover_new();
    disks[0] = open_disk("disk0", DISK0_BYTES);
    disks[1] = open_disk("disk1", DISK1_BYTES);
    atexit(remove_disks);
}

static void set_map(uint8_t how)
{
    static const VmfBitmapAlias aliases[] = {{"here", "fine", VMF_BITMAP_PERSISTENCE_ON}, {"there", "daily", VMF_BITMAP_PERSISTENCE_OFF}};
    const VmfBitmapNode nodes[] = {{"disk0", "disk1", NULL, 0}, {"disk1", "disk0", aliases, G_N_ELEMENTS(aliases)}};
    VmfBitmapMap map = {.size = sizeof(map), .skip_unknown = how & SKIPS};

    if (how & BY_MAP) {
        map.nodes = nodes;
        map.n_nodes = G_N_ELEMENTS(nodes);
    }
    FUZZ_CHECK(vmf_bitmap_mover_set_map(mover, &map, NULL));
}

/* In parts of a copy each, so that a read beyond one is seen. */
static bool load(uint8_t how, const uint8_t *data, size_t size, GError **error)
{
    size_t part = 1 + ((size_t)1 << (how >> 4));
    bool good = vmf_bitmap_handlers.load_setup(mover, error);

    for (size_t at = 0, n; good && (at < size || at == 0); at += n) {
        n = MIN(part, size - at);
        g_autofree uint8_t *copy = g_memdup2(data + at, n);
        good = vmf_bitmap_handlers.load_state(mover, 1, copy, n, at + n >= size, error);
        if (n == 0)
            break;
    }
    return good;
}

static unsigned check_and_empty(VmfDisk *disk, uint64_t disk_bytes)
{
    static VmfBitmapInfo infos[VMF_DISK_BITMAPS_MAX];
    uint64_t offset, length;

    for (unsigned i = 0; i < VMF_DISK_BITMAPS_MAX; i++)
        infos[i].size = sizeof(infos[i]);
    unsigned n = vmf_disk_list_bitmaps(disk, infos, VMF_DISK_BITMAPS_MAX);
    FUZZ_CHECK(n <= VMF_DISK_BITMAPS_MAX);
    for (unsigned i = 0; i < n; i++) {
        FUZZ_CHECK(infos[i].dirty_bytes <= disk_bytes + infos[i].granularity_bytes && !infos[i].busy);
        if (vmf_disk_next_dirty(disk, infos[i].name, 0, &offset, &length, NULL))
            FUZZ_CHECK(offset <= disk_bytes && length <= disk_bytes - offset);
        else
            FUZZ_CHECK(infos[i].inconsistent);
        FUZZ_CHECK(vmf_disk_remove_bitmap(disk, infos[i].name, NULL));
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;

    if (size < 1)
        return 0;
    if (!mover)
        make_disks();
    set_map(data[0]);
    bool late = data[0] & LATE;
    FUZZ_CHECK(!late || vmf_disk_release(disks[0], NULL));
    bool done = load(data[0], data + 1, size - 1, &error);
    FUZZ_CHECK(done == !error);
    FUZZ_CHECK(done || error->code == VMF_ERROR_SECTION || error->code == VMF_ERROR_MEMORY || error->code == VMF_ERROR_USAGE);
    if (!done) /* the other way round it is said when the session ends */
        vmf_bitmap_handlers.load_cleanup(mover);
    FUZZ_CHECK(!late || vmf_disk_acquire(disks[0], NULL));
    if (done)
        vmf_bitmap_handlers.load_cleanup(mover);
    unsigned n = check_and_empty(disks[0], DISK0_BYTES) + check_and_empty(disks[1], DISK1_BYTES);
    FUZZ_CHECK(done || n == 0);
    return 0;
}
