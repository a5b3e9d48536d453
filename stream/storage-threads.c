/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests executed by threads: what works everywhere.
 *
 * Each queue has its own workers. They take requests from one list under a lock and put them into another when they
 * have ended; the queue's thread moves whole lists in and out, so that it takes the lock once for many.
 */
#include "stream/storage-file.h"

#include <vmferry/error.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>

/* More of them than this wait for the storage without keeping it busier. */
#define WORKERS_MAX 16

typedef struct {
    VmfStorageQueue base;
    VmfStorageFile *file;
    pthread_mutex_t lock;
    pthread_cond_t has_work, has_ended;
    VmfRequestList work;
    VmfRequestList ended;
    unsigned idle; /* workers that wait for work */
    bool quit;
    unsigned n_workers; /* the queue's thread's */
    pthread_t workers[WORKERS_MAX];
} ThreadsQueue;

static void *worker_main(void *opaque)
{
    ThreadsQueue *threads = opaque;

    pthread_mutex_lock(&threads->lock);
    for (;;) {
        VmfStorageRequest *request = vmf_request_list_pop(&threads->work);

        if (request) {
            pthread_mutex_unlock(&threads->lock);
            request->error = vmf_storage_file_execute(threads->file, request);
            pthread_mutex_lock(&threads->lock);
            vmf_request_list_append(&threads->ended, request);
            pthread_cond_signal(&threads->has_ended);
        } else if (threads->quit) {
            break;
        } else {
            threads->idle++;
            pthread_cond_wait(&threads->has_work, &threads->lock);
            threads->idle--;
        }
    }
    pthread_mutex_unlock(&threads->lock);
    return NULL;
}

/* Signals are the embedder's business, and its threads'. Returns an errno. */
static int start_worker(ThreadsQueue *threads)
{
    sigset_t all, before;
    int err;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    err = pthread_create(&threads->workers[threads->n_workers], NULL, worker_main, threads);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (err == 0)
        threads->n_workers++;
    return err;
}

static void threads_issue(VmfStorageQueue *queue)
{
    ThreadsQueue *threads = (ThreadsQueue *)queue;
    VmfStorageRequest *request;
    bool more;

    pthread_mutex_lock(&threads->lock);
    while ((request = vmf_request_list_pop(&queue->staged)))
        vmf_request_list_append(&threads->work, request);
    more = threads->work.n > threads->idle && threads->n_workers < MIN(queue->depth, WORKERS_MAX);
    if (threads->idle > 0)
        pthread_cond_broadcast(&threads->has_work);
    pthread_mutex_unlock(&threads->lock);
    if (more)
        start_worker(threads); /* without it those that are there do the work */
}

static void threads_reap(VmfStorageQueue *queue, bool wait)
{
    ThreadsQueue *threads = (ThreadsQueue *)queue;
    VmfRequestList ended;
    VmfStorageRequest *request;

    if (queue->staged.n > 0)
        threads_issue(queue);
    pthread_mutex_lock(&threads->lock);
    while (wait && threads->ended.n == 0 && !vmf_storage_is_woken(queue))
        pthread_cond_wait(&threads->has_ended, &threads->lock);
    vmf_request_list_take(&threads->ended, &ended);
    pthread_mutex_unlock(&threads->lock);
    while ((request = vmf_request_list_pop(&ended)))
        vmf_storage_request_ended(queue, request, request->error);
}

static void threads_wake(VmfStorageQueue *queue)
{
    ThreadsQueue *threads = (ThreadsQueue *)queue;

    pthread_mutex_lock(&threads->lock);
    pthread_cond_signal(&threads->has_ended);
    pthread_mutex_unlock(&threads->lock);
}

static void threads_free(VmfStorageQueue *queue)
{
    ThreadsQueue *threads = (ThreadsQueue *)queue;

    pthread_mutex_lock(&threads->lock);
    threads->quit = true;
    pthread_cond_broadcast(&threads->has_work);
    pthread_mutex_unlock(&threads->lock);
    for (unsigned i = 0; i < threads->n_workers; i++)
        pthread_join(threads->workers[i], NULL);
    pthread_cond_destroy(&threads->has_work);
    pthread_cond_destroy(&threads->has_ended);
    pthread_mutex_destroy(&threads->lock);
}

static const VmfStorageQueueOps threads_ops = {
    .issue = threads_issue,
    .reap = threads_reap,
    .wake = threads_wake,
    .free = threads_free,
};

static VmfStorageQueue *threads_queue_new(VmfStorageFile *file, unsigned depth, GError **error)
{
    ThreadsQueue *threads = g_new0(ThreadsQueue, 1);
    int err;

    threads->base.ops = &threads_ops;
    threads->file = file;
    pthread_mutex_init(&threads->lock, NULL);
    pthread_cond_init(&threads->has_work, NULL);
    pthread_cond_init(&threads->has_ended, NULL);
    vmf_request_list_init(&threads->work);
    vmf_request_list_init(&threads->ended);
    err = start_worker(threads);
    if (err == 0)
        return &threads->base;
    threads_free(&threads->base);
    g_free(threads);
    vmf_storage_error(&file->base, "start a thread", err, error);
    return NULL;
}

static bool threads_work(void)
{
    return true;
}

const VmfFileBackend vmf_file_backend_threads = {
    .name = "threads",
    .works = threads_work,
    .queue_new = threads_queue_new,
};
