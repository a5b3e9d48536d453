/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a guest does to a disk that is being filled (block/disk.h, VmfDiskGate).
 *
 * Theory of operation. A read waits until all units that it touches are done. A change waits for those of which it leaves
 * something as it was. Those that it covers need not be filled at all: they are under way until it has ended, so that
 * nobody reads what is neither the old nor the new there, and to be filled again if it fails.
 *
 * What can never be had is refused, and the guest does not get to see that (vmferry/guest.h, disk_lost).
 */
#include "migration/image-disk-fill.h"

#include <vmferry/error.h>

#include "stream/clock.h"

#define MISSING_UNITS_MAX 4096u /* that are looked at at once: the disk's lock is held */

typedef struct {
    uint64_t first, end;             /* that it touches */
    uint64_t whole_first, whole_end; /* that it covers; none: first is not below end */
} Range;

static Range range_of(const VmfFillDisk *disk, const VmfDiskRequest *request)
{
    uint64_t end = request->offset + request->length;

    return (Range){
        .first = request->offset / VMF_DISK_UNIT,
        .end = (end - 1) / VMF_DISK_UNIT + 1,
        .whole_first = (request->offset + VMF_DISK_UNIT - 1) / VMF_DISK_UNIT,
        .whole_end = end == disk->size_bytes ? disk->units.n : end / VMF_DISK_UNIT,
    };
}

/* ---- lock held --------------------------------------------------------------------------------------------------- */

static bool read_waits(VmfFillDisk *disk, const Range *range)
{
    return vmf_disk_units_ask(&disk->units, range->first, range->end);
}

static bool change_waits(VmfFillDisk *disk, const Range *range)
{
    VmfDiskUnits *units = &disk->units;

    if (range->whole_first >= range->whole_end)
        return vmf_disk_units_ask(units, range->first, range->end);
    bool head = vmf_disk_units_ask(units, range->first, range->whole_first);
    bool tail = vmf_disk_units_ask(units, range->whole_end, range->end);
    if (head || tail || vmf_disk_units_next_under_way(units, range->whole_first, range->whole_end) < range->whole_end)
        return true;
    vmf_disk_units_begin(units, range->whole_first, range->whole_end - range->whole_first);
    return false;
}

/* ---- the disk's lock is held ------------------------------------------------------------------------------------- */

static bool holds(void *opaque, const VmfDiskRequest *request, GError **refused)
{
    VmfFillDisk *disk = opaque;
    VmfImageDiskLoad *load = disk->load;

    if (request->length == 0)
        return false;
    Range range = range_of(disk, request);
    pthread_mutex_lock(&load->lock);
    bool waits = request->operation == VMF_DISK_READ ? read_waits(disk, &range) : change_waits(disk, &range);
    if (waits && load->error)
        *refused = g_error_copy(load->error);
    else if (waits)
        pthread_cond_broadcast(&load->changed);
    pthread_mutex_unlock(&load->lock);
    return waits && !*refused;
}

static void ended(void *opaque, const VmfDiskRequest *request, bool failed)
{
    VmfFillDisk *disk = opaque;

    if (request->length == 0)
        return;
    Range range = range_of(disk, request);
    if (range.whole_first >= range.whole_end)
        return;
    pthread_mutex_lock(&disk->load->lock);
    if (failed)
        vmf_disk_units_undo(&disk->units, range.whole_first, range.whole_end - range.whole_first);
    else
        vmf_disk_units_end(&disk->units, range.whole_first, range.whole_end - range.whole_first);
    pthread_cond_broadcast(&disk->load->changed);
    pthread_mutex_unlock(&disk->load->lock);
}

static void waited(void *opaque, uint64_t ns)
{
    VmfImageDiskLoad *load = ((VmfFillDisk *)opaque)->load;

    load->n_waits++;
    vmf_latency_add(&load->waits, ns);
}

static bool is_missing(void *opaque, uint64_t offset, uint64_t length, uint64_t *run)
{
    VmfFillDisk *disk = opaque;
    uint64_t first = offset / VMF_DISK_UNIT, end = (offset + length - 1) / VMF_DISK_UNIT + 1;

    pthread_mutex_lock(&disk->load->lock);
    uint64_t left = vmf_disk_units_next_left(&disk->units, first, end);
    bool missing = left == first;
    while (missing && left < end && left - first < MISSING_UNITS_MAX && vmf_disk_units_next_left(&disk->units, left, end) == left)
        left++;
    pthread_mutex_unlock(&disk->load->lock);
    *run = MIN(left * VMF_DISK_UNIT - offset, length);
    return missing;
}

static void released(void *opaque)
{
    VmfFillDisk *disk = opaque;
    VmfImageDiskLoad *load = disk->load;

    pthread_mutex_lock(&load->lock);
    if (!load->error)
        load->error = g_error_new(VMF_ERROR, VMF_ERROR_CANCELLED, "disk %s: image: it was released", vmf_disk_name(disk->disk));
    pthread_cond_broadcast(&load->changed);
    pthread_mutex_unlock(&load->lock);
}

/* ---- having it --------------------------------------------------------------------------------------------------- */

bool vmf_fill_gate_set(VmfFillDisk *disk, GError **error)
{
    static const VmfDiskGate gate = {
        .reads = true, .holds = holds, .ended = ended, .waited = waited, .is_missing = is_missing, .released = released};

    disk->gated = vmf_disk_set_gate(disk->disk, &gate, disk);
    if (!disk->gated)
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "disk %s: image: somebody else watches over its changes",
                    vmf_disk_name(disk->disk));
    return disk->gated;
}

void vmf_fill_gate_clear(VmfFillDisk *disk)
{
    if (!disk->gated)
        return;
    vmf_disk_clear_gate(disk->disk);
    pthread_mutex_lock(&disk->load->lock);
    disk->gated = false;
    pthread_mutex_unlock(&disk->load->lock);
}
