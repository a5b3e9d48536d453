/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 *   submitter:    mark dirty; append to the list; wake the I/O thread
 *   I/O thread:   take what of the list passes the gate; make marks of bitmaps durable; give it to the storage's
 *                 queue; wait until some have ended, or more has come; for each that has ended: mark dirty again,
 *                 durably; done()
 *
 * Marks are made under the lock under which trackers come and go. A tracker that comes while a write is under way
 * misses the first mark and gets the second, and that is enough: the write ends after it came.
 *
 * Copies of data are made where memory is not as the storage needs it, or may change under a storage that computes
 * checksums of it.
 */
#include "block/disk-private.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <vmferry/error.h>

#include "stream/clock.h"

#define MEMORY_ALIGNMENT 4096u
#define COPY_LINGERS_NS 1000000

/* ---- dirty tracking ---------------------------------------------------------------------------------------------- */

static bool changes_data(const VmfDiskRequest *request)
{
    return request->operation == VMF_DISK_WRITE || request->operation == VMF_DISK_ZERO ||
           request->operation == VMF_DISK_DISCARD;
}

/* Lock held. */
static void mark(VmfDisk *disk, const VmfDiskRequest *request, VmfBitmapsMoment moment)
{
    for (guint i = 0; i < disk->dirty->len; i++)
        vmf_disk_dirty_mark(g_ptr_array_index(disk->dirty, i), request->offset, request->length);
    vmf_bitmaps_mark(disk->bitmaps, request->offset, request->length, moment);
}

void vmf_disk_track(VmfDisk *disk, VmfDiskDirty *dirty)
{
    pthread_mutex_lock(&disk->lock);
    g_ptr_array_add(disk->dirty, dirty);
    pthread_mutex_unlock(&disk->lock);
}

void vmf_disk_untrack(VmfDisk *disk, VmfDiskDirty *dirty)
{
    pthread_mutex_lock(&disk->lock);
    g_ptr_array_remove(disk->dirty, dirty);
    pthread_mutex_unlock(&disk->lock);
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */

static bool pieces_fit(const VmfDiskRequest *request)
{
    uint64_t sum = 0;

    if (request->n_iov < 1 || request->n_iov > VMF_DISK_IOV_MAX || request->length > VMF_DISK_REQUEST_MAX)
        return false;
    for (unsigned i = 0; i < request->n_iov; i++)
        if (__builtin_add_overflow(sum, request->iov[i].iov_len, &sum))
            return false;
    return sum == request->length;
}

static const char *problem_of(const VmfDisk *disk, const VmfDiskRequest *request)
{
    uint64_t end;

    if (request->operation == VMF_DISK_FLUSH)
        return NULL;
    if ((unsigned)request->operation > VMF_DISK_FLUSH)
        return "there is no such operation";
    if (disk->read_only && changes_data(request))
        return "the disk is read-only";
    if (__builtin_add_overflow(request->offset, request->length, &end) || end > disk->size_bytes)
        return "it reaches past the end";
    if ((request->offset | request->length) % disk->sector_bytes)
        return "offset or length is no multiple of a sector";
    if ((request->operation == VMF_DISK_READ || request->operation == VMF_DISK_WRITE) && !pieces_fit(request))
        return "its pieces do not make up its length";
    return NULL;
}

static GError *refusal(const VmfDisk *disk, VmfErrorCode code, const char *why)
{
    return g_error_new(VMF_ERROR, code, "disk %s: request: %s", disk->name, why);
}

/* ---- submission -------------------------------------------------------------------------------------------------- */

static VmfDiskOp *new_op(VmfDisk *disk, VmfDiskRequest *request, bool has_data)
{
    unsigned n_iov = has_data ? request->n_iov : 0;
    VmfDiskOp *op = g_malloc(sizeof(*op) + n_iov * sizeof(op->iov[0]));

    *op = (VmfDiskOp){.disk = disk, .request = request, .refs = 1, .n_iov = n_iov};
    if (n_iov)
        memcpy(op->iov, request->iov, n_iov * sizeof(op->iov[0]));
    return op;
}

void vmf_disk_op_ref(VmfDiskOp *op)
{
    g_atomic_int_inc(&op->refs);
}

void vmf_disk_op_unref(VmfDiskOp *op)
{
    if (!g_atomic_int_dec_and_test(&op->refs))
        return;
    free(op->copy);
    g_clear_error(&op->refused);
    g_clear_error(&op->failure);
    g_free(op);
}

/* Lock held: the queue stays as long as it is waited in. */
static void wake(VmfDisk *disk)
{
    if (disk->waiting)
        vmf_storage_wake(disk->queue);
    else
        pthread_cond_broadcast(&disk->changed);
    disk->waiting = false;
}

static void submit(VmfDisk *disk, VmfDiskRequest *request, bool beneath)
{
    const char *problem = problem_of(disk, request);
    bool has_data = !problem && request->operation <= VMF_DISK_WRITE;
    VmfDiskOp *op = new_op(disk, request, has_data);

    if (problem)
        op->refused = refusal(disk, VMF_ERROR_IO, problem);
    pthread_mutex_lock(&disk->lock);
    if (!disk->acquired && !problem)
        op->refused = refusal(disk, VMF_ERROR_STATE, "the disk is released");
    op->beneath = beneath;
    op->marked = !op->refused && !beneath && changes_data(request);
    if (op->marked)
        mark(disk, request, VMF_BITMAPS_BEGINS);
    if (op->marked && disk->latency_goal_ns > 0)
        op->submitted_ns = vmf_now_ns();
    *disk->tail = op;
    disk->tail = &op->next;
    disk->under_way++;
    wake(disk);
    pthread_mutex_unlock(&disk->lock);
}

void vmf_disk_submit(VmfDisk *disk, VmfDiskRequest *request)
{
    submit(disk, request, false);
}

void vmf_disk_submit_beneath(VmfDisk *disk, VmfDiskRequest *request)
{
    submit(disk, request, true);
}

/* ---- latency ----------------------------------------------------------------------------------------------------- */

void vmf_disk_watch_latency(VmfDisk *disk, uint64_t goal_ns, const _Atomic int64_t *copied_ns)
{
    pthread_mutex_lock(&disk->lock);
    disk->latency_goal_ns = goal_ns;
    disk->copied_ns = goal_ns > 0 ? copied_ns : NULL;
    disk->n_watched = disk->n_late = 0;
    pthread_mutex_unlock(&disk->lock);
}

void vmf_disk_take_latency(VmfDisk *disk, uint64_t *n, uint64_t *n_late)
{
    pthread_mutex_lock(&disk->lock);
    *n = disk->n_watched;
    *n_late = disk->n_late;
    disk->n_watched = disk->n_late = 0;
    pthread_mutex_unlock(&disk->lock);
}

/* Lock held. A read that has ended may be a write on its way to the same storage. */
static bool was_beside_a_copy(const VmfDisk *disk, const VmfDiskOp *op)
{
    return !disk->copied_ns || atomic_load(disk->copied_ns) > op->submitted_ns - COPY_LINGERS_NS;
}

/* Lock held. */
static void watch_end(VmfDisk *disk, const VmfDiskOp *op)
{
    if (op->submitted_ns == 0 || disk->latency_goal_ns == 0)
        return;
    disk->n_watched++;
    disk->n_late += (uint64_t)(vmf_now_ns() - op->submitted_ns) > disk->latency_goal_ns && was_beside_a_copy(disk, op);
}

/* Lock held. */
void vmf_disk_may_tell(VmfDisk *disk, VmfDiskOp *op)
{
    VmfDiskOp **tail = &disk->to_tell;

    while (*tail)
        tail = &(*tail)->next;
    op->next = NULL;
    *tail = op;
    wake(disk);
}

/* ---- the gate ---------------------------------------------------------------------------------------------------- */

/* Lock held. */
void vmf_disk_move_gate(VmfDisk *disk)
{
    disk->gate_moved = true;
    wake(disk);
}

void vmf_disk_gate_moved(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->lock);
    vmf_disk_move_gate(disk);
    pthread_mutex_unlock(&disk->lock);
}

bool vmf_disk_set_gate(VmfDisk *disk, const VmfDiskGate *gate, void *opaque)
{
    pthread_mutex_lock(&disk->lock);
    bool set = !disk->gate && disk->acquired;
    if (set) {
        disk->gate = gate;
        disk->gate_opaque = opaque;
        vmf_disk_move_gate(disk);
    }
    pthread_mutex_unlock(&disk->lock);
    return set;
}

void vmf_disk_clear_gate(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->lock);
    disk->gate = NULL;
    vmf_disk_move_gate(disk);
    pthread_mutex_unlock(&disk->lock);
}

void vmf_disk_open_gate(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->lock);
    if (disk->gate)
        disk->gate->released(disk->gate_opaque);
    vmf_tee_end_locked(disk);
    vmf_disk_move_gate(disk);
    pthread_mutex_unlock(&disk->lock);
}

void vmf_disk_drain(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->lock);
    while (disk->under_way > 0)
        pthread_cond_wait(&disk->changed, &disk->lock);
    pthread_mutex_unlock(&disk->lock);
}

/* ---- the I/O thread ---------------------------------------------------------------------------------------------- */

/* Lock held. */
static void count(VmfDiskInfo *counters, const VmfDiskRequest *request, const GError *error)
{
    counters->failures += error != NULL;
    switch (request->operation) {
    case VMF_DISK_READ:
        counters->reads++;
        counters->read_bytes += error ? 0 : request->length;
        break;
    case VMF_DISK_WRITE:
        counters->writes++;
        counters->written_bytes += error ? 0 : request->length;
        break;
    case VMF_DISK_FLUSH:
        counters->flushes++;
        break;
    default:
        counters->zeroes++;
    }
}

static void tell(VmfDiskOp *op, const GError *error)
{
    op->request->done(op->request, error);
    op->disk->n_ended++;
    vmf_disk_op_unref(op);
}

static void tell_all(VmfDiskOp *list)
{
    for (VmfDiskOp *next; list; list = next) {
        next = list->next;
        tell(list, list->failure);
    }
}

/* Lock held. It may not be there any more, and another may. */
static void tell_gate(VmfDisk *disk, const VmfDiskOp *op, bool failed)
{
    if (!op->marked || !op->passed || !disk->gate || disk->gate_opaque != op->passed || !disk->gate->ended)
        return;
    disk->gate->ended(disk->gate_opaque, op->request, failed);
    disk->gate_moved = true;
}

static void end(VmfDiskOp *op, const GError *error)
{
    VmfDisk *disk = op->disk;
    VmfDiskRequest *request = op->request;
    g_autoptr(GError) unrecorded = NULL;

    pthread_mutex_lock(&disk->lock);
    if (op->marked) {
        mark(disk, request, VMF_BITMAPS_ENDS);
        vmf_tee_mark(disk, op, error != NULL);
    }
    disk->changing -= op->marked;
    disk->gate_moved |= disk->gate && disk->changing == 0; /* it waits for that, perhaps */
    tell_gate(disk, op, error != NULL);
    if (!op->beneath)
        count(&disk->counters, request, error);
    watch_end(disk, op);
    pthread_mutex_unlock(&disk->lock);
    /* A bitmap may have come since it began. */
    if (op->marked && !vmf_bitmaps_commit(disk->bitmaps, error ? NULL : &unrecorded))
        error = error ? error : unrecorded;
    if (!op->marked || !vmf_tee_lands(disk, op, error))
        tell(op, error);
}

/* Between the pieces of a request and its one copy. */
static void transfer(const VmfDiskOp *op, bool to_copy)
{
    char *at = op->copy;

    for (unsigned i = 0; i < op->n_iov; i++) {
        if (to_copy)
            memcpy(at, op->iov[i].iov_base, op->iov[i].iov_len);
        else
            memcpy(op->iov[i].iov_base, at, op->iov[i].iov_len);
        at += op->iov[i].iov_len;
    }
}

static void on_storage_done(VmfStorageRequest *storage, GError *error)
{
    VmfDiskOp *op = (VmfDiskOp *)storage;

    op->disk->in_storage--;
    if (op->copy && !error && op->request->operation == VMF_DISK_READ)
        transfer(op, false);
    if (error)
        g_prefix_error(&error, "disk %s: ", op->disk->name);
    end(op, error);
    g_clear_error(&error);
}

static bool needs_copy(const VmfDiskOp *op)
{
    uintptr_t mixed = 0;
    uint32_t alignment = vmf_storage_alignment(op->disk->storage);

    if (op->n_iov == 0)
        return false;
    if (op->request->operation == VMF_DISK_WRITE && (op->disk->copies_writes || op->teed))
        return true;
    for (unsigned i = 0; i < op->n_iov; i++)
        mixed |= (uintptr_t)op->iov[i].iov_base | op->iov[i].iov_len;
    return mixed & (alignment - 1);
}

/* False: there is no memory for it. */
static bool make_copy(VmfDiskOp *op)
{
    if (posix_memalign(&op->copy, MEMORY_ALIGNMENT, MAX(op->request->length, 1)) != 0)
        return false;
    op->whole = (struct iovec){op->copy, op->request->length};
    if (op->request->operation == VMF_DISK_WRITE)
        transfer(op, true);
    return true;
}

static void begin(VmfDiskOp *op)
{
    static const VmfRequestKind kinds[] = {
        [VMF_DISK_READ] = VMF_REQUEST_READ,    [VMF_DISK_WRITE] = VMF_REQUEST_WRITE, [VMF_DISK_ZERO] = VMF_REQUEST_ZERO,
        [VMF_DISK_DISCARD] = VMF_REQUEST_ZERO, [VMF_DISK_FLUSH] = VMF_REQUEST_FLUSH,
    };
    const VmfDiskRequest *request = op->request;

    if (!op->refused && needs_copy(op) && !make_copy(op))
        op->refused = refusal(op->disk, VMF_ERROR_MEMORY, "out of memory");
    if (op->marked)
        vmf_tee_put(op->disk, op);
    if (op->refused) {
        end(op, op->refused);
        return;
    }
    op->storage = (VmfStorageRequest){
        .kind = kinds[request->operation],
        .fua = request->fua,
        .done = on_storage_done,
        .offset = request->offset,
        .length = request->operation == VMF_DISK_FLUSH ? 0 : request->length,
        .iov = op->copy ? &op->whole : op->iov,
        .n_iov = op->copy ? 1 : op->n_iov,
    };
    op->disk->in_storage++;
    vmf_storage_submit(op->disk->queue, &op->storage);
}

/* Lock held. Whether it waits. */
static bool is_held(VmfDisk *disk, VmfDiskOp *op)
{
    const VmfDiskGate *gate = disk->gate;
    bool asks = gate && !op->refused && (op->marked || (gate->reads && !op->beneath && op->request->operation == VMF_DISK_READ));

    if (op->marked && vmf_tee_holds(disk, op))
        return true;
    if (asks && gate->holds(disk->gate_opaque, op->request, &op->refused)) {
        op->held_ns = op->held_ns ? op->held_ns : vmf_now_ns();
        return true;
    }
    if (asks && op->held_ns && gate->waited)
        gate->waited(disk->gate_opaque, (uint64_t)(vmf_now_ns() - op->held_ns));
    op->passed = asks && !op->refused ? disk->gate_opaque : NULL;
    return false;
}

/* Lock held. What may go; the rest is held, in the order in which it came. */
static VmfDiskOp *pass_gate(VmfDisk *disk, VmfDiskOp *list)
{
    VmfDiskOp *passed = NULL, **tail = &passed;

    for (VmfDiskOp *op = list, *next; op; op = next) {
        bool held = is_held(disk, op);
        VmfDiskOp ***end = held ? &disk->held_tail : &tail;

        next = op->next;
        op->next = NULL;
        **end = op;
        *end = &op->next;
        disk->changing += op->marked && !held;
        if (op->marked && !held)
            vmf_tee_join(disk, op);
    }
    return passed;
}

/* Lock held. Empty: there is no more to come, or nothing new. */
static VmfDiskOp *take_list(VmfDisk *disk)
{
    VmfDiskOp *list = disk->held;

    disk->gate_moved = false;
    if (disk->gate && disk->gate->quiet && disk->changing == 0)
        disk->gate->quiet(disk->gate_opaque);
    if (!list)
        list = disk->head;
    else
        *disk->held_tail = disk->head;
    disk->head = disk->held = NULL;
    disk->tail = &disk->head;
    disk->held_tail = &disk->held;
    return pass_gate(disk, list);
}

/* Nothing is changed of which a bitmap's file would not know after a crash. */
static void refuse_unrecorded(VmfDiskOp *list, const GError *error)
{
    for (; list; list = list->next)
        if (list->marked && !list->refused)
            list->refused = g_error_copy(error);
}

static bool has_changes(const VmfDiskOp *list)
{
    for (; list; list = list->next)
        if (list->marked && !list->refused)
            return true;
    return false;
}

/* What changes nothing leaves bitmaps alone: once the disk is drained they may be being detached. */
static void begin_all(VmfDisk *disk, VmfDiskOp *list)
{
    g_autoptr(GError) error = NULL;

    if (has_changes(list) && !vmf_bitmaps_commit(disk->bitmaps, &error))
        refuse_unrecorded(list, error);
    while (list) {
        VmfDiskOp *op = list;

        list = op->next;
        begin(op);
    }
}

/* Lock held. Not from done(): who has drained may free the queue, and this thread must have left it. */
static void tell_drainers(VmfDisk *disk)
{
    disk->under_way -= disk->n_ended;
    disk->n_ended = 0;
    pthread_cond_broadcast(&disk->changed);
}

/* Lock held. */
static bool has_news(const VmfDisk *disk)
{
    return disk->head || disk->gate_moved || disk->to_tell;
}

/* Not when something has come meanwhile. */
static void wait_for_storage(VmfDisk *disk)
{
    if (disk->in_storage == 0)
        return;
    pthread_mutex_lock(&disk->lock);
    disk->waiting = !has_news(disk);
    bool waits = disk->waiting;
    pthread_mutex_unlock(&disk->lock);
    if (waits)
        vmf_storage_wait_or_wake(disk->queue);
    else
        vmf_storage_poll(disk->queue);
    pthread_mutex_lock(&disk->lock);
    disk->waiting = false;
    pthread_mutex_unlock(&disk->lock);
}

static void *io_main(void *opaque)
{
    VmfDisk *disk = opaque;

    pthread_mutex_lock(&disk->lock);
    for (;;) {
        while (!has_news(disk) && disk->in_storage == 0 && !disk->quit)
            pthread_cond_wait(&disk->changed, &disk->lock);
        if (!has_news(disk) && disk->in_storage == 0)
            break;
        VmfDiskOp *list = take_list(disk), *let_go = g_steal_pointer(&disk->to_tell);
        pthread_mutex_unlock(&disk->lock);
        tell_all(let_go);
        begin_all(disk, list);
        wait_for_storage(disk);
        pthread_mutex_lock(&disk->lock);
        tell_drainers(disk);
    }
    pthread_mutex_unlock(&disk->lock);
    return NULL;
}

/* Signals are the embedder's business, and its threads'. */
bool vmf_disk_io_start(VmfDisk *disk, GError **error)
{
    sigset_t all, before;
    int err;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    err = pthread_create(&disk->thread, NULL, io_main, disk);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (err)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disk %s: thread: %s", disk->name, g_strerror(err));
    return err == 0;
}

void vmf_disk_io_end(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->lock);
    disk->quit = true;
    pthread_cond_broadcast(&disk->changed);
    pthread_mutex_unlock(&disk->lock);
    pthread_join(disk->thread, NULL);
}
