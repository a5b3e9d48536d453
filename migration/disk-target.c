/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 * The session's thread reads records; what they bring is written by the disks' own threads, several requests at a time.
 * Payloads go from the channel into one of a few buffers, are digested there, and are the storage's until it is done:
 * where all are in use, the channel waits, and with it the source. Two writes to one place are never under way
 * together.
 *
 * What is mirrored is a part of a granule, goes the same way, and is answered one by one as it ends, by the disk's
 * thread: a guest waits for each.
 *
 * The first error of a write is kept and fails the next record: the source hears of it while its guest runs.
 *
 * A base is compared first, synchronously, while nothing is written (disk-base.c).
 *
 * All along, every so many octets, the storage is told to make durable what it has, without being waited for: so little
 * is left when it matters.
 */
#include "migration/disk-target.h"

#include "migration/disk-base.h"

#include <stdlib.h>

#include <vmferry/error.h>

#include "block/disk.h"
#include "block/receive.h"
#include "stream/io-memory.h"

#define LARGE 8 /* buffers of a whole extent */
#define SMALL 112 /* and for small ones, which come many at a time: a mirrored guest's */
#define BUFFERS (LARGE + SMALL)
#define SMALL_BYTES (16u << 10)
#define FLUSH_EVERY_BYTES (32u << 20)

typedef struct {
    VmfDisk *disk;
    bool is_new; /* what was never written there reads as zeros */
    bool begun;
    bool changed; /* onto a base: it is written to */
    bool proven;  /* some of it, and not only zeros, was found to be the disk that comes */
    VmfDiskProof proof;
    uint64_t unflushed_bytes;
} One;

typedef struct {
    VmfDiskTarget *target;
    VmfDiskRequest request;
    struct iovec iov;
    uint8_t *buffer;
    VmfDisk *disk; /* NULL: it is free */
    bool mirrored;
    uint64_t number; /* of what is mirrored */
} Write;

struct VmfDiskTarget {
    VmfSession *session;
    const VmfStaticData *theirs;
    VmfRecordWriter *writer; /* NULL: nobody is told */
    bool swap;
    One *disks;
    uint32_t *indexes; /* in the stream's list, by place in @disks */
    unsigned n_disks;
    VmfReceiveOnto onto;
    VmfReadAhead *ahead; /* NULL: no base was compared yet */
    uint64_t n_mirrored; /* that came: the number of the next one */
    bool last; /* the last DISK_SYNC came: nothing may follow */

    pthread_mutex_t lock;
    pthread_cond_t ended;
    Write writes[BUFFERS]; /* who has which is under the lock */
    uint8_t *memory;       /* what their buffers are in */
    GError *error;         /* of the first write that failed; likewise */

    _Atomic uint64_t total_bytes, received_bytes, zero_bytes, base_bytes;
};

VmfDiskTarget *vmf_disk_target_new(VmfSession *session)
{
    VmfDiskTarget *target = g_new0(VmfDiskTarget, 1);

    target->session = session;
    pthread_mutex_init(&target->lock, NULL);
    pthread_cond_init(&target->ended, NULL);
    for (unsigned i = 0; i < BUFFERS; i++)
        target->writes[i].target = target;
    return target;
}

static void wait_for_all(VmfDiskTarget *target);

void vmf_disk_target_free(VmfDiskTarget *target)
{
    if (!target)
        return;
    wait_for_all(target);
    g_clear_pointer(&target->ahead, vmf_read_ahead_free);
    for (unsigned i = 0; i < target->n_disks; i++)
        vmf_disk_proof_clear(&target->disks[i].proof);
    free(target->memory);
    g_free(target->disks);
    g_free(target->indexes);
    g_clear_error(&target->error);
    pthread_cond_destroy(&target->ended);
    pthread_mutex_destroy(&target->lock);
    g_free(target);
}

void vmf_disk_target_begin(VmfDiskTarget *target, const VmfStaticData *theirs, bool swap, VmfRecordWriter *writer)
{
    target->theirs = theirs;
    target->swap = swap;
    target->writer = writer;
}

/* ---- setting up -------------------------------------------------------------------------------------------------- */

static bool set_up_disk(VmfDiskTarget *target, uint32_t index, const VmfStaticDisk *there, GError **error)
{
    const VmfGuestDisk *here = vmf_guest_find_disk(target->session->guest, there->name);
    One *one = &target->disks[target->n_disks];

    target->indexes[target->n_disks++] = index;
    one->disk = here->ops.disk(here->opaque); /* the check of the static data has found both */
    if (!vmf_disk_proof_init(&one->proof, here->name, there->size, error) ||
        !vmf_disk_receive_begin(one->disk, there->size, target->onto, error))
        return false;
    one->begun = true;
    one->is_new = vmf_disk_receive_is_new(one->disk);
    target->total_bytes += there->size;
    return true;
}

static bool make_buffers(VmfDiskTarget *target, GError **error)
{
    uint8_t *next = target->memory = vmf_io_memory_new(LARGE * (size_t)VMF_EXTENT_DATA_MAX + SMALL * (size_t)SMALL_BYTES);

    if (!next) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disks: buffers of %u bytes: out of memory", VMF_EXTENT_DATA_MAX);
        return false;
    }
    for (unsigned i = 0; i < BUFFERS; i++) {
        target->writes[i].buffer = next;
        next += i < LARGE ? VMF_EXTENT_DATA_MAX : SMALL_BYTES;
    }
    return true;
}

static bool disks_setup(void *opaque, GError **error)
{
    VmfDiskTarget *target = opaque;
    const GArray *theirs = target->theirs->disks;

    target->onto = target->theirs->features_required & VMF_FEATURE_BASES ? VMF_RECEIVE_ONTO_BASE : VMF_RECEIVE_ANEW;
    target->disks = g_new0(One, theirs->len + 1);
    target->indexes = g_new0(uint32_t, theirs->len + 1);
    for (guint i = 0; i < theirs->len; i++) {
        const VmfStaticDisk *disk = &g_array_index(theirs, VmfStaticDisk, i);
        if (disk->flags & VMF_WIRE_DISK_COPIED && !set_up_disk(target, i, disk, error))
            return false;
    }
    return target->n_disks == 0 || make_buffers(target, error);
}

/* ---- writes ------------------------------------------------------------------------------------------------------ */

static void on_done(VmfDiskRequest *request, const GError *error)
{
    Write *write = request->opaque;
    VmfDiskTarget *target = write->target;

    if (write->mirrored && !error) /* where it cannot be sent there is nobody to tell */
        vmf_u64_send(target->writer, VMF_RECORD_MIRRORED, write->number, NULL);
    pthread_mutex_lock(&target->lock);
    if (error && !target->error)
        target->error = g_error_copy(error);
    write->disk = NULL;
    pthread_cond_broadcast(&target->ended);
    pthread_mutex_unlock(&target->lock);
}

static Write *find_free_locked(VmfDiskTarget *target, uint64_t length)
{
    for (unsigned i = length <= SMALL_BYTES ? LARGE : 0; i < (length <= SMALL_BYTES ? BUFFERS : LARGE); i++)
        if (!target->writes[i].disk)
            return &target->writes[i];
    return NULL;
}

static bool overlaps_locked(const VmfDiskTarget *target, const VmfDisk *disk, uint64_t offset, uint64_t length)
{
    for (unsigned i = 0; i < BUFFERS; i++) {
        const VmfDiskRequest *request = &target->writes[i].request;
        if (target->writes[i].disk == disk && request->operation != VMF_DISK_FLUSH &&
            offset < request->offset + request->length && request->offset < offset + length)
            return true;
    }
    return false;
}

/* A request for [offset, offset + length), which nothing that is under way touches. */
static Write *get_write(VmfDiskTarget *target, One *one, VmfDiskOperation operation, uint64_t offset, uint64_t length)
{
    Write *write;

    pthread_mutex_lock(&target->lock);
    while (!(write = find_free_locked(target, operation == VMF_DISK_WRITE ? length : 0)) ||
           overlaps_locked(target, one->disk, offset, length))
        pthread_cond_wait(&target->ended, &target->lock);
    write->disk = one->disk;
    write->mirrored = false;
    write->request =
        (VmfDiskRequest){.operation = operation, .offset = offset, .length = length, .done = on_done, .opaque = write};
    pthread_mutex_unlock(&target->lock);
    return write;
}

static void give_back(Write *write)
{
    write->mirrored = false;
    on_done(&write->request, NULL);
}

static void wait_for_all(VmfDiskTarget *target)
{
    bool busy = true;

    pthread_mutex_lock(&target->lock);
    while (busy) {
        busy = false;
        for (unsigned i = 0; i < BUFFERS; i++)
            busy |= target->writes[i].disk != NULL;
        if (busy)
            pthread_cond_wait(&target->ended, &target->lock);
    }
    pthread_mutex_unlock(&target->lock);
}

static bool check_writes(VmfDiskTarget *target, GError **error)
{
    pthread_mutex_lock(&target->lock);
    GError *failed = target->error ? g_error_copy(target->error) : NULL;
    pthread_mutex_unlock(&target->lock);
    if (failed)
        g_propagate_error(error, failed);
    return !failed;
}

static void flush(VmfDiskTarget *target, One *one)
{
    one->unflushed_bytes = 0;
    vmf_disk_submit(one->disk, &get_write(target, one, VMF_DISK_FLUSH, 0, 0)->request);
}

static bool check_alive(void *opaque, GError **error)
{
    VmfDiskTarget *target = opaque;

    return vmf_session_check_cancelled(target->session, error);
}

/* ---- EXTENT ------------------------------------------------------------------------------------------------------ */

static bool refuse(uint32_t type, VmfErrorCode code, const VmfWireExtent *extent, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, code,
                "record %s: disk %u, offset %" G_GUINT64_FORMAT ", length %" G_GUINT64_FORMAT ": %s",
                vmf_record_name(type), extent->disk, extent->offset, extent->length, why);
    return false;
}

static One *find_disk(VmfDiskTarget *target, uint32_t index)
{
    for (unsigned i = 0; i < target->n_disks; i++)
        if (target->indexes[i] == index)
            return &target->disks[i];
    return NULL;
}

/* Sectors, or the granules that are told of for the first time or again. */
static bool check_range(const One *one, uint32_t type, const VmfWireExtent *extent, uint64_t unit, uint64_t most, GError **error)
{
    uint64_t end, size = one->proof.size;

    if (extent->length == 0 || __builtin_add_overflow(extent->offset, extent->length, &end) || end > size)
        return refuse(type, VMF_ERROR_DISK_RANGE, extent, "does not lie in the disk", error);
    if (extent->offset % unit || (end != size && end % unit))
        return refuse(type, VMF_ERROR_DISK_RANGE, extent,
                      unit == VMF_GRANULE_BYTES ? "is not made of whole granules" : "is not made of whole sectors", error);
    return extent->length <= most || refuse(type, VMF_ERROR_DISK_RANGE, extent, "is too long", error);
}

static bool check_names(const One *one, uint32_t type, const VmfWireExtent *extent, GError **error)
{
    uint64_t n = (extent->length + VMF_GRANULE_BYTES - 1) / VMF_GRANULE_BYTES;
    bool first;

    if (extent->flags & VMF_EXTENT_MIRRORED)
        return (!(extent->flags & VMF_EXTENT_FIRST) &&
                vmf_disk_proof_all_named(&one->proof, extent->offset, extent->length)) ||
               refuse(type, VMF_ERROR_DISK_COUNTS, extent, "is mirrored, and was not named before", error);
    if (vmf_disk_proof_run(&one->proof, extent->offset / VMF_GRANULE_BYTES, n, &first) == n &&
        first == !!(extent->flags & VMF_EXTENT_FIRST))
        return true;
    return refuse(type, VMF_ERROR_DISK_COUNTS, extent,
                  "a part of it was named before and is said not to be, or the other way", error);
}

static void prove(VmfDiskTarget *target, One *one, const VmfWireExtent *extent, const uint8_t *data, Write *write)
{
    if (!(extent->flags & VMF_EXTENT_MIRRORED)) {
        vmf_disk_proof_set(&one->proof, extent->offset, data, extent->length);
        return;
    }
    write->mirrored = true;
    write->number = target->n_mirrored++;
    vmf_disk_proof_mirror(&one->proof, write->number, extent->offset, data, extent->length);
}

static bool take_zeros(VmfDiskTarget *target, One *one, const VmfWireExtent *extent)
{
    bool there = one->is_new && extent->flags & VMF_EXTENT_FIRST;
    Write *write = there ? NULL : get_write(target, one, VMF_DISK_ZERO, extent->offset, extent->length);

    prove(target, one, extent, NULL, write);
    target->zero_bytes += extent->length;
    if (write)
        vmf_disk_submit(one->disk, &write->request);
    return true;
}

static bool take_data(VmfDiskTarget *target, One *one, const VmfWireExtent *extent, VmfRecordReader *reader,
                      GError **error)
{
    Write *write = get_write(target, one, VMF_DISK_WRITE, extent->offset, extent->length);
    struct iovec into = {write->buffer, extent->length};

    if (!vmf_record_read_payload(reader, &into, 1, extent->length, error)) {
        give_back(write);
        return false;
    }
    prove(target, one, extent, write->buffer, write);
    write->iov = (struct iovec){write->buffer, extent->length};
    write->request.iov = &write->iov;
    write->request.n_iov = 1;
    target->received_bytes += extent->length;
    one->unflushed_bytes += extent->length;
    vmf_disk_submit(one->disk, &write->request);
    if (one->unflushed_bytes >= FLUSH_EVERY_BYTES)
        flush(target, one);
    return true;
}

static bool may_change(const VmfDiskTarget *target, One *one, GError **error)
{
    if (target->onto == VMF_RECEIVE_ANEW || one->changed)
        return true;
    one->changed = vmf_disk_receive_change(one->disk, one->proven, error);
    return one->changed;
}

/* A mirror is for who hears the answers. */
static bool check_flags(const VmfDiskTarget *target, const VmfWireExtent *extent, GError **error)
{
    bool mirrors = target->writer && target->theirs->features_offered & VMF_FEATURE_MIRROR;
    uint32_t known = VMF_EXTENT_FIRST | VMF_EXTENT_IS_ZERO | (mirrors ? VMF_EXTENT_MIRRORED : 0);

    return !(extent->flags & ~known) || refuse(VMF_RECORD_EXTENT, VMF_ERROR_RECORD_BODY, extent, "has unknown flags", error);
}

static bool take_extent(VmfDiskTarget *target, VmfRecordReader *reader, const VmfRecord *record, GError **error)
{
    VmfWireExtent extent;

    memcpy(&extent, record->body, sizeof(extent));
    if (target->swap)
        vmf_wire_extent_swap(&extent);
    One *one = find_disk(target, extent.disk);
    if (!one)
        return refuse(VMF_RECORD_EXTENT, VMF_ERROR_DISK_RANGE, &extent, "there is no such disk that is copied", error);
    if (target->last)
        return refuse(VMF_RECORD_EXTENT, VMF_ERROR_RECORD_ORDER, &extent, "comes after the last DISK_SYNC", error);
    if (!check_flags(target, &extent, error))
        return false;
    bool is_zero = extent.flags & VMF_EXTENT_IS_ZERO;
    uint64_t unit = extent.flags & VMF_EXTENT_MIRRORED ? vmf_disk_sector_size(one->disk) : VMF_GRANULE_BYTES;
    if (!check_range(one, VMF_RECORD_EXTENT, &extent, unit, is_zero ? VMF_EXTENT_ZERO_MAX : VMF_EXTENT_DATA_MAX, error))
        return false;
    if (reader->payload_left != (is_zero ? 0 : extent.length))
        return refuse(VMF_RECORD_EXTENT, VMF_ERROR_RECORD_BODY, &extent, "its payload is not so long", error);
    return check_names(one, VMF_RECORD_EXTENT, &extent, error) && check_writes(target, error) && may_change(target, one, error) &&
           (is_zero ? take_zeros(target, one, &extent) : take_data(target, one, &extent, reader, error));
}

/* ---- BASE -------------------------------------------------------------------------------------------------------- */

static bool has_digest(const VmfDiskBase *base)
{
    for (uint32_t i = 0; i < base->n_digests; i++)
        if (base->digests[i] != 0)
            return true;
    return false;
}

/* As an extent that is named first, with a digest for each granule. */
static bool check_base(VmfDiskTarget *target, const VmfDiskBase *base, One **one, GError **error)
{
    VmfWireExtent extent = {base->disk, VMF_EXTENT_FIRST, base->offset, base->length};

    *one = find_disk(target, base->disk);
    if (!*one)
        return refuse(VMF_RECORD_BASE, VMF_ERROR_DISK_RANGE, &extent, "there is no such disk that is copied", error);
    if (target->onto == VMF_RECEIVE_ANEW || (*one)->changed || target->last)
        return refuse(VMF_RECORD_BASE, VMF_ERROR_RECORD_ORDER, &extent,
                      target->onto == VMF_RECEIVE_ANEW ? "the feature is not required" : "comes after an EXTENT", error);
    if (!check_range(*one, VMF_RECORD_BASE, &extent, VMF_GRANULE_BYTES, (uint64_t)VMF_BASE_GRANULES_MAX * VMF_GRANULE_BYTES, error))
        return false;
    if (!base->is_zero && base->n_digests != (base->length - 1) / VMF_GRANULE_BYTES + 1)
        return refuse(VMF_RECORD_BASE, VMF_ERROR_RECORD_BODY, &extent, "it has not a digest for each granule", error);
    return check_names(*one, VMF_RECORD_BASE, &extent, error);
}

static bool take_base(VmfDiskTarget *target, const VmfRecord *record, GError **error)
{
    VmfDiskBase base;
    One *one;

    if (!vmf_disk_base_decode(record, target->swap, &base, error))
        return false;
    bool good = check_base(target, &base, &one, error);
    if (good && !target->ahead)
        target->ahead = vmf_read_ahead_new(LARGE, error);
    good = good && target->ahead &&
           vmf_disk_base_compare(&one->proof, one->disk, target->ahead, &base, check_alive, target, error);
    if (good) {
        target->base_bytes += base.length;
        one->proven = one->proven || has_digest(&base);
    }
    vmf_disk_base_clear(&base);
    return good;
}

/* ---- DISK_SYNC --------------------------------------------------------------------------------------------------- */

static bool verify(VmfDiskTarget *target, GError **error)
{
    g_autoptr(VmfReadAhead) ahead = vmf_read_ahead_new(LARGE, error);

    for (unsigned i = 0; ahead && i < target->n_disks; i++)
        if (!vmf_disk_proof_audit(&target->disks[i].proof, target->disks[i].disk, ahead, check_alive, target, error))
            return false;
    return ahead != NULL;
}

static bool compare_sums(const VmfDiskTarget *target, const VmfDiskSync *sync, GError **error)
{
    for (unsigned i = 0; i < target->n_disks; i++) {
        if (sync->sums[i] == vmf_disk_proof_sum(&target->disks[i].proof))
            continue;
        g_set_error(error, VMF_ERROR, VMF_ERROR_DISK_SUM, "disk %s: sum differs from the source's",
                    target->disks[i].proof.name);
        return false;
    }
    return true;
}

static bool finish_writes(VmfDiskTarget *target, bool durably, GError **error)
{
    wait_for_all(target);
    for (unsigned i = 0; durably && i < target->n_disks; i++)
        flush(target, &target->disks[i]);
    wait_for_all(target);
    return check_writes(target, error);
}

static bool check_last(VmfDiskTarget *target, GError **error)
{
    for (unsigned i = 0; i < target->n_disks; i++)
        if (!vmf_disk_proof_check_whole(&target->disks[i].proof, error))
            return false;
    target->last = true;
    return true;
}

static bool answer(VmfDiskTarget *target, const VmfDiskSync *sync, GError **error)
{
    g_autofree uint64_t *sums = g_new0(uint64_t, target->n_disks + 1);
    VmfDiskSync message = {.cookie = sync->cookie, .n_disks = target->n_disks, .disks = target->indexes, .sums = sums};

    for (unsigned i = 0; i < target->n_disks; i++)
        sums[i] = vmf_disk_proof_sum(&target->disks[i].proof);
    return !target->writer || vmf_disk_sync_send(target->writer, VMF_RECORD_DISK_SYNCED, &message, error);
}

static bool take_sync(VmfDiskTarget *target, const VmfRecord *record, GError **error)
{
    VmfDiskSync sync;

    if (target->n_disks == 0 || target->last) {
        vmf_record_set_order_error(error, record->type,
                                   target->last ? "after the last one" : "where no disk is copied");
        return false;
    }
    if (!vmf_disk_sync_decode(record, target->swap, target->n_disks, target->indexes, &sync, error))
        return false;
    bool good = compare_sums(target, &sync, error) &&
                (!(sync.flags & VMF_DISK_SYNC_LAST) || check_last(target, error)) &&
                finish_writes(target, !(sync.flags & VMF_DISK_SYNC_WRITTEN), error) &&
                (!(sync.flags & VMF_DISK_SYNC_VERIFY) || verify(target, error)) && answer(target, &sync, error);
    vmf_disk_sync_clear(&sync);
    return good;
}

/* ---- handlers ---------------------------------------------------------------------------------------------------- */

static bool take_record(void *opaque, VmfRecordReader *reader, const VmfRecord *record, bool *taken, GError **error)
{
    *taken = record->type == VMF_RECORD_EXTENT || record->type == VMF_RECORD_DISK_SYNC || record->type == VMF_RECORD_BASE;
    if (record->type == VMF_RECORD_EXTENT)
        return take_extent(opaque, reader, record, error);
    if (record->type == VMF_RECORD_BASE)
        return take_base(opaque, record, error);
    return !*taken || take_sync(opaque, record, error);
}

static bool arrived(void *opaque, GError **error)
{
    VmfDiskTarget *target = opaque;

    if (target->n_disks > 0 && !target->last) {
        vmf_record_set_order_error(error, VMF_RECORD_SWITCHOVER, "ahead of the last DISK_SYNC");
        return false;
    }
    wait_for_all(target);
    for (unsigned i = 0; i < target->n_disks; i++)
        if (!vmf_disk_receive_commit(target->disks[i].disk, error))
            return false;
    return true;
}

static void settled(void *opaque, bool ours, bool known)
{
    VmfDiskTarget *target = opaque;

    wait_for_all(target);
    for (unsigned i = 0; i < target->n_disks; i++)
        if (target->disks[i].begun)
            vmf_disk_receive_end(target->disks[i].disk, !known ? VMF_RECEIVE_LEFT
                                                        : ours ? VMF_RECEIVE_KEPT
                                                               : VMF_RECEIVE_DROPPED);
}

VmfOwner vmf_disk_target_owner(VmfDiskTarget *target)
{
    static const VmfSaveHandlers handlers = {.size = sizeof(VmfSaveHandlers), .load_setup = disks_setup};
    static const VmfOwnRecords records = {.record = take_record, .arrived = arrived, .settled = settled};

    return (VmfOwner){.name = "disks", .handlers = &handlers, .records = &records, .opaque = target};
}

void vmf_disk_target_gather(const VmfDiskTarget *target, VmfStatistics *statistics)
{
    statistics->disk_total_bytes = target->total_bytes;
    statistics->disk_sent_bytes = target->received_bytes;
    statistics->disk_zero_bytes = target->zero_bytes;
    statistics->disk_base_bytes = target->base_bytes;
}
