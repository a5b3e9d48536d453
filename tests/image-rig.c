/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/image-rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <stdlib.h>
#include <vmferry/error.h>

const VmfStorageOptions image_options = {.mode = VMF_STORAGE_READ, .buffered = true, .backend = "threads"};

int image_enter(void **state)
{
    ImageRoom *room = g_new0(ImageRoom, 1);

    room->folder = g_dir_make_tmp("vmferry-image-XXXXXX", NULL);
    *state = room;
    return room->folder ? 0 : -1;
}

int image_leave(void **state)
{
    ImageRoom *room = *state;
    g_autoptr(GDir) folder = g_dir_open(room->folder, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(folder))) {
        g_autofree char *path = g_build_filename(room->folder, name, NULL);
        g_unlink(path);
    }
    g_rmdir(room->folder);
    g_free(room->folder);
    g_free(room);
    return 0;
}

char *image_path(const ImageRoom *room, const char *name)
{
    return g_build_filename(room->folder, name, NULL);
}

char *image_uri(const ImageRoom *room, const char *name)
{
    return g_strconcat("file:", room->folder, "/", name, NULL);
}

void image_write(const ImageRoom *room, const ForgeImage *image, const char *name)
{
    g_autofree char *path = image_path(room, name);

    forge_image_write(image, path);
}

void image_no_error(const GError *error)
{
    if (error)
        fail_msg("%s: %s", vmf_error_id(error), error->message);
}

void image_assert_id(const GError *error, const char *id, const char *what)
{
    if (!error || strcmp(vmf_error_id(error), id) != 0)
        fail_msg("%s: expected %s, got %s: %s", what, id, error ? vmf_error_id(error) : "no error",
                 error ? error->message : "");
}

/* ---- reading all of it ------------------------------------------------------------------------------------------- */

const VmfPageSet image_every_page = {{~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull}};

/* Compares what was read of a chunk; where @zero has a page, memory is as it was: 0xee. */
void image_assert_chunk(const ForgeImageBlock *block, uint64_t chunk, const uint8_t *memory, const VmfPageSet *zero)
{
    static const uint8_t zeros[VMF_PAGE_SIZE];

    for (uint64_t i = 0, page = chunk * VMF_CHUNK_PAGES; i < VMF_CHUNK_PAGES; i++, page++) {
        const uint8_t *at = memory + i * VMF_PAGE_SIZE;
        if (page >= block->n_pages || vmf_page_set_test(zero, (unsigned)i)) {
            assert_int_equal(at[0], 0xee);
            assert_int_equal(memcmp(at, at + 1, VMF_PAGE_SIZE - 1), 0);
        }
        if (page >= block->n_pages)
            assert_false(vmf_page_set_test(zero, (unsigned)i));
        else if (memcmp(vmf_page_set_test(zero, (unsigned)i) ? zeros : at, block->memory + page * VMF_PAGE_SIZE,
                        VMF_PAGE_SIZE) != 0)
            fail_msg("wrong bytes: block %s page %u", block->name, (unsigned)page);
    }
}

/* Reads every page of the chain; the first error ends it. What is read has to be right, whatever was planted. */
bool image_read_chain(VmfImageChain *chain, const ForgeImage *expected, GError **error)
{
    g_autoptr(VmfImageReader) reader = vmf_image_reader_new(chain, 0, error);
    g_autofree uint8_t *raw = g_malloc(VMF_CHUNK_SIZE + VMF_PAGE_SIZE);
    uint8_t *memory = raw + (-(uintptr_t)raw & (VMF_PAGE_SIZE - 1));

    assert_non_null(reader);
    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++)
        for (uint64_t c = 0; c < (expected->blocks[b].n_pages + VMF_CHUNK_PAGES - 1) / VMF_CHUNK_PAGES; c++) {
            VmfPageSet zero;
            memset(memory, 0xee, VMF_CHUNK_SIZE);
            if (!vmf_image_reader_read(reader, b, c, &image_every_page, memory, &zero, error))
                return false;
            image_assert_chunk(&expected->blocks[b], c, memory, &zero);
        }
    return true;
}

bool image_read_all(const char *uri, const ForgeImage *expected, GError **error)
{
    g_autoptr(VmfImageChain) chain = vmf_image_chain_open(uri, NULL, &image_options, error);

    return chain && image_read_chain(chain, expected, error);
}
