/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>
#include <vmferry/bitmap.h>
#include <vmferry/error.h>

#include "tools/common.h"
#include "tools/numbers.h"
#include "tools/report.h"

#define OPERANDS_MAX 67 /* machine, disk, what to do, a bitmap, and as many others as a disk has */

static const char description[] = "Dirty bitmaps of a disk of machine NAME: which parts were written since. Without "
                                  "more than NAME, or NAME and DISK, they are "
                                  "listed. ACTION: add makes BITMAP; remove; clear: it begins anew; enable, disable: "
                                  "writes are recorded from now on, or no longer; "
                                  "merge: what any SOURCE has is BITMAP's too; import: what SOURCE has, a bitmap of "
                                  "the NBD export URI, is BITMAP's too.";

typedef struct {
    char *granularity;
    gboolean persistent, disabled, insecure;
} Options;

typedef struct {
    VmfCommon common;
    Options options;
    VmfClient *client;
} Bitmap;

static void clear(Bitmap *bitmap)
{
    g_free(bitmap->options.granularity);
    vmf_client_free(bitmap->client);
    vmf_common_clear(&bitmap->common);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Bitmap, clear)

/* ---- the list ---------------------------------------------------------------------------------------------------- */

static const char *state_of(const json_t *bitmap)
{
    if (json_is_true(json_object_get(bitmap, "inconsistent")))
        return "inconsistent";
    if (json_is_true(json_object_get(bitmap, "busy")))
        return "in use by a backup";
    return json_is_true(json_object_get(bitmap, "recording")) ? "records" : "disabled";
}

static void list_one(bool as_json, const char *machine, const char *disk, const json_t *bitmap)
{
    uint64_t count = (uint64_t)json_integer_value(json_object_get(bitmap, "count"));
    uint64_t granularity = (uint64_t)json_integer_value(json_object_get(bitmap, "granularity"));
    g_autofree char *dirty = vmf_format_bytes(count), *unit = vmf_format_bytes(granularity);
    const char *problem = json_string_value(json_object_get(bitmap, "x-vmferry-problem"));
    json_t *line = json_pack(
        "{s:s,s:s,s:s,s:s,s:I,s:I,s:b,s:b,s:b,s:b,s:s?}", "type", "status", "name", machine, "disk", disk, "bitmap",
        json_string_value(json_object_get(bitmap, "name")), "dirty_bytes", (json_int_t)count, "granularity_bytes",
        (json_int_t)granularity, "recording", json_is_true(json_object_get(bitmap, "recording")), "persistent",
        json_is_true(json_object_get(bitmap, "persistent")), "busy", json_is_true(json_object_get(bitmap, "busy")),
        "inconsistent", json_is_true(json_object_get(bitmap, "inconsistent")), "problem", problem);

    vmf_report_line(as_json, line, "%s %s: %s dirty, in units of %s, %s%s%s%s", disk,
                    json_string_value(json_object_get(bitmap, "name")), dirty, unit, state_of(bitmap),
                    json_is_true(json_object_get(bitmap, "persistent")) ? ", persistent" : "", problem ? ": " : "",
                    problem ? problem : "");
}

static void list_disk(const Bitmap *verb, const json_t *inserted)
{
    const char *disk = json_string_value(json_object_get(inserted, "node-name"));
    const char *problem = json_string_value(json_object_get(inserted, "x-vmferry-bitmaps-problem"));
    const json_t *bitmap;
    size_t i;

    json_array_foreach(json_object_get(inserted, "dirty-bitmaps"), i, bitmap)
        list_one(verb->common.json, verb->common.operands[0], disk, bitmap);
    if (problem)
        vmf_report_event(verb->common.json,
                         json_pack("{s:s,s:s,s:s,s:s}", "type", "event", "event", "bitmaps.problem", "disk", disk,
                                   "problem", problem),
                         "vmferry: %s: persistent bitmaps: %s", disk, problem);
}

static int list(const Bitmap *verb, const char *only, GError **error)
{
    json_t *blocks = vmf_client_execute(verb->client, "query-block", NULL, error);
    const json_t *block;
    bool found = !only;
    size_t i;

    json_array_foreach(blocks, i, block)
    {
        const char *name = json_string_value(json_object_get(block, "device"));

        if (only && (!name || strcmp(only, name) != 0))
            continue;
        found = true;
        list_disk(verb, json_object_get(block, "inserted"));
    }
    if (blocks && !found)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "machine %s: disk %s: there is none of this name",
                    verb->common.operands[0], only);
    json_decref(blocks);
    return blocks && found ? VMF_EXIT_OK : VMF_EXIT_FAILED;
}

/* ---- what is done ------------------------------------------------------------------------------------------------ */

static bool add_options(const Options *o, json_t *arguments, GError **error)
{
    uint64_t granularity;

    if (o->granularity && !vmf_parse_size(o->granularity, &granularity, error))
        return false;
    if (o->granularity)
        json_object_set_new(arguments, "granularity", json_integer((json_int_t)granularity));
    json_object_set_new(arguments, "persistent", json_boolean(o->persistent));
    json_object_set_new(arguments, "disabled", json_boolean(o->disabled));
    return true;
}

static bool usage(const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "bitmap: %s", why);
    return false;
}

/* Takes nothing over; @arguments gets what the command needs. */
static bool prepare(const Bitmap *verb, const char *action, char **operands, json_t *arguments, GError **error)
{
    static const char *const plain[] = {"remove", "clear", "enable", "disable", NULL};
    const Options *o = &verb->options;
    bool is_add = strcmp(action, "add") == 0, is_merge = strcmp(action, "merge") == 0;

    if (!is_add && !is_merge && !g_strv_contains(plain, action))
        return usage("ACTION is add, remove, clear, enable, disable, merge or import", error);
    if (!is_add && (o->granularity || o->persistent || o->disabled))
        return usage("--granularity, --persistent and --disabled are about add", error);
    if (!operands[0] || (is_merge ? !operands[1] : operands[1] != NULL))
        return usage(is_merge ? "merge expects BITMAP and SOURCE" : "expected is one BITMAP", error);
    json_object_set_new(arguments, is_merge ? "target" : "name", json_string(operands[0]));
    if (is_add)
        return add_options(o, arguments, error);
    if (is_merge) {
        json_t *sources = json_array();

        for (unsigned i = 1; operands[i]; i++)
            json_array_append_new(sources, json_string(operands[i]));
        json_object_set_new(arguments, "bitmaps", sources);
    }
    return true;
}

static void report_done(const Bitmap *verb, const char *action)
{
    char **operands = verb->common.operands;

    vmf_report_line(verb->common.json,
                    json_pack("{s:s,s:s,s:s,s:s,s:s}", "type", "status", "name", operands[0], "disk", operands[1],
                              "bitmap", operands[3], "status", action),
                    "vmferry: %s: disk %s: bitmap %s: %s", operands[0], operands[1], operands[3], action);
}

static int act(const Bitmap *verb, GError **error)
{
    char **operands = verb->common.operands;
    const char *action = operands[2];
    g_autofree char *command = g_strconcat("block-dirty-bitmap-", action, NULL);
    json_t *arguments = json_pack("{s:s}", "node", operands[1]), *result;

    if (!prepare(verb, action, operands + 3, arguments, error)) {
        json_decref(arguments);
        return VMF_EXIT_USAGE;
    }
    result = vmf_client_execute(verb->client, command, arguments, error);
    if (!result)
        return VMF_EXIT_FAILED;
    json_decref(result);
    report_done(verb, action);
    return VMF_EXIT_OK;
}

/* ---- a bitmap of an export --------------------------------------------------------------------------------------- */

#define EXTENTS_AT_ONCE 4000 /* fit into one request */

typedef struct {
    const Bitmap *verb;
    json_t *extents;
    uint64_t disk_bytes, export_bytes;
    GError *error;
} Import;

static bool send_extents(Import *import)
{
    char **operands = import->verb->common.operands;
    json_t *result, *arguments;

    if (json_array_size(import->extents) == 0)
        return true;
    arguments = json_pack("{s:s,s:s,s:O}", "node", operands[1], "name", operands[3], "extents", import->extents);
    result = vmf_client_execute(import->verb->client, "x-vmferry-bitmap-set", arguments, &import->error);
    json_array_clear(import->extents);
    json_decref(result);
    return result != NULL;
}

/* False: the machine has told why, or has no such disk, and says so when it is told of its bitmap. */
static bool find_disk_size(Import *import)
{
    json_t *list = vmf_client_execute(import->verb->client, "query-block", NULL, &import->error);
    const json_t *one;
    size_t i;

    json_array_foreach(list, i, one)
    {
        const json_t *device = json_object_get(one, "device"), *image = json_object_get(json_object_get(one, "inserted"), "image");

        if (g_strcmp0(json_string_value(device), import->verb->common.operands[1]) == 0)
            import->disk_bytes = (uint64_t)json_integer_value(json_object_get(image, "virtual-size"));
    }
    json_decref(list);
    return list != NULL;
}

/* Servers round a size up to whole sectors. */
static bool check_size(Import *import)
{
    if (import->error || import->disk_bytes == 0 || (import->disk_bytes + 511) / 512 == (import->export_bytes + 511) / 512)
        return true;
    g_set_error(&import->error, VMF_ERROR, VMF_ERROR_USAGE,
                "bitmap %s: import: disk %s has %" G_GUINT64_FORMAT " bytes, %s %" G_GUINT64_FORMAT ": it tells of another disk",
                import->verb->common.operands[3], import->verb->common.operands[1], import->disk_bytes,
                import->verb->common.operands[4], import->export_bytes);
    return false;
}

static bool add_extent(void *opaque, uint64_t offset, uint64_t length)
{
    Import *import = opaque;

    if (!check_size(import))
        return false;
    json_array_append_new(import->extents, json_pack("[I,I]", (json_int_t)offset, (json_int_t)length));
    return json_array_size(import->extents) < EXTENTS_AT_ONCE || send_extents(import);
}

/* The machine's word, where it had one, is why no more was wanted of the server. */
static bool read_and_send(Import *import, GError **error)
{
    char **operands = import->verb->common.operands;
    VmfConnectFlags flags = import->verb->options.insecure ? VMF_CONNECT_INSECURE : 0;
    bool done = find_disk_size(import) &&
                vmf_read_export_bitmap(operands[4], flags, operands[5], add_extent, import, &import->export_bytes, error) &&
                check_size(import) && send_extents(import);

    if (import->error) {
        g_clear_error(error);
        g_propagate_error(error, import->error);
    }
    return done;
}

static int import_one(const Bitmap *verb, GError **error)
{
    Import import = {.verb = verb};

    if (g_strv_length(verb->common.operands) != 6) {
        usage("import expects BITMAP, URI and SOURCE", error);
        return VMF_EXIT_USAGE;
    }
    import.extents = json_array();
    bool done = read_and_send(&import, error);
    json_decref(import.extents);
    if (done)
        report_done(verb, "import");
    return VMF_EXIT_OK;
}

int vmf_verb_bitmap(int argc, char **argv)
{
    g_auto(Bitmap) verb = {0};
    Options *o = &verb.options;
    g_autoptr(GError) error = NULL;
    const GOptionEntry entries[] = {
        {"granularity", 0, 0, G_OPTION_ARG_STRING, &o->granularity, "What one bit stands for, 512 to 64M (64K)",
         "SIZE"},
        {"persistent", 0, 0, G_OPTION_ARG_NONE, &o->persistent, "It survives the machine, and a crash of it", NULL},
        {"disabled", 0, 0, G_OPTION_ARG_NONE, &o->disabled, "It does not record before enable", NULL},
        {"insecure", 0, 0, G_OPTION_ARG_NONE, &o->insecure, "With import: allow plaintext NBD off the loopback", NULL},
        G_OPTION_ENTRY_NULL};
    int exit_code;

    if (!vmf_common_parse_some(&verb.common, argc, argv, "NAME [DISK [ACTION BITMAP [SOURCE...]]]", description,
                               entries, 1, OPERANDS_MAX, &exit_code))
        return exit_code;
    verb.client = vmf_common_connect(&verb.common, &exit_code);
    if (!verb.client)
        return exit_code;
    if (g_strv_length(verb.common.operands) <= 2)
        exit_code = list(&verb, verb.common.operands[1], &error);
    else if (strcmp(verb.common.operands[2], "import") == 0)
        exit_code = import_one(&verb, &error);
    else
        exit_code = act(&verb, &error);
    return error ? vmf_common_fail(&verb.common, error) : exit_code;
}
