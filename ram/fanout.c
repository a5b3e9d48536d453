/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/fanout.h"

#include <vmferry/error.h>

#include <errno.h>
#include <sys/resource.h>
#include <unistd.h>

#include "ram/block.h"

#define LANE_NICE 10 /* below the guest's vCPUs: on a full host the guest sees 0.5 ms gaps instead of 7 */

typedef struct {
    VmfFanout *fanout;
    VmfLane lane;
    pthread_t thread;
    bool started;
} Worker;

struct VmfFanout {
    VmfRamSave *save;
    unsigned n_workers;
    Worker *workers;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t round;    /* to be run */
    unsigned running;  /* workers that have not finished it */
    bool quit;
    _Atomic bool failed;
    GError *error; /* the first */
};

/* Called with each chunk that is dirty and not claimed; false stops the walk. */
static bool walk(Worker *worker, bool own_only, GError **error)
{
    VmfRamSave *save = worker->lane.stream.save;
    VmfChunkId id;

    for (id.block = 0; id.block < save->n_blocks; id.block++) {
        for (id.chunk = 0; vmf_dirty_bitmap_next_chunk(save->blocks[id.block].dirty, id.chunk, &id.chunk); id.chunk++) {
            if (atomic_load_explicit(&worker->fanout->failed, memory_order_relaxed))
                return true;
            if (own_only && !vmf_flight_prefers(save->flight, worker->lane.stream.lane, id))
                continue;
            if (vmf_flight_claim(save->flight, worker->lane.stream.lane, save->round, id) && !vmf_lane_take(&worker->lane, id, error))
                return false;
        }
    }
    return true;
}

/*
 * First what falls to this lane, then whatever nobody has begun. Every chunk is claimed by the end: one that is under way elsewhere
 * is left to the lane it is under way on, which makes the same second walk.
 */
static bool run_round(Worker *worker, GError **error)
{
    worker->lane.stream.first_pass = worker->lane.stream.save->round == 1;
    return walk(worker, true, error) && walk(worker, false, error) && vmf_lane_flush(&worker->lane, error);
}

static void fail(VmfFanout *fanout, GError *error)
{
    atomic_store(&fanout->failed, true);
    if (fanout->error)
        g_error_free(error);
    else
        fanout->error = error;
}

static void *worker_main(void *opaque)
{
    Worker *worker = opaque;
    VmfFanout *fanout = worker->fanout;
    uint32_t done = 0;

    setpriority(PRIO_PROCESS, (id_t)gettid(), LANE_NICE);
    pthread_mutex_lock(&fanout->lock);
    while (!fanout->quit) {
        if (fanout->round == done) {
            pthread_cond_wait(&fanout->changed, &fanout->lock);
            continue;
        }
        done = fanout->round;
        pthread_mutex_unlock(&fanout->lock);
        GError *error = NULL;
        bool good = run_round(worker, &error);
        pthread_mutex_lock(&fanout->lock);
        if (!good)
            fail(fanout, error);
        if (--fanout->running == 0)
            pthread_cond_broadcast(&fanout->changed);
    }
    pthread_mutex_unlock(&fanout->lock);
    return NULL;
}

VmfFanout *vmf_fanout_new(VmfRamSave *save, VmfRecordWriter *const *writers, unsigned n_lanes, uint32_t epoch, GError **error)
{
    g_autoptr(VmfFanout) fanout = g_new0(VmfFanout, 1);

    fanout->save = save;
    fanout->n_workers = n_lanes;
    fanout->workers = g_new0(Worker, n_lanes);
    pthread_mutex_init(&fanout->lock, NULL);
    pthread_cond_init(&fanout->changed, NULL);
    for (unsigned i = 0; i < n_lanes; i++) {
        Worker *worker = &fanout->workers[i];
        worker->fanout = fanout;
        worker->lane.stream = (VmfStreamSink){.save = save, .lane = i, .writer = writers[i], .epoch = epoch};
        int failed = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (failed) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "page channel %u: thread: %s", i, g_strerror(failed));
            return NULL;
        }
        worker->started = true;
    }
    return g_steal_pointer(&fanout);
}

void vmf_fanout_free(VmfFanout *fanout)
{
    if (!fanout)
        return;
    atomic_store(&fanout->failed, true);
    pthread_mutex_lock(&fanout->lock);
    fanout->quit = true;
    pthread_cond_broadcast(&fanout->changed);
    pthread_mutex_unlock(&fanout->lock);
    for (unsigned i = 0; i < fanout->n_workers; i++)
        if (fanout->workers[i].started)
            pthread_join(fanout->workers[i].thread, NULL);
    g_clear_error(&fanout->error);
    g_free(fanout->workers);
    pthread_cond_destroy(&fanout->changed);
    pthread_mutex_destroy(&fanout->lock);
    g_free(fanout);
}

/* What no lane had to look at was never touched. */
static void close_counts(VmfRamSave *save)
{
    for (unsigned b = 0; b < save->n_blocks; b++) {
        VmfRamSaveBlock *own = &save->blocks[b];
        own->hole += vmf_ram_block_n_pages(own->block) - own->passed;
    }
    save->first_pass_bytes = save->payload_bytes;
}

bool vmf_fanout_round(VmfFanout *fanout, GError **error)
{
    pthread_mutex_lock(&fanout->lock);
    fanout->save->round++;
    fanout->round++;
    fanout->running = fanout->n_workers;
    pthread_cond_broadcast(&fanout->changed);
    while (fanout->running > 0)
        pthread_cond_wait(&fanout->changed, &fanout->lock);
    bool good = fanout->error == NULL;
    if (!good)
        g_propagate_error(error, g_error_copy(fanout->error));
    pthread_mutex_unlock(&fanout->lock);
    if (!good || fanout->save->round > 1)
        return good;
    close_counts(fanout->save);
    return vmf_ram_save_check_counts(fanout->save, error);
}

bool vmf_fanout_end_marks(VmfFanout *fanout, GError **error)
{
    for (unsigned i = 0; i < fanout->n_workers; i++)
        if (!vmf_lane_end_mark(&fanout->workers[i].lane, error))
            return false;
    return true;
}
