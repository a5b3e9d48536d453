/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bitmaps that arrive. All that the section says is checked as it comes; the bitmaps are made beside the disks, and
 * given to them when all of it is there. A disk takes them over when it is acquired, or at once where it is already
 * (block/bitmap-set.h).
 */
#include "migration/bitmap-mover.h"

#include <string.h>
#include <vmferry/error.h>

#include "stream/pack.h"

#define KNOWN_FLAGS (VMF_MOVE_RECORDS | VMF_MOVE_PERSISTENT | VMF_MOVE_INCONSISTENT)

static bool bad(const char *what, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION, "bitmaps: %s", what);
    return false;
}

static void arrival_clear(void *opaque)
{
    VmfMoverArrival *arrival = opaque;

    g_clear_pointer(&arrival->bitmap, vmf_bitmap_free);
}

bool vmf_bitmap_arrival_setup(void *opaque, GError **error)
{
    VmfBitmapMover *mover = opaque;

    vmf_bitmap_arrival_cleanup(mover);
    mover->arrivals = g_array_new(FALSE, TRUE, sizeof(VmfMoverArrival));
    g_array_set_clear_func(mover->arrivals, arrival_clear);
    mover->part = g_byte_array_new();
    return true;
}

/* What no disk has taken over by now is not wanted. */
void vmf_bitmap_arrival_cleanup(void *opaque)
{
    VmfBitmapMover *mover = opaque;

    if (!mover->arrivals)
        return;
    for (guint i = 0; i < mover->disks->len; i++)
        vmf_bitmaps_stage(vmf_disk_bitmap_set(g_ptr_array_index(mover->disks, i)), NULL, NULL);
    g_clear_pointer(&mover->arrivals, g_array_unref);
    g_clear_pointer(&mover->part, g_byte_array_unref);
    mover->ended = false;
}

/* ---- what an alias means here ------------------------------------------------------------------------------------ */

/* NULL: nothing. @bitmaps: of the map; NULL: names are aliases. */
static VmfDisk *find_disk(const VmfBitmapMover *mover, const char *alias, const GArray **bitmaps)
{
    *bitmaps = NULL;
    if (!mover->nodes)
        return vmf_bitmap_mover_disk(mover, alias);
    for (guint i = 0; i < mover->nodes->len; i++) {
        const VmfMoverNode *node = &g_array_index(mover->nodes, VmfMoverNode, i);

        if (strcmp(node->alias, alias) != 0)
            continue;
        *bitmaps = node->bitmaps;
        return vmf_bitmap_mover_disk(mover, node->disk);
    }
    return NULL;
}

static const char *find_name(const GArray *bitmaps, const char *alias, VmfBitmapPersistence *persistence)
{
    *persistence = VMF_BITMAP_PERSISTENCE_KEEP;
    if (!bitmaps)
        return alias;
    for (guint i = 0; i < bitmaps->len; i++) {
        const VmfMoverAlias *entry = &g_array_index(bitmaps, VmfMoverAlias, i);

        if (strcmp(entry->alias, alias) == 0)
            return *persistence = entry->persistence, entry->name;
    }
    return NULL;
}

static bool unknown(const VmfBitmapMover *mover, const char *node, const char *alias, const char *why, GError **error)
{
    if (mover->skip_unknown)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION, "bitmaps: disk '%s', bitmap '%s': %s", node, alias, why);
    return false;
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */

static bool is_taken(const VmfBitmapMover *mover, const VmfBitmaps *set, const char *name)
{
    for (guint i = 0; i < mover->arrivals->len; i++) {
        const VmfMoverArrival *arrival = &g_array_index(mover->arrivals, VmfMoverArrival, i);

        if (arrival->set == set && arrival->bitmap && strcmp(arrival->bitmap->name, name) == 0)
            return true;
    }
    return false;
}

/* Makes the bitmap, unless it is to be left out. */
static bool make(VmfBitmapMover *mover, VmfMoverArrival *arrival, const char *node, const char *alias,
                 uint64_t disk_bytes, uint32_t granularity, GError **error)
{
    const GArray *bitmaps;
    VmfDisk *disk = find_disk(mover, node, &bitmaps);
    const char *name = disk ? find_name(bitmaps, alias, &arrival->persistence) : NULL;
    GError *problem = NULL;

    if (!name)
        return unknown(mover, node, alias,
                       disk ? "no bitmap here has this alias" : "no disk here has this name or alias", error);
    arrival->set = vmf_disk_bitmap_set(disk);
    if (is_taken(mover, arrival->set, name))
        return bad("one bitmap comes twice", error);
    if (vmf_disk_size(disk) != 0 && vmf_disk_size(disk) != disk_bytes)
        return bad("a bitmap is of a disk of another size", error);
    arrival->bitmap = vmf_bitmap_new(name, disk_bytes, granularity, &problem);
    if (arrival->bitmap)
        return true;
    g_propagate_error(error,
                      g_error_new(VMF_ERROR, problem->code == VMF_ERROR_MEMORY ? VMF_ERROR_MEMORY : VMF_ERROR_SECTION,
                                  "bitmaps: %s", problem->message));
    g_error_free(problem);
    return false;
}

static bool take_bitmap(VmfBitmapMover *mover, VmfUnpack *unpack, GError **error)
{
    uint32_t index = vmf_unpack_u32(unpack), granularity = vmf_unpack_u32(unpack), flags = vmf_unpack_u32(unpack);
    uint16_t node_length = vmf_unpack_u16(unpack), alias_length = vmf_unpack_u16(unpack);
    uint64_t disk_bytes = vmf_unpack_u64(unpack);
    g_autofree char *node = vmf_unpack_string(unpack, node_length), *alias = vmf_unpack_string(unpack, alias_length);
    VmfMoverArrival arrival = {.n_pieces = 0};

    if (!vmf_unpack_done(unpack) || flags & ~KNOWN_FLAGS || node_length < 1 || alias_length < 1 ||
        node_length > VMF_BITMAP_NAME_MAX || alias_length > VMF_BITMAP_NAME_MAX || disk_bytes == 0)
        return bad("a message makes no sense", error);
    if (index != mover->arrivals->len || index >= mover->disks->len * VMF_DISK_BITMAPS_MAX)
        return bad("there are too many, or they are out of order", error);
    if (!make(mover, &arrival, node, alias, disk_bytes, granularity, error)) {
        arrival_clear(&arrival);
        return false;
    }
    arrival.n_pieces = arrival.bitmap ? arrival.bitmap->n_pieces : G_MAXUINT64;
    g_array_append_val(mover->arrivals, arrival);
    return true;
}

static VmfMoverArrival *arrival_at(VmfBitmapMover *mover, uint32_t index)
{
    return index < mover->arrivals->len ? &g_array_index(mover->arrivals, VmfMoverArrival, index) : NULL;
}

static bool take_bits(VmfBitmapMover *mover, VmfUnpack *unpack, GError **error)
{
    VmfMoverArrival *arrival = arrival_at(mover, vmf_unpack_u32(unpack));
    uint64_t words[VMF_BITMAP_PIECE_WORDS], piece;

    vmf_unpack_zero(unpack, 4);
    piece = vmf_unpack_u64(unpack);
    for (unsigned i = 0; i < VMF_BITMAP_PIECE_WORDS; i++)
        words[i] = vmf_unpack_u64(unpack);
    if (!vmf_unpack_done(unpack) || !arrival || arrival->complete || piece >= arrival->n_pieces)
        return bad("bits of no bitmap, or beyond its end", error);
    if (!arrival->bitmap)
        return true;
    vmf_bitmap_forget_piece(arrival->bitmap, piece);
    return vmf_bitmap_put_piece(arrival->bitmap, piece, words) || bad("bits beyond the disk's end", error);
}

static bool take_state(VmfBitmapMover *mover, VmfUnpack *unpack, GError **error)
{
    VmfMoverArrival *arrival = arrival_at(mover, vmf_unpack_u32(unpack));
    uint32_t flags = vmf_unpack_u32(unpack);

    if (!vmf_unpack_done(unpack) || !arrival || arrival->complete || flags & ~(KNOWN_FLAGS | VMF_MOVE_GONE))
        return bad("a state of no bitmap", error);
    arrival->complete = true;
    if (flags & VMF_MOVE_GONE)
        g_clear_pointer(&arrival->bitmap, vmf_bitmap_free);
    if (!arrival->bitmap)
        return true;
    arrival->bitmap->recording = arrival->bitmap->file_records = flags & VMF_MOVE_RECORDS;
    arrival->bitmap->persistent = arrival->persistence == VMF_BITMAP_PERSISTENCE_KEEP
                                      ? (flags & VMF_MOVE_PERSISTENT) != 0
                                      : arrival->persistence == VMF_BITMAP_PERSISTENCE_ON;
    if (flags & VMF_MOVE_INCONSISTENT)
        arrival->bitmap->problem = g_strdup("it was inconsistent where it came from");
    return true;
}

static bool take_end(VmfBitmapMover *mover, VmfUnpack *unpack, GError **error)
{
    uint32_t n = vmf_unpack_u32(unpack);

    vmf_unpack_zero(unpack, 4);
    if (!vmf_unpack_done(unpack) || n != mover->arrivals->len)
        return bad("the end makes no sense", error);
    for (guint i = 0; i < n; i++)
        if (!arrival_at(mover, i)->complete)
            return bad("a bitmap has no state", error);
    mover->ended = true;
    return true;
}

static bool take_message(VmfBitmapMover *mover, uint32_t type, const uint8_t *body, uint32_t length, GError **error)
{
    VmfUnpack unpack = vmf_unpack_begin(body, length, G_BYTE_ORDER != G_LITTLE_ENDIAN);

    if (mover->ended)
        return bad("something comes after the end", error);
    switch (type) {
    case VMF_MOVE_BITMAP:
        return take_bitmap(mover, &unpack, error);
    case VMF_MOVE_BITS:
        return take_bits(mover, &unpack, error);
    case VMF_MOVE_STATE:
        return take_state(mover, &unpack, error);
    case VMF_MOVE_END:
        return take_end(mover, &unpack, error);
    default:
        return bad("an unknown message", error);
    }
}

/* All whole messages in @part. */
static bool take_messages(VmfBitmapMover *mover, GError **error)
{
    size_t at = 0;

    for (;;) {
        VmfUnpack head =
            vmf_unpack_begin(mover->part->data + at, mover->part->len - at, G_BYTE_ORDER != G_LITTLE_ENDIAN);
        uint32_t type = vmf_unpack_u32(&head), length = vmf_unpack_u32(&head);

        if (head.failed)
            break;
        if (length > VMF_MOVE_BODY_MAX)
            return bad("a message is too long", error);
        if (head.left < length)
            break;
        if (!take_message(mover, type, head.at, length, error))
            return false;
        at += VMF_MOVE_HEAD_BYTES + length;
    }
    g_byte_array_remove_range(mover->part, 0, (guint)at);
    return true;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static bool stage_of(VmfBitmapMover *mover, VmfDisk *disk, GError **error)
{
    VmfBitmaps *set = vmf_disk_bitmap_set(disk);
    g_autoptr(GPtrArray) bitmaps = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_bitmap_free);

    for (guint i = 0; i < mover->arrivals->len; i++) {
        VmfMoverArrival *arrival = arrival_at(mover, i);

        if (arrival->set == set && arrival->bitmap)
            g_ptr_array_add(bitmaps, g_steal_pointer(&arrival->bitmap));
    }
    return bitmaps->len == 0 || vmf_bitmaps_stage(set, g_steal_pointer(&bitmaps), error);
}

bool vmf_bitmap_arrival_load(void *opaque, uint32_t version, const uint8_t *data, size_t length, bool last,
                             GError **error)
{
    VmfBitmapMover *mover = opaque;

    if (length > 0)
        g_byte_array_append(mover->part, data, (guint)length);
    if (!take_messages(mover, error))
        return false;
    if (!last)
        return true;
    if (mover->part->len > 0 || !mover->ended)
        return bad("they end too early", error);
    for (guint i = 0; i < mover->disks->len; i++)
        if (!stage_of(mover, g_ptr_array_index(mover->disks, i), error))
            return false;
    return true;
}
