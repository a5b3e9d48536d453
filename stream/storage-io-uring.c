/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests executed by the kernel, given to it through a ring that each queue has of its own.
 *
 * A staged request gets an entry of the ring and moves to the list of prepared ones; one system call hands over all of
 * them and waits, if need be. The kernel takes entries in order, so those it took are the first of that list. The ring
 * has an entry for each request that can be busy and never overflows. A request that needs another step (the rest of a
 * short transfer, a sync after zeroing) is staged again.
 */
#include "stream/storage-file.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

typedef struct {
    VmfStorageQueue base;
    VmfStorageFile *file;
    struct io_uring ring;
    int wake_fd; /* an eventfd: ends a sleep in poll() */
    bool fd_is_registered;
    VmfRequestList prepared; /* have an entry that the kernel has not taken */
    unsigned in_kernel;
    unsigned attempts; /* to hand over, without success */
    int broken;        /* an errno: nothing can be handed over any more */
} UringQueue;

/* So often it may have no memory for another request while it has none of ours. */
#define ATTEMPTS_MAX 1000

/* Steps of ZERO. */
enum { STEP_ZERO, STEP_SYNC };

/* ---- a ring ------------------------------------------------------------------------------------------------------ */

/*
 * Where one ring was the kernel maps the next, of another thread perhaps, and orders the two; liburing makes the system
 * calls itself, so the thread sanitizer has to be told.
 */
static void rings_in_order(bool opened)
{
#ifdef __SANITIZE_THREAD__
    static char kernel; /* only an address */

    if (opened)
        __tsan_acquire(&kernel);
    else
        __tsan_release(&kernel);
#endif
}

static int ring_open(struct io_uring *ring, unsigned depth)
{
    int result = io_uring_queue_init(depth, ring, 0);

    rings_in_order(true);
    return result;
}

static void ring_close(struct io_uring *ring)
{
    rings_in_order(false);
    io_uring_queue_exit(ring);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static void prepare(UringQueue *uring, VmfStorageRequest *request)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    uint64_t offset = request->offset + request->progress;
    int fd = uring->fd_is_registered ? 0 : uring->file->fd;

    switch (request->kind) {
    case VMF_REQUEST_READ:
        io_uring_prep_readv(sqe, fd, request->left, request->n_left, offset);
        break;
    case VMF_REQUEST_WRITE:
        io_uring_prep_writev2(sqe, fd, request->left, request->n_left, offset, request->fua ? RWF_DSYNC : 0);
        break;
    case VMF_REQUEST_ZERO:
        if (request->step == STEP_ZERO) {
            io_uring_prep_fallocate(sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                                    (off_t)request->length);
            break;
        }
        /* fall through */
    case VMF_REQUEST_FLUSH:
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        break;
    }
    if (uring->fd_is_registered)
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, request);
}

static void end_all(UringQueue *uring, VmfRequestList *list)
{
    VmfStorageRequest *request;

    while ((request = vmf_request_list_pop(list)))
        vmf_storage_request_ended(&uring->base, request,
                                  vmf_storage_request_error(&uring->file->base, request, uring->broken));
}

static void prepare_staged(UringQueue *uring)
{
    VmfStorageRequest *request;

    if (uring->broken != 0)
        end_all(uring, &uring->base.staged);
    while ((request = vmf_request_list_pop(&uring->base.staged))) {
        prepare(uring, request);
        vmf_request_list_append(&uring->prepared, request);
    }
}

/* The kernel did not take what is prepared. */
static void not_taken(UringQueue *uring, int err)
{
    bool passes = err == EAGAIN || err == EBUSY || err == EINTR;

    if (passes && (uring->in_kernel > 0 || ++uring->attempts < ATTEMPTS_MAX)) {
        if (uring->in_kernel == 0 && err != EINTR)
            g_usleep(1000);
        return;
    }
    /* The entries stay in the ring; from now on nobody hands them over. */
    uring->broken = err;
    end_all(uring, &uring->prepared);
}

static void hand_over(UringQueue *uring, unsigned wait_for)
{
    int taken = io_uring_submit_and_wait(&uring->ring, wait_for);

    if (taken < 0) {
        not_taken(uring, -taken);
        return;
    }
    uring->attempts = 0;
    uring->in_kernel += (unsigned)taken;
    for (; taken > 0; taken--)
        vmf_request_list_pop(&uring->prepared);
}

static void uring_issue(VmfStorageQueue *queue)
{
    UringQueue *uring = (UringQueue *)queue;

    prepare_staged(uring);
    if (uring->prepared.n > 0)
        hand_over(uring, 0);
}

/* Returns whether @request has ended; otherwise it is to be staged again. */
static bool step_is_last(UringQueue *uring, VmfStorageRequest *request, int result, GError **error)
{
    int err = -result;

    if (request->kind == VMF_REQUEST_READ || request->kind == VMF_REQUEST_WRITE)
        return vmf_storage_request_attempted(&uring->file->base, request, result, error);
    if (err == EINTR || err == EAGAIN)
        return false;
    if (request->kind == VMF_REQUEST_ZERO && request->step == STEP_ZERO) {
        if (err == EOPNOTSUPP || err == ENOSYS) {
            err = vmf_storage_file_zero(uring->file, request);
        } else if (err == 0 && request->fua) {
            request->step = STEP_SYNC;
            return false;
        }
    }
    if (err != 0)
        *error = vmf_storage_request_error(&uring->file->base, request, err);
    return true;
}

static void harvest(UringQueue *uring)
{
    struct io_uring_cqe *cqe;

    while (io_uring_peek_cqe(&uring->ring, &cqe) == 0) {
        VmfStorageRequest *request = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        GError *error = NULL;

        io_uring_cqe_seen(&uring->ring, cqe);
        uring->in_kernel--;
        if (step_is_last(uring, request, result, &error))
            vmf_storage_request_ended(&uring->base, request, error);
        else
            vmf_request_list_append(&uring->base.staged, request);
    }
}

/* Either something has completed, or somebody wakes us. */
static void sleep_wakeable(UringQueue *uring)
{
    struct pollfd fds[] = {{.fd = uring->ring.ring_fd, .events = POLLIN}, {.fd = uring->wake_fd, .events = POLLIN}};
    uint64_t wakes;

    if (poll(fds, G_N_ELEMENTS(fds), -1) > 0 && (fds[1].revents & POLLIN) &&
        read(uring->wake_fd, &wakes, sizeof(wakes)) < 0)
        return;
}

static void uring_wake(VmfStorageQueue *queue)
{
    uint64_t one = 1;

    if (write(((UringQueue *)queue)->wake_fd, &one, sizeof(one)) < 0)
        return; /* EAGAIN: it was woken so often that once more makes no difference */
}

static void uring_reap(VmfStorageQueue *queue, bool wait)
{
    UringQueue *uring = (UringQueue *)queue;
    unsigned before = queue->ended.n;

    do {
        struct io_uring_cqe *cqe;

        prepare_staged(uring);
        bool sleep = wait && queue->ended.n == before;
        if (uring->broken == 0 && uring->prepared.n > 0)
            hand_over(uring, sleep && !queue->wakeable ? 1 : 0);
        else if (sleep && !queue->wakeable && uring->in_kernel > 0)
            io_uring_wait_cqe(&uring->ring, &cqe);
        if (sleep && queue->wakeable && uring->prepared.n == 0 && uring->in_kernel > 0)
            sleep_wakeable(uring);
        harvest(uring);
    } while (wait && queue->ended.n == before && !vmf_storage_is_woken(queue));
}

/* A ring's end lets go of its files some time later, and with them of their filesystem and their locks: so they are taken out first. */
static void uring_free(VmfStorageQueue *queue)
{
    UringQueue *uring = (UringQueue *)queue;

    if (uring->fd_is_registered)
        io_uring_unregister_files(&uring->ring);
    ring_close(&uring->ring);
    close(uring->wake_fd);
}

static const VmfStorageQueueOps uring_ops = {
    .issue = uring_issue,
    .reap = uring_reap,
    .wake = uring_wake,
    .free = uring_free,
};

static VmfStorageQueue *uring_queue_new(VmfStorageFile *file, unsigned depth, GError **error)
{
    UringQueue *uring = g_new0(UringQueue, 1);
    int result = 0;

    uring->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    result = uring->wake_fd < 0 ? -errno : ring_open(&uring->ring, depth);
    if (result < 0) {
        if (uring->wake_fd >= 0)
            close(uring->wake_fd);
        g_free(uring);
        vmf_storage_error(&file->base, "make a ring", -result, error);
        return NULL;
    }
    uring->base.ops = &uring_ops;
    uring->file = file;
    uring->fd_is_registered = io_uring_register_files(&uring->ring, &file->fd, 1) == 0;
    vmf_request_list_init(&uring->prepared);
    return &uring->base;
}

/* It can be compiled out, forbidden by policy, or older than what is used here. */
static bool uring_works(void)
{
    static const int needed[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE};
    struct io_uring ring;
    struct io_uring_probe *probe;
    bool works;

    if (ring_open(&ring, 1) < 0)
        return false;
    probe = io_uring_get_probe_ring(&ring);
    works = probe && (ring.features & IORING_FEAT_NODROP) && (ring.features & IORING_FEAT_SUBMIT_STABLE);
    for (size_t i = 0; works && i < G_N_ELEMENTS(needed); i++)
        works = io_uring_opcode_supported(probe, needed[i]);
    if (probe)
        io_uring_free_probe(probe);
    ring_close(&ring);
    return works;
}

const VmfFileBackend vmf_file_backend_io_uring = {
    .name = "io_uring",
    .works = uring_works,
    .queue_new = uring_queue_new,
};
