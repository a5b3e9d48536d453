/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An image that is written over storage that reorders, loses and fails: the file is the memory, or there is no file.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/test-image-rig.h"
#include "ram/test-memory-storage.h"
#include "stream/storage-fault.h"

#define LANES_MAX 3
#define CAPACITY (16u << 20)
#define BLOCK_0_PAGES (3 * VMF_CHUNK_PAGES + 5)

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

typedef struct {
    ImageGuest *guest;
    MemoryStorage *storage;
    VmfImageWriter *writer;
    VmfPageSink lanes[LANES_MAX];
    unsigned n_lanes;
} World;

static World world_over(MemoryStorage *storage, bool layer, unsigned n_lanes)
{
    World world = {.guest = image_guest_new(layer), .storage = storage, .n_lanes = n_lanes};

    world.writer = image_guest_writer(world.guest, &storage->base, NULL);
    for (unsigned i = 0; world.writer && i < n_lanes; i++)
        assert_true(vmf_image_writer_lane(world.writer, &world.lanes[i], NULL));
    return world;
}

static World world_new(bool layer, bool in_place, unsigned n_lanes, uint64_t seed)
{
    World world = world_over(memory_storage_new(CAPACITY, in_place, seed), layer, n_lanes);

    assert_non_null(world.writer);
    return world;
}

static bool flush(World *world, GError **error)
{
    bool good = true;

    for (unsigned i = 0; good && i < world->n_lanes; i++)
        good = vmf_page_sink_flush(&world->lanes[i], error);
    return good;
}

static void end_lanes(World *world)
{
    for (unsigned i = 0; i < world->n_lanes; i++)
        vmf_page_sink_free(&world->lanes[i]);
}

static void world_free(World *world)
{
    end_lanes(world);
    vmf_image_writer_free(world->writer);
    assert_int_equal(world->guest->n_held, 0);
    image_guest_free(world->guest);
    vmf_storage_free(&world->storage->base);
}

static void assert_good(bool good, GError *error)
{
    if (!good)
        fail_msg("%s", error->message);
}

/* Pushes all that is dirty at rest, finishes, and compares. */
static void finish_and_compare(World *world)
{
    GError *error = NULL;

    assert_good(image_guest_push_all(world->guest, &world->lanes[0], false, &error) && flush(world, &error), error);
    assert_int_equal(world->guest->n_held, 0);
    assert_good(image_guest_finish(world->guest, world->writer, &error), error);
    assert_true(world->storage->committed);
    g_autofree char *difference =
        image_difference(world->guest, world->storage->octets, vmf_storage_size(&world->storage->base));
    if (difference)
        fail_msg("%s", difference);
    assert_int_equal(world->storage->unsaved->len, 0);
}

/* ---- the file is the memory --------------------------------------------------------------------------------- */

static void an_image_of_untouched_memory(void **state)
{
    World world = world_new(false, false, 1, 1);

    finish_and_compare(&world);
    world_free(&world);
}

static void whole_chunks_are_one_request_each(void **state)
{
    World world = world_new(false, false, 1, 2);

    image_guest_write_range(world.guest, 0, 0, BLOCK_0_PAGES, 1);
    image_guest_write(world.guest, 1, 7, 1);
    assert_true(image_guest_push_all(world.guest, &world.lanes[0], false, NULL));
    assert_true(flush(&world, NULL));
    assert_int_equal(world.storage->ops->len, 1 + 5);
    assert_int_equal(vmf_image_writer_bytes_written(world.writer), (BLOCK_0_PAGES + 1) * VMF_PAGE_SIZE);
    finish_and_compare(&world);
    world_free(&world);
}

/* A guest that goes on writing, also while its pages are on their way. */
static void play_rounds(World *world, uint64_t *seed)
{
    GError *error = NULL;

    for (unsigned round = 0; round < 6; round++) {
        for (unsigned step = 0; step < 300; step++) {
            uint64_t page = next_random(seed) % 16 ? next_random(seed) % 700 : next_random(seed) % BLOCK_0_PAGES;
            image_guest_write(world->guest, 0, page, next_random(seed) % 5 ? next_random(seed) | 1 : 0);
            image_guest_write(world->guest, 1, next_random(seed) % 40, next_random(seed) % 3);
            if (step % 3)
                continue;
            uint64_t chunk = next_random(seed) % 5;
            const VmfPageSink *lane = &world->lanes[(chunk + round) % world->n_lanes];
            assert_good(image_guest_push(world->guest, lane, chunk == 4, chunk % 4, true, &error), error);
        }
        assert_good(flush(world, &error), error);
        assert_int_equal(world->guest->n_held, 0);
    }
}

static void rewriting_from_several_lanes_ends_with_the_memory(void **state)
{
    for (unsigned seed = 1; seed <= 12; seed++) {
        World world = world_new(seed % 2, seed % 3 == 0, 1 + seed % LANES_MAX, seed);
        uint64_t random = seed;
        play_rounds(&world, &random);
        finish_and_compare(&world);
        world_free(&world);
    }
}

static void storage_that_wants_stable_writes_gets_copies(void **state)
{
    for (unsigned seed = 1; seed <= 6; seed++) {
        MemoryStorage *storage = memory_storage_new(CAPACITY, seed % 2, seed);
        storage->base.wants_stable_writes = true;
        World world = world_over(storage, seed % 3 == 0, 2);
        uint64_t random = seed;
        play_rounds(&world, &random);
        vmf_image_writer_set_stable(world.writer, true);
        finish_and_compare(&world);
        world_free(&world);
    }
}

/* The digest that counts is that of the copy: the page was written between the look at it and the push. */
static void the_digest_is_of_the_copy(void **state)
{
    MemoryStorage *storage = memory_storage_new(CAPACITY, false, 3);
    storage->base.wants_stable_writes = true;
    World world = world_over(storage, true, 1);
    uint64_t stale[VMF_CHUNK_PAGES] = {[3] = 1, [4] = 1};
    VmfPageBatch batch = {.n_pages = VMF_CHUNK_PAGES, .live = true, .digests = stale};
    VmfImageChunk chunk;

    image_guest_write(world.guest, 0, 3, 5);
    batch.payload = world.guest->blocks[0].memory;
    vmf_page_set_add_range(&batch.data, 3, 2);
    assert_true(vmf_page_sink_push(&world.lanes[0], &batch, NULL) && flush(&world, NULL));
    vmf_image_writer_chunk(world.writer, 0, 0, &chunk);
    assert_true(chunk.digests[3] == world.guest->scan->digest(batch.payload + 3 * VMF_PAGE_SIZE, VMF_PAGE_SIZE));
    assert_int_equal(vmf_page_set_count(&chunk.data), 1);
    assert_true(vmf_page_set_test(&chunk.zero, 4)); /* was zero by the time it was copied */
    assert_int_equal(chunk.digests[4], 0);
    assert_int_equal(vmf_image_writer_bytes_written(world.writer), VMF_PAGE_SIZE);
    world.guest->blocks[0].dirty[4] = true;
    finish_and_compare(&world);
    world_free(&world);
}

/*
 * What the rule of one batch a chunk is for: the caller breaks its part of it and gives one chunk to two lanes at
 * once. The storage then executes the older write last.
 */
static void two_lanes_with_one_chunk_would_lose_a_page(void **state)
{
    unsigned n_lost = 0;

    for (unsigned seed = 1; seed <= 40; seed++) {
        World world = world_new(false, false, 2, seed);
        const uint8_t *page = world.guest->blocks[0].memory + 9 * VMF_PAGE_SIZE;
        for (unsigned version = 0; version < 20; version++) {
            image_guest_write(world.guest, 0, 9, version + 1);
            assert_true(image_guest_push(world.guest, &world.lanes[version % 2], 0, 0, true, NULL));
            image_guest_write(world.guest, 0, (1 + version % 2) * VMF_CHUNK_PAGES, 1);
            assert_true(image_guest_push(world.guest, &world.lanes[0], 0, 1 + version % 2, true, NULL));
        }
        assert_true(vmf_page_sink_flush(&world.lanes[1], NULL) && flush(&world, NULL));
        n_lost += memcmp(world.storage->octets + world.guest->layout.blocks[0].pages_offset + 9 * VMF_PAGE_SIZE, page,
                         VMF_PAGE_SIZE) != 0;
        world_free(&world);
    }
    assert_true(n_lost > 0);
}

/* The same within one lane, where the writer sees to it. */
static void one_lane_keeps_the_order_of_a_chunk(void **state)
{
    for (unsigned seed = 1; seed <= 40; seed++) {
        World world = world_new(false, false, 1, seed);
        for (unsigned version = 0; version < 20; version++) {
            image_guest_write(world.guest, 0, 9, version + 1);
            assert_true(image_guest_push(world.guest, &world.lanes[0], 0, 0, true, NULL));
            image_guest_write(world.guest, 0, (1 + version % 2) * VMF_CHUNK_PAGES, 1);
            assert_true(image_guest_push(world.guest, &world.lanes[0], 0, 1 + version % 2, true, NULL));
        }
        finish_and_compare(&world);
        world_free(&world);
    }
}

/* ---- zeros -------------------------------------------------------------------------------------------------- */

static unsigned count_ops(const MemoryStorage *storage, MemoryOpKind kind, uint64_t *octets)
{
    unsigned n = 0;

    *octets = 0;
    for (guint i = 0; i < storage->ops->len; i++) {
        const MemoryOp *op = &g_array_index(storage->ops, MemoryOp, i);
        n += op->kind == kind;
        *octets += op->kind == kind ? op->length : 0;
    }
    return n;
}

static void pages_that_become_zero_lose_bit_and_digest_and_are_punched_in_runs(void **state)
{
    World world = world_new(false, false, 1, 4);
    uint64_t octets;
    VmfImageChunk chunk;

    image_guest_write_range(world.guest, 0, 0, 700, 1);
    assert_true(image_guest_push_all(world.guest, &world.lanes[0], true, NULL) && flush(&world, NULL));
    image_guest_write_range(world.guest, 0, 400, 200, 0); /* over the end of a chunk */
    image_guest_write(world.guest, 0, 10, 0);
    image_guest_write(world.guest, 0, 1000, 0); /* never was anything else */
    assert_true(image_guest_push_all(world.guest, &world.lanes[0], true, NULL) && flush(&world, NULL));
    vmf_image_writer_chunk(world.writer, 0, 0, &chunk);
    assert_int_equal(vmf_page_set_count(&chunk.data), 399);
    assert_int_equal(chunk.digests[10], 0);
    assert_int_equal(chunk.digests[511], 0);
    assert_int_equal(count_ops(world.storage, OP_ZERO, &octets), 0);
    image_guest_write(world.guest, 0, 500, 3);
    finish_and_compare(&world);
    assert_int_equal(count_ops(world.storage, OP_ZERO, &octets), 3);
    assert_int_equal(octets, 200 * VMF_PAGE_SIZE);
    world_free(&world);
}

static void what_was_allocated_for_nothing_is_punched(void **state)
{
    g_autoptr(VmfDirtyBitmap) expected = vmf_dirty_bitmap_new(BLOCK_0_PAGES, NULL);
    World world = world_new(false, false, 1, 4);
    uint64_t octets;

    vmf_dirty_bitmap_set_range(expected, 100, 300);
    vmf_dirty_bitmap_set_range(expected, 410, 200); /* near enough to be one run with those before */
    vmf_dirty_bitmap_set_range(expected, 800, 20);  /* too few */
    vmf_dirty_bitmap_set_range(expected, 1024, 512);
    vmf_image_writer_preallocate(world.writer, 0, expected);
    assert_int_equal(count_ops(world.storage, OP_ALLOCATE, &octets), 2);
    assert_int_equal(octets, (510 + 512) * VMF_PAGE_SIZE);
    image_guest_write_range(world.guest, 0, 100, 500, 1);
    finish_and_compare(&world);
    assert_int_equal(count_ops(world.storage, OP_ZERO, &octets), 2);
    assert_int_equal(octets, (10 + 512) * VMF_PAGE_SIZE);
    world_free(&world);
}

static void an_allocation_that_fails_costs_nothing(void **state)
{
    g_autoptr(VmfDirtyBitmap) expected = vmf_dirty_bitmap_new(BLOCK_0_PAGES, NULL);
    World world = world_new(false, false, 1, 4);
    uint64_t octets;

    vmf_dirty_bitmap_set_range(expected, 0, 300);
    vmf_dirty_bitmap_set_range(expected, 1000, 300);
    world.storage->fail_at = 2;
    world.storage->fail_errno = ENOSPC;
    vmf_image_writer_preallocate(world.writer, 0, expected);
    assert_int_equal(count_ops(world.storage, OP_ALLOCATE, &octets), 1);
    image_guest_write_range(world.guest, 0, 0, 300, 1);
    finish_and_compare(&world);
    world_free(&world);
}

/* ---- order, crashes, faults --------------------------------------------------------------------------------- */

/* A small save: new file or device, with pages rewritten, pages turned zero, gaps between the runs. */
static bool play(World *world, GError **error)
{
    uint64_t seed = 77;

    image_guest_write_range(world->guest, 0, 0, 40, 1);
    image_guest_write_range(world->guest, 0, 600, 600, 1);
    image_guest_write_range(world->guest, 1, 3, 20, 1);
    for (unsigned round = 0; round < 3; round++) {
        if (!image_guest_push_all(world->guest, &world->lanes[0], true, error) || !flush(world, error))
            return false;
        for (unsigned i = 0; i < 10; i++)
            image_guest_write(world->guest, 0, next_random(&seed) % 700, next_random(&seed) % 3);
    }
    return image_guest_push_all(world->guest, &world->lanes[0], false, error) && flush(world, error) &&
           image_guest_finish(world->guest, world->writer, error);
}

static unsigned ops_of_a_good_run(bool in_place)
{
    World world = world_new(true, in_place, 1, 9);
    GError *error = NULL;

    assert_good(play(&world, &error), error);
    unsigned n = world.storage->ops->len;
    world_free(&world);
    return n;
}

/* Whatever is there after the crash is the whole image or does not claim to be one. */
static void check_after_crash(World *world, unsigned at, bool played)
{
    g_autofree uint8_t *found = memory_storage_after_crash(world->storage);

    if (!world->storage->base.in_place && !world->storage->committed) {
        assert_false(played);
        return; /* under a name that nobody looks for */
    }
    if (!image_is_claimed(found, CAPACITY)) {
        assert_false(played);
        return;
    }
    g_autofree char *difference = image_difference(world->guest, found, CAPACITY);
    if (difference)
        fail_msg("crash at operation %u: %s", at, difference);
}

static void a_crash_anywhere_leaves_nothing_or_the_whole_image(void **state)
{
    for (unsigned in_place = 0; in_place < 2; in_place++) {
        unsigned n = ops_of_a_good_run(in_place), n_whole = 0;
        assert_true(n > 20);
        for (unsigned at = 1; at <= n + 1; at++) {
            MemoryStorage *storage = memory_storage_new(CAPACITY, in_place, 9);
            storage->crash_at = at;
            World world = world_over(storage, true, 1);
            g_autoptr(GError) error = NULL;
            bool played = world.writer && play(&world, &error);
            check_after_crash(&world, at, played);
            n_whole += played;
            if (!world.writer)
                world.n_lanes = 0;
            world_free(&world);
        }
        assert_int_equal(n_whole, 1);
    }
}

/* The commit block of an older image must be gone before the first page is written over it. */
static void an_old_image_in_place_is_void_before_the_first_page(void **state)
{
    MemoryStorage *storage = memory_storage_new(CAPACITY, true, 1);
    World first = world_over(storage, true, 1), second;
    GError *error = NULL;

    assert_good(play(&first, &error), error);
    assert_true(image_is_claimed(storage->durable, CAPACITY));
    end_lanes(&first);
    vmf_image_writer_free(first.writer);
    image_guest_free(first.guest);
    g_array_set_size(storage->ops, 0);
    second = world_over(storage, true, 1);
    assert_false(image_is_claimed(storage->durable, CAPACITY));
    image_guest_write(second.guest, 0, 3, 8);
    finish_and_compare(&second);
    world_free(&second);
}

static void an_error_anywhere_is_told_once_and_leaves_no_image(void **state)
{
    static const struct {
        int err;
        VmfErrorCode code;
    } faults[] = {{EIO, VMF_ERROR_IO}, {ENOSPC, VMF_ERROR_NO_SPACE}};
    unsigned n = ops_of_a_good_run(true);

    for (unsigned f = 0; f < G_N_ELEMENTS(faults); f++)
        for (unsigned at = 1; at <= n; at++) {
            MemoryStorage *storage = memory_storage_new(CAPACITY, true, 9);
            storage->fail_at = at;
            storage->fail_errno = faults[f].err;
            World world = world_over(storage, true, 1);
            g_autoptr(GError) error = NULL;
            if (world.writer) {
                assert_false(play(&world, &error));
                assert_true(g_error_matches(error, VMF_ERROR, faults[f].code));
                assert_false(world.storage->committed);
            } else {
                world.n_lanes = 0;
            }
            world_free(&world);
        }
}

/* ---- files -------------------------------------------------------------------------------------------------- */

typedef struct {
    char *folder, *path;
    VmfStorage *storage;
} File;

static File file_new(const VmfStorageFault *faults, size_t n_faults)
{
    VmfStorageOptions options = {.mode = VMF_STORAGE_CREATE};
    File file = {.folder = g_dir_make_tmp("vmf-image-XXXXXX", NULL)};

    file.path = g_build_filename(file.folder, "image", NULL);
    g_autofree char *uri = g_strdup_printf("file:%s", file.path);
    file.storage = vmf_storage_open(uri, &options, NULL);
    assert_non_null(file.storage);
    if (n_faults)
        file.storage = vmf_storage_fault_new(file.storage, faults, n_faults, NULL);
    assert_non_null(file.storage);
    return file;
}

/* Returns whether there was a file of that name. */
static bool file_free(File *file)
{
    vmf_storage_free(file->storage);
    bool existed = unlink(file->path) == 0;
    assert_int_equal(rmdir(file->folder), 0); /* nothing else was left there */
    g_free(file->path);
    g_free(file->folder);
    return existed;
}

/* What is in a file is what memory was, and it takes no more of the disk than memory and one in a hundred. */
static void a_file_holds_the_memory_and_little_more(void **state)
{
    g_autoptr(ImageGuest) guest = image_guest_new(false);
    g_autoptr(GError) error = NULL;
    g_autofree char *octets = NULL;
    File file = file_new(NULL, 0);
    VmfPageSink lane;
    struct stat stat;
    gsize length;

    VmfImageWriter *writer = image_guest_writer(guest, file.storage, &error);
    assert_true(vmf_image_writer_lane(writer, &lane, &error));
    image_guest_write_range(guest, 1, 0, 40, 1);
    for (unsigned round = 1; round <= 5; round++) {
        image_guest_write_range(guest, 0, 0, BLOCK_0_PAGES, round);
        assert_good(image_guest_push_all(guest, &lane, round < 5, &error), error);
    }
    image_guest_write_range(guest, 0, 0, 512, 0);
    assert_good(image_guest_push_all(guest, &lane, false, &error) && vmf_page_sink_flush(&lane, &error), error);
    assert_good(image_guest_finish(guest, writer, &error), error);
    vmf_page_sink_free(&lane);
    vmf_image_writer_free(writer);
    assert_int_equal(lstat(file.path, &stat), 0);
    assert_true((uint64_t)stat.st_blocks * 512 <
                (BLOCK_0_PAGES - 512 + 40) * VMF_PAGE_SIZE * UINT64_C(101) / 100 + 65536);
    assert_true(g_file_get_contents(file.path, &octets, &length, &error));
    g_autofree char *difference = image_difference(guest, (uint8_t *)octets, length);
    assert_null(difference);
    assert_true(file_free(&file));
}

static bool save_into(File *file, GError **error)
{
    g_autoptr(ImageGuest) guest = image_guest_new(false);
    g_autoptr(VmfImageWriter) writer = image_guest_writer(guest, file->storage, error);
    g_auto(VmfPageSink) lane = {NULL, NULL};

    if (!writer || !vmf_image_writer_lane(writer, &lane, error))
        return false;
    image_guest_write_range(guest, 0, 300, 900, 1);
    image_guest_write_range(guest, 1, 0, 40, 1);
    if (!image_guest_push_all(guest, &lane, false, error) || !vmf_page_sink_flush(&lane, error))
        return false;
    return image_guest_finish(guest, writer, error);
}

static void a_disk_that_fills_up_leaves_no_file(void **state)
{
    static const uint64_t room[] = {0, 1u << 20, 3u << 20, 3850240, 4u << 20};
    unsigned n_whole = 0;

    for (unsigned i = 0; i < G_N_ELEMENTS(room); i++) {
        VmfStorageFault faults[] = {{.kind = VMF_STORAGE_FAULT_FULL, .after_bytes = room[i]},
                                    {.kind = VMF_STORAGE_FAULT_REORDER, .seed = i}};
        g_autoptr(GError) error = NULL;
        File file = file_new(faults, G_N_ELEMENTS(faults));
        bool saved = save_into(&file, &error);
        assert_true(saved || g_error_matches(error, VMF_ERROR, VMF_ERROR_NO_SPACE));
        assert_true(file_free(&file) == saved);
        n_whole += saved;
    }
    assert_int_equal(n_whole, 1);
}

static void a_file_is_there_only_once_it_is_whole(void **state)
{
    bool saved = false;

    for (uint64_t at = 0; !saved; at++) {
        VmfStorageFault faults[] = {{.kind = VMF_STORAGE_FAULT_CRASH, .after_operations = at, .seed = (uint32_t)at}};
        g_autoptr(GError) error = NULL;
        File file = file_new(faults, G_N_ELEMENTS(faults));
        saved = save_into(&file, &error);
        assert_true(saved || error);
        assert_true(file_free(&file) == saved);
        assert_true(at < 1000);
    }
}

/* After an error a lane takes nothing more, and says the same again. */
static void a_lane_that_failed_stays_so(void **state)
{
    World world = world_new(false, false, 1, 3);
    g_autoptr(GError) first = NULL, again = NULL;

    world.storage->fail_at = 2;
    world.storage->fail_errno = EIO;
    image_guest_write(world.guest, 0, 3, 8);
    image_guest_push(world.guest, &world.lanes[0], 0, 0, false, NULL);
    assert_false(flush(&world, &first));
    image_guest_write(world.guest, 0, 4, 8);
    assert_false(image_guest_push(world.guest, &world.lanes[0], 0, 0, false, &again));
    assert_string_equal(first->message, again->message);
    world_free(&world);
}

static void a_batch_that_cannot_be_is_refused(void **state)
{
    World world = world_new(false, false, 1, 3);
    uint64_t digests[VMF_CHUNK_PAGES] = {1, 1};
    VmfPageBatch good = {.n_pages = 5, .chunk = 3, .digests = digests, .payload = world.guest->blocks[0].memory};

    vmf_page_set_add(&good.data, 0);
    VmfPageBatch bad[] = {good, good, good, good, good};
    bad[0].block_index = 2;
    bad[1].chunk = 4;
    bad[2].digests = NULL;
    bad[3].payload = NULL;
    vmf_page_set_add(&bad[4].zero, 0);
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        assert_false(vmf_page_sink_push(&world.lanes[0], &bad[i], &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_INTERNAL));
    }
    assert_true(vmf_page_sink_push(&world.lanes[0], &good, NULL));
    assert_true(flush(&world, NULL));
    world_free(&world);
}

static void header_and_tail_have_to_fit_the_layout(void **state)
{
    World world = world_new(false, false, 0, 3);
    uint8_t *header = world.guest->header, *tail = world.guest->tail;
    g_autofree uint8_t *long_tail = g_malloc0(VMF_IMAGE_TAIL_MAX + 1);
    const struct {
        const void *tail;
        size_t header_length, tail_length;
    } bad[] = {
        {tail, 0, 8}, {tail, 4096, 8}, {tail, 8193, 8}, {tail, 5000, 0}, {long_tail, 5000, VMF_IMAGE_TAIL_MAX + 1}};

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        assert_false(vmf_image_writer_finish(world.writer, header, bad[i].header_length, bad[i].tail,
                                             bad[i].tail_length, NULL, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IMAGE_LAYOUT));
    }
    assert_int_equal(world.storage->ops->len, 1);
    world_free(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_image_of_untouched_memory),
        cmocka_unit_test(whole_chunks_are_one_request_each),
        cmocka_unit_test(rewriting_from_several_lanes_ends_with_the_memory),
        cmocka_unit_test(storage_that_wants_stable_writes_gets_copies),
        cmocka_unit_test(the_digest_is_of_the_copy),
        cmocka_unit_test(one_lane_keeps_the_order_of_a_chunk),
        cmocka_unit_test(two_lanes_with_one_chunk_would_lose_a_page),
        cmocka_unit_test(pages_that_become_zero_lose_bit_and_digest_and_are_punched_in_runs),
        cmocka_unit_test(what_was_allocated_for_nothing_is_punched),
        cmocka_unit_test(an_allocation_that_fails_costs_nothing),
        cmocka_unit_test(a_crash_anywhere_leaves_nothing_or_the_whole_image),
        cmocka_unit_test(an_old_image_in_place_is_void_before_the_first_page),
        cmocka_unit_test(an_error_anywhere_is_told_once_and_leaves_no_image),
        cmocka_unit_test(a_lane_that_failed_stays_so),
        cmocka_unit_test(a_file_holds_the_memory_and_little_more),
        cmocka_unit_test(a_disk_that_fills_up_leaves_no_file),
        cmocka_unit_test(a_file_is_there_only_once_it_is_whole),
        cmocka_unit_test(a_batch_that_cannot_be_is_refused),
        cmocka_unit_test(header_and_tail_have_to_fit_the_layout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
