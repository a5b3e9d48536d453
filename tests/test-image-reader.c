/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images that the engine did not write are read as they were meant: through any number of layers, by any number of
 * threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "tests/image-rig.h"

/* ---- good images ------------------------------------------------------------------------------------------------- */

static void assert_description(const VmfImageFile *file, const ForgeImage *image)
{
    assert_string_equal(file->static_data->machine.architecture, "rv32");
    assert_int_equal(file->static_data->blocks->len, FORGE_IMAGE_BLOCKS);
    assert_int_equal(file->static_data->properties->len, 1);
    assert_memory_equal(file->commit.id, image->id, 16);
    assert_memory_equal(&file->commit.root, image->root, 16);
    assert_int_equal(file->layout.n_chunks, 4);
    assert_int_equal(file->sections->len, 3);
    const VmfSection *last = &g_array_index(file->sections, VmfSection, 2);
    assert_int_equal(last->id, 0);
    assert_int_equal(last->part, 1);
    assert_int_equal(last->length, strlen("in two parts"));
    assert_memory_equal(last->content, "in two parts", last->length);
    assert_int_equal(file->summary.flags, VMF_SWITCHOVER_RUN);
}

static void an_image_is_read_as_it_was_meant(void **state)
{
    for (unsigned big = 0; big < 2; big++) {
        g_autoptr(ForgeImage) image = forge_image_new(big, 3);
        g_autofree char *uri = image_uri(*state, "image");
        g_autoptr(GError) error = NULL;
        image_write(*state, image, "image");
        g_autoptr(VmfImageFile) file = vmf_image_file_open(uri, &image_options, &error);
        image_no_error(error);
        assert_description(file, image);
        assert_null(file->parent.name);
        assert_false(file->ram_only);
        assert_int_equal(file->disks->len, 1);
        assert_string_equal(g_array_index(file->disks, VmfImageDisk, 0).mark, "mark");
        image_read_all(uri, image, &error);
        image_no_error(error);
    }
}

/* Each names its parent by a path that is relative to itself. */
static ForgeImage *write_chain(const ImageRoom *room, unsigned n, bool big)
{
    ForgeImage *image = forge_image_new(big, 2);

    image_write(room, image, "layer0");
    for (unsigned i = 1; i < n; i++) {
        g_autofree char *below = g_strdup_printf("file:layer%u", i - 1), *name = g_strdup_printf("layer%u", i);
        ForgeImage *layer = forge_image_layer(image, below, 100 + i);
        forge_image_free(image);
        image = layer;
        image_write(room, image, name);
    }
    return image;
}

static void pages_come_from_the_youngest_layer_that_has_them(void **state)
{
    for (unsigned big = 0; big < 2; big++) {
        g_autoptr(ForgeImage) image = write_chain(*state, 5, big);
        g_autofree char *uri = image_uri(*state, "layer4");
        g_autoptr(GError) error = NULL;
        image_read_all(uri, image, &error);
        image_no_error(error);
    }
}

typedef struct {
    uint8_t *memory[4];
    unsigned n_done;
    VmfPageSet zero[4];
    const ForgeImage *image;
} Several;

static void several_done(void *opaque, const VmfImageRead *read, GError *error)
{
    Several *several = opaque;

    image_no_error(error);
    assert_int_equal(read->block, 0);
    assert_ptr_equal(read->memory, several->memory[read->chunk]);
    assert_true(vmf_page_set_is_empty(&read->damaged));
    several->zero[read->chunk] = read->zero;
    several->n_done++;
}

static void reads_are_under_way_together(void **state)
{
    g_autoptr(ForgeImage) image = write_chain(*state, 4, false);
    g_autofree char *uri = image_uri(*state, "layer3");
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, NULL, &image_options, NULL);
    Several several = {.image = image};

    assert_non_null(chain);
    for (unsigned depth = 1; depth <= 4; depth++) {
        g_autoptr(VmfImageReader) reader = vmf_image_reader_new(chain, depth, NULL);
        several.n_done = 0;
        for (unsigned c = 0; c < 3; c++) {
            several.memory[c] = aligned_alloc(VMF_PAGE_SIZE, VMF_CHUNK_SIZE);
            memset(several.memory[c], 0xee, VMF_CHUNK_SIZE);
            assert_true(vmf_image_reader_start(reader, 0, c, &image_every_page, several.memory[c], several_done,
                                               &several, NULL));
            assert_true(vmf_image_reader_under_way(reader) <= depth);
        }
        vmf_image_reader_wait(reader, 0);
        assert_int_equal(several.n_done, 3);
        for (unsigned c = 0; c < 3; c++) {
            image_assert_chunk(&image->blocks[0], c, several.memory[c], &several.zero[c]);
            free(several.memory[c]);
        }
    }
}

static void pages_that_are_not_wanted_are_left_alone(void **state)
{
    g_autoptr(ForgeImage) image = write_chain(*state, 3, false);
    g_autofree char *uri = image_uri(*state, "layer2");
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, NULL, &image_options, NULL);
    g_autoptr(VmfImageReader) reader = vmf_image_reader_new(chain, 0, NULL);
    uint8_t *memory = aligned_alloc(VMF_PAGE_SIZE, VMF_CHUNK_SIZE);
    VmfPageSet wanted = {{0x5a5a5a5a5a5a5a5aull, 0, 1, 0, ~0ull << 60, 0, 0, 1ull << 63}}, zero;

    memset(memory, 0xee, VMF_CHUNK_SIZE);
    assert_true(vmf_image_reader_read(reader, 0, 0, &wanted, memory, &zero, NULL));
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        const uint8_t *at = memory + (size_t)page * VMF_PAGE_SIZE;
        if (!vmf_page_set_test(&wanted, page) || vmf_page_set_test(&zero, page))
            assert_true(at[0] == 0xee && memcmp(at, at + 1, VMF_PAGE_SIZE - 1) == 0);
        else
            assert_memory_equal(at, image->blocks[0].memory + (size_t)page * VMF_PAGE_SIZE, VMF_PAGE_SIZE);
    }
    free(memory);
}

typedef struct {
    VmfImageChain *chain;
    const ForgeImage *image;
    bool good;
} Crowd;

static void *crowd_main(void *opaque)
{
    Crowd *crowd = opaque;

    for (unsigned i = 0; i < 3; i++)
        crowd->good &= image_read_chain(crowd->chain, crowd->image, NULL);
    return NULL;
}

static void threads_share_a_chain(void **state)
{
    g_autoptr(ForgeImage) image = write_chain(*state, 3, false);
    g_autofree char *uri = image_uri(*state, "layer2");
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, NULL, &image_options, NULL);
    pthread_t threads[4];
    Crowd crowd[4];

    for (unsigned i = 0; i < 4; i++) {
        crowd[i] = (Crowd){chain, image, true};
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_main, &crowd[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_true(crowd[i].good);
    }
}

static void a_chain_is_a_page_store(void **state)
{
    g_autoptr(ForgeImage) image = write_chain(*state, 3, false);
    g_autofree char *uri = image_uri(*state, "layer2");
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, NULL, &image_options, NULL);
    g_autoptr(VmfDirtyBitmap) present = vmf_dirty_bitmap_new(FORGE_IMAGE_RAM_PAGES, NULL);
    const ForgeImageBlock *ram = &image->blocks[0];
    static const uint8_t zeros[VMF_PAGE_SIZE];
    VmfPageStore store;
    VmfPageSet pages;

    assert_true(vmf_image_store_new(chain, &store, NULL));
    assert_int_equal(vmf_ram_block_size(vmf_image_store_block(&store, 0)), (uint64_t)ram->n_pages * VMF_PAGE_SIZE);
    assert_true(store.ops->presence(store.opaque, 0, present, NULL));
    for (unsigned page = 0; page < ram->n_pages; page++)
        assert_int_equal(vmf_dirty_bitmap_test(present, page),
                         memcmp(ram->memory + (size_t)page * VMF_PAGE_SIZE, zeros, VMF_PAGE_SIZE) != 0);
    for (uint64_t c = 0; c < 3; c++) {
        VmfPageBatch *batch = store.ops->read(store.opaque, 0, c, &image_every_page, NULL, NULL);
        assert_non_null(batch);
        vmf_dirty_bitmap_peek_chunk(present, c, &pages);
        assert_memory_equal(&batch->data, &pages, sizeof(pages));
        for (unsigned i = 0; i < batch->n_pages; i++)
            if (vmf_page_set_test(&batch->data, i))
                assert_memory_equal(batch->payload + (size_t)i * VMF_PAGE_SIZE,
                                    ram->memory + (batch->first_page + i) * VMF_PAGE_SIZE, VMF_PAGE_SIZE);
        vmf_page_batch_release(batch);
    }
    vmf_page_store_free(&store);
}

/* ---- what a file can cost ---------------------------------------------------------------------------------------- */

static uint64_t resident_bytes(void)
{
    unsigned long size, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");

    assert_int_equal(fscanf(file, "%lu %lu", &size, &resident), 2);
    fclose(file);
    return resident * 4096ull;
}

/* A guest of a terabyte that has used next to nothing, in a file of holes. */
static void a_sparse_terabyte_costs_what_is_in_it(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 10);
    g_autofree char *uri = image_uri(*state, "image"), *path = image_path(*state, "image");
    g_autoptr(GError) error = NULL;
    uint64_t before = resident_bytes();

    image_write(*state, image, "image");
    if (truncate(path, (off_t)1 << 40) < 0)
        skip(); /* the filesystem has no such files */
    g_autoptr(VmfImageFile) file = vmf_image_file_open(uri, &image_options, &error);
    image_no_error(error); /* behind the file size anything may stand */
    memset(image->file->data, 0, 4096);
    image_write(*state, image, "image");
    assert_int_equal(truncate(path, (off_t)1 << 40), 0);
    assert_null(vmf_image_file_open(uri, &image_options, &error));
    image_assert_id(error, "image.incomplete", "zeros");
    assert_true(resident_bytes() - before < 64u << 20);
}

/* ---- parents ----------------------------------------------------------------------------------------------------- */

static void a_parent_is_looked_for_where_it_may_be(void **state)
{
    const ImageRoom *room = *state;
    g_autoptr(ForgeImage) image = write_chain(*state, 2, false);
    g_autofree char *uri = image_uri(room, "layer1"), *from = image_path(room, "layer0"),
                    *to = image_path(room, "elsewhere");
    g_autofree char *elsewhere = image_uri(room, "elsewhere"), *nothing = image_uri(room, "nothing");
    const char *parents[] = {nothing, uri, elsewhere, NULL};
    g_autoptr(GError) error = NULL;

    assert_int_equal(rename(from, to), 0);
    assert_null(vmf_image_chain_open(uri, NULL, &image_options, &error));
    image_assert_id(error, "image.parent", "missing");
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, parents, &image_options, NULL);
    assert_non_null(chain);
    assert_int_equal(vmf_image_chain_n_layers(chain), 2);
    assert_true(image_read_chain(chain, image, NULL));
}

static void open_refused(const ImageRoom *room, const char *name, const char *id, const char *what)
{
    g_autofree char *uri = image_uri(room, name);
    g_autoptr(GError) error = NULL;

    assert_null(vmf_image_chain_open(uri, NULL, &image_options, &error));
    image_assert_id(error, id, what);
}

static void other_parents_are_refused(void **state)
{
    g_autoptr(ForgeImage) base = forge_image_new(false, 2), other = forge_image_new(false, 4);
    g_autoptr(ForgeImage) layer = forge_image_layer(base, "file:base", 50);

    image_write(*state, layer, "layer");
    image_write(*state, other, "base");
    open_refused(*state, "layer", "image.parent", "another image");
    other->blocks[0].memory[0] ^= 1; /* the same id, other content */
    memcpy(other->id, base->id, 16);
    forge_image_rebuild(other);
    image_write(*state, other, "base");
    open_refused(*state, "layer", "image.parent", "another root digest");
    base->file->data[4100] ^= 1;
    image_write(*state, base, "base");
    open_refused(*state, "layer", "image.digest", "a damaged parent");
    memset(base->file->data, 0, 4096);
    image_write(*state, base, "base");
    open_refused(*state, "layer", "image.parent", "no image any more");
}

static void a_parent_of_another_guest_is_refused(void **state)
{
    g_autoptr(ForgeImage) base = forge_image_new(false, 2);

    base->blocks[1].address = 0x2000;
    forge_image_begin(base);
    forge_image_rebuild(base);
    image_write(*state, base, "base");
    g_autoptr(ForgeImage) layer = forge_image_layer(base, "file:base", 50);
    image_write(*state, layer, "layer");
    open_refused(*state, "layer", "image.parent", "another layout");
    base->blocks[1].address = 0x1000;
    base->architecture = "x86_64";
    forge_image_begin(base);
    forge_image_rebuild(base);
    image_write(*state, base, "base");
    g_autoptr(ForgeImage) again = forge_image_layer(base, "file:base", 50);
    again->architecture = "rv32";
    forge_image_begin(again);
    forge_image_rebuild(again);
    image_write(*state, again, "layer");
    open_refused(*state, "layer", "image.parent", "another architecture");
}

/* A layer whose parent has its id. That of a root digest nobody can make, but an id is what its writer says. */
static void an_image_twice_is_refused(void **state)
{
    g_autoptr(ForgeImage) base = forge_image_new(false, 2);
    g_autoptr(ForgeImage) layer = forge_image_layer(base, "file:base", 50);

    memcpy(layer->id, base->id, 16);
    forge_image_rebuild(layer);
    image_write(*state, base, "base");
    image_write(*state, layer, "layer");
    open_refused(*state, "layer", "image.parent", "a cycle");
}

static void chains_have_an_end(void **state)
{
    g_autoptr(ForgeImage) image = write_chain(*state, 65, false);
    g_autofree char *uri = image_uri(*state, "layer63");
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, NULL, &image_options, &error);

    image_no_error(error);
    assert_int_equal(vmf_image_chain_n_layers(chain), 64);
    open_refused(*state, "layer64", "image.parent", "65 images");
}

#define IN_A_ROOM(f) cmocka_unit_test_setup_teardown(f, image_enter, image_leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_ROOM(an_image_is_read_as_it_was_meant),
        IN_A_ROOM(pages_come_from_the_youngest_layer_that_has_them),
        IN_A_ROOM(reads_are_under_way_together),
        IN_A_ROOM(pages_that_are_not_wanted_are_left_alone),
        IN_A_ROOM(threads_share_a_chain),
        IN_A_ROOM(a_chain_is_a_page_store),
        IN_A_ROOM(a_sparse_terabyte_costs_what_is_in_it),
        IN_A_ROOM(a_parent_is_looked_for_where_it_may_be),
        IN_A_ROOM(other_parents_are_refused),
        IN_A_ROOM(a_parent_of_another_guest_is_refused),
        IN_A_ROOM(an_image_twice_is_refused),
        IN_A_ROOM(chains_have_an_end),
    };

    return cmocka_run_group_tests_name("image-reader", tests, NULL, NULL);
}
