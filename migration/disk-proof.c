/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/disk-proof.h"

#include <vmferry/error.h>

#include "block/disk.h"
#include "stream/wire.h"

G_STATIC_ASSERT(VMF_DISK_GRANULE_BYTES == VMF_GRANULE_BYTES);

bool vmf_disk_proof_init(VmfDiskProof *proof, const char *name, uint64_t size, GError **error)
{
    uint64_t n_granules = size / VMF_GRANULE_BYTES + (size % VMF_GRANULE_BYTES != 0);

    if (size > VMF_WIRE_COPIED_DISK_SIZE_MAX) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "disk %s: copy: it has more than 2^46 octets", name);
        return false;
    }
    *proof = (VmfDiskProof){.name = name, .size = size, .scan = vmf_page_scan_select()};
    proof->digests = vmf_digest_table_new(n_granules, error);
    proof->named = proof->digests ? vmf_disk_dirty_new(size, error) : NULL;
    proof->mirrored = proof->named ? vmf_disk_dirty_new(size, error) : NULL;
    return proof->mirrored != NULL;
}

void vmf_disk_proof_clear(VmfDiskProof *proof)
{
    g_clear_pointer(&proof->digests, vmf_digest_table_free);
    g_clear_pointer(&proof->named, vmf_disk_dirty_free);
    g_clear_pointer(&proof->mirrored, vmf_disk_dirty_free);
}

uint64_t vmf_disk_proof_granule_bytes(const VmfDiskProof *proof, uint64_t granule)
{
    return MIN(VMF_GRANULE_BYTES, proof->size - granule * VMF_GRANULE_BYTES);
}

bool vmf_disk_proof_is_zero(const VmfDiskProof *proof, const uint8_t *data, uint64_t length)
{
    return vmf_page_is_zero(proof->scan, data, length);
}

uint64_t vmf_disk_proof_run(const VmfDiskProof *proof, uint64_t granule, uint64_t max, bool *first)
{
    uint64_t n = 1;

    *first = !vmf_disk_dirty_is_set(proof->named, granule);
    while (n < max && vmf_disk_dirty_is_set(proof->named, granule + n) != *first)
        n++;
    return n;
}

uint64_t vmf_disk_proof_digest_of(const VmfDiskProof *proof, const uint8_t *data, uint64_t length)
{
    return vmf_page_is_zero(proof->scan, data, length) ? 0 : proof->scan->digest(data, length);
}

static void set_granule(VmfDiskProof *proof, uint64_t granule, uint64_t digest)
{
    uint64_t digests[VMF_CHUNK_PAGES];
    unsigned place = granule % VMF_CHUNK_PAGES;
    VmfPageSet one = {{0}};

    if (vmf_digest_table_get(proof->digests, granule) == digest)
        return;
    vmf_page_set_add(&one, place);
    digests[place] = digest;
    vmf_digest_table_update(proof->digests, granule / VMF_CHUNK_PAGES, &one, digest ? digests : NULL);
}

void vmf_disk_proof_set(VmfDiskProof *proof, uint64_t offset, const uint8_t *data, uint64_t length)
{
    uint64_t end = offset + length;

    vmf_disk_dirty_mark(proof->named, offset, length);
    if (proof->has_mirrored)
        vmf_disk_dirty_clear(proof->mirrored, offset, length);
    for (uint64_t at = offset; at < end; at += VMF_GRANULE_BYTES)
        set_granule(proof, at / VMF_GRANULE_BYTES,
                    data ? vmf_disk_proof_digest_of(proof, data + (at - offset), MIN(VMF_GRANULE_BYTES, end - at)) : 0);
}

uint64_t vmf_disk_proof_digest(const VmfDiskProof *proof, uint64_t granule)
{
    return vmf_digest_table_get(proof->digests, granule);
}

void vmf_disk_proof_set_digest(VmfDiskProof *proof, uint64_t granule, uint64_t digest)
{
    vmf_disk_dirty_mark(proof->named, granule * VMF_GRANULE_BYTES, 1);
    set_granule(proof, granule, digest);
}

uint64_t vmf_disk_proof_sum(const VmfDiskProof *proof)
{
    return vmf_digest_table_total(proof->digests) + proof->mirrored_sum;
}

/* Of a place as well, so that what was put elsewhere is found. */
void vmf_disk_proof_mirror(VmfDiskProof *proof, uint64_t number, uint64_t offset, const uint8_t *data, uint64_t length)
{
    uint64_t digest = data ? proof->scan->digest(data, length) : 1;

    proof->has_mirrored = true;
    vmf_disk_dirty_mark(proof->mirrored, offset, length);
    digest = vmf_page_digest_mix(offset, digest) ^ vmf_page_digest_mix(length, 1);
    proof->mirrored_sum += vmf_page_digest_mix(number, digest ? digest : 1);
}

bool vmf_disk_proof_all_named(const VmfDiskProof *proof, uint64_t offset, uint64_t length)
{
    uint64_t end = (offset + length - 1) / VMF_GRANULE_BYTES;

    for (uint64_t granule = offset / VMF_GRANULE_BYTES; granule <= end; granule++)
        if (!vmf_disk_dirty_is_set(proof->named, granule))
            return false;
    return true;
}

bool vmf_disk_proof_check_whole(const VmfDiskProof *proof, GError **error)
{
    uint64_t n = vmf_disk_dirty_count(proof->named), all = vmf_disk_dirty_granules(proof->named);

    if (n == all)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_DISK_COUNTS,
                "disk %s: %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT " granules were never named", proof->name,
                all - n, all);
    return false;
}

/* ---- reading it all again ---------------------------------------------------------------------------------------- */

static bool differs(const VmfDiskProof *proof, uint64_t offset, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_DISK_AUDIT,
                "disk %s: what its storage has at offset %" G_GUINT64_FORMAT " is not what it was given", proof->name,
                offset);
    return false;
}

/* What it is now, where its digest is of before; false: it differs from what it is to be. */
static bool settle(VmfDiskProof *proof, uint64_t granule, uint64_t digest)
{
    if (!vmf_disk_dirty_is_set(proof->mirrored, granule))
        return digest == vmf_digest_table_get(proof->digests, granule);
    vmf_disk_dirty_clear(proof->mirrored, granule * VMF_GRANULE_BYTES, 1);
    set_granule(proof, granule, digest);
    return true;
}

static bool compare(VmfDiskProof *proof, const VmfReadPiece *piece, GError **error)
{
    if (piece->error) {
        g_propagate_error(error, g_error_copy(piece->error));
        return false;
    }
    for (uint64_t at = 0; at < piece->length; at += VMF_GRANULE_BYTES) {
        uint64_t length = MIN(VMF_GRANULE_BYTES, piece->length - at),
                 granule = (piece->offset + at) / VMF_GRANULE_BYTES;
        if (!settle(proof, granule, vmf_disk_proof_digest_of(proof, piece->data + at, length)))
            return differs(proof, piece->offset + at, error);
    }
    return true;
}

/* What is not there, and was never anything but zeros, need not be read. Returns the end of it. */
static bool skip_holes(VmfDiskProof *proof, VmfDisk *disk, uint64_t *at, GError **error)
{
    VmfExtentKind kind = VMF_EXTENT_ZERO;
    uint64_t length = 0, end;

    while (*at < proof->size && kind == VMF_EXTENT_ZERO) {
        if (!vmf_disk_extent(disk, *at, proof->size - *at, &kind, &length, error))
            return false;
        end = *at + length == proof->size ? proof->size : (*at + length) / VMF_GRANULE_BYTES * VMF_GRANULE_BYTES;
        if (kind != VMF_EXTENT_ZERO || end <= *at)
            return true;
        for (; *at < end; *at = MIN(*at + VMF_GRANULE_BYTES, proof->size))
            if (!settle(proof, *at / VMF_GRANULE_BYTES, 0))
                return differs(proof, *at, error);
    }
    return true;
}

bool vmf_disk_proof_audit(VmfDiskProof *proof, VmfDisk *disk, VmfReadAhead *ahead,
                          bool (*alive)(void *, GError **), void *opaque, GError **error)
{
    const VmfReadPiece *piece;
    uint64_t at = 0;
    bool same = true;

    vmf_disk_forget_cache(disk);
    do {
        while (same && at < proof->size && vmf_read_ahead_has_room(ahead)) {
            same = skip_holes(proof, disk, &at, error);
            uint64_t length = MIN(VMF_READ_AHEAD_BYTES, proof->size - at);
            if (same && length > 0)
                vmf_read_ahead_begin(ahead, disk, 0, at, length);
            at += length;
        }
        piece = vmf_read_ahead_next(ahead);
        if (piece) {
            same = same && compare(proof, piece, error) && alive(opaque, error);
            vmf_read_ahead_give_back(ahead);
        }
    } while (piece);
    return same;
}
