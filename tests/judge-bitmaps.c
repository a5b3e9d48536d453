/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the engine makes of dirty bitmaps that others wrote, for tests that ask another reader too. Each line of stdin is a question,
 * its words separated by tabs; each is answered with one line of JSON.
 *
 *   file PATH DISK_BYTES     a file of bitmaps: null if nothing in it counts, else {"regions": REGIONS WITH AN INTENT, "bitmaps": [[NAME,
 *                            GRANULARITY, RECORDS, SOUND, [[OFFSET, LENGTH], ...]], ...]}; the runs are those in the file, in octets
 *   section PATH             what a stream says of the disks of the golden streams: null if it is refused, else such a list of bitmaps,
 *                            each with its disk ahead; they are removed then
 *
 * Runs are those of bitmaps that are sound. There are at most 64 of any list.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <vmferry/bitmap-mover.h>
#include <vmferry/block.h>

#include "block/bitmap-file.h"

#define LISTED_MAX 64u
#define PART 1000u /* of a section that is given at once */

static const char *boolean(bool value)
{
    return value ? "true" : "false";
}

static void say_run(uint64_t offset, uint64_t length, unsigned n)
{
    printf("%s[%" G_GUINT64_FORMAT ", %" G_GUINT64_FORMAT "]", n ? ", " : "", offset, length);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static void say_bitmap(const VmfBitmap *bitmap)
{
    uint64_t offset, length, from = 0;

    printf("[\"%s\", %u, %s, %s, [", bitmap->name, bitmap->granularity_bytes, boolean(bitmap->recording),
           boolean(!bitmap->problem));
    for (unsigned n = 0; n < LISTED_MAX && !bitmap->problem && vmf_bitmap_next(bitmap, from, &offset, &length); n++) {
        say_run(offset, length, n);
        from = offset + length;
    }
    printf("]]");
}

static void say_regions(const VmfBitmapHeader *header, const uint64_t *intents)
{
    printf("{\"regions\": [");
    for (uint32_t r = 0, n = 0; r < header->n_regions && n < LISTED_MAX; r++)
        if (intents[r / 64] >> (r & 63) & 1)
            printf("%s%u", n++ ? ", " : "", r);
    printf("], \"bitmaps\": [");
}

static void judge_file(const char *path, uint64_t disk_bytes)
{
    const VmfStorageOptions options = {.mode = VMF_STORAGE_READ, .buffered = true, .backend = "threads"};
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autofree uint64_t *intents = g_new0(uint64_t, VMF_BITMAP_INTENT_PIECES_MAX * VMF_BITMAP_PIECE_WORDS);
    g_autoptr(GPtrArray) bitmaps = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_bitmap_free);
    VmfStorage *storage = vmf_storage_open(uri, &options, NULL);
    VmfBitmapHeader header;

    if (storage && vmf_bitmap_file_read(storage, disk_bytes, &header, intents, bitmaps, NULL)) {
        say_regions(&header, intents);
        for (guint i = 0; i < bitmaps->len; i++) {
            printf("%s", i ? ", " : "");
            say_bitmap(g_ptr_array_index(bitmaps, i));
        }
        printf("]}\n");
    } else {
        printf("null\n");
    }
    vmf_storage_free(storage);
}

/* ---- sections ---------------------------------------------------------------------------------------------------- */

static VmfDisk *open_disk(const char *path, const char *name, uint64_t bytes)
{
    g_autofree char *uri = g_strdup_printf("file:%s.%s", path, name);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = bytes, .buffered = true};
    g_autoptr(GError) error = NULL;
    VmfDisk *disk = vmf_disk_open(name, &options, &error);

    if (!disk || !vmf_disk_acquire(disk, &error))
        g_error("%s", error->message);
    return disk;
}

static void close_disk(const char *path, VmfDisk *disk)
{
    g_autofree char *file = g_strdup_printf("%s.%s", path, vmf_disk_name(disk)), *bitmaps = g_strconcat(file, ".bitmaps", NULL);

    vmf_disk_free(disk);
    unlink(file);
    unlink(bitmaps);
}

static bool load_section(VmfBitmapMover *mover, const char *path)
{
    g_autofree char *content = NULL;
    gsize length;

    if (!g_file_get_contents(path, &content, &length, NULL) || !vmf_bitmap_handlers.load_setup(mover, NULL))
        g_error("%s: cannot be loaded", path);
    for (gsize at = 0, n; at < length || at == 0; at += n) {
        n = MAX(MIN(length - at, PART), 1);
        if (!vmf_bitmap_handlers.load_state(mover, 1, (const uint8_t *)content + at, MIN(n, length - at), at + n >= length, NULL))
            return false;
    }
    return true;
}

static void say_arrived(VmfDisk *disk, const VmfBitmapInfo *info)
{
    uint64_t offset, length, from = 0;

    printf("[\"%s\", \"%s\", %u, %s, %s, %s, [", vmf_disk_name(disk), info->name, info->granularity_bytes, boolean(info->recording),
           boolean(info->persistent), boolean(!info->inconsistent));
    for (unsigned n = 0; n < LISTED_MAX && !info->inconsistent; n++) {
        if (!vmf_disk_next_dirty(disk, info->name, from, &offset, &length, NULL) || length == 0)
            break;
        say_run(offset, length, n);
        from = offset + length;
    }
    printf("]]");
}

static void say_disks(VmfDisk *const disks[2])
{
    g_autofree VmfBitmapInfo *infos = g_new0(VmfBitmapInfo, VMF_DISK_BITMAPS_MAX);
    unsigned said = 0;

    for (unsigned i = 0; i < VMF_DISK_BITMAPS_MAX; i++)
        infos[i].size = sizeof(infos[i]);
    printf("[");
    for (unsigned d = 0; d < 2; d++) {
        unsigned n = vmf_disk_list_bitmaps(disks[d], infos, VMF_DISK_BITMAPS_MAX);
        for (unsigned i = 0; i < n; i++) {
            printf("%s", said++ ? ", " : "");
            say_arrived(disks[d], &infos[i]);
        }
    }
    printf("]\n");
}

static void judge_section(const char *path)
{
    VmfDisk *disks[2] = {open_disk(path, "disk0", 5 * 65536 + 512), open_disk(path, "disk1", 1 << 20)};
    VmfBitmapMover *mover = vmf_bitmap_mover_new();

    for (unsigned d = 0; d < 2; d++)
        vmf_bitmap_mover_add_disk(mover, disks[d]);
    if (load_section(mover, path))
        say_disks(disks);
    else
        printf("null\n");
    vmf_bitmap_mover_free(mover);
    for (unsigned d = 0; d < 2; d++)
        close_disk(path, disks[d]);
}

int main(void)
{
    char *line = NULL;
    size_t size = 0;

    while (getline(&line, &size, stdin) > 0) {
        g_auto(GStrv) words = g_strsplit(g_strchomp(line), "\t", -1);

        if (strcmp(words[0], "file") == 0)
            judge_file(words[1], g_ascii_strtoull(words[2], NULL, 10));
        else
            judge_section(words[1]);
        fflush(stdout);
    }
    free(line);
    return 0;
}
