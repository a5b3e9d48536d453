/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images of images and of streams hold the same guest, whatever was made of what; and nothing is left of one that
 * failed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/block.h>
#include <vmferry/error.h>
#include <vmferry/image.h>

#include "tests/image-rig.h"

static const VmfImageOptions reading = {.size = sizeof(VmfImageOptions), .buffered = true, .backend = "threads"};

/* Three layers over one image, and the guest that they make. */
static ForgeImage *write_chain(const ImageRoom *room, bool big)
{
    ForgeImage *image = forge_image_new(big, 2);

    image_write(room, image, "layer0");
    for (unsigned i = 1; i < 4; i++) {
        g_autofree char *below = g_strdup_printf("file:layer%u", i - 1), *name = g_strdup_printf("layer%u", i);
        ForgeImage *layer = forge_image_layer(image, below, 100 + i);
        forge_image_free(image);
        image = layer;
        image_write(room, image, name);
    }
    return image;
}

static VmfImage *open_image(const ImageRoom *room, const char *name)
{
    g_autofree char *uri = image_uri(room, name);
    g_autoptr(GError) error = NULL;
    VmfImage *image = vmf_image_open(uri, &reading, &error);

    image_no_error(error);
    return image;
}

static VmfImageMakeOptions making(unsigned n_threads)
{
    return (VmfImageMakeOptions){
        .size = sizeof(VmfImageMakeOptions), .buffered = true, .backend = "threads", .n_threads = n_threads};
}

static bool exists(const ImageRoom *room, const char *name)
{
    g_autofree char *path = image_path(room, name);

    return access(path, F_OK) == 0;
}

/* Nothing of that name, and nothing that is on its way to it. */
static void assert_nothing(const ImageRoom *room, const char *name)
{
    g_autofree char *partial = g_strconcat(name, ".partial", NULL);

    assert_false(exists(room, name));
    assert_false(exists(room, partial));
}

/* The engine's own readers, all digests, all sums, and the guest as it is known. */
static void assert_holds(const ImageRoom *room, const char *name, const ForgeImage *guest)
{
    g_autofree char *uri = image_uri(room, name);
    g_autoptr(VmfImage) image = open_image(room, name);
    VmfVerifyOptions how = {.size = sizeof(how), .parents = true};
    g_autoptr(GError) error = NULL;
    VmfVerifyResult result;

    assert_true(vmf_image_verify(image, &how, &result, &error));
    assert_int_equal(result.n_damaged, 0);
    assert_true(result.sums_checked);
    image_read_all(uri, guest, &error);
    image_no_error(error);
}

static uint64_t pages_here(VmfImage *image)
{
    uint64_t pages = 0;

    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++) {
        VmfImageRam ram;
        assert_true(vmf_image_ram(image, 0, b, &ram, NULL));
        pages += ram.pages_here + ram.zero_pages_here;
    }
    return pages;
}

static void a_chain_becomes_one_image(void **state)
{
    for (unsigned n_threads = 1; n_threads < 5; n_threads++) {
        g_autoptr(ForgeImage) guest = write_chain(*state, n_threads % 2);
        g_autoptr(VmfImage) chain = open_image(*state, "layer3");
        g_autofree char *uri = image_uri(*state, "flat");
        VmfImageMakeOptions options = making(n_threads);
        g_autoptr(GError) error = NULL;
        vmf_image_flatten(chain, uri, &options, &error);
        image_no_error(error);
        assert_holds(*state, "flat", guest);
        g_autoptr(VmfImage) flat = open_image(*state, "flat");
        assert_int_equal(vmf_image_n_layers(flat), 1);
    }
}

/* On to its own ancestor, on to a stranger, on to itself. */
static void a_guest_stands_on_any_parent(void **state)
{
    static const char *const parents[] = {"layer0", "layer2", "other", "layer3"};
    g_autoptr(ForgeImage) guest = write_chain(*state, false), other = forge_image_new(false, 77);
    g_autoptr(VmfImage) chain = open_image(*state, "layer3");
    g_autofree char *uri = image_uri(*state, "rebased");

    image_write(*state, other, "other");
    for (unsigned i = 0; i < G_N_ELEMENTS(parents); i++) {
        g_autoptr(VmfImage) parent = open_image(*state, parents[i]);
        VmfImageMakeOptions options = making(i + 1);
        g_autoptr(GError) error = NULL;
        vmf_image_rebase(chain, parent, uri, &options, &error);
        image_no_error(error);
        assert_holds(*state, "rebased", guest);
        g_autoptr(VmfImage) rebased = open_image(*state, "rebased");
        assert_int_equal(vmf_image_n_layers(rebased), vmf_image_n_layers(parent) + 1);
        VmfImageInfo info;
        vmf_image_info(rebased, 0, &info);
        g_autofree char *beside = g_strconcat("file:", parents[i], NULL);
        assert_string_equal(info.parent_uri, beside); /* so that they can be moved together */
        if (i == 3)
            assert_int_equal(pages_here(rebased), 0);
    }
}

/* The same pages in another image: they are read, found to be the same, and left out. */
static void what_a_stranger_has_too_is_left_out(void **state)
{
    g_autoptr(ForgeImage) guest = write_chain(*state, false);
    g_autoptr(VmfImage) chain = open_image(*state, "layer3");
    g_autofree char *flat_uri = image_uri(*state, "flat"), *uri = image_uri(*state, "rebased");
    VmfImageMakeOptions options = making(2);

    assert_true(vmf_image_flatten(chain, flat_uri, &options, NULL));
    g_autoptr(VmfImage) flat = open_image(*state, "flat");
    assert_true(vmf_image_rebase(chain, flat, uri, &options, NULL));
    g_autoptr(VmfImage) rebased = open_image(*state, "rebased");
    assert_int_equal(pages_here(rebased), 0);
    assert_holds(*state, "rebased", guest);
}

static void a_stream_and_an_image_hold_the_same(void **state)
{
    for (unsigned big = 0; big < 2; big++) {
        g_autoptr(ForgeImage) guest = write_chain(*state, big);
        g_autoptr(VmfImage) chain = open_image(*state, "layer3");
        g_autofree char *stream = image_uri(*state, "stream"), *uri = image_uri(*state, "back");
        VmfImageMakeOptions options = making(0);
        g_autoptr(GError) error = NULL;
        vmf_image_to_stream(chain, stream, &options, &error);
        image_no_error(error);
        vmf_image_from_stream(stream, uri, &options, &error);
        image_no_error(error);
        assert_holds(*state, "back", guest);
        g_autoptr(VmfImage) back = open_image(*state, "back");
        VmfDiffOptions how = {.size = sizeof(how), .read = true};
        VmfDiffResult result;
        assert_true(vmf_image_diff(chain, back, &how, &result, NULL));
        assert_int_equal(result.pages_different, 0);
        assert_int_equal(result.n_other, 0);
    }
}

/* ---- what goes wrong --------------------------------------------------------------------------------------------- */

static void a_stream_that_is_cut_or_damaged_becomes_no_image(void **state)
{
    g_autoptr(ForgeImage) guest = forge_image_new(false, 2);
    g_autofree char *stream = image_uri(*state, "stream"), *path = image_path(*state, "stream"),
                    *uri = image_uri(*state, "out");
    VmfImageMakeOptions options = making(0);
    g_autofree char *octets = NULL;
    gsize length;

    image_write(*state, guest, "image");
    g_autoptr(VmfImage) image = open_image(*state, "image");
    assert_true(vmf_image_to_stream(image, stream, &options, NULL));
    assert_true(g_file_get_contents(path, &octets, &length, NULL));
    for (gsize cut = 0; cut < length; cut += cut < 1000 || cut + 700 > length ? 41 : length / 31) {
        g_autoptr(GError) error = NULL;
        assert_true(g_file_set_contents(path, octets, (gssize)cut, NULL));
        assert_false(vmf_image_from_stream(stream, uri, &options, &error));
        image_assert_id(error, "channel.cut", "a stream that is cut");
        assert_nothing(*state, "out");
    }
    for (gsize at = 30; at < length; at += length / 97) {
        octets[at] ^= 4;
        assert_true(g_file_set_contents(path, octets, (gssize)length, NULL));
        assert_false(vmf_image_from_stream(stream, uri, &options, NULL));
        assert_nothing(*state, "out");
        octets[at] ^= 4;
    }
}

static void damage_is_not_copied(void **state)
{
    g_autoptr(ForgeImage) base = forge_image_new(false, 2), layer = forge_image_layer(base, "file:base", 60);
    g_autofree char *uri = image_uri(*state, "out"), *stream = image_uri(*state, "stream");
    unsigned page = 0;

    while (!base->blocks[0].data[page] || layer->blocks[0].data[page] || layer->blocks[0].zero[page])
        page++;
    base->file->data[base->blocks[0].pages + (uint64_t)page * VMF_PAGE_SIZE + 5] ^= 1;
    image_write(*state, base, "base");
    image_write(*state, layer, "layer");
    g_autoptr(VmfImage) image = open_image(*state, "layer");
    g_autoptr(VmfImage) parent = open_image(*state, "base");
    for (unsigned n_threads = 1; n_threads < 4; n_threads++) {
        g_autoptr(GError) error = NULL, of_rebase = NULL, of_stream = NULL;
        VmfImageMakeOptions options = making(n_threads);
        assert_false(vmf_image_flatten(image, uri, &options, &error));
        image_assert_id(error, "image.page", "flatten");
        assert_nothing(*state, "out");
        assert_true(vmf_image_rebase(image, parent, uri, &options, &of_rebase)); /* that page is the parent's still */
        assert_false(vmf_image_to_stream(image, stream, &options, &of_stream));
        image_assert_id(of_stream, "image.page", "to a stream");
        assert_nothing(*state, "stream");
        g_autofree char *path = image_path(*state, "out");
        assert_int_equal(unlink(path), 0);
    }
}

static bool refuse_to_go_on(void *opaque, uint64_t done_bytes, uint64_t total_bytes)
{
    return false;
}

static void what_is_cancelled_leaves_nothing(void **state)
{
    g_autoptr(ForgeImage) guest = write_chain(*state, false);
    g_autofree char *uri = image_uri(*state, "out"), *stream = image_uri(*state, "stream");
    VmfImageMakeOptions options = making(1);

    options.progress = refuse_to_go_on;
    for (unsigned i = 0; i < 2; i++) {
        g_autoptr(VmfImage) image = open_image(*state, "layer3");
        g_autoptr(GError) error = NULL;
        assert_false(i == 0 ? vmf_image_flatten(image, uri, &options, &error)
                            : vmf_image_to_stream(image, stream, &options, &error));
        image_assert_id(error, "cancelled", "cancelled");
        assert_nothing(*state, i == 0 ? "out" : "stream");
    }
}

static void an_image_that_is_read_is_not_overwritten(void **state)
{
    static const char *const names[] = {"layer0", "layer1", "layer2", "layer3"};
    g_autoptr(ForgeImage) guest = write_chain(*state, false);
    g_autoptr(VmfImage) image = open_image(*state, "layer3");
    VmfImageMakeOptions options = making(1);

    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *uri = image_uri(*state, names[i]),
                        *around = g_strdup_printf("file:%s/./%s", ((ImageRoom *)*state)->folder, names[i]);
        g_autoptr(GError) error = NULL, again = NULL;
        assert_false(vmf_image_flatten(image, uri, &options, &error));
        image_assert_id(error, "usage", "itself");
        assert_false(vmf_image_rebase(image, image, around, &options, &again));
        image_assert_id(again, "usage", "by another name");
    }
    g_autoptr(ForgeImage) other = forge_image_new(false, 77);
    image_write(*state, other, "other");
    g_autoptr(VmfImage) stranger = open_image(*state, "other");
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) { /* of the new parent's chain */
        g_autofree char *uri = image_uri(*state, names[i]);
        g_autoptr(GError) error = NULL;
        assert_false(vmf_image_rebase(stranger, image, uri, &options, &error));
        image_assert_id(error, "usage", "the new parent");
    }
    assert_holds(*state, "layer3", guest);
}

/* As a machine has it, until it is freed. */
static VmfDisk *disk_in_use(const ImageRoom *room, const char *name, bool read_only)
{
    g_autofree char *uri = image_uri(room, name);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .read_only = read_only, .create_bytes = read_only ? 0 : 8192};
    VmfDisk *disk = vmf_disk_open("root", &options, NULL);

    assert_true(disk && vmf_disk_acquire(disk, NULL));
    return disk;
}

enum { FLATTEN, REBASE, TO_STREAM, FROM_STREAM, N_WAYS };

/* A stream is under "stream" already. */
static bool make(const ImageRoom *room, unsigned way, VmfImage *image, const char *uri, const VmfImageMakeOptions *options,
                 GError **error)
{
    g_autofree char *stream = image_uri(room, "stream");

    switch (way) {
    case FLATTEN:
        return vmf_image_flatten(image, uri, options, error);
    case REBASE:
        return vmf_image_rebase(image, image, uri, options, error);
    case TO_STREAM:
        return vmf_image_to_stream(image, uri, options, error);
    default:
        return vmf_image_from_stream(stream, uri, options, error);
    }
}

static void what_a_machine_uses_is_not_replaced(void **state)
{
    g_autoptr(ForgeImage) guest = write_chain(*state, false);
    g_autofree char *uri = image_uri(*state, "disk"), *path = image_path(*state, "disk"), *stream = image_uri(*state, "stream");
    g_autoptr(VmfImage) image = open_image(*state, "layer3");
    VmfImageMakeOptions options = making(1);
    struct stat before, after;

    assert_true(vmf_image_to_stream(image, stream, &options, NULL));
    vmf_disk_free(disk_in_use(*state, "disk", false));
    assert_int_equal(stat(path, &before), 0);
    for (unsigned i = 0; i < N_WAYS * 4; i++) {
        VmfDisk *user = disk_in_use(*state, "disk", i & 1);
        g_autoptr(GError) error = NULL;
        options.force = i & 2;
        assert_false(make(*state, i / 4, image, uri, &options, &error));
        image_assert_id(error, "storage.locked", "a disk in use");
        assert_int_equal(stat(path, &after), 0);
        assert_true(after.st_ino == before.st_ino && after.st_size == 8192);
        assert_false(exists(*state, "disk.partial"));
        vmf_disk_free(user);
    }
    for (unsigned way = 0; way < N_WAYS; way++) { /* nobody uses it any more, nor the one before */
        g_autoptr(GError) error = NULL;
        make(*state, way, image, uri, &options, &error);
        image_no_error(error);
    }
}

typedef struct {
    const ImageRoom *room;
    VmfDisk *disk;
} Comer;

static bool come(void *opaque, uint64_t done_bytes, uint64_t total_bytes)
{
    Comer *comer = opaque;

    if (!comer->disk)
        comer->disk = disk_in_use(comer->room, "disk", false);
    return true;
}

static void nor_what_comes_to_be_used_meanwhile(void **state)
{
    g_autoptr(ForgeImage) guest = write_chain(*state, false);
    g_autofree char *uri = image_uri(*state, "disk"), *path = image_path(*state, "disk"), *stream = image_uri(*state, "stream");
    g_autoptr(VmfImage) image = open_image(*state, "layer3");
    VmfImageMakeOptions options = making(1);

    assert_true(vmf_image_to_stream(image, stream, &options, NULL));
    for (unsigned way = TO_STREAM; way < N_WAYS; way++) {
        g_autoptr(GError) error = NULL;
        Comer comer = {.room = *state};
        struct stat status;
        options.progress = come;
        options.opaque = &comer;
        assert_false(make(*state, way, image, uri, &options, &error));
        image_assert_id(error, "storage.locked", "a disk that came");
        assert_true(stat(path, &status) == 0 && status.st_size == 8192);
        vmf_disk_free(comer.disk);
        assert_int_equal(unlink(path), 0);
        assert_nothing(*state, "disk");
    }
}

static void guests_that_do_not_fit_are_refused(void **state)
{
    g_autoptr(ForgeImage) guest = write_chain(*state, false), other = forge_image_new(false, 5);
    g_autofree char *uri = image_uri(*state, "out");
    g_autoptr(VmfImage) image = open_image(*state, "layer3");
    VmfImageMakeOptions options = making(1);
    VmfDiffOptions how = {.size = sizeof(how)};
    g_autoptr(GError) error = NULL, of_diff = NULL;
    VmfDiffResult result;

    other->blocks[0].address += 4096;
    forge_image_begin(other);
    forge_image_rebuild(other);
    image_write(*state, other, "other");
    g_autoptr(VmfImage) parent = open_image(*state, "other");
    assert_false(vmf_image_rebase(image, parent, uri, &options, &error));
    image_assert_id(error, "image.parent", "another layout");
    assert_false(vmf_image_diff(image, parent, &how, &result, &of_diff));
    image_assert_id(of_diff, "static.incompatible", "another layout");
    assert_nothing(*state, "out");
}

/* ---- differences ------------------------------------------------------------------------------------------------- */

typedef struct {
    const ForgeImageBlock *a, *b; /* of block 0 */
    uint64_t n_pages;
    bool wrong;
} Seen;

static void see_pages(void *opaque, const char *block, uint64_t first_page, uint64_t n_pages)
{
    Seen *seen = opaque;

    for (uint64_t page = first_page; page < first_page + n_pages; page++)
        seen->wrong |= strcmp(block, "ram") == 0 && memcmp(seen->a->memory + page * VMF_PAGE_SIZE,
                                                           seen->b->memory + page * VMF_PAGE_SIZE, VMF_PAGE_SIZE) == 0;
    seen->n_pages += n_pages;
}

static void differences_are_those_that_are_there(void **state)
{
    g_autoptr(ForgeImage) a = forge_image_new(false, 2), b = forge_image_layer(a, "file:a", 9);
    uint64_t expected = 0;

    image_write(*state, a, "a");
    image_write(*state, b, "b");
    for (unsigned page = 0; page < FORGE_IMAGE_RAM_PAGES; page++)
        expected += memcmp(a->blocks[0].memory + (size_t)page * VMF_PAGE_SIZE,
                           b->blocks[0].memory + (size_t)page * VMF_PAGE_SIZE, VMF_PAGE_SIZE) != 0;
    for (unsigned i = 0; i < 4; i++) {
        g_autoptr(VmfImage) one = open_image(*state, i < 2 ? "a" : "b"), two = open_image(*state, i < 2 ? "b" : "a");
        Seen seen = {.a = &a->blocks[0], .b = &b->blocks[0]};
        VmfDiffOptions how = {.size = sizeof(how), .read = i % 2, .pages = see_pages, .opaque = &seen};
        VmfDiffResult result;
        assert_true(vmf_image_diff(one, two, &how, &result, NULL));
        assert_int_equal(result.pages_different, expected);
        assert_int_equal(seen.n_pages, expected);
        assert_false(seen.wrong);
        assert_int_equal(result.n_other, 0);
    }
}

#define IN_A_ROOM(f) cmocka_unit_test_setup_teardown(f, image_enter, image_leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_ROOM(a_chain_becomes_one_image),
        IN_A_ROOM(a_guest_stands_on_any_parent),
        IN_A_ROOM(what_a_stranger_has_too_is_left_out),
        IN_A_ROOM(a_stream_and_an_image_hold_the_same),
        IN_A_ROOM(a_stream_that_is_cut_or_damaged_becomes_no_image),
        IN_A_ROOM(damage_is_not_copied),
        IN_A_ROOM(what_is_cancelled_leaves_nothing),
        IN_A_ROOM(an_image_that_is_read_is_not_overwritten),
        IN_A_ROOM(what_a_machine_uses_is_not_replaced),
        IN_A_ROOM(nor_what_comes_to_be_used_meanwhile),
        IN_A_ROOM(guests_that_do_not_fit_are_refused),
        IN_A_ROOM(differences_are_those_that_are_there),
    };

    return cmocka_run_group_tests_name("image-offline", tests, NULL, NULL);
}
