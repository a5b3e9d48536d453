/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. A disk is units to do, under way, or done (block/units.h). A job takes some of one chunk, reads
 * their pages, which are checked against their digests as they come, and writes each run of them; the disk's own
 * thread ends the writes. Pages of zeros are neither read nor written. A job's memory is free again with its last write.
 *
 * One thread goes through all that is to do, from the beginning to the end. Where a guest uses the disk meanwhile a
 * second one does what the guest waits for, a few units at a time, by a reader of its own, and the first one keeps a
 * single job under way until that has been quiet for a while: on most storage one is what the other waits behind.
 *
 * What fails is tried once more, as it may have been a passing trouble. The first error that stays is kept, and ends it all.
 */
#include "migration/image-disk-fill.h"

#include <stdlib.h>
#include <vmferry/error.h>

#include "ram/image-pages.h"
#include "stream/clock.h"
#include "stream/io-memory.h"

#define READ_DEPTH 4u
#define URGENT_UNITS 4u
#define CALM_NS (200 * 1000)

/* ---- errors ------------------------------------------------------------------------------------------------------ */

static void move_gates(VmfImageDiskLoad *load)
{
    for (unsigned i = 0; i < load->n_disks; i++)
        if (load->disks[i].gated)
            vmf_disk_gate_moved(load->disks[i].disk);
}

/* Whoever keeps the guest from going on is told ahead of what it waits for being refused. */
void vmf_fill_lose(VmfImageDiskLoad *load, GError *error)
{
    pthread_mutex_lock(&load->lock);
    bool first = !load->losing && !load->error && !load->over, in_use = load->in_use;
    load->losing = true;
    pthread_mutex_unlock(&load->lock);
    if (!first) {
        g_error_free(error);
        return;
    }
    for (unsigned i = 0; i < load->n_disks && in_use; i++)
        if (load->disks[i].lazy)
            vmf_disk_set_lost(load->disks[i].disk, error);
    if (in_use)
        load->ops->lost(load->opaque, error);
    pthread_mutex_lock(&load->lock);
    if (load->error)
        g_error_free(error);
    else
        load->error = error;
    pthread_cond_broadcast(&load->changed);
    pthread_mutex_unlock(&load->lock);
    move_gates(load);
}

/* Lock held. */
static bool is_stopped(const VmfImageDiskLoad *load)
{
    return load->over || load->error || (!load->in_use && vmf_session_is_cancelled(load->session));
}

/* ---- the end of a job -------------------------------------------------------------------------------------------- */

/* Lock held. */
static void end_units(VmfFillJob *job)
{
    for (unsigned i = 0; i < VMF_CHUNK_UNITS; i++)
        if (job->units >> i & 1)
            vmf_disk_units_end(&job->disk->units, job->chunk * VMF_CHUNK_UNITS + i, 1);
}

/* One of the job's writes, or whoever begins them. Units of a job that failed stay under way: nobody gets to see them. */
static void leave(VmfFillJob *job)
{
    VmfImageDiskLoad *load = job->lane->load;
    VmfDisk *disk = job->disk->disk;

    pthread_mutex_lock(&load->lock);
    bool last = --job->n_writes == 0, gated = job->disk->gated;
    if (last && !job->failed)
        end_units(job);
    if (last) {
        job->busy = false;
        job->lane->n_busy--;
        if (job->lane == &load->urgent) {
            load->urgent_ns = vmf_now_ns();
            load->n_urgent--;
        }
        pthread_cond_broadcast(&load->changed);
    }
    pthread_mutex_unlock(&load->lock); /* from here on the load may be gone */
    if (last && gated)
        vmf_disk_gate_moved(disk);
}

/* Takes over @error. */
static void fail(VmfFillJob *job, GError *error)
{
    VmfImageDiskLoad *load = job->lane->load;

    pthread_mutex_lock(&load->lock);
    job->failed = true;
    pthread_mutex_unlock(&load->lock);
    vmf_fill_lose(load, error);
}

/* ---- writes ------------------------------------------------------------------------------------------------------ */

static void on_written(VmfDiskRequest *request, const GError *error)
{
    VmfFillJob *job = request->opaque;

    if (error)
        fail(job, g_error_copy(error));
    else
        job->lane->load->written_bytes += request->length;
    leave(job);
}

static void write_run(VmfFillJob *job, unsigned run, uint64_t offset, uint8_t *data, uint64_t length)
{
    job->iov[run] = (struct iovec){data, length};
    job->requests[run] = (VmfDiskRequest){
        .operation = VMF_DISK_WRITE,
        .offset = offset,
        .length = length,
        .iov = &job->iov[run],
        .n_iov = 1,
        .done = on_written,
        .opaque = job,
    };
    pthread_mutex_lock(&job->lane->load->lock);
    job->n_writes++;
    pthread_mutex_unlock(&job->lane->load->lock);
    vmf_disk_submit_beneath(job->disk->disk, &job->requests[run]);
}

/* The last page of a disk may reach past its end: there is nothing but what filled it up. */
static void write_pages(VmfFillJob *job, const VmfPageSet *data)
{
    uint64_t base = job->chunk * VMF_CHUNK_SIZE, size = job->disk->size_bytes;
    unsigned first, n_pages, run = 0;

    for (unsigned from = 0; vmf_page_set_next_run(data, from, &first, &n_pages); from = first + n_pages) {
        uint64_t offset = base + (uint64_t)first * VMF_PAGE_SIZE;
        write_run(job, run++, offset, job->memory + (size_t)first * VMF_PAGE_SIZE,
                  MIN((uint64_t)n_pages * VMF_PAGE_SIZE, size - offset));
    }
}

/* ---- reads ------------------------------------------------------------------------------------------------------- */

static void on_read(void *opaque, const VmfImageRead *read, GError *error);

static VmfPageSet pages_of(const VmfFillJob *job)
{
    VmfPageSet pages = {{0}};

    for (unsigned i = 0; i < VMF_CHUNK_UNITS; i++)
        if (job->units >> i & 1)
            vmf_page_set_add_range(&pages, i * VMF_UNIT_PAGES, VMF_UNIT_PAGES);
    return pages;
}

/* @alone: nothing else of the lane is under way, or will be before it has ended. */
static void start(VmfFillJob *job, bool alone)
{
    VmfPageSet pages = pages_of(job);
    VmfImageReader *reader = job->lane->reader;
    GError *error = NULL;
    bool begun =
        alone ? vmf_image_reader_read_now(reader, job->disk->block, job->chunk, &pages, job->memory, on_read, job, &error)
              : vmf_image_reader_start(reader, job->disk->block, job->chunk, &pages, job->memory, on_read, job, &error);

    if (!begun) {
        fail(job, error);
        leave(job);
    }
}

/* On the lane's thread. */
static void on_read(void *opaque, const VmfImageRead *read, GError *error)
{
    VmfFillJob *job = opaque;

    if (error && !job->again && !g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED)) {
        g_error_free(error);
        job->again = true;
        start(job, false);
        return;
    }
    if (error)
        fail(job, error);
    else
        write_pages(job, &read->data);
    leave(job);
}

/* ---- what comes next: lock held ---------------------------------------------------------------------------------- */

static VmfFillJob *free_job(VmfFillLane *lane)
{
    for (unsigned i = 0; i < VMF_FILL_JOBS; i++)
        if (!lane->jobs[i].busy)
            return &lane->jobs[i];
    return NULL;
}

static void set_job(VmfFillJob *job, VmfFillDisk *disk, uint64_t unit)
{
    job->disk = disk;
    job->chunk = unit / VMF_CHUNK_UNITS;
    job->units = 0;
    job->n_writes = 1;
    job->busy = true;
    job->again = job->failed = false;
    job->lane->n_busy++;
}

/* Some units of one chunk, on from one that somebody waits for. */
static VmfFillJob *take_urgent(VmfImageDiskLoad *load)
{
    VmfFillJob *job = free_job(&load->urgent);
    uint64_t unit, n;

    for (unsigned i = 0; job && i < load->n_disks; i++) {
        VmfFillDisk *disk = &load->disks[i];
        if (!disk->lazy || (n = vmf_disk_units_take_urgent(&disk->units, URGENT_UNITS, &unit)) == 0)
            continue;
        set_job(job, disk, unit);
        n = MIN(n, VMF_CHUNK_UNITS - unit % VMF_CHUNK_UNITS);
        job->units = (uint32_t)((1u << n) - 1) << unit % VMF_CHUNK_UNITS;
        vmf_disk_units_begin(&disk->units, unit, n);
        load->n_urgent++;
        return job;
    }
    return NULL;
}

/* All of its chunk that is to do. */
static void take_chunk(VmfFillJob *job, VmfFillDisk *disk, uint64_t unit)
{
    set_job(job, disk, unit);
    for (uint64_t i = unit % VMF_CHUNK_UNITS; i < VMF_CHUNK_UNITS; i++)
        if (vmf_disk_units_run(&disk->units, job->chunk * VMF_CHUNK_UNITS + i, 1) > 0)
            job->units |= 1u << i;
    vmf_disk_units_begin(&disk->units, unit, (job->chunk + 1) * VMF_CHUNK_UNITS - unit);
}

/* ---- the threads ------------------------------------------------------------------------------------------------- */

void *vmf_fill_urgent_main(void *opaque)
{
    VmfImageDiskLoad *load = opaque;
    VmfFillJob *jobs[VMF_FILL_JOBS];

    pthread_mutex_lock(&load->lock);
    while (!load->over && !load->error) {
        unsigned n = 0;
        while (n < VMF_FILL_JOBS && (jobs[n] = take_urgent(load)))
            n++;
        if (n == 0) {
            pthread_cond_wait(&load->changed, &load->lock);
            continue;
        }
        pthread_mutex_unlock(&load->lock);
        for (unsigned i = 0; i < n; i++)
            start(jobs[i], n == 1);
        vmf_image_reader_wait(load->urgent.reader, 0);
        pthread_mutex_lock(&load->lock);
    }
    pthread_mutex_unlock(&load->lock);
    return NULL;
}

static unsigned jobs_allowed(const VmfImageDiskLoad *load)
{
    return load->n_urgent > 0 || vmf_now_ns() - load->urgent_ns < CALM_NS ? 1 : VMF_FILL_JOBS;
}

/* Lock held, and given up meanwhile: reads end within calls of the reader, writes by themselves. */
static void wait_for_end(VmfFillLane *lane)
{
    unsigned n = vmf_image_reader_under_way(lane->reader);

    if (n == 0) {
        pthread_cond_wait(&lane->load->changed, &lane->load->lock);
        return;
    }
    pthread_mutex_unlock(&lane->load->lock);
    vmf_image_reader_wait(lane->reader, n - 1);
    pthread_mutex_lock(&lane->load->lock);
}

/* Lock held, and given up meanwhile. */
static void fill_some(VmfFillDisk *disk)
{
    VmfFillLane *lane = &disk->load->ahead;
    VmfDiskUnits *units = &disk->units;

    units->cursor = vmf_disk_units_next_todo(units, units->cursor);
    if (units->cursor == units->n || lane->n_busy >= jobs_allowed(disk->load)) {
        wait_for_end(lane);
        return;
    }
    VmfFillJob *job = free_job(lane);
    take_chunk(job, disk, units->cursor);
    pthread_mutex_unlock(&disk->load->lock);
    start(job, false);
    pthread_mutex_lock(&disk->load->lock);
}

bool vmf_fill_all(VmfFillDisk *disk)
{
    VmfImageDiskLoad *load = disk->load;

    pthread_mutex_lock(&load->lock);
    while (disk->units.n_left > 0 && !is_stopped(load))
        fill_some(disk);
    bool all = disk->units.n_left == 0 && !is_stopped(load);
    pthread_mutex_unlock(&load->lock);
    vmf_image_reader_wait(load->ahead.reader, 0);
    return all;
}

/* ---- what there is to do ----------------------------------------------------------------------------------------- */

static uint64_t n_chunks_of(const VmfFillDisk *disk)
{
    return vmf_image_block_n_chunks(&disk->load->image->layout.blocks[disk->block]);
}

bool vmf_fill_set_todo(VmfFillDisk *disk, GError **error)
{
    VmfImageDiskLoad *load = disk->load;
    VmfDiskUnits units;

    if (!vmf_disk_units_init(&units, disk->size_bytes)) {
        vmf_disk_units_clear(&units);
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disk %s: image: out of memory", vmf_disk_name(disk->disk));
        return false;
    }
    for (uint64_t chunk = 0; chunk < n_chunks_of(disk); chunk++) {
        uint64_t at = chunk * VMF_CHUNK_SIZE;
        if (vmf_image_pages_ops.may_have_data(load->chain, disk->block, chunk))
            vmf_disk_units_set_todo(&units, at, MIN(VMF_CHUNK_SIZE, disk->size_bytes - at));
    }
    pthread_mutex_lock(&load->lock); /* statistics count them already */
    disk->units = units;
    pthread_mutex_unlock(&load->lock);
    return true;
}

static bool count_chunk(VmfFillDisk *disk, uint64_t chunk, GError **error)
{
    VmfImageDiskLoad *load = disk->load;
    VmfImageChunk content;

    if (!vmf_image_pages_ops.may_have_data(load->chain, disk->block, chunk))
        return true;
    if (!vmf_image_chain_chunk(load->chain, disk->block, chunk, &content, NULL, error))
        return false;
    disk->n_data += vmf_page_set_count(&content.data);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
        if (vmf_page_set_test(&content.data, page))
            disk->sum += vmf_page_digest_mix(chunk * VMF_CHUNK_PAGES + page, content.digests[page]);
    return true;
}

static bool check_sum(const VmfFillDisk *disk, GError **error)
{
    const VmfBlockSummary *said = &disk->load->image->summary.blocks[disk->block];
    bool counts = said->data != disk->n_data;

    if (!counts && said->sum == disk->sum)
        return true;
    g_set_error(error, VMF_ERROR, counts ? VMF_ERROR_DISK_COUNTS : VMF_ERROR_DISK_SUM,
                "disk %s: image: %s of its pages is not what the image says", vmf_disk_name(disk->disk),
                counts ? "the number" : "the sum");
    return false;
}

/* Each page by itself is compared with its digest where it is read; what is not read, as the guest has written there, is no matter. */
bool vmf_fill_survey(VmfFillDisk *disk, GError **error)
{
    VmfImageDiskLoad *load = disk->load;

    for (uint64_t chunk = 0; chunk < n_chunks_of(disk); chunk++) {
        pthread_mutex_lock(&load->lock);
        bool stopped = is_stopped(load);
        pthread_mutex_unlock(&load->lock);
        if (stopped) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "disk %s: image: it was cancelled", vmf_disk_name(disk->disk));
            return false;
        }
        if (!count_chunk(disk, chunk, error))
            return false;
    }
    return check_sum(disk, error);
}

/* ---- lanes ------------------------------------------------------------------------------------------------------- */

bool vmf_fill_lane_init(VmfFillLane *lane, VmfImageDiskLoad *load, GError **error)
{
    lane->load = load;
    lane->reader = vmf_image_reader_new(load->chain, READ_DEPTH, error);
    if (!lane->reader)
        return false;
    lane->jobs = g_new0(VmfFillJob, VMF_FILL_JOBS);
    lane->memory = vmf_io_memory_new((size_t)VMF_FILL_JOBS * VMF_CHUNK_SIZE);
    if (!lane->memory) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disks: image: no memory for chunks");
        return false;
    }
    for (unsigned i = 0; i < VMF_FILL_JOBS; i++) {
        lane->jobs[i].lane = lane;
        lane->jobs[i].memory = lane->memory + (size_t)i * VMF_CHUNK_SIZE;
    }
    return true;
}

void vmf_fill_lane_clear(VmfFillLane *lane)
{
    if (!lane->load)
        return;
    g_clear_pointer(&lane->reader, vmf_image_reader_free);
    pthread_mutex_lock(&lane->load->lock);
    while (lane->n_busy > 0)
        pthread_cond_wait(&lane->load->changed, &lane->load->lock);
    pthread_mutex_unlock(&lane->load->lock);
    g_clear_pointer(&lane->jobs, g_free);
    g_clear_pointer(&lane->memory, free);
}
