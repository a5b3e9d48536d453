/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 *   source   tracker on . what the bitmap has is marked . [ digests of the rest -> BASE ]* . passes as ever
 *   target   base locked, and read ................... . [ the same granules are read, digested, compared ]* . written
 *
 * A granule whose digest goes out must not have been written since the base was made. The bitmap says so of the time
 * until the tracker was put on, the tracker of the time from then on. A write marks its granules before it is given to
 * the storage: so a granule that is not marked once it has been read was read as it is in the base. One that is, is
 * left to the first pass.
 *
 * All of this comes ahead of the first EXTENT. A base that is another's is found while nothing of it has been changed.
 */
#include "migration/disk-base.h"

#include <vmferry/error.h>

#include "block/disk.h"

#define RUN_GRANULES (VMF_READ_AHEAD_BYTES / VMF_GRANULE_BYTES)
#define WINDOW_BYTES ((uint64_t)VMF_BASE_GRANULES_MAX * VMF_GRANULE_BYTES)

/* ---- digests of what storage has ----------------------------------------------------------------------------------- */

typedef struct {
    bool (*wants)(void *opaque, uint64_t granule);
    bool (*take)(void *opaque, uint64_t granule, uint64_t digest, GError **error);
    bool (*has_room)(void *opaque); /* another read may begin */
    bool (*between)(void *opaque, GError **error); /* after each read */
} Looking;

typedef struct {
    const Looking *looking;
    void *opaque;
    const VmfDiskProof *proof;
    VmfDisk *disk;
    VmfReadAhead *ahead;
    uint64_t at, end;
    uint64_t extent_end; /* up to where it is known whether there is a hole */
    bool is_hole;
} Look;

static bool know_extent(Look *look, GError **error)
{
    VmfExtentKind kind;
    uint64_t length;

    if (look->at < look->extent_end)
        return true;
    if (!vmf_disk_extent(look->disk, look->at, look->proof->size - look->at, &kind, &length, error))
        return false;
    look->extent_end = look->at + length;
    look->is_hole = kind == VMF_EXTENT_ZERO;
    return true;
}

static void begin_read(Look *look)
{
    uint64_t granule = look->at / VMF_GRANULE_BYTES, n = 1;
    uint64_t end = look->is_hole ? look->at : MIN(look->end, look->extent_end);

    while (n < RUN_GRANULES && look->at + n * VMF_GRANULE_BYTES < end &&
           look->looking->wants(look->opaque, granule + n))
        n++;
    uint64_t length = MIN(n * VMF_GRANULE_BYTES, look->end - look->at);
    vmf_read_ahead_begin(look->ahead, look->disk, 0, look->at, length);
    look->at += length;
}

/* Up to the next read that is begun (*@begun), or to the end. Holes are zeros, and not read. */
static bool look_on(Look *look, bool *begun, GError **error)
{
    *begun = false;
    while (look->at < look->end && !*begun) {
        uint64_t granule = look->at / VMF_GRANULE_BYTES, end = MIN(look->at + VMF_GRANULE_BYTES, look->end);
        bool wanted = look->looking->wants(look->opaque, granule);
        if (wanted && !know_extent(look, error))
            return false;
        *begun = wanted && !(look->is_hole && end <= look->extent_end);
        if (wanted && !*begun && !look->looking->take(look->opaque, granule, 0, error))
            return false;
        if (*begun)
            begin_read(look);
        else
            look->at = end;
    }
    return true;
}

static bool take_piece(const Look *look, const VmfReadPiece *piece, GError **error)
{
    if (piece->error) {
        g_propagate_error(error, g_error_copy(piece->error));
        return false;
    }
    for (uint64_t at = 0; at < piece->length; at += VMF_GRANULE_BYTES) {
        uint64_t digest = vmf_disk_proof_digest_of(look->proof, piece->data + at,
                                                   MIN(VMF_GRANULE_BYTES, piece->length - at));
        if (!look->looking->take(look->opaque, (piece->offset + at) / VMF_GRANULE_BYTES, digest, error))
            return false;
    }
    return true;
}

static bool look_at(Look *look, GError **error)
{
    const VmfReadPiece *piece;
    bool good = true, more = true;

    do {
        while (good && more && look->looking->has_room(look->opaque))
            good = look_on(look, &more, error);
        piece = vmf_read_ahead_next(look->ahead);
        if (piece) {
            good = good && take_piece(look, piece, error) && look->looking->between(look->opaque, error);
            vmf_read_ahead_give_back(look->ahead);
        }
    } while (piece);
    return good;
}

/* ---- source -------------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfDiskSource *source;
    VmfDiskSourceOne *one;
} Telling;

static bool is_clean(void *opaque, uint64_t granule)
{
    const Telling *telling = opaque;

    return !vmf_disk_dirty_is_set(telling->one->dirty, granule);
}

static bool name_if_clean(void *opaque, uint64_t granule, uint64_t digest, GError **error)
{
    Telling *telling = opaque;

    if (!is_clean(telling, granule))
        return true;
    vmf_disk_proof_set_digest(&telling->one->proof, granule, digest);
    telling->source->base_bytes += vmf_disk_proof_granule_bytes(&telling->one->proof, granule);
    return true;
}

static bool source_has_room(void *opaque)
{
    const Telling *telling = opaque;

    return vmf_disk_source_has_room(telling->source);
}

static bool source_between(void *opaque, GError **error)
{
    const Telling *telling = opaque;

    return vmf_disk_source_between_reads(telling->source, error);
}

static bool send_run(const VmfDiskSource *source, unsigned i, VmfRecordWriter *writer, uint64_t granule, uint64_t n,
                     GError **error)
{
    const VmfDiskProof *proof = &source->disks[i].proof;
    uint64_t digests[VMF_BASE_GRANULES_MAX], offset = granule * VMF_GRANULE_BYTES;
    VmfDiskBase base = {.disk = source->indexes[i],
                        .is_zero = true,
                        .offset = offset,
                        .length = MIN(n * VMF_GRANULE_BYTES, proof->size - offset),
                        .digests = digests};

    for (uint64_t k = 0; k < n; k++) {
        digests[k] = vmf_disk_proof_digest(proof, granule + k);
        base.is_zero = base.is_zero && digests[k] == 0;
    }
    base.n_digests = base.is_zero ? 0 : (uint32_t)n;
    return vmf_disk_base_send(writer, &base, error);
}

/* What of these granules is named: nothing is but what was looked at. */
static bool send_window(const VmfDiskSource *source, unsigned i, VmfRecordWriter *writer, uint64_t begin, uint64_t end,
                        GError **error)
{
    uint64_t last = (end - 1) / VMF_GRANULE_BYTES + 1;

    for (uint64_t granule = begin / VMF_GRANULE_BYTES; granule < last;) {
        bool first;
        uint64_t n = vmf_disk_proof_run(&source->disks[i].proof, granule, last - granule, &first);
        if (!first && !send_run(source, i, writer, granule, n, error))
            return false;
        granule += n;
    }
    return true;
}

bool vmf_disk_base_tell(VmfDiskSource *source, unsigned i, VmfSaveStream *stream, GError **error)
{
    static const Looking looking = {is_clean, name_if_clean, source_has_room, source_between};
    VmfDiskSourceOne *one = &source->disks[i];
    Telling telling = {source, one};

    for (uint64_t begin = 0; begin < one->proof.size; begin += WINDOW_BYTES) {
        Look look = {&looking, &telling, &one->proof, one->disk, source->ahead, .at = begin};
        look.end = MIN(begin + WINDOW_BYTES, one->proof.size);
        if (!look_at(&look, error) || !vmf_disk_source_between_reads(source, error) ||
            !send_window(source, i, stream->writer, begin, look.end, error))
            return false;
    }
    return true;
}

/* ---- target -------------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfDiskProof *proof;
    VmfReadAhead *ahead;
    const VmfDiskBase *base;
    bool (*alive)(void *opaque, GError **error);
    void *opaque;
} Comparing;

static bool all(void *opaque, uint64_t granule)
{
    return true;
}

static bool compare(void *opaque, uint64_t granule, uint64_t digest, GError **error)
{
    const Comparing *comparing = opaque;
    const VmfDiskBase *base = comparing->base;
    uint64_t expected = base->is_zero ? 0 : base->digests[granule - base->offset / VMF_GRANULE_BYTES];

    if (digest == expected) {
        vmf_disk_proof_set_digest(comparing->proof, granule, digest);
        return true;
    }
    g_set_error(error, VMF_ERROR, VMF_ERROR_DISK_BASE,
                "disk %s: its base differs at offset %" G_GUINT64_FORMAT
                ", where the bitmap says that nothing was written since: it is another's base, or was changed itself",
                comparing->proof->name, granule * VMF_GRANULE_BYTES);
    return false;
}

static bool target_has_room(void *opaque)
{
    const Comparing *comparing = opaque;

    return vmf_read_ahead_has_room(comparing->ahead);
}

static bool target_between(void *opaque, GError **error)
{
    const Comparing *comparing = opaque;

    return comparing->alive(comparing->opaque, error);
}

bool vmf_disk_base_compare(VmfDiskProof *proof, VmfDisk *disk, VmfReadAhead *ahead, const VmfDiskBase *base,
                           bool (*alive)(void *, GError **), void *opaque, GError **error)
{
    static const Looking looking = {all, compare, target_has_room, target_between};
    Comparing comparing = {proof, ahead, base, alive, opaque};
    Look look = {&looking, &comparing, proof, disk, ahead, .at = base->offset};

    look.end = base->offset + base->length;
    return look_at(&look, error);
}
