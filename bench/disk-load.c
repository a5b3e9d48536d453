/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bench/disk-load.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "bench/common.h"

#define DEPTH_MAX 256

typedef struct {
    BenchDiskLoad *load;
    VmfDiskRequest request;
    struct iovec iov;
    int64_t begun_ns;
    bool busy; /* under the lock */
} Slot;

struct BenchDiskLoad {
    VmfDisk *disk;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned depth, under_way;
    bool paused, over;
    BenchSchedule schedule; /* the thread's */
    BenchLatency latency;   /* the disk's thread's */
    Slot slots[DEPTH_MAX];
};

static void on_done(VmfDiskRequest *request, const GError *error)
{
    Slot *slot = request->opaque;
    BenchDiskLoad *load = slot->load;

    if (error) {
        errno = EIO;
        bench_die(error->message);
    }
    bench_latency_add(&load->latency, slot->begun_ns, bench_now_ns());
    pthread_mutex_lock(&load->lock);
    slot->busy = false;
    load->under_way--;
    pthread_cond_broadcast(&load->changed);
    pthread_mutex_unlock(&load->lock);
}

/* Lock held. A slot for the next write when that is due; NULL: it is over. */
static Slot *wait_for_next(BenchDiskLoad *load)
{
    while (!load->over) {
        int64_t due_ns = bench_schedule_due_ns(&load->schedule);
        struct timespec due = {.tv_sec = due_ns / BENCH_NS_PER_S, .tv_nsec = due_ns % BENCH_NS_PER_S};

        if (!load->paused && bench_now_ns() < due_ns) {
            pthread_mutex_unlock(&load->lock);
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
            pthread_mutex_lock(&load->lock);
            continue;
        }
        if (!load->paused && load->under_way < load->depth)
            break;
        pthread_cond_wait(&load->changed, &load->lock);
    }
    for (unsigned i = 0; !load->over && i < load->depth; i++)
        if (!load->slots[i].busy)
            return &load->slots[i];
    return NULL;
}

static void *submit_all(void *opaque)
{
    BenchDiskLoad *load = opaque;
    Slot *slot;

    pthread_mutex_lock(&load->lock);
    while ((slot = wait_for_next(load))) {
        slot->busy = true;
        load->under_way++;
        pthread_mutex_unlock(&load->lock);
        slot->request.offset = bench_write_place(vmf_disk_size(load->disk), load->schedule.n);
        slot->begun_ns = bench_now_ns();
        bench_schedule_take(&load->schedule, slot->begun_ns);
        vmf_disk_submit(load->disk, &slot->request);
        pthread_mutex_lock(&load->lock);
    }
    pthread_mutex_unlock(&load->lock);
    return NULL;
}

static void prepare(BenchDiskLoad *load, Slot *slot, uint8_t *buffer, unsigned n)
{
    bench_fill_random(buffer, BENCH_WRITE_BYTES, n);
    slot->load = load;
    slot->iov = (struct iovec){buffer, BENCH_WRITE_BYTES};
    slot->request = (VmfDiskRequest){.operation = VMF_DISK_WRITE, .length = BENCH_WRITE_BYTES, .iov = &slot->iov, .n_iov = 1,
                                     .done = on_done, .opaque = slot};
}

BenchDiskLoad *bench_disk_load_start(VmfDisk *disk, unsigned per_second, unsigned depth)
{
    BenchDiskLoad *load = g_new0(BenchDiskLoad, 1);
    uint8_t *buffers = bench_map((uint64_t)DEPTH_MAX * BENCH_WRITE_BYTES, (BenchKind){0});

    load->disk = disk;
    load->depth = MIN(depth, DEPTH_MAX);
    pthread_mutex_init(&load->lock, NULL);
    pthread_cond_init(&load->changed, NULL);
    bench_latency_init(&load->latency);
    bench_schedule_init(&load->schedule, per_second);
    for (unsigned i = 0; i < load->depth; i++)
        prepare(load, &load->slots[i], buffers + (size_t)i * BENCH_WRITE_BYTES, i);
    if (pthread_create(&load->thread, NULL, submit_all, load) != 0)
        bench_die("thread");
    return load;
}

static void set(BenchDiskLoad *load, bool paused, bool over)
{
    pthread_mutex_lock(&load->lock);
    load->paused = paused;
    load->over = over;
    pthread_cond_broadcast(&load->changed);
    while ((paused || over) && load->under_way > 0)
        pthread_cond_wait(&load->changed, &load->lock);
    pthread_mutex_unlock(&load->lock);
}

void bench_disk_load_pause(BenchDiskLoad *load)
{
    set(load, true, false);
}

void bench_disk_load_go_on(BenchDiskLoad *load)
{
    set(load, false, false);
}

const BenchLatency *bench_disk_load_finish(BenchDiskLoad *load)
{
    set(load, false, true);
    pthread_join(load->thread, NULL);
    return &load->latency;
}
