/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 *   the disk's thread:  holds? . joins . (private copy) . given to the storage and put into the queue . lands
 *   who sends:                                                 taken . numbered . sent
 *   who hears:                                                                      arrived
 *
 * A change is in flight from its joining until it has landed and arrived. It is told of on the disk's thread: when it
 * lands, if it has arrived by then, and otherwise from the list of those that may be told (to_tell).
 *
 * Who sends holds a reference, so that a tee can end, and the guest be told, while its data is on its way still. The
 * guest may write there again by then, and who copies the place sends what is newer: that has to wait, tee or no tee,
 * until what was taken there is sent, or the other end would be left with the older of the two.
 */
#include "block/tee.h"

#include "block/disk-private.h"

typedef struct {
    uint64_t offset, length; /* 0: free */
} Range;

struct VmfDiskTee {
    VmfDiskDirty *dirty;
    void (*wake)(void *opaque);
    void *opaque;
    VmfDiskOp *flight;        /* a list, in no order */
    VmfDiskOp *queue, **tail; /* to be taken */
    Range excluded[VMF_TEE_RANGES_MAX];
    uint64_t n_arrived, n_ended;
};

/* ---- lists; the lock is held in all that follows unless it says otherwise ---------------------------------------- */

static void join_flight(VmfDiskTee *tee, VmfDiskOp *op)
{
    op->flight_before = &tee->flight;
    op->flight_next = tee->flight;
    if (tee->flight)
        tee->flight->flight_before = &op->flight_next;
    tee->flight = op;
}

static void leave_flight(VmfDiskOp *op)
{
    *op->flight_before = op->flight_next;
    if (op->flight_next)
        op->flight_next->flight_before = op->flight_before;
    op->flight_before = NULL;
}

static void push(VmfDiskTee *tee, VmfDiskOp *op)
{
    vmf_disk_op_ref(op);
    op->queue_next = NULL;
    *tee->tail = op;
    tee->tail = &op->queue_next;
}

static VmfDiskOp *pop(VmfDiskTee *tee)
{
    VmfDiskOp *op = tee->queue;

    if (!op)
        return NULL;
    tee->queue = op->queue_next;
    if (!tee->queue)
        tee->tail = &tee->queue;
    return op;
}

static void join_taken(VmfDisk *disk, VmfDiskOp *op)
{
    op->taken_offset = op->request->offset;
    op->taken_length = op->request->length;
    op->taken_next = disk->taken;
    disk->taken = op;
}

static void leave_taken(VmfDisk *disk, VmfDiskOp *op)
{
    VmfDiskOp **at = &disk->taken;

    while (*at != op)
        at = &(*at)->taken_next;
    *at = op->taken_next;
}

static bool overlaps(const VmfDiskOp *op, uint64_t offset, uint64_t length)
{
    return offset < op->request->offset + op->request->length && op->request->offset < offset + length;
}

/* Who waits for a place looks again. */
static void tell_waiters(VmfDisk *disk)
{
    if (disk->held)
        vmf_disk_move_gate(disk);
    if (disk->n_excluders > 0)
        pthread_cond_broadcast(&disk->changed);
}

static void ended(VmfDisk *disk, VmfDiskOp *op)
{
    leave_flight(op);
    op->teed = false;
    disk->tee->n_ended++;
    tell_waiters(disk);
}

/* ---- the disk's thread ------------------------------------------------------------------------------------------- */

bool vmf_tee_holds(const VmfDisk *disk, const VmfDiskOp *op)
{
    const VmfDiskTee *tee = disk->tee;

    if (!tee || op->request->length == 0)
        return false;
    for (unsigned i = 0; i < VMF_TEE_RANGES_MAX; i++)
        if (tee->excluded[i].length > 0 && overlaps(op, tee->excluded[i].offset, tee->excluded[i].length))
            return true;
    for (const VmfDiskOp *other = tee->flight; other; other = other->flight_next)
        if (overlaps(op, other->request->offset, other->request->length))
            return true;
    return false;
}

void vmf_tee_join(VmfDisk *disk, VmfDiskOp *op)
{
    op->teed = disk->tee && op->request->length > 0;
    if (op->teed)
        join_flight(disk->tee, op);
}

void vmf_tee_mark(VmfDisk *disk, const VmfDiskOp *op, bool failed)
{
    if (disk->tee && (!op->teed || failed))
        vmf_disk_dirty_mark(disk->tee->dirty, op->request->offset, op->request->length);
}

/* No lock is held. */
void vmf_tee_put(VmfDisk *disk, VmfDiskOp *op)
{
    pthread_mutex_lock(&disk->lock);
    if (op->teed && op->refused) {
        leave_flight(op);
        op->teed = false;
        tell_waiters(disk);
    } else if (op->teed) {
        push(disk->tee, op);
        disk->tee->wake(disk->tee->opaque);
    }
    pthread_mutex_unlock(&disk->lock);
}

/* No lock is held. */
bool vmf_tee_lands(VmfDisk *disk, VmfDiskOp *op, const GError *error)
{
    pthread_mutex_lock(&disk->lock);
    bool waits = op->teed && !op->arrived;
    op->landed = true;
    if (op->teed && op->arrived)
        ended(disk, op);
    else if (op->teed)
        op->failure = error ? g_error_copy(error) : NULL;
    tell_waiters(disk);
    pthread_mutex_unlock(&disk->lock);
    return waits;
}

/* ---- begin and end ----------------------------------------------------------------------------------------------- */

bool vmf_disk_tee_begin(VmfDisk *disk, VmfDiskDirty *dirty, void (*wake)(void *opaque), void *opaque)
{
    pthread_mutex_lock(&disk->lock);
    bool begins = !disk->tee && disk->acquired;
    if (begins) {
        disk->tee = g_new0(VmfDiskTee, 1);
        *disk->tee = (VmfDiskTee){.dirty = dirty, .wake = wake, .opaque = opaque};
        disk->tee->tail = &disk->tee->queue;
        g_ptr_array_remove(disk->dirty, dirty);
    }
    pthread_mutex_unlock(&disk->lock);
    return begins;
}

static void let_go(VmfDisk *disk, VmfDiskOp *op)
{
    vmf_disk_dirty_mark(disk->tee->dirty, op->request->offset, op->request->length);
    leave_flight(op);
    op->teed = false;
    if (op->landed)
        vmf_disk_may_tell(disk, op);
}

void vmf_tee_end_locked(VmfDisk *disk)
{
    VmfDiskOp *op;

    if (!disk->tee)
        return;
    while ((op = pop(disk->tee)))
        vmf_disk_op_unref(op);
    while (disk->tee->flight)
        let_go(disk, disk->tee->flight);
    g_ptr_array_add(disk->dirty, disk->tee->dirty);
    g_clear_pointer(&disk->tee, g_free);
    vmf_disk_move_gate(disk);
    pthread_cond_broadcast(&disk->changed);
}

void vmf_disk_tee_end(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->lock);
    vmf_tee_end_locked(disk);
    pthread_mutex_unlock(&disk->lock);
}

/* ---- who sends, who hears ---------------------------------------------------------------------------------------- */

bool vmf_disk_tee_take(VmfDisk *disk, VmfTeeChange *change)
{
    pthread_mutex_lock(&disk->lock);
    VmfDiskOp *op = disk->tee ? pop(disk->tee) : NULL;
    if (op) {
        *change = (VmfTeeChange){op, op->request->offset, op->request->length, op->copy};
        join_taken(disk, op);
    }
    pthread_mutex_unlock(&disk->lock);
    return op != NULL;
}

void vmf_disk_tee_number(VmfDisk *disk, VmfDiskOp *op, uint64_t first, uint64_t n)
{
    pthread_mutex_lock(&disk->lock);
    op->first_number = first;
    op->n_pieces = op->n_left = n;
    pthread_mutex_unlock(&disk->lock);
}

void vmf_disk_tee_sent(VmfDisk *disk, VmfDiskOp *op)
{
    pthread_mutex_lock(&disk->lock);
    op->sent = true;
    leave_taken(disk, op);
    tell_waiters(disk);
    pthread_mutex_unlock(&disk->lock);
    vmf_disk_op_unref(op);
}

/* A piece comes once: the other end sends one answer for each. */
static VmfDiskOp *find_locked(const VmfDisk *disk, uint64_t number)
{
    for (VmfDiskOp *op = disk->tee ? disk->tee->flight : NULL; op; op = op->flight_next)
        if (op->n_left > 0 && number >= op->first_number && number - op->first_number < op->n_pieces)
            return op;
    return NULL;
}

static void arrive(VmfDisk *disk, VmfDiskOp *op)
{
    disk->tee->n_arrived++;
    op->arrived = --op->n_left == 0;
    if (!op->arrived || !op->landed)
        return;
    ended(disk, op);
    vmf_disk_may_tell(disk, op);
}

bool vmf_disk_tee_arrived(VmfDisk *disk, uint64_t number)
{
    pthread_mutex_lock(&disk->lock);
    VmfDiskOp *op = find_locked(disk, number);
    if (op)
        arrive(disk, op);
    pthread_mutex_unlock(&disk->lock);
    return op != NULL;
}

/* ---- keeping away ------------------------------------------------------------------------------------------------ */

static bool is_busy(const VmfDisk *disk, uint64_t offset, uint64_t length)
{
    for (const VmfDiskOp *op = disk->taken; op; op = op->taken_next)
        if (offset < op->taken_offset + op->taken_length && op->taken_offset < offset + length)
            return true;
    for (const VmfDiskOp *op = disk->tee ? disk->tee->flight : NULL; op; op = op->flight_next)
        if (overlaps(op, offset, length) && !(op->landed && op->sent))
            return true;
    return false;
}

static Range *find_range(VmfDiskTee *tee, uint64_t offset, uint64_t length)
{
    for (unsigned i = 0; i < VMF_TEE_RANGES_MAX; i++)
        if (tee->excluded[i].length == length && (length == 0 || tee->excluded[i].offset == offset))
            return &tee->excluded[i];
    return NULL;
}

void vmf_disk_tee_exclude(VmfDisk *disk, uint64_t offset, uint64_t length)
{
    pthread_mutex_lock(&disk->lock);
    Range *range = disk->tee ? find_range(disk->tee, 0, 0) : NULL;
    g_assert(range || !disk->tee);
    if (range)
        *range = (Range){offset, length};
    disk->n_excluders++;
    while (is_busy(disk, offset, length))
        pthread_cond_wait(&disk->changed, &disk->lock);
    disk->n_excluders--;
    pthread_mutex_unlock(&disk->lock);
}

void vmf_disk_tee_include(VmfDisk *disk, uint64_t offset, uint64_t length)
{
    pthread_mutex_lock(&disk->lock);
    Range *range = disk->tee ? find_range(disk->tee, offset, length) : NULL;
    if (range) {
        *range = (Range){0};
        tell_waiters(disk);
    }
    pthread_mutex_unlock(&disk->lock);
}

void vmf_disk_tee_get_info(VmfDisk *disk, VmfTeeInfo *info)
{
    *info = (VmfTeeInfo){0};
    pthread_mutex_lock(&disk->lock);
    if (disk->tee) {
        *info = (VmfTeeInfo){.on = true, .n_arrived = disk->tee->n_arrived, .n_ended = disk->tee->n_ended};
        for (const VmfDiskOp *op = disk->tee->flight; op; op = op->flight_next)
            info->n_waiting += op->landed;
        for (const VmfDiskOp *op = disk->held; op; op = op->next)
            info->n_waiting++;
    }
    pthread_mutex_unlock(&disk->lock);
}
