/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * For each bitmap that travels the source keeps what the target has of it, and sends each piece that differs: in the
 * first round all that is not clean, then what changed, after the stop the rest. So nothing has to be told apart, a
 * bitmap that was cleared meanwhile arrives clear, and what one round missed the next one finds.
 *
 * Which bitmaps travel is fixed when it begins. Whether they record, are persistent, or are gone by now is told at the
 * end, when the guest stands and no write of it is under way.
 */
#include "migration/bitmap-mover.h"

#include <string.h>
#include <vmferry/error.h>

#include "stream/pack.h"

static bool refuse(VmfErrorCode code, const char *what, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, code, "bitmaps: %s: %s", what, why);
    return false;
}

/* ---- the map ----------------------------------------------------------------------------------------------------- */

static void alias_clear(void *opaque)
{
    VmfMoverAlias *alias = opaque;

    g_free(alias->name);
    g_free(alias->alias);
}

static void node_clear(void *opaque)
{
    VmfMoverNode *node = opaque;

    g_free(node->disk);
    g_free(node->alias);
    if (node->bitmaps)
        g_array_unref(node->bitmaps);
}

static bool is_alias(const char *alias)
{
    size_t length = strlen(alias);

    return length >= 1 && length <= VMF_BITMAP_NAME_MAX && vmf_is_text(alias, length);
}

static bool add_alias(GArray *aliases, const VmfBitmapAlias *from, GError **error)
{
    VmfMoverAlias alias = {g_strdup(from->name), g_strdup(from->alias ? from->alias : from->name), from->persistence};
    bool good =
        is_alias(alias.alias) || refuse(VMF_ERROR_USAGE, alias.name, "an alias has 1 to 255 bytes of UTF-8", error);

    for (guint i = 0; i < aliases->len && good; i++) {
        const VmfMoverAlias *other = &g_array_index(aliases, VmfMoverAlias, i);

        if (strcmp(other->name, alias.name) == 0 || strcmp(other->alias, alias.alias) == 0)
            good = refuse(VMF_ERROR_USAGE, alias.name, "name or alias is in the map twice", error);
    }
    g_array_append_val(aliases, alias);
    return good;
}

static bool add_node(GArray *nodes, const VmfBitmapNode *from, GError **error)
{
    VmfMoverNode node = {g_strdup(from->disk), g_strdup(from->alias ? from->alias : from->disk), NULL};
    bool good =
        is_alias(node.alias) || refuse(VMF_ERROR_USAGE, node.disk, "an alias has 1 to 255 bytes of UTF-8", error);

    for (guint i = 0; i < nodes->len && good; i++) {
        const VmfMoverNode *other = &g_array_index(nodes, VmfMoverNode, i);

        if (strcmp(other->disk, node.disk) == 0 || strcmp(other->alias, node.alias) == 0)
            good = refuse(VMF_ERROR_USAGE, node.disk, "disk or alias is in the map twice", error);
    }
    if (from->bitmaps) {
        node.bitmaps = g_array_new(FALSE, TRUE, sizeof(VmfMoverAlias));
        g_array_set_clear_func(node.bitmaps, alias_clear);
    }
    for (unsigned i = 0; i < from->n_bitmaps && good; i++)
        good = add_alias(node.bitmaps, &from->bitmaps[i], error);
    g_array_append_val(nodes, node);
    return good;
}

static GArray *copy_nodes(const VmfBitmapMover *mover, const VmfBitmapMap *map, GError **error)
{
    g_autoptr(GArray) nodes = g_array_new(FALSE, TRUE, sizeof(VmfMoverNode));

    g_array_set_clear_func(nodes, node_clear);
    for (unsigned i = 0; i < map->n_nodes; i++) {
        if (!vmf_bitmap_mover_disk(mover, map->nodes[i].disk)) {
            refuse(VMF_ERROR_USAGE, map->nodes[i].disk, "there is no disk of this name", error);
            return NULL;
        }
        if (!add_node(nodes, &map->nodes[i], error))
            return NULL;
    }
    return g_steal_pointer(&nodes);
}

bool vmf_bitmap_mover_set_map(VmfBitmapMover *mover, const VmfBitmapMap *map, GError **error)
{
    VmfBitmapMap own = {0};
    GArray *nodes = NULL;

    if (map)
        memcpy(&own, map, MIN(map->size, sizeof(own)));
    if (own.nodes && !(nodes = copy_nodes(mover, &own, error)))
        return false;
    g_clear_pointer(&mover->nodes, g_array_unref);
    mover->nodes = nodes;
    mover->has_map = map != NULL;
    mover->skip_unknown = own.skip_unknown;
    return true;
}

/* ---- the mover --------------------------------------------------------------------------------------------------- */

static void item_clear(void *opaque)
{
    VmfMoverItem *item = opaque;

    g_free(item->name);
    g_free(item->sent);
}

VmfBitmapMover *vmf_bitmap_mover_new(void)
{
    VmfBitmapMover *mover = g_new0(VmfBitmapMover, 1);

    mover->disks = g_ptr_array_new();
    mover->items = g_array_new(FALSE, TRUE, sizeof(VmfMoverItem));
    g_array_set_clear_func(mover->items, item_clear);
    return mover;
}

void vmf_bitmap_mover_free(VmfBitmapMover *mover)
{
    if (!mover)
        return;
    vmf_bitmap_arrival_cleanup(mover);
    vmf_bitmap_mover_set_map(mover, NULL, NULL);
    g_array_unref(mover->items);
    g_ptr_array_unref(mover->disks);
    g_free(mover);
}

void vmf_bitmap_mover_add_disk(VmfBitmapMover *mover, VmfDisk *disk)
{
    g_ptr_array_add(mover->disks, disk);
}

VmfDisk *vmf_bitmap_mover_disk(const VmfBitmapMover *mover, const char *name)
{
    for (guint i = 0; i < mover->disks->len; i++)
        if (strcmp(vmf_disk_name(g_ptr_array_index(mover->disks, i)), name) == 0)
            return g_ptr_array_index(mover->disks, i);
    return NULL;
}

/* ---- the source: what travels ------------------------------------------------------------------------------------ */

static const VmfMoverNode *node_of(const VmfBitmapMover *mover, const char *disk)
{
    for (guint i = 0; mover->nodes && i < mover->nodes->len; i++) {
        const VmfMoverNode *node = &g_array_index(mover->nodes, VmfMoverNode, i);

        if (strcmp(node->disk, disk) == 0)
            return node;
    }
    return NULL;
}

/* False: it stays. */
static bool alias_of(const VmfMoverNode *node, const char *name, const char **alias, VmfBitmapPersistence *persistence)
{
    *alias = name;
    *persistence = VMF_BITMAP_PERSISTENCE_KEEP;
    if (!node || !node->bitmaps)
        return true;
    for (guint i = 0; i < node->bitmaps->len; i++) {
        const VmfMoverAlias *entry = &g_array_index(node->bitmaps, VmfMoverAlias, i);

        if (strcmp(entry->name, name) != 0)
            continue;
        *alias = entry->alias;
        *persistence = entry->persistence;
        return true;
    }
    return false;
}

static uint32_t flags_of(const VmfBitmap *bitmap, VmfBitmapPersistence persistence)
{
    bool persistent =
        persistence == VMF_BITMAP_PERSISTENCE_KEEP ? bitmap->persistent : persistence == VMF_BITMAP_PERSISTENCE_ON;

    return (bitmap->recording ? VMF_MOVE_RECORDS : 0) | (persistent ? VMF_MOVE_PERSISTENT : 0) |
           (bitmap->problem ? VMF_MOVE_INCONSISTENT : 0);
}

static VmfPack pack_begin(GByteArray *bytes)
{
    return (VmfPack){.bytes = bytes, .swap = G_BYTE_ORDER != G_LITTLE_ENDIAN};
}

static bool send(VmfSaveStream *stream, uint32_t type, const GByteArray *body, GError **error)
{
    g_autoptr(GByteArray) message = g_byte_array_new();
    VmfPack pack = pack_begin(message);

    vmf_pack_u32(&pack, type);
    vmf_pack_u32(&pack, body->len);
    vmf_pack_bytes(&pack, body->data, body->len);
    return vmf_save_bytes(stream, message->data, message->len, error);
}

static bool send_bitmap(VmfBitmapMover *mover, VmfSaveStream *stream, uint32_t index, const char *node,
                        const char *alias, GError **error)
{
    const VmfMoverItem *item = &g_array_index(mover->items, VmfMoverItem, index);
    g_autoptr(GByteArray) body = g_byte_array_new();
    VmfPack pack = pack_begin(body);

    vmf_pack_u32(&pack, index);
    vmf_pack_u32(&pack, item->granularity_bytes);
    vmf_pack_u32(&pack, item->flags);
    vmf_pack_u16(&pack, (uint16_t)strlen(node));
    vmf_pack_u16(&pack, (uint16_t)strlen(alias));
    vmf_pack_u64(&pack, item->set->size_bytes);
    vmf_pack_bytes(&pack, node, strlen(node));
    vmf_pack_bytes(&pack, alias, strlen(alias));
    return send(stream, VMF_MOVE_BITMAP, body, error);
}

/* Their names are looked up by turns: what there is may change meanwhile. */
static bool add_item(VmfBitmapMover *mover, VmfSaveStream *stream, VmfDisk *disk, const VmfMoverNode *node,
                     const char *name, GError **error)
{
    VmfBitmaps *set = vmf_disk_bitmap_set(disk);
    VmfMoverItem item = {.set = set};
    const char *alias;

    if (!alias_of(node, name, &alias, &item.persistence))
        return true;
    pthread_mutex_lock(&set->lock);
    const VmfBitmap *bitmap = vmf_bitmaps_find(set, name);
    if (bitmap) {
        item.granularity_bytes = bitmap->granularity_bytes;
        item.n_pieces = bitmap->n_pieces;
        item.flags = flags_of(bitmap, item.persistence);
    }
    pthread_mutex_unlock(&set->lock);
    if (item.n_pieces == 0)
        return true;
    item.sent = g_try_malloc0(item.n_pieces * VMF_BITMAP_PIECE_WORDS * 8);
    if (!item.sent)
        return refuse(VMF_ERROR_MEMORY, name, "out of memory", error);
    item.name = g_strdup(name);
    g_array_append_val(mover->items, item);
    return send_bitmap(mover, stream, mover->items->len - 1, node ? node->alias : vmf_disk_name(disk), alias, error);
}

static bool add_disk(VmfBitmapMover *mover, VmfSaveStream *stream, VmfDisk *disk, GError **error)
{
    const VmfMoverNode *node = node_of(mover, vmf_disk_name(disk));
    g_autofree VmfBitmapInfo *infos = g_new0(VmfBitmapInfo, VMF_DISK_BITMAPS_MAX);
    unsigned n;

    if (mover->nodes && !node)
        return true;
    for (unsigned i = 0; i < VMF_DISK_BITMAPS_MAX; i++)
        infos[i].size = sizeof(infos[i]);
    n = vmf_disk_list_bitmaps(disk, infos, VMF_DISK_BITMAPS_MAX);
    for (unsigned i = 0; i < n; i++)
        if (!add_item(mover, stream, disk, node, infos[i].name, error))
            return false;
    return true;
}

static bool save_setup(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfBitmapMover *mover = opaque;

    g_array_set_size(mover->items, 0);
    for (guint i = 0; i < mover->disks->len; i++)
        if (!add_disk(mover, stream, g_ptr_array_index(mover->disks, i), error))
            return false;
    return true;
}

/* ---- the source: bits -------------------------------------------------------------------------------------------- */

/* The set's lock is held. NULL: it is gone; one of the same name that came since is another. */
static VmfBitmap *bitmap_of(const VmfMoverItem *item)
{
    VmfBitmap *bitmap = vmf_bitmaps_find(item->set, item->name);

    return bitmap && bitmap->granularity_bytes == item->granularity_bytes && bitmap->n_pieces == item->n_pieces ? bitmap
                                                                                                                : NULL;
}

/* The first piece from *@piece on that the target does not have so: *@words. False: there is none. */
static bool next_changed(const VmfMoverItem *item, uint64_t *piece, uint64_t words[VMF_BITMAP_PIECE_WORDS])
{
    bool found = false;

    pthread_mutex_lock(&item->set->lock);
    const VmfBitmap *bitmap = bitmap_of(item);
    for (; bitmap && *piece < item->n_pieces; ++*piece) {
        vmf_bitmap_look_at_piece(bitmap, *piece, words);
        found = memcmp(words, item->sent + *piece * VMF_BITMAP_PIECE_WORDS, VMF_BITMAP_PIECE_WORDS * 8) != 0;
        if (found)
            break;
    }
    pthread_mutex_unlock(&item->set->lock);
    return found;
}

static bool send_bits(VmfSaveStream *stream, uint32_t index, uint64_t piece, const uint64_t *words, GError **error)
{
    g_autoptr(GByteArray) body = g_byte_array_sized_new(VMF_MOVE_BITS_BYTES);
    VmfPack pack = pack_begin(body);

    vmf_pack_u32(&pack, index);
    vmf_pack_u32(&pack, 0);
    vmf_pack_u64(&pack, piece);
    for (unsigned i = 0; i < VMF_BITMAP_PIECE_WORDS; i++)
        vmf_pack_u64(&pack, words[i]);
    return send(stream, VMF_MOVE_BITS, body, error);
}

static bool send_changed(VmfBitmapMover *mover, VmfSaveStream *stream, GError **error)
{
    uint64_t words[VMF_BITMAP_PIECE_WORDS];

    for (guint i = 0; i < mover->items->len; i++) {
        VmfMoverItem *item = &g_array_index(mover->items, VmfMoverItem, i);

        for (uint64_t piece = 0; next_changed(item, &piece, words); piece++) {
            memcpy(item->sent + piece * VMF_BITMAP_PIECE_WORDS, words, sizeof(words));
            if (!send_bits(stream, i, piece, words, error))
                return false;
        }
    }
    atomic_store(&mover->pending_bytes, 0);
    return true;
}

static bool save_iterate(void *opaque, VmfSaveStream *stream, GError **error)
{
    return send_changed(opaque, stream, error);
}

static void pending_estimate(void *opaque, VmfPending *pending)
{
    pending->precopy_bytes += atomic_load(&((VmfBitmapMover *)opaque)->pending_bytes);
}

static bool pending_exact(void *opaque, VmfPending *pending, GError **error)
{
    VmfBitmapMover *mover = opaque;
    uint64_t words[VMF_BITMAP_PIECE_WORDS], n = 0;

    for (guint i = 0; i < mover->items->len; i++)
        for (uint64_t piece = 0; next_changed(&g_array_index(mover->items, VmfMoverItem, i), &piece, words); piece++)
            n++;
    atomic_store(&mover->pending_bytes, n * (VMF_MOVE_HEAD_BYTES + VMF_MOVE_BITS_BYTES));
    pending_estimate(mover, pending);
    return true;
}

static bool send_state(VmfSaveStream *stream, const VmfMoverItem *item, uint32_t index, GError **error)
{
    g_autoptr(GByteArray) body = g_byte_array_new();
    VmfPack pack = pack_begin(body);

    pthread_mutex_lock(&item->set->lock);
    const VmfBitmap *bitmap = bitmap_of(item);
    uint32_t flags = bitmap ? flags_of(bitmap, item->persistence) : VMF_MOVE_GONE;
    pthread_mutex_unlock(&item->set->lock);
    vmf_pack_u32(&pack, index);
    vmf_pack_u32(&pack, flags);
    return send(stream, VMF_MOVE_STATE, body, error);
}

/* The guest stands, and no write of it is under way. */
static bool save_complete(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfBitmapMover *mover = opaque;
    g_autoptr(GByteArray) body = g_byte_array_new();
    VmfPack pack = pack_begin(body);

    if (!send_changed(mover, stream, error))
        return false;
    for (guint i = 0; i < mover->items->len; i++)
        if (!send_state(stream, &g_array_index(mover->items, VmfMoverItem, i), i, error))
            return false;
    vmf_pack_u32(&pack, mover->items->len);
    vmf_pack_u32(&pack, 0);
    return send(stream, VMF_MOVE_END, body, error);
}

static void save_cleanup(void *opaque)
{
    VmfBitmapMover *mover = opaque;

    g_array_set_size(mover->items, 0);
    atomic_store(&mover->pending_bytes, 0);
}

static bool is_active(void *opaque)
{
    const VmfBitmapMover *mover = opaque;

    return mover->has_map && !mover->skip_unknown;
}

const VmfSaveHandlers vmf_bitmap_handlers = {
    .size = sizeof(VmfSaveHandlers),
    .save_setup = save_setup,
    .save_iterate = save_iterate,
    .pending_estimate = pending_estimate,
    .pending_exact = pending_exact,
    .save_complete = save_complete,
    .save_cleanup = save_cleanup,
    .is_active = is_active,
    .load_setup = vmf_bitmap_arrival_setup,
    .load_state = vmf_bitmap_arrival_load,
    .load_cleanup = vmf_bitmap_arrival_cleanup,
};
