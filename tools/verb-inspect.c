/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>
#include <vmferry/error.h>

#include "tools/image-common.h"
#include "tools/inspect-map.h"
#include "tools/inspect-sections.h"
#include "tools/numbers.h"
#include "tools/report.h"

static const char description[] =
    "Says what is in an image: the machine, its memory and how much of it is in which layer, its disks and its device "
    "state. Reads no page. --map draws where in memory pages are.";

/* ---- as an object ------------------------------------------------------------------------------------------------ */

static json_t *hex(const uint8_t octets[16])
{
    g_autofree char *text = vmf_image_hex(octets);

    return json_string(text);
}

static json_t *properties_of(const VmfImage *image, unsigned layer, unsigned n)
{
    json_t *properties = json_object();

    for (unsigned i = 0; i < n; i++) {
        const char *key, *value;
        vmf_image_property(image, layer, i, &key, &value);
        json_object_set_new(properties, key, json_string(value));
    }
    return properties;
}

/* NULL with @error: its bitmaps are damaged. */
static json_t *blocks_of(VmfImage *image, unsigned layer, unsigned n, GError **error)
{
    json_t *blocks = json_array();

    for (unsigned i = 0; i < n; i++) {
        VmfImageRam ram;
        if (!vmf_image_ram(image, layer, i, &ram, error)) {
            json_decref(blocks);
            return NULL;
        }
        json_array_append_new(
            blocks, json_pack("{s:s,s:I,s:I,s:b,s:I,s:I,s:I,s:I}", "name", ram.name, "size_bytes", (json_int_t)ram.size,
                              "guest_address", (json_int_t)ram.guest_address, "rom", ram.rom, "used_pages",
                              (json_int_t)ram.pages_used, "layer_pages", (json_int_t)ram.pages_here, "layer_zero_pages",
                              (json_int_t)ram.zero_pages_here, "layer_bytes", (json_int_t)ram.bytes_here));
    }
    return blocks;
}

static json_t *disks_of(const VmfImage *image, unsigned layer, const VmfImageInfo *info)
{
    json_t *disks = json_array();

    for (unsigned i = 0; i < info->n_disks; i++) {
        VmfImageDiskInfo disk;
        vmf_image_disk(image, layer, i, &disk);
        json_array_append_new(disks,
                              json_pack("{s:s,s:s,s:s,s:I,s:b,s:I}", "name", disk.name, "identity", disk.identity, "mark",
                                        disk.mark, "size_bytes", (json_int_t)disk.size, "contained", disk.contained,
                                        "used_bytes", (json_int_t)(disk.pages_used * info->page_size)));
    }
    return disks;
}

static char *version_text(uint32_t version)
{
    return g_strdup_printf("%u.%u.%u", version >> 16, version >> 8 & 0xff, version & 0xff);
}

static json_t *layer_of(VmfImage *image, unsigned layer, GError **error)
{
    VmfImageInfo info;

    vmf_image_info(image, layer, &info);
    json_t *blocks = blocks_of(image, layer, info.n_blocks, error);
    if (!blocks)
        return NULL;
    g_autofree char *version = version_text(info.engine_version);
    json_t *object = json_pack(
        "{s:s,s:o,s:o,s:I,s:s,s:s,s:I,s:s,s:o,s:b,s:b,s:o,s:o,s:o,s:o}", "uri", info.uri, "id", hex(info.id),
        "root_digest", hex(info.root_digest), "file_size_bytes", (json_int_t)info.file_size, "byte_order",
        info.big_endian ? "big" : "little", "architecture", info.architecture, "page_size_bytes",
        (json_int_t)info.page_size, "engine_version", version, "uuid", hex(info.uuid), "runs", info.runs, "ram_only",
        info.ram_only, "properties", properties_of(image, layer, info.n_properties), "blocks", blocks, "disks",
        disks_of(image, layer, &info), "sections", vmf_inspect_sections(image, layer));
    if (info.host)
        json_object_set_new(object, "host", json_string(info.host));
    if (info.parent_uri)
        json_object_set_new(object, "parent",
                            json_pack("{s:s,s:o,s:o}", "uri", info.parent_uri, "id", hex(info.parent_id), "root_digest",
                                      hex(info.parent_digest)));
    return object;
}

/* ---- as text ----------------------------------------------------------------------------------------------------- */

static const char *string(const json_t *object, const char *member)
{
    const char *value = json_string_value(json_object_get(object, member));

    return value ? value : "";
}

static uint64_t number(const json_t *object, const char *member)
{
    return (uint64_t)json_integer_value(json_object_get(object, member));
}

static void print_blocks(const json_t *blocks)
{
    printf("  %-20s %12s %14s %12s %12s %12s\n", "RAM block", "MiB", "guest address", "used pages", "in here",
           "zeros here");
    for (size_t i = 0; i < json_array_size(blocks); i++) {
        const json_t *block = json_array_get(blocks, i);
        printf("  %-20s %12.1f %14" G_GINT64_MODIFIER "x %12" G_GUINT64_FORMAT " %12" G_GUINT64_FORMAT
               " %12" G_GUINT64_FORMAT "%s\n",
               string(block, "name"), (double)number(block, "size_bytes") / (1 << 20), number(block, "guest_address"),
               number(block, "used_pages"), number(block, "layer_pages"), number(block, "layer_zero_pages"),
               json_is_true(json_object_get(block, "rom")) ? "  ROM" : "");
    }
}

static void print_disks(const json_t *layer)
{
    const json_t *disks = json_object_get(layer, "disks");

    if (json_is_true(json_object_get(layer, "ram_only")))
        printf("  disks: not this image's business\n");
    else if (json_array_size(disks) == 0)
        printf("  disks: none that the guest can write\n");
    for (size_t i = 0; i < json_array_size(disks); i++) {
        const json_t *disk = json_array_get(disks, i);
        g_autofree char *size = vmf_format_bytes(number(disk, "size_bytes"));
        g_autofree char *used = vmf_format_bytes(number(disk, "used_bytes"));
        bool contained = json_is_true(json_object_get(disk, "contained"));
        printf("  disk %s: %s, %s%s%s%s%s\n", string(disk, "name"), size, string(disk, "identity"),
               *string(disk, "mark") ? " at " : "", string(disk, "mark"), contained ? ", contained: not zeros " : "",
               contained ? used : "");
    }
}

static void print_layer(const json_t *layer, bool fields)
{
    g_autofree char *size = vmf_format_bytes(number(layer, "file_size_bytes"));
    const json_t *parent = json_object_get(layer, "parent");
    const char *key;
    json_t *value;

    printf("%s\n  image %s, root digest %s, %s\n", string(layer, "uri"), string(layer, "id"),
           string(layer, "root_digest"), size);
    if (parent)
        printf("  a layer over %s (image %s)\n", string(parent, "uri"), string(parent, "id"));
    printf("  machine %s, %s, %s-endian, written by vmferry %s%s%s; it %s once it is restored\n", string(layer, "uuid"),
           string(layer, "architecture"), string(layer, "byte_order"), string(layer, "engine_version"),
           *string(layer, "host") ? " at " : "", string(layer, "host"),
           json_is_true(json_object_get(layer, "runs")) ? "runs" : "stays paused");
    json_object_foreach(json_object_get(layer, "properties"), key, value)
        printf("  property %s: %s\n", key, json_string_value(value));
    print_blocks(json_object_get(layer, "blocks"));
    print_disks(layer);
    vmf_inspect_print_sections(json_object_get(layer, "sections"), fields);
}

/* ---- the verb ---------------------------------------------------------------------------------------------------- */

typedef struct {
    gboolean map, fields;
    char *svg;
} Wish;

static json_t *layers_of(VmfImage *image, GError **error)
{
    json_t *layers = json_array();

    for (unsigned i = 0; i < vmf_image_n_layers(image); i++) {
        json_t *layer = layer_of(image, i, error);
        if (!layer) {
            json_decref(layers);
            return NULL;
        }
        json_array_append_new(layers, layer);
    }
    return layers;
}

static void print_layers(const json_t *layers, const Wish *wish, const GError *missing)
{
    for (size_t i = 0; i < json_array_size(layers); i++)
        print_layer(json_array_get(layers, i), wish->fields);
    if (missing)
        printf("  its parents are not here: %s\n", missing->message);
}

/* @missing: why the parents could not be opened, or NULL. */
static bool tell(const VmfCommon *common, VmfImage *image, const Wish *wish, const GError *missing, GError **error)
{
    json_t *layers = layers_of(image, error);
    VmfImageInfo info;

    if (!layers)
        return false;
    if (wish->svg && !vmf_inspect_map_svg(image, wish->svg, error)) {
        json_decref(layers);
        return false;
    }
    vmf_image_info(image, 0, &info);
    if (common->json)
        vmf_report_json(stdout, json_pack("{s:s,s:s,s:s?,s:O}", "type", "summary", "uri", info.uri, "parents_missing",
                                          missing ? missing->message : NULL, "layers", layers));
    else
        print_layers(layers, wish, missing);
    json_decref(layers);
    return wish->svg || !wish->map || vmf_inspect_map_text(image, common->json ? stderr : stdout, error);
}

/* Takes --map=FILE out of the arguments: GOption has no option that takes a value or none. */
static int take_svg(int argc, char **argv, Wish *wish)
{
    int kept = 0;
    bool options = true;

    for (int i = 0; i < argc; i++) {
        options &= strcmp(argv[i], "--") != 0;
        if (options && g_str_has_prefix(argv[i], "--map=")) {
            g_free(wish->svg);
            wish->svg = g_strdup(argv[i] + strlen("--map="));
        } else {
            argv[kept++] = argv[i];
        }
    }
    argv[kept] = NULL;
    return kept;
}

static int run(const VmfCommon *common, const VmfImageArguments *arguments, const Wish *wish)
{
    g_autoptr(GError) error = NULL, missing = NULL;
    g_autoptr(VmfImage) image = !vmf_image_check_io("inspect", arguments->io, &missing)
                                    ? NULL
                                    : vmf_image_open_operand(arguments, common->operands[0], false, &missing);

    if (!image && g_error_matches(missing, VMF_ERROR, VMF_ERROR_IMAGE_PARENT))
        image = vmf_image_open_operand(arguments, common->operands[0], true, &error);
    if (!image)
        return vmf_common_fail(common, error ? error : missing);
    return tell(common, image, wish, missing, &error) ? VMF_EXIT_OK : vmf_common_fail(common, error);
}

int vmf_verb_inspect(int argc, char **argv)
{
    g_auto(VmfCommon) common = {0};
    g_auto(VmfImageArguments) arguments = {0};
    Wish wish = {0};
    const GOptionEntry own[] = {
        {"map", 0, 0, G_OPTION_ARG_NONE, &wish.map, "Draw where pages are; --map=FILE writes an SVG", NULL},
        {"fields", 0, 0, G_OPTION_ARG_NONE, &wish.fields, "The fields of device state, where their table is known",
         NULL},
        G_OPTION_ENTRY_NULL};
    g_autofree GOptionEntry *entries = vmf_image_entries(&arguments, own);
    int exit_code;

    argc = take_svg(argc, argv, &wish);
    if (vmf_common_parse(&common, argc, argv, "FILE", description, entries, 1, &exit_code))
        exit_code = run(&common, &arguments, &wish);
    g_free(wish.svg);
    return exit_code;
}
