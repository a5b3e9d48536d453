/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. Eager or lazy, the work is the same (image-disk-fill.c). Eagerly the session's thread does it
 * before there is a guest. Lazily the disk is used at once, under its other name: a gate (image-disk-gate.c) keeps the
 * guest from what is not there, two threads bring it, and the disk takes its name when all of it is there. Whoever finds
 * it under the other name, after a crash, finds what is nobody's disk; the image is as it was, and gives it back again.
 *
 * Until then a disk is not whole (block/disk.h), which whoever is to pass it on asks for: it would be found under a name
 * that it does not have, or taken for what it is not.
 */
#include "migration/image-disk-load.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "migration/image-disk-fill.h"

#define AHEAD_NICE 10

VmfImageDiskLoad *vmf_image_disk_load_new(VmfImageChain *chain, VmfSession *session)
{
    VmfImageDiskLoad *load = g_new0(VmfImageDiskLoad, 1);

    load->chain = chain;
    load->session = session;
    load->image = vmf_image_chain_layer(chain, 0);
    load->n_disks = load->image->layout.n_disks;
    load->disks = g_new0(VmfFillDisk, load->n_disks + 1);
    pthread_mutex_init(&load->lock, NULL);
    pthread_cond_init(&load->changed, NULL);
    return load;
}

void vmf_image_disk_load_free(VmfImageDiskLoad *load)
{
    if (!load)
        return;
    for (unsigned i = 0; i < load->n_disks; i++)
        vmf_disk_units_clear(&load->disks[i].units);
    g_free(load->disks);
    g_clear_error(&load->error);
    pthread_cond_destroy(&load->changed);
    pthread_mutex_destroy(&load->lock);
    g_free(load);
}

/* ---- beginning --------------------------------------------------------------------------------------------------- */

static bool begin_disk(VmfFillDisk *disk, GError **error)
{
    VmfImageDiskLoad *load = disk->load;
    const VmfStaticDisk *there = vmf_image_file_block_disk(load->image, disk->block);
    const VmfGuestDisk *here = vmf_guest_find_disk(load->session->guest, there->name);

    disk->disk = here->ops.disk(here->opaque); /* the check of the static data has found both */
    disk->size_bytes = there->size;
    if (!vmf_fill_set_todo(disk, error) || !vmf_disk_receive_begin(disk->disk, disk->size_bytes, VMF_RECEIVE_ANEW, error))
        return false;
    disk->begun = true;
    load->total_bytes += disk->size_bytes;
    return true;
}

static bool begin_all(VmfImageDiskLoad *load, GError **error)
{
    unsigned n_ram = load->image->layout.n_blocks - load->n_disks;

    for (unsigned i = 0; i < load->n_disks; i++) {
        load->disks[i].load = load;
        load->disks[i].block = n_ram + i;
        if (!begin_disk(&load->disks[i], error))
            return false;
    }
    return load->n_disks == 0 || vmf_fill_lane_init(&load->ahead, load, error);
}

/* ---- at once ----------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfImageDiskLoad *load;
    GError *error;
    bool ended;
} Clearing;

static void on_cleared(VmfDiskRequest *request, const GError *error)
{
    Clearing *clearing = request->opaque;

    pthread_mutex_lock(&clearing->load->lock);
    clearing->error = error ? g_error_copy(error) : NULL;
    clearing->ended = true;
    pthread_cond_broadcast(&clearing->load->changed);
    pthread_mutex_unlock(&clearing->load->lock);
}

/* What was never written there does not read as zeros: all of it does then. */
static bool clear_disk(VmfFillDisk *disk, GError **error)
{
    Clearing clearing = {.load = disk->load};
    VmfDiskRequest request = {
        .operation = VMF_DISK_ZERO, .length = disk->size_bytes, .done = on_cleared, .opaque = &clearing};

    vmf_disk_submit_beneath(disk->disk, &request);
    pthread_mutex_lock(&disk->load->lock);
    while (!clearing.ended)
        pthread_cond_wait(&disk->load->changed, &disk->load->lock);
    pthread_mutex_unlock(&disk->load->lock);
    if (clearing.error)
        g_propagate_error(error, clearing.error);
    return !clearing.error;
}

static bool first_error(VmfImageDiskLoad *load, GError **error)
{
    pthread_mutex_lock(&load->lock);
    GError *failed = load->error ? g_error_copy(load->error) : NULL;
    pthread_mutex_unlock(&load->lock);
    if (failed)
        g_propagate_error(error, failed);
    return failed != NULL;
}

static bool fill_now(VmfFillDisk *disk, GError **error)
{
    VmfImageDiskLoad *load = disk->load;

    if (!vmf_disk_receive_is_new(disk->disk) && !clear_disk(disk, error))
        return false;
    bool all = vmf_fill_all(disk);
    vmf_disk_drain(disk->disk);
    if (first_error(load, error) || !vmf_session_check_cancelled(load->session, error))
        return false;
    return all && vmf_fill_survey(disk, error);
}

bool vmf_image_disk_load_run(VmfImageDiskLoad *load, GError **error)
{
    bool good = begin_all(load, error);

    for (unsigned i = 0; i < load->n_disks && good; i++)
        good = fill_now(&load->disks[i], error);
    vmf_fill_lane_clear(&load->ahead);
    return good && vmf_image_disk_load_commit(load, error);
}

/* ---- behind the guest's back ------------------------------------------------------------------------------------- */

static bool start_thread(pthread_t *thread, bool *started, void *(*main)(void *), VmfImageDiskLoad *load, GError **error)
{
    *started = pthread_create(thread, NULL, main, load) == 0;
    if (!*started)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disks: image: no thread");
    return *started;
}

static bool open_to_guest(VmfFillDisk *disk, GError **error)
{
    if (!vmf_fill_gate_set(disk, error))
        return false;
    vmf_disk_set_whole(disk->disk, false);
    return true;
}

/* Those that can say that they are not whole. */
static bool begin_lazily(VmfImageDiskLoad *load, GError **error)
{
    bool good = true;

    for (unsigned i = 0; i < load->n_disks; i++) {
        VmfFillDisk *disk = &load->disks[i];
        disk->lazy = vmf_disk_receive_is_new(disk->disk);
        good = good && (disk->lazy || fill_now(disk, error));
    }
    for (unsigned i = 0; i < load->n_disks && good; i++)
        good = !load->disks[i].lazy || open_to_guest(&load->disks[i], error);
    return good;
}

bool vmf_image_disk_load_begin(VmfImageDiskLoad *load, const VmfImageDiskLoadOps *ops, void *opaque, GError **error)
{
    load->ops = ops;
    load->opaque = opaque;
    if (load->n_disks == 0)
        return true;
    if (!begin_all(load, error) || !begin_lazily(load, error) || !vmf_fill_lane_init(&load->urgent, load, error))
        return false;
    load->in_use = true;
    return start_thread(&load->urgent_thread, &load->has_urgent_thread, vmf_fill_urgent_main, load, error);
}

static void *ahead_main(void *opaque)
{
    VmfImageDiskLoad *load = opaque;
    GError *error = NULL;
    bool all = true;

    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), AHEAD_NICE); /* nice values are the kernel's threads' */
    for (unsigned i = 0; i < load->n_disks && all; i++)
        all = !load->disks[i].lazy || (vmf_fill_all(&load->disks[i]) && vmf_fill_survey(&load->disks[i], &error));
    if (error)
        vmf_fill_lose(load, error);
    if (all)
        load->ops->filled(load->opaque);
    return NULL;
}

bool vmf_image_disk_load_fill(VmfImageDiskLoad *load, GError **error)
{
    if (load->n_disks > 0)
        return start_thread(&load->ahead_thread, &load->has_ahead_thread, ahead_main, load, error);
    load->ops->filled(load->opaque);
    return true;
}

static bool commit_all(VmfImageDiskLoad *load, GError **error)
{
    for (unsigned i = 0; i < load->n_disks; i++) {
        VmfFillDisk *disk = &load->disks[i];
        if (!vmf_disk_receive_commit(disk->disk, error))
            return false;
        vmf_fill_gate_clear(disk);
        vmf_disk_set_whole(disk->disk, true);
    }
    return true;
}

bool vmf_image_disk_load_commit(VmfImageDiskLoad *load, GError **error)
{
    GError *why = NULL;

    if (commit_all(load, &why))
        return true;
    vmf_fill_lose(load, g_error_copy(why));
    g_propagate_error(error, why);
    return false;
}

/* ---- the end ----------------------------------------------------------------------------------------------------- */

void vmf_image_disk_load_stop(VmfImageDiskLoad *load, const GError *why)
{
    if (!load)
        return;
    pthread_mutex_lock(&load->lock);
    load->over = true;
    if (!load->error && why)
        load->error = g_error_copy(why);
    pthread_cond_broadcast(&load->changed);
    pthread_mutex_unlock(&load->lock);
    for (unsigned i = 0; i < load->n_disks; i++)
        if (load->disks[i].gated)
            vmf_disk_gate_moved(load->disks[i].disk);
    if (load->has_urgent_thread)
        pthread_join(load->urgent_thread, NULL);
    if (load->has_ahead_thread)
        pthread_join(load->ahead_thread, NULL);
    load->has_urgent_thread = load->has_ahead_thread = false;
    vmf_fill_lane_clear(&load->urgent);
    vmf_fill_lane_clear(&load->ahead);
}

/* A disk that is not whole is closed before its gate opens. */
void vmf_image_disk_load_end(VmfImageDiskLoad *load, VmfReceiveEnd how)
{
    for (unsigned i = 0; load && i < load->n_disks; i++) {
        VmfFillDisk *disk = &load->disks[i];
        if (!disk->begun)
            continue;
        vmf_disk_receive_end(disk->disk, how);
        vmf_fill_gate_clear(disk);
        vmf_disk_set_whole(disk->disk, true);
    }
}

static uint64_t remaining_bytes(VmfImageDiskLoad *load)
{
    uint64_t units = 0;

    pthread_mutex_lock(&load->lock);
    for (unsigned i = 0; i < load->n_disks; i++)
        units += load->disks[i].units.n_left;
    pthread_mutex_unlock(&load->lock);
    return units * VMF_DISK_UNIT;
}

void vmf_image_disk_load_gather(VmfImageDiskLoad *load, VmfStatistics *statistics)
{
    statistics->disk_total_bytes = load->total_bytes;
    statistics->disk_sent_bytes = load->written_bytes;
    statistics->disk_remaining_bytes = remaining_bytes(load);
    statistics->disk_faults = load->n_waits;
    statistics->disk_fault_p50_ns = vmf_latency_quantile_ns(&load->waits, 500);
    statistics->disk_fault_p99_ns = vmf_latency_quantile_ns(&load->waits, 990);
    statistics->disk_fault_max_ns = load->waits.max_ns;
}
