/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Verifying finds whatever is wrong anywhere in an image or its parents, names it, and finds nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "ram/image-verify.h"
#include "tests/image-rig.h"

static void verify(const char *uri, unsigned n_layers, unsigned n_threads, VmfImageVerifyResult *result)
{
    VmfImageVerifyOptions how = {.n_layers = n_layers, .n_threads = n_threads, .max_listed = 10};
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, NULL, &image_options, NULL);

    assert_non_null(chain);
    assert_true(vmf_image_chain_verify(chain, &how, result, NULL));
}

static uint64_t count_data(const ForgeImage *image)
{
    uint64_t n = 0;

    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++)
        for (unsigned page = 0; page < image->blocks[b].n_pages; page++)
            n += image->blocks[b].data[page];
    return n;
}

static void a_whole_image_is_whole(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(true, 3);
    g_autofree char *uri = image_uri(*state, "image");
    VmfImageVerifyResult result;

    image_write(*state, image, "image");
    for (unsigned n_threads = 0; n_threads < 5; n_threads++) {
        verify(uri, 1, n_threads, &result);
        assert_int_equal(result.n_damaged, 0);
        assert_int_equal(result.damage->len, 0);
        assert_int_equal(result.pages_damaged, 0);
        assert_int_equal(result.pages_checked, count_data(image));
        assert_true(result.sums_checked);
        vmf_image_verify_result_clear(&result);
    }
}

/* One thing is wrong, and is found as just that. */
static void assert_one(ImageRoom *room, const ForgeImage *image, int code, int block, int64_t page)
{
    g_autofree char *uri = image_uri(room, "image");
    VmfImageVerifyResult result;

    image_write(room, image, "image");
    verify(uri, 1, 2, &result);
    assert_int_equal(result.n_damaged, 1);
    assert_int_equal(result.damage->len, 1);
    const VmfImageDamage *damage = &g_array_index(result.damage, VmfImageDamage, 0);
    if (damage->code != code || damage->block != block || damage->page != page)
        fail_msg("expected code %d of block %d, page %d: %d of %d, %d: %s", code, block, (int)page, damage->code,
                 damage->block, (int)damage->page, damage->text);
    assert_int_equal(result.pages_damaged, page >= 0);
    vmf_image_verify_result_clear(&result);
}

static void every_page_is_looked_at(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 3);
    const ForgeImageBlock *ram = &image->blocks[0];

    for (unsigned page = 0; page < ram->n_pages; page += 29) {
        while (!ram->data[page])
            page++;
        image->file->data[ram->pages + (uint64_t)page * VMF_PAGE_SIZE + page] ^= 0x10;
        assert_one(*state, image, VMF_ERROR_IMAGE_PAGE, 0, page);
        image->file->data[ram->pages + (uint64_t)page * VMF_PAGE_SIZE + page] ^= 0x10;
    }
    image->file->data[image->blocks[1].pages] ^= 1;
    assert_one(*state, image, VMF_ERROR_IMAGE_PAGE, 1, 0);
}

static void what_no_reader_looks_at_is_looked_at(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 3);
    const ForgeImageBlock *ram = &image->blocks[0];
    uint8_t *octets = image->file->data;

    octets[ram->data_bitmap + 64 + 5] ^= 1; /* a bit of a chunk that is empty */
    assert_one(*state, image, VMF_ERROR_IMAGE_DIGEST, 0, -1);
    octets[ram->data_bitmap + 64 + 5] ^= 1;
    octets[image->blocks[1].pages - 1] = 1;
    assert_one(*state, image, VMF_ERROR_IMAGE_LAYOUT, -1, -1);
    octets[image->blocks[1].pages - 1] = 0;
    octets[4096 + image->header->len] = 1;
    assert_one(*state, image, VMF_ERROR_IMAGE_LAYOUT, -1, -1);
    octets[4096 + image->header->len] = 0;
    octets[image->file->len - 1] = 1;
    assert_one(*state, image, VMF_ERROR_IMAGE_LAYOUT, -1, -1);
}

static void counts_and_sums_are_compared(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 3);
    ForgeImageBlock *rom = &image->blocks[1];

    rom->memory[0] ^= 1; /* after the octets were made: the summary is of other memory than they are */
    forge_image_records(image);
    rom->memory[0] ^= 1;
    forge_image_assemble(image);
    forge_image_seal(image);
    assert_one(*state, image, VMF_ERROR_RAM_SUM, 1, -1);
    rom->memory[VMF_PAGE_SIZE] ^= 1;
    forge_image_records(image);
    rom->memory[VMF_PAGE_SIZE] ^= 1;
    forge_image_assemble(image);
    forge_image_seal(image);
    assert_one(*state, image, VMF_ERROR_RAM_COUNTS, 1, -1);
}

/* A page that no reader of the layer sees, since the layer has another in its place. */
static void parents_are_verified_on_request(void **state)
{
    g_autoptr(ForgeImage) base = forge_image_new(false, 2);
    g_autoptr(ForgeImage) layer = forge_image_layer(base, "file:base", 50);
    g_autofree char *uri = image_uri(*state, "layer"), *parent = image_uri(*state, "base");
    VmfImageVerifyResult result;
    unsigned page = 0;

    while (!base->blocks[0].data[page] || !layer->blocks[0].data[page])
        page++;
    base->file->data[base->blocks[0].pages + (uint64_t)page * VMF_PAGE_SIZE + 99] ^= 1;
    image_write(*state, base, "base");
    image_write(*state, layer, "layer");
    verify(uri, 1, 0, &result);
    assert_int_equal(result.n_damaged, 0);
    assert_true(result.sums_checked);
    vmf_image_verify_result_clear(&result);
    verify(uri, 2, 0, &result);
    assert_int_equal(result.n_damaged, 1);
    assert_int_equal(result.pages_checked, count_data(base) + count_data(layer));
    assert_int_equal(g_array_index(result.damage, VmfImageDamage, 0).layer, 1);
    assert_int_equal(g_array_index(result.damage, VmfImageDamage, 0).page, page);
    vmf_image_verify_result_clear(&result);

    g_autoptr(VmfImageFile) alone = vmf_image_file_open(parent, &image_options, NULL);
    g_autoptr(VmfImageFile) over = vmf_image_file_open(uri, &image_options, NULL);
    g_autoptr(VmfImageChain) chain = vmf_image_chain_of_file(over);
    VmfImageVerifyOptions how = {.n_layers = 1};
    assert_non_null(alone);
    assert_true(vmf_image_chain_verify(chain, &how, &result, NULL));
    assert_false(result.sums_checked); /* they are of the whole chain, which is not at hand */
    assert_int_equal(result.n_damaged, 0);
    vmf_image_verify_result_clear(&result);
}

static void much_damage_is_counted_and_some_listed(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 3);
    g_autofree char *uri = image_uri(*state, "image");
    const ForgeImageBlock *ram = &image->blocks[0];
    VmfImageVerifyResult result;
    uint64_t n = 0;

    for (unsigned page = 0; page < ram->n_pages; page++) {
        image->file->data[ram->pages + (uint64_t)page * VMF_PAGE_SIZE] ^= 1;
        n += ram->data[page];
    }
    image_write(*state, image, "image");
    verify(uri, 1, 3, &result);
    assert_int_equal(result.n_damaged, n);
    assert_int_equal(result.pages_damaged, n);
    assert_int_equal(result.damage->len, 10);
    vmf_image_verify_result_clear(&result);
}

typedef struct {
    uint64_t last_bytes, total_bytes;
    unsigned n;
    bool backwards;
} Progress;

static void note_progress(void *opaque, uint64_t done_bytes, uint64_t total_bytes)
{
    Progress *progress = opaque;

    progress->backwards |= done_bytes < progress->last_bytes;
    progress->last_bytes = done_bytes;
    progress->total_bytes = total_bytes;
    progress->n++;
}

static void progress_is_told_and_it_can_be_stopped(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 3);
    g_autofree char *uri = image_uri(*state, "image");
    Progress progress = {0};
    _Atomic bool cancel = false;
    VmfImageVerifyOptions how = {.n_layers = 1, .progress = note_progress, .opaque = &progress, .cancel = &cancel};
    g_autoptr(GError) error = NULL;
    VmfImageVerifyResult result;

    image_write(*state, image, "image");
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, NULL, &image_options, NULL);
    assert_true(vmf_image_chain_verify(chain, &how, &result, NULL));
    vmf_image_verify_result_clear(&result);
    assert_true(progress.n > 0 && !progress.backwards);
    assert_int_equal(progress.total_bytes, 3 * VMF_CHUNK_SIZE);
    assert_int_equal(progress.last_bytes, progress.total_bytes);
    cancel = true;
    assert_false(vmf_image_chain_verify(chain, &how, &result, &error));
    image_assert_id(error, "cancelled", "cancelled");
    assert_int_equal(result.pages_checked, 0);
    vmf_image_verify_result_clear(&result);
}

#define IN_A_ROOM(f) cmocka_unit_test_setup_teardown(f, image_enter, image_leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_ROOM(a_whole_image_is_whole),
        IN_A_ROOM(every_page_is_looked_at),
        IN_A_ROOM(what_no_reader_looks_at_is_looked_at),
        IN_A_ROOM(counts_and_sums_are_compared),
        IN_A_ROOM(parents_are_verified_on_request),
        IN_A_ROOM(much_damage_is_counted_and_some_listed),
        IN_A_ROOM(progress_is_told_and_it_can_be_stopped),
    };

    return cmocka_run_group_tests_name("image-verify", tests, NULL, NULL);
}
