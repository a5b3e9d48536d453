/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * A thread that sends is busy with its lane's pages: it looks at them, digests them, and copies them into the kernel. More such threads
 * than CPUs only take the caches and the CPUs from each other, and from the guest. So a thread serves several lanes where there are more
 * of them than CPUs: a chunk goes to its own lane if that takes it without waiting, otherwise to another of the thread's, and only when
 * none takes anything does the thread wait for one. A channel that stands still thus costs the others nothing but the rest of the record
 * at which it stopped.
 *
 * What a lane holds back unsent counts as under way. Before the thread turns to another lane, where it may wait for what is under way to
 * land, it lets that go.
 */
#include "ram/fanout.h"

#include <vmferry/error.h>

#include <errno.h>
#include <sys/resource.h>
#include <unistd.h>

#include "ram/block.h"

#define LANE_NICE 10 /* below the guest's vCPUs: on a full host the guest sees 0.5 ms gaps instead of 7 */

typedef struct {
    VmfFanout *fanout;
    unsigned index; /* its lanes are this one and each n_workers-th after it */
    VmfLane *current; /* whose turn it was last; NULL: nobody's yet */
    pthread_t thread;
    bool started;
} Worker;

struct VmfFanout {
    VmfRamSave *save;
    unsigned n_lanes, n_workers;
    VmfLane *lanes;
    Worker *workers;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t round;    /* to be run */
    unsigned running;  /* workers that have not finished it */
    bool quit;
    _Atomic bool failed;
    GError *error; /* the first */
};

static bool turn_to(Worker *worker, VmfLane *lane, GError **error)
{
    VmfLane *before = worker->current;

    worker->current = lane;
    return !before || before == lane || before->config.let_go(before->config.opaque, error);
}

/* A thread that has one lane need not ask. */
static bool is_ready(const Worker *worker, const VmfLane *lane)
{
    return worker->fanout->n_workers == worker->fanout->n_lanes || lane->config.is_ready(lane->config.opaque);
}

static bool claim(Worker *worker, VmfLane *lane, VmfChunkId id)
{
    VmfRamSave *save = worker->fanout->save;

    return vmf_flight_claim(save->flight, lane->index, save->round, id);
}

/* If the chunk falls to @lane, and that is ready. */
static VmfLane *choose_own(Worker *worker, VmfLane *lane, VmfChunkId id)
{
    bool takes = vmf_flight_prefers(worker->fanout->save->flight, lane->index, id) && is_ready(worker, lane) && claim(worker, lane, id);

    return takes ? lane : NULL;
}

/* Any lane that may have it, the one whose turn it is first: one that is ready, or else one to wait for. */
static VmfLane *choose_any(Worker *worker, VmfChunkId id)
{
    const VmfFanout *fanout = worker->fanout;
    VmfLane *current = worker->current;

    if (current && is_ready(worker, current) && claim(worker, current, id))
        return current;
    for (unsigned i = worker->index; i < fanout->n_lanes; i += fanout->n_workers)
        if (is_ready(worker, &fanout->lanes[i]) && claim(worker, &fanout->lanes[i], id))
            return &fanout->lanes[i];
    for (unsigned i = worker->index; i < fanout->n_lanes; i += fanout->n_workers)
        if (claim(worker, &fanout->lanes[i], id))
            return &fanout->lanes[i];
    return NULL;
}

/* Each chunk that is dirty, until there is an error: those that fall to @own, or with NULL all. */
static bool walk(Worker *worker, VmfLane *own, GError **error)
{
    VmfRamSave *save = worker->fanout->save;
    VmfChunkId id;

    for (id.block = 0; id.block < save->n_blocks; id.block++) {
        for (id.chunk = 0; vmf_dirty_bitmap_next_chunk(save->blocks[id.block].dirty, id.chunk, &id.chunk); id.chunk++) {
            if (atomic_load_explicit(&worker->fanout->failed, memory_order_relaxed))
                return true;
            VmfLane *lane = own ? choose_own(worker, own, id) : choose_any(worker, id);
            if (lane && !(turn_to(worker, lane, error) && vmf_lane_take(lane, id, error)))
                return false;
        }
    }
    return true;
}

static bool flush(Worker *worker, GError **error)
{
    VmfFanout *fanout = worker->fanout;

    for (unsigned i = worker->index; i < fanout->n_lanes; i += fanout->n_workers)
        if (!turn_to(worker, &fanout->lanes[i], error) || !vmf_lane_flush(&fanout->lanes[i], error))
            return false;
    return true;
}

/*
 * First what falls to the thread's own lanes, one after the other, so that what a lane holds back to send it together is not let go for
 * each chunk; then whatever nobody has begun. Every chunk is claimed by the end: one that is under way elsewhere is left to the lane it
 * is under way on, whose thread makes the same last walk.
 */
static bool run_round(Worker *worker, GError **error)
{
    VmfFanout *fanout = worker->fanout;

    for (unsigned i = worker->index; i < fanout->n_lanes; i += fanout->n_workers)
        if (!walk(worker, &fanout->lanes[i], error))
            return false;
    return walk(worker, NULL, error) && flush(worker, error);
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

static bool start_worker(Worker *worker, GError **error)
{
    int failed = pthread_create(&worker->thread, NULL, worker_main, worker);

    worker->started = failed == 0;
    if (failed)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "page channel %u: thread: %s", worker->index, g_strerror(failed));
    return worker->started;
}

static unsigned threads_for(const VmfLaneConfig *lanes, unsigned n_lanes, unsigned n_threads)
{
    for (unsigned i = 0; i < n_lanes; i++)
        if (!lanes[i].is_ready)
            return n_lanes;
    return MIN(n_lanes, n_threads ? n_threads : g_get_num_processors());
}

VmfFanout *vmf_fanout_new(VmfRamSave *save, const VmfLaneConfig *lanes, unsigned n_lanes, unsigned n_threads, GError **error)
{
    g_autoptr(VmfFanout) fanout = g_new0(VmfFanout, 1);

    fanout->save = save;
    fanout->n_lanes = n_lanes;
    fanout->lanes = g_new0(VmfLane, n_lanes);
    fanout->n_workers = threads_for(lanes, n_lanes, n_threads);
    fanout->workers = g_new0(Worker, fanout->n_workers);
    pthread_mutex_init(&fanout->lock, NULL);
    pthread_cond_init(&fanout->changed, NULL);
    for (unsigned i = 0; i < n_lanes; i++)
        vmf_lane_init(&fanout->lanes[i], save, i, &lanes[i]);
    for (unsigned i = 0; i < fanout->n_workers; i++) {
        fanout->workers[i].fanout = fanout;
        fanout->workers[i].index = i;
        if (!start_worker(&fanout->workers[i], error))
            return NULL;
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
    for (unsigned i = 0; i < fanout->n_lanes; i++)
        vmf_lane_clear(&fanout->lanes[i]);
    g_clear_error(&fanout->error);
    g_free(fanout->lanes);
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
