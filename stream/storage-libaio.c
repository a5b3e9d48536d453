/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests executed by the kernel's older interface, for systems that forbid io_uring.
 *
 * It is asynchronous for direct reads and writes. It knows no way to zero: that is done by the thread that submits,
 * which waits for it.
 */
#include "stream/storage-file.h"

#include <errno.h>
#include <libaio.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct {
    VmfStorageQueue base;
    VmfStorageFile *file;
    io_context_t context;
    int events_fd; /* an eventfd: something has completed, or somebody wakes us */
    struct iocb *iocbs;       /* depth of them */
    struct iocb **free_iocbs; /* n_free of them */
    unsigned n_free;
    struct iocb **batch;     /* depth: what goes into one call */
    struct io_event *events; /* depth */
    unsigned in_kernel;
    unsigned attempts; /* to hand over, without success */
} AioQueue;

/* So often it may have no room for another request while it has none of ours. */
#define ATTEMPTS_MAX 1000

static struct iocb *prepare(AioQueue *aio, VmfStorageRequest *request)
{
    struct iocb *iocb = aio->free_iocbs[--aio->n_free];
    long long offset = (long long)(request->offset + request->progress);
    int fd = aio->file->fd;

    if (request->kind == VMF_REQUEST_READ)
        io_prep_preadv(iocb, fd, request->left, (int)request->n_left, offset);
    else if (request->kind == VMF_REQUEST_WRITE)
        io_prep_pwritev2(iocb, fd, request->left, (int)request->n_left, offset, request->fua ? RWF_DSYNC : 0);
    else
        io_prep_fdsync(iocb, fd);
    io_set_eventfd(iocb, aio->events_fd);
    iocb->data = request;
    return iocb;
}

/* Of the staged requests those up to the first that this interface does not know. Returns their number. */
static unsigned prepare_batch(AioQueue *aio)
{
    unsigned n = 0;

    for (VmfStorageRequest *r = aio->base.staged.head; r && r->kind != VMF_REQUEST_ZERO; r = r->next)
        aio->batch[n++] = prepare(aio, r);
    return n;
}

static void end_first_staged(AioQueue *aio, int err)
{
    VmfStorageRequest *request = vmf_request_list_pop(&aio->base.staged);
    GError *error = err == 0 ? NULL : vmf_storage_request_error(&aio->file->base, request, err);

    vmf_storage_request_ended(&aio->base, request, error);
}

/* Returns whether to go on: false, there is no room now. */
static bool not_taken(AioQueue *aio, int err)
{
    if (err == EINTR)
        return true;
    if (err == EAGAIN && (aio->in_kernel > 0 || ++aio->attempts < ATTEMPTS_MAX)) {
        if (aio->in_kernel == 0)
            g_usleep(1000);
        return false;
    }
    aio->attempts = 0;
    end_first_staged(aio, err);
    return true;
}

/* Hands over a batch. Returns whether to go on. */
static bool hand_over(AioQueue *aio)
{
    unsigned n = prepare_batch(aio);
    int taken;

    if (n == 0) {
        end_first_staged(aio, vmf_storage_file_zero(aio->file, aio->base.staged.head));
        return true;
    }
    taken = io_submit(aio->context, n, aio->batch);
    for (unsigned i = n; i > (taken > 0 ? (unsigned)taken : 0); i--)
        aio->free_iocbs[aio->n_free++] = aio->batch[i - 1];
    if (taken <= 0)
        return not_taken(aio, taken < 0 ? -taken : EAGAIN);
    aio->attempts = 0;
    aio->in_kernel += (unsigned)taken;
    for (; taken > 0; taken--)
        vmf_request_list_pop(&aio->base.staged);
    return true;
}

static void aio_issue(VmfStorageQueue *queue)
{
    while (queue->staged.n > 0 && hand_over((AioQueue *)queue))
        ;
}

static void complete(AioQueue *aio, const struct io_event *event)
{
    VmfStorageRequest *request = event->data;
    int64_t result = (long)event->res;
    GError *error = NULL;
    bool ended = true;

    aio->free_iocbs[aio->n_free++] = event->obj;
    aio->in_kernel--;
    if (request->kind != VMF_REQUEST_FLUSH)
        ended = vmf_storage_request_attempted(&aio->file->base, request, result, &error);
    else if (result < 0)
        error = vmf_storage_request_error(&aio->file->base, request, (int)-result);
    if (ended)
        vmf_storage_request_ended(&aio->base, request, error);
    else
        vmf_request_list_append(&aio->base.staged, request);
}

static void sleep_wakeable(AioQueue *aio)
{
    struct pollfd fd = {.fd = aio->events_fd, .events = POLLIN};
    uint64_t n;

    if (poll(&fd, 1, -1) > 0 && read(aio->events_fd, &n, sizeof(n)) < 0)
        return;
}

static void aio_wake(VmfStorageQueue *queue)
{
    uint64_t one = 1;

    if (write(((AioQueue *)queue)->events_fd, &one, sizeof(one)) < 0)
        return; /* EAGAIN: it was woken so often that once more makes no difference */
}

/* Of events that somebody else saw the counter may speak still: then it is looked at once more. */
static int get_events(AioQueue *aio, bool sleep)
{
    struct timespec now = {0};

    if (sleep && aio->base.wakeable) {
        sleep_wakeable(aio);
        sleep = false;
    }
    return io_getevents(aio->context, sleep ? 1 : 0, aio->base.depth, aio->events, sleep ? NULL : &now);
}

static void aio_reap(VmfStorageQueue *queue, bool wait)
{
    AioQueue *aio = (AioQueue *)queue;
    unsigned before = queue->ended.n;

    do {
        bool sleep;
        int n = 0;

        aio_issue(queue);
        sleep = wait && queue->ended.n == before;
        if (aio->in_kernel > 0)
            n = get_events(aio, sleep);
        for (int i = 0; i < n; i++)
            complete(aio, &aio->events[i]);
    } while (wait && queue->ended.n == before && !vmf_storage_is_woken(queue));
}

static void aio_free(VmfStorageQueue *queue)
{
    AioQueue *aio = (AioQueue *)queue;

    if (aio->context)
        io_destroy(aio->context);
    if (aio->events_fd >= 0)
        close(aio->events_fd);
    g_free(aio->iocbs);
    g_free(aio->free_iocbs);
    g_free(aio->batch);
    g_free(aio->events);
}

static const VmfStorageQueueOps aio_ops = {
    .issue = aio_issue,
    .reap = aio_reap,
    .wake = aio_wake,
    .free = aio_free,
};

static VmfStorageQueue *aio_queue_new(VmfStorageFile *file, unsigned depth, GError **error)
{
    AioQueue *aio = g_new0(AioQueue, 1);
    int result;

    aio->base.ops = &aio_ops;
    aio->file = file;
    aio->iocbs = g_new0(struct iocb, depth);
    aio->free_iocbs = g_new0(struct iocb *, depth);
    aio->batch = g_new0(struct iocb *, depth);
    aio->events = g_new0(struct io_event, depth);
    for (; aio->n_free < depth; aio->n_free++)
        aio->free_iocbs[aio->n_free] = &aio->iocbs[aio->n_free];
    aio->events_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    result = aio->events_fd < 0 ? -errno : io_setup((int)depth, &aio->context);
    if (result == 0)
        return &aio->base;
    aio->context = NULL;
    aio_free(&aio->base);
    g_free(aio);
    vmf_storage_error(&file->base, "make a context", -result, error);
    return NULL;
}

static bool aio_works(void)
{
    io_context_t context = NULL;

    return io_setup(1, &context) == 0 && io_destroy(context) == 0;
}

const VmfFileBackend vmf_file_backend_libaio = {
    .name = "libaio",
    .needs_direct = true,
    .works = aio_works,
    .queue_new = aio_queue_new,
};
