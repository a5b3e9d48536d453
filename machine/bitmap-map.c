/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/bitmap-map.h"

#include <string.h>
#include <vmferry/error.h>

static bool bad(const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "block-bitmap-mapping: %s", why);
    return false;
}

/* Members are among @names, of which the first is a string that has to be there, and the second one that may. */
static bool check_object(const json_t *object, const char *const *names, GError **error)
{
    const char *key;
    json_t *value;

    if (!json_is_object(object))
        return bad("expected are objects", error);
    json_object_foreach((json_t *)object, key, value)
    {
        if (!g_strv_contains(names, key))
            return bad("there is a member that it does not have", error);
    }
    if (!json_is_string(json_object_get(object, names[0])))
        return bad("node-name or name is missing", error);
    value = json_object_get(object, names[1]);
    return !value || json_is_string(value) || bad("an alias is a string", error);
}

static bool read_persistence(const json_t *transform, VmfBitmapPersistence *persistence, GError **error)
{
    const json_t *persistent = json_object_get(transform, "persistent");

    *persistence = VMF_BITMAP_PERSISTENCE_KEEP;
    if (!transform)
        return true;
    if (!json_is_object(transform) || json_object_size(transform) > 1 || !json_is_boolean(persistent))
        return bad("a transform reads {\"persistent\": BOOLEAN}", error);
    *persistence = json_is_true(persistent) ? VMF_BITMAP_PERSISTENCE_ON : VMF_BITMAP_PERSISTENCE_OFF;
    return true;
}

static bool read_alias(const json_t *object, VmfBitmapAlias *alias, GError **error)
{
    static const char *const names[] = {"name", "alias", "transform", NULL};

    if (!check_object(object, names, error))
        return false;
    alias->name = json_string_value(json_object_get(object, "name"));
    alias->alias = json_string_value(json_object_get(object, "alias"));
    return read_persistence(json_object_get(object, "transform"), &alias->persistence, error);
}

/* @arrays keeps what the node points at. */
static bool read_node(const json_t *object, VmfBitmapNode *node, GPtrArray *arrays, GError **error)
{
    static const char *const names[] = {"node-name", "alias", "bitmaps", NULL};
    const json_t *bitmaps = json_object_get(object, "bitmaps");
    size_t n = json_array_size(bitmaps);

    if (!check_object(object, names, error))
        return false;
    if (bitmaps && !json_is_array(bitmaps))
        return bad("bitmaps is a list", error);
    VmfBitmapAlias *aliases = g_new0(VmfBitmapAlias, n + 1);

    g_ptr_array_add(arrays, aliases);
    node->disk = json_string_value(json_object_get(object, "node-name"));
    node->alias = json_string_value(json_object_get(object, "alias"));
    node->bitmaps = bitmaps ? aliases : NULL;
    node->n_bitmaps = (unsigned)n;
    for (size_t i = 0; i < n; i++)
        if (!read_alias(json_array_get(bitmaps, i), &aliases[i], error))
            return false;
    return true;
}

static bool apply_list(VmfMachine *machine, const json_t *json, bool skip_unknown, GError **error)
{
    size_t n = json_array_size(json);
    g_autofree VmfBitmapNode *nodes = g_new0(VmfBitmapNode, n + 1);
    g_autoptr(GPtrArray) arrays = g_ptr_array_new_with_free_func(g_free);
    VmfBitmapMap map = {.size = sizeof(map), .nodes = nodes, .n_nodes = (unsigned)n, .skip_unknown = skip_unknown};

    for (size_t i = 0; i < n; i++)
        if (!read_node(json_array_get(json, i), &nodes[i], arrays, error))
            return false;
    return vmf_machine_set_bitmap_map(machine, &map, error);
}

bool vmf_bitmap_map_apply(VmfMachine *machine, const json_t *json, bool skip_unknown, GError **error)
{
    VmfBitmapMap all = {.size = sizeof(all), .skip_unknown = skip_unknown};

    if (!json || json_is_false(json))
        return vmf_machine_set_bitmap_map(machine, NULL, error);
    if (json_is_true(json))
        return vmf_machine_set_bitmap_map(machine, &all, error);
    return json_is_array(json) ? apply_list(machine, json, skip_unknown, error) : bad("it is a list", error);
}

json_t *vmf_bitmap_map_parse(const char *text, GError **error)
{
    json_error_t problem;
    json_t *json;

    if (strcmp(text, "all") == 0)
        return json_true();
    if (strcmp(text, "none") == 0)
        return json_false();
    json = json_loads(text, JSON_REJECT_DUPLICATES, &problem);
    if (json_is_array(json))
        return json;
    json_decref(json);
    bad("expected is all, none, or a list in JSON", error);
    return NULL;
}

bool vmf_bitmap_map_apply_text(VmfMachine *machine, const char *text, bool skip_unknown, GError **error)
{
    json_t *json = vmf_bitmap_map_parse(text, error);
    bool done = json && vmf_bitmap_map_apply(machine, json, skip_unknown, error);

    json_decref(json);
    return done;
}
