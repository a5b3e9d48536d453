/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A layer over a parent that is fake: its pages are memory, its reads end in any order, it can be damaged. Whatever
 * happens, layer and parent together are the guest's memory.
 */
#include "ram/image-layer-filter.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "ram/test-image-rig.h"
#include "ram/test-memory-storage.h"

#define BLOCK_0_PAGES (3 * VMF_CHUNK_PAGES + 5)

/* ---- the parent --------------------------------------------------------------------------------------------- */

typedef struct {
    ImageGuest *memory; /* what the parent holds: its pages that are not zeros */
    uint64_t seed;
    int64_t damaged_page;   /* of block 0; -1: none */
    int64_t colliding_page; /* of block 0: its digest is given as that of the page here, which differs; -1: none */
    uint64_t colliding_digest;
    bool no_bits; /* chunk() fails */
    unsigned n_chunk_calls;
    unsigned n_reads; /* pages */
    unsigned n_readers;
} Parent;

typedef struct {
    unsigned block;
    uint64_t chunk;
    VmfPageSet wanted;
    void *memory;
    VmfImageReadDone done;
    void *opaque;
} Read;

typedef struct {
    Parent *parent;
    GArray *reads; /* Read: under way */
} Reader;

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static bool parent_chunk(void *opaque, unsigned block, uint64_t chunk, VmfImageChunk *out, GError **error)
{
    Parent *parent = opaque;
    const ImageGuestBlock *own = &parent->memory->blocks[block];
    uint64_t first = chunk * VMF_CHUNK_PAGES, n = MIN(VMF_CHUNK_PAGES, own->n_pages - first);

    *out = (VmfImageChunk){0};
    parent->n_chunk_calls++;
    if (parent->no_bits) {
        g_set_error_literal(error, VMF_ERROR, VMF_ERROR_IMAGE_DIGEST, "parent: bits: damaged");
        return false;
    }
    vmf_page_scan(parent->memory->scan, own->memory + first * VMF_PAGE_SIZE, VMF_PAGE_SIZE, (unsigned)n, NULL,
                  out->data.words, out->zero.words, out->digests);
    if (block == 0 && parent->colliding_page >= 0 && (uint64_t)parent->colliding_page / VMF_CHUNK_PAGES == chunk)
        out->digests[parent->colliding_page % VMF_CHUNK_PAGES] = parent->colliding_digest;
    return true;
}

static void *parent_reader_new(void *opaque, unsigned depth, GError **error)
{
    Reader *reader = g_new0(Reader, 1);

    reader->parent = opaque;
    reader->parent->n_readers++;
    reader->reads = g_array_new(false, false, sizeof(Read));
    return reader;
}

static bool parent_start(void *opaque, unsigned block, uint64_t chunk, const VmfPageSet *wanted, void *memory,
                         VmfImageReadDone done, void *done_opaque, GError **error)
{
    Read read = {block, chunk, *wanted, memory, done, done_opaque};

    assert_false(vmf_page_set_is_empty(wanted));
    g_array_append_val(((Reader *)opaque)->reads, read);
    return true;
}

static void end_read(Reader *reader, guint index)
{
    Parent *parent = reader->parent;
    Read read = g_array_index(reader->reads, Read, index);
    const uint8_t *from = parent->memory->blocks[read.block].memory + read.chunk * VMF_CHUNK_SIZE;
    VmfImageRead result = {.block = read.block, .chunk = read.chunk, .memory = read.memory, .data = read.wanted};
    GError *error = NULL;

    g_array_remove_index_fast(reader->reads, index);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        if (!vmf_page_set_test(&read.wanted, page))
            continue;
        memcpy((uint8_t *)read.memory + page * VMF_PAGE_SIZE, from + page * VMF_PAGE_SIZE, VMF_PAGE_SIZE);
        parent->n_reads++;
        if (read.block == 0 && (int64_t)(read.chunk * VMF_CHUNK_PAGES + page) == parent->damaged_page)
            vmf_page_set_add(&result.damaged, page);
    }
    if (!vmf_page_set_is_empty(&result.damaged))
        error = g_error_new_literal(VMF_ERROR, VMF_ERROR_IMAGE_PAGE, "parent: page: damaged");
    read.done(read.opaque, &result, error);
}

static void parent_wait(void *opaque, unsigned n_under_way)
{
    Reader *reader = opaque;

    while (reader->reads->len > n_under_way)
        end_read(reader, (guint)(next_random(&reader->parent->seed) % reader->reads->len));
}

static void parent_reader_free(void *opaque)
{
    Reader *reader = opaque;

    parent_wait(reader, 0);
    reader->parent->n_readers--;
    g_array_unref(reader->reads);
    g_free(reader);
}

static const VmfImageParentOps parent_ops = {
    .size = sizeof(VmfImageParentOps),
    .chunk = parent_chunk,
    .reader_new = parent_reader_new,
    .start = parent_start,
    .wait = parent_wait,
    .reader_free = parent_reader_free,
};

/* ---- the world ---------------------------------------------------------------------------------------------- */

typedef struct {
    Parent parent;
    ImageGuest *guest;
    MemoryStorage *storage;
    VmfImageWriter *writer;
    VmfImageLayer *layer;
    VmfPageSink lanes[2];
} World;

static void world_init(World *world, uint64_t seed)
{
    *world = (World){.parent = {.seed = seed * 2 + 1, .damaged_page = -1, .colliding_page = -1}};
    VmfImageParentPages pages = {&parent_ops, &world->parent};

    world->parent.memory = image_guest_new(false);
    world->guest = image_guest_new(true);
    world->storage = memory_storage_new(16u << 20, false, seed);
    world->writer = image_guest_writer(world->guest, &world->storage->base, NULL);
    world->layer = vmf_image_layer_new(world->writer, &pages, NULL);
    for (unsigned i = 0; i < 2; i++) {
        assert_true(vmf_image_writer_lane(world->writer, &world->lanes[i], NULL));
        assert_true(vmf_image_layer_filter(world->layer, &world->lanes[i], NULL));
    }
}

static void world_free(World *world)
{
    for (unsigned i = 0; i < 2; i++)
        vmf_page_sink_free(&world->lanes[i]);
    assert_int_equal(world->parent.n_readers, 0);
    assert_int_equal(world->guest->n_held, 0);
    vmf_image_layer_free(world->layer);
    vmf_image_writer_free(world->writer);
    image_guest_free(world->guest);
    image_guest_free(world->parent.memory);
    vmf_storage_free(&world->storage->base);
}

/* The same page at the parent and in the guest, where it is yet to be looked at. */
static void write_both(World *world, unsigned block, uint64_t first, uint64_t n_pages, uint64_t value)
{
    image_guest_write_range(world->parent.memory, block, first, n_pages, value);
    image_guest_write_range(world->guest, block, first, n_pages, value);
}

static bool flush(World *world, GError **error)
{
    return vmf_page_sink_flush(&world->lanes[0], error) && vmf_page_sink_flush(&world->lanes[1], error);
}

static void push_all(World *world)
{
    GError *error = NULL;

    if (!image_guest_push_all(world->guest, &world->lanes[0], true, &error) || !flush(world, &error))
        fail_msg("%s", error->message);
    assert_int_equal(world->guest->n_held, 0);
}

/* What a restore would find in a page: the layer's, zeros, or the parent's. */
static const uint8_t *restored(World *world, unsigned block, uint64_t page, const VmfImageChunk *chunk)
{
    static const uint8_t zeros[VMF_PAGE_SIZE];
    unsigned at = page % VMF_CHUNK_PAGES;

    if (vmf_page_set_test(&chunk->data, at))
        return world->storage->octets + world->guest->layout.blocks[block].pages_offset + page * VMF_PAGE_SIZE;
    if (vmf_page_set_test(&chunk->zero, at))
        return zeros;
    return world->parent.memory->blocks[block].memory + page * VMF_PAGE_SIZE;
}

static void close_and_compare(World *world)
{
    GError *error = NULL;
    VmfImageChunk chunk;

    if (!vmf_image_layer_close(world->layer, &error) || !image_guest_finish(world->guest, world->writer, &error))
        fail_msg("%s", error->message);
    for (unsigned b = 0; b < RIG_IMAGE_BLOCKS; b++)
        for (uint64_t page = 0; page < world->guest->blocks[b].n_pages; page++) {
            vmf_image_writer_chunk(world->writer, b, page / VMF_CHUNK_PAGES, &chunk);
            if (memcmp(restored(world, b, page, &chunk), world->guest->blocks[b].memory + page * VMF_PAGE_SIZE,
                       VMF_PAGE_SIZE) != 0)
                fail_msg("block %u page %u", b, (unsigned)page);
        }
}

static uint64_t pages_written(const World *world)
{
    return vmf_image_writer_bytes_written(world->writer) / VMF_PAGE_SIZE;
}

/* ---- tests -------------------------------------------------------------------------------------------------- */

static void equal_pages_are_left_out_and_others_written(void **state)
{
    World world;

    world_init(&world, 1);
    write_both(&world, 0, 0, 700, 1);
    image_guest_write_range(world.guest, 0, 100, 5, 2);  /* other content */
    image_guest_write_range(world.guest, 0, 800, 3, 1);  /* new */
    image_guest_write_range(world.guest, 0, 200, 4, 0);  /* zeros now */
    image_guest_write_range(world.guest, 0, 1000, 6, 0); /* zeros at both */
    push_all(&world);
    assert_int_equal(pages_written(&world), 5 + 3);
    assert_int_equal(vmf_image_layer_pages_left_out(world.layer), 700 - 5 - 4);
    assert_int_equal(world.parent.n_reads, 700 - 5 - 4);
    close_and_compare(&world);
    VmfImageChunk chunk;
    vmf_image_writer_chunk(world.writer, 0, 1, &chunk);
    assert_int_equal(vmf_page_set_count(&chunk.zero), 0); /* zeros at both need no bit */
    vmf_image_writer_chunk(world.writer, 0, 0, &chunk);
    assert_int_equal(vmf_page_set_count(&chunk.zero), 4);
    world_free(&world);
}

/* A is the parent's; B goes into the image; then the guest writes A again. */
static void a_page_that_was_written_is_never_left_out_again(void **state)
{
    World world;

    world_init(&world, 2);
    write_both(&world, 0, 7, 1, 1);
    image_guest_write(world.guest, 0, 7, 2);
    push_all(&world);
    image_guest_write(world.guest, 0, 7, 1);
    push_all(&world);
    assert_int_equal(vmf_image_layer_pages_left_out(world.layer), 0);
    assert_int_equal(pages_written(&world), 2);
    close_and_compare(&world);
    world_free(&world);
}

/* The same with zeros in between, and with all versions waiting in the filter at once. */
static void versions_that_wait_together_keep_their_order(void **state)
{
    static const uint64_t versions[][3] = {{1, 2, 1}, {2, 1, 1}, {1, 0, 1}, {0, 1, 1}, {2, 0, 1}, {1, 1, 2}};

    for (unsigned i = 0; i < G_N_ELEMENTS(versions); i++) {
        World world;
        world_init(&world, i);
        write_both(&world, 0, 7, 1, 1);
        for (unsigned v = 0; v < 3; v++) {
            image_guest_write(world.guest, 0, 7, versions[i][v]);
            assert_true(image_guest_push(world.guest, &world.lanes[0], 0, 0, true, NULL));
        }
        push_all(&world);
        close_and_compare(&world);
        world_free(&world);
    }
}

static void a_page_that_only_has_the_same_digest_is_written(void **state)
{
    World world;

    world_init(&world, 3);
    write_both(&world, 0, 0, 20, 1);
    image_guest_write(world.guest, 0, 5, 2);
    world.parent.colliding_page = 5;
    world.parent.colliding_digest =
        world.guest->scan->digest(world.guest->blocks[0].memory + 5 * VMF_PAGE_SIZE, VMF_PAGE_SIZE);
    push_all(&world);
    assert_int_equal(pages_written(&world), 1);
    assert_int_equal(world.parent.n_reads, 20);
    close_and_compare(&world);
    world_free(&world);
}

static void a_damaged_page_of_the_parent_is_written(void **state)
{
    World world;

    world_init(&world, 4);
    write_both(&world, 0, 0, 20, 1);
    world.parent.damaged_page = 5;
    push_all(&world);
    assert_int_equal(pages_written(&world), 1);
    assert_int_equal(vmf_image_layer_pages_left_out(world.layer), 19);
    close_and_compare(&world);
    world_free(&world);
}

static void what_the_guest_no_longer_has_is_zeros(void **state)
{
    VmfImageChunk chunk;
    World world;

    world_init(&world, 5);
    write_both(&world, 0, 0, 30, 1);
    image_guest_write_range(world.parent.memory, 0, 30, 10, 1);
    image_guest_write_range(world.parent.memory, 0, 1100, 2, 1); /* in a chunk that nobody pushes */
    image_guest_write_range(world.parent.memory, 1, 0, 40, 1);   /* the same of a whole block */
    push_all(&world);
    close_and_compare(&world);
    vmf_image_writer_chunk(world.writer, 0, 0, &chunk);
    assert_int_equal(vmf_page_set_count(&chunk.zero), 10);
    assert_int_equal(vmf_page_set_count(&chunk.data), 0);
    world_free(&world);
}

static void bits_that_cannot_be_had_are_an_error(void **state)
{
    g_autoptr(GError) error = NULL;
    World world;

    world_init(&world, 6);
    write_both(&world, 0, 0, 20, 1);
    world.parent.no_bits = true;
    assert_false(image_guest_push(world.guest, &world.lanes[0], 0, 0, true, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IMAGE_DIGEST));
    assert_false(vmf_image_layer_close(world.layer, NULL));
    world_free(&world);
}

static void errors_of_the_writer_come_through(void **state)
{
    g_autoptr(GError) error = NULL;
    World world;

    world_init(&world, 7);
    world.storage->fail_at = 2;
    world.storage->fail_errno = 5;
    image_guest_write_range(world.guest, 0, 0, 20, 1);
    assert_true(image_guest_push(world.guest, &world.lanes[0], 0, 0, true, NULL));
    assert_false(flush(&world, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    world_free(&world);
}

static void batches_that_still_wait_are_released_with_the_filter(void **state)
{
    World world;

    world_init(&world, 8);
    write_both(&world, 0, 0, BLOCK_0_PAGES, 1);
    assert_true(image_guest_push_all(world.guest, &world.lanes[1], true, NULL));
    assert_true(world.guest->n_held > 0);
    world_free(&world);
}

static void pages_of_which_the_image_has_a_version_ask_the_parent_nothing(void **state)
{
    World world;

    world_init(&world, 9);
    image_guest_write_range(world.guest, 0, 0, 20, 1);
    push_all(&world);
    unsigned n_calls = world.parent.n_chunk_calls;
    image_guest_write_range(world.guest, 0, 3, 5, 2);
    image_guest_write_range(world.guest, 0, 10, 5, 0);
    push_all(&world);
    assert_int_equal(world.parent.n_chunk_calls, n_calls);
    close_and_compare(&world);
    world_free(&world);
}

/* Everything at once, by chance: content is often the parent's, often zeros, and changes while it is on its way. */
static void random_guests_are_restored_over_their_parents(void **state)
{
    for (unsigned seed = 1; seed <= 10; seed++) {
        uint64_t random = seed;
        World world;
        world_init(&world, seed);
        for (unsigned i = 0; i < 600; i++)
            write_both(&world, 0, next_random(&random) % BLOCK_0_PAGES, 1, 1 + next_random(&random) % 3);
        for (unsigned step = 0; step < 1500; step++) {
            uint64_t chunk = next_random(&random) % 4;
            image_guest_write(world.guest, 0, next_random(&random) % BLOCK_0_PAGES, next_random(&random) % 4);
            if (step % 4 == 0)
                assert_true(
                    image_guest_push(world.guest, &world.lanes[(chunk + step / 500) % 2], 0, chunk, true, NULL));
            if (step % 500 == 499)
                assert_true(flush(&world, NULL));
        }
        push_all(&world);
        assert_true(vmf_image_layer_pages_left_out(world.layer) > 100);
        close_and_compare(&world);
        world_free(&world);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_pages_are_left_out_and_others_written),
        cmocka_unit_test(a_page_that_was_written_is_never_left_out_again),
        cmocka_unit_test(versions_that_wait_together_keep_their_order),
        cmocka_unit_test(a_page_that_only_has_the_same_digest_is_written),
        cmocka_unit_test(a_damaged_page_of_the_parent_is_written),
        cmocka_unit_test(what_the_guest_no_longer_has_is_zeros),
        cmocka_unit_test(bits_that_cannot_be_had_are_an_error),
        cmocka_unit_test(errors_of_the_writer_come_through),
        cmocka_unit_test(batches_that_still_wait_are_released_with_the_filter),
        cmocka_unit_test(pages_of_which_the_image_has_a_version_ask_the_parent_nothing),
        cmocka_unit_test(random_guests_are_restored_over_their_parents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
