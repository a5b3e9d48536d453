/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdlib.h>
#include <vmferry/error.h>

#include "migration/image-offline.h"

typedef struct {
    VmfImage *a, *b;
    const VmfDiffOptions *options;
    VmfDiffResult *result;
    VmfImageReader *read_a, *read_b; /* NULL: by digests alone */
    uint8_t *memory_a, *memory_b;
    const char *block; /* of the run */
    uint64_t run_first, run_pages;
} Diff;

/* ---- what is not memory --------------------------------------------------------------------------------------------
 */

static void other(Diff *diff, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void other(Diff *diff, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    g_autofree char *what = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    diff->result->n_other++;
    if (diff->options->other)
        diff->options->other(diff->options->opaque, what);
}

static const char *property_of(const VmfStaticData *data, const char *key)
{
    for (guint i = 0; i < data->properties->len; i++) {
        const VmfStaticProperty *property = &g_array_index(data->properties, VmfStaticProperty, i);
        if (strcmp(property->key, key) == 0)
            return property->value;
    }
    return NULL;
}

static void diff_properties(Diff *diff, const VmfStaticData *a, const VmfStaticData *b, bool back)
{
    for (guint i = 0; i < a->properties->len; i++) {
        const VmfStaticProperty *property = &g_array_index(a->properties, VmfStaticProperty, i);
        const char *value = property_of(b, property->key);
        if (!value)
            other(diff, "property %s: only in the %s", property->key, back ? "second" : "first");
        else if (!back && strcmp(value, property->value) != 0)
            other(diff, "property %s: %s and %s", property->key, property->value, value);
    }
}

static int find_section(const VmfStaticData *data, const VmfStaticSection *wanted)
{
    for (guint i = 0; i < data->sections->len; i++) {
        const VmfStaticSection *section = &g_array_index(data->sections, VmfStaticSection, i);
        if (section->instance == wanted->instance && strcmp(section->name, wanted->name) == 0)
            return (int)i;
    }
    return -1;
}

static bool same_content(Diff *diff, unsigned in_a, unsigned in_b)
{
    size_t length_a, length_b;
    g_autofree uint8_t *a = vmf_image_section_content(diff->a, 0, in_a, &length_a);
    g_autofree uint8_t *b = vmf_image_section_content(diff->b, 0, in_b, &length_b);

    return length_a == length_b && memcmp(a, b, length_a) == 0;
}

static void diff_sections(Diff *diff, const VmfStaticData *a, const VmfStaticData *b)
{
    for (guint i = 0; i < a->sections->len; i++) {
        const VmfStaticSection *section = &g_array_index(a->sections, VmfStaticSection, i);
        int there = find_section(b, section);
        if (there < 0)
            other(diff, "section %s %u: only in the first", section->name, section->instance);
        else if (!same_content(diff, i, (unsigned)there))
            other(diff, "section %s %u: its state differs", section->name, section->instance);
    }
    for (guint i = 0; i < b->sections->len; i++) {
        const VmfStaticSection *section = &g_array_index(b->sections, VmfStaticSection, i);
        if (find_section(a, section) < 0)
            other(diff, "section %s %u: only in the second", section->name, section->instance);
    }
}

static const VmfImageDisk *find_disk(const GArray *disks, const char *name)
{
    for (guint i = 0; i < disks->len; i++)
        if (strcmp(g_array_index(disks, VmfImageDisk, i).name, name) == 0)
            return &g_array_index(disks, VmfImageDisk, i);
    return NULL;
}

static void diff_disks(Diff *diff, const GArray *a, const GArray *b)
{
    for (guint i = 0; i < a->len; i++) {
        const VmfImageDisk *disk = &g_array_index(a, VmfImageDisk, i), *there = find_disk(b, disk->name);
        if (!there)
            other(diff, "disk %s: only in the first", disk->name);
        else if (strcmp(disk->identity, there->identity) != 0 || disk->size_bytes != there->size_bytes)
            other(diff, "disk %s: is another", disk->name);
        else if (strcmp(disk->mark, there->mark) != 0)
            other(diff, "disk %s: has changed in between", disk->name);
    }
    for (guint i = 0; i < b->len; i++)
        if (!find_disk(a, g_array_index(b, VmfImageDisk, i).name))
            other(diff, "disk %s: only in the second", g_array_index(b, VmfImageDisk, i).name);
}

static void diff_all_else(Diff *diff)
{
    const VmfImageFile *a = vmf_image_layer_of(diff->a, 0), *b = vmf_image_layer_of(diff->b, 0);

    diff_properties(diff, a->static_data, b->static_data, false);
    diff_properties(diff, b->static_data, a->static_data, true);
    if (a->format.swap != b->format.swap)
        other(diff, "byte order: device state cannot be compared");
    else
        diff_sections(diff, a->static_data, b->static_data);
    diff_disks(diff, a->disks, b->disks);
    if (a->summary.flags != b->summary.flags)
        other(diff, "run state: one runs once it is restored, the other does not");
}

/* ---- memory --------------------------------------------------------------------------------------------------------
 */

static void end_run(Diff *diff)
{
    if (diff->run_pages > 0 && diff->options->pages)
        diff->options->pages(diff->options->opaque, diff->block, diff->run_first, diff->run_pages);
    diff->run_pages = 0;
}

static void add_page(Diff *diff, uint64_t page)
{
    diff->result->pages_different++;
    if (diff->run_pages > 0 && page == diff->run_first + diff->run_pages) {
        diff->run_pages++;
        return;
    }
    end_run(diff);
    diff->run_first = page;
    diff->run_pages = 1;
}

/* Takes out of @same what is not the same octet by octet. */
static bool compare_content(Diff *diff, unsigned block, uint64_t chunk, VmfPageSet *same, GError **error)
{
    VmfPageSet zero;

    if (!diff->read_a || vmf_page_set_is_empty(same))
        return true;
    if (!vmf_image_reader_read(diff->read_a, block, chunk, same, diff->memory_a, &zero, error) ||
        !vmf_image_reader_read(diff->read_b, block, chunk, same, diff->memory_b, &zero, error))
        return false;
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        size_t at = (size_t)page * VMF_PAGE_SIZE;
        if (vmf_page_set_test(same, page) && memcmp(diff->memory_a + at, diff->memory_b + at, VMF_PAGE_SIZE) != 0)
            same->words[page / 64] &= ~(UINT64_C(1) << page % 64);
    }
    return true;
}

static bool diff_chunk(Diff *diff, unsigned block, uint64_t chunk, GError **error)
{
    VmfImageChunk a, b;
    VmfPageSet same = {{0}};

    if (!vmf_image_chain_chunk(diff->a->chain, block, chunk, &a, NULL, error) ||
        !vmf_image_chain_chunk(diff->b->chain, block, chunk, &b, NULL, error))
        return false;
    VmfPageSet used = vmf_page_set_or(&a.data, &b.data), both = vmf_page_set_and(&a.data, &b.data);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
        if (vmf_page_set_test(&both, page) && a.digests[page] == b.digests[page])
            vmf_page_set_add(&same, page);
    if (!compare_content(diff, block, chunk, &same, error))
        return false;
    diff->result->pages_used += vmf_page_set_count(&used);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
        if (vmf_page_set_test(&used, page) && !vmf_page_set_test(&same, page))
            add_page(diff, chunk * VMF_CHUNK_PAGES + page);
    return true;
}

static bool diff_memory(Diff *diff, GError **error)
{
    const VmfImageFile *file = vmf_image_layer_of(diff->a, 0);
    uint64_t done = 0;

    for (unsigned block = 0; block < file->layout.n_blocks; block++) {
        uint64_t n_chunks = vmf_image_block_n_chunks(&file->layout.blocks[block]);
        diff->block = vmf_image_file_block_name(file, block);
        for (uint64_t chunk = 0; chunk < n_chunks; chunk++, done++) {
            if (vmf_image_check_cancelled(diff->a, error) || !diff_chunk(diff, block, chunk, error))
                return false;
            if (diff->options->progress && done % 16 == 0)
                diff->options->progress(diff->options->opaque, done * VMF_CHUNK_SIZE,
                                        file->layout.n_chunks * VMF_CHUNK_SIZE);
        }
        end_run(diff);
    }
    return true;
}

static bool equip(Diff *diff, GError **error)
{
    diff->read_a = vmf_image_reader_new(diff->a->chain, 1, error);
    diff->read_b = diff->read_a ? vmf_image_reader_new(diff->b->chain, 1, error) : NULL;
    if (!diff->read_b)
        return false;
    diff->memory_a = aligned_alloc(VMF_CHUNK_SIZE, 2 * (size_t)VMF_CHUNK_SIZE);
    diff->memory_b = diff->memory_a + VMF_CHUNK_SIZE;
    if (!diff->memory_a)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image: no memory for chunks");
    return diff->memory_a != NULL;
}

static bool are_comparable(const VmfImage *a, const VmfImage *b, GError **error)
{
    g_autoptr(GError) why = NULL;
    const VmfImageFile *one = vmf_image_layer_of(a, 0), *last = vmf_image_layer_of(a, vmf_image_n_layers(a) - 1);
    const VmfImageFile *other_last = vmf_image_layer_of(b, vmf_image_n_layers(b) - 1);

    if (last->parent.name || other_last->parent.name) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_PARENT, "%s: was opened without its parents",
                    vmf_storage_name(last->parent.name ? last->storage : other_last->storage));
        return false;
    }
    if (vmf_image_chain_check_fit(one->static_data, vmf_storage_name(one->storage), vmf_image_layer_of(b, 0), &why))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE,
                "%s and %s: are images of guests that differ in RAM or architecture, or that hold different disks",
                vmf_storage_name(one->storage),
                vmf_storage_name(vmf_image_layer_of(b, 0)->storage));
    return false;
}

bool vmf_image_diff(VmfImage *a, VmfImage *b, const VmfDiffOptions *options, VmfDiffResult *result, GError **error)
{
    Diff diff = {.a = a, .b = b, .options = options, .result = result};

    *result = (VmfDiffResult){0};
    if (!are_comparable(a, b, error))
        return false;
    bool good = (!options->read || equip(&diff, error)) && diff_memory(&diff, error);
    if (good)
        diff_all_else(&diff);
    vmf_image_reader_free(diff.read_a);
    vmf_image_reader_free(diff.read_b);
    free(diff.memory_a);
    return good;
}
