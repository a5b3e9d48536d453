/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 *   guest's write . storage ............................................. both: the guest is told
 *                 . queue . number, sum, EXTENT (mirrored) . target's storage . MIRRORED
 *
 * The two ways are gone at once (block/tee.h), so that a write takes as long as the slower of them. Only what was
 * written goes over, not the granule around it: that it arrived, in this order, is proved by a sum of its own, which is
 * part of the disk's (docs/stream-format.rst, *Disks*), and nothing is read back.
 *
 * What is still to be copied when the mirror begins, and granules in which a write failed, go out in passes as ever.
 * A pass keeps the guest's writes away from what it reads until that is sent; so there is one more for each of these
 * granules, and then none. Passes are the session's thread's; what has to be in one order in both, the sums and the
 * records that carry them, is under source->order.
 */
#include "migration/disk-mirror.h"

#include <vmferry/error.h>

#include "block/tee.h"
#include "stream/clock.h"

#define STUCK_NS (1 * VMF_NS_PER_S)         /* in which nothing gets on: longer than a guest should wait for nothing */
#define STUCK_BEHIND_NS (5 * VMF_NS_PER_S) /* in which others do: what was sent ahead of it over a slow link has arrived by then */

/* The watchdog's, of a disk. */
typedef struct {
    uint64_t arrived;
    int64_t moved_ns; /* when one of its writes arrived last, or none waited */
} Watched;

struct VmfDiskMirror {
    VmfDiskSource *source;
    VmfSaveStream *stream;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool begun, quit; /* under the lock */
    GError *error;    /* the thread's, until it has ended */
    _Atomic bool on;
    _Atomic bool caught_up;
    uint64_t ended_before;   /* caught up */
    _Atomic uint64_t writes; /* as it let go */
    Watched *watched;
    uint64_t seen_bytes; /* likewise the watchdog's: when bytes went out last */
    int64_t seen_ns;
};

static void on_begun(void *opaque)
{
    VmfDiskMirror *mirror = opaque;

    pthread_mutex_lock(&mirror->lock);
    mirror->begun = true;
    pthread_cond_signal(&mirror->changed);
    pthread_mutex_unlock(&mirror->lock);
}

static VmfTeeInfo sum_up(const VmfDiskMirror *mirror)
{
    VmfTeeInfo all = {0}, one;

    for (unsigned i = 0; i < mirror->source->n_disks; i++) {
        vmf_disk_tee_get_info(mirror->source->disks[i].disk, &one);
        all.n_waiting += one.n_waiting;
        all.n_arrived += one.n_arrived;
        all.n_ended += one.n_ended;
    }
    return all;
}

uint64_t vmf_disk_mirror_writes(const VmfDiskMirror *mirror)
{
    uint64_t n = sum_up(mirror).n_ended, now = mirror->caught_up && n > mirror->ended_before ? n - mirror->ended_before : 0;

    return MAX(now, mirror->writes);
}

static void let_go_of_all(VmfDiskMirror *mirror)
{
    mirror->writes = vmf_disk_mirror_writes(mirror);
    mirror->on = false;
    for (unsigned i = 0; i < mirror->source->n_disks; i++)
        vmf_disk_tee_end(mirror->source->disks[i].disk);
}

static bool send_piece(VmfDiskMirror *mirror, unsigned i, uint64_t offset, const uint8_t *data, uint64_t length)
{
    VmfDiskSource *source = mirror->source;
    VmfWireExtent extent = {
        .disk = source->indexes[i],
        .flags = VMF_EXTENT_MIRRORED | (data ? 0 : VMF_EXTENT_IS_ZERO),
        .offset = offset,
        .length = length,
    };

    pthread_mutex_lock(&source->order);
    vmf_disk_proof_mirror(&source->disks[i].proof, source->n_mirrored++, offset, data, length);
    source->sent_bytes += data ? length : 0;
    bool sent = vmf_record_write_extent(mirror->stream->writer, &extent, data, data ? length : 0, &mirror->error);
    pthread_mutex_unlock(&source->order);
    return sent;
}

static bool send_change(VmfDiskMirror *mirror, unsigned i, const VmfTeeChange *change)
{
    uint64_t most = change->data ? VMF_EXTENT_DATA_MAX : VMF_EXTENT_ZERO_MAX, n = (change->length + most - 1) / most;
    bool sent = true;

    vmf_disk_tee_number(mirror->source->disks[i].disk, change->op, mirror->source->n_mirrored, n);
    for (uint64_t at = 0; sent && at < change->length; at += most)
        sent = send_piece(mirror, i, change->offset + at, change->data ? change->data + at : NULL,
                          MIN(most, change->length - at));
    return sent;
}

static bool send_all(VmfDiskMirror *mirror)
{
    bool sent = true;

    for (unsigned i = 0; sent && i < mirror->source->n_disks; i++) {
        VmfDisk *disk = mirror->source->disks[i].disk;
        VmfTeeChange change;

        while (sent && vmf_disk_tee_take(disk, &change)) {
            sent = send_change(mirror, i, &change);
            vmf_disk_tee_sent(disk, change.op);
        }
    }
    return sent && vmf_record_flush(mirror->stream->writer, &mirror->error);
}

/* False: it is to end. */
static bool wait_for_work(VmfDiskMirror *mirror)
{
    pthread_mutex_lock(&mirror->lock);
    while (!mirror->begun && !mirror->quit)
        pthread_cond_wait(&mirror->changed, &mirror->lock);
    bool goes_on = !mirror->quit;
    mirror->begun = false;
    pthread_mutex_unlock(&mirror->lock);
    return goes_on;
}

static void *mirror_main(void *opaque)
{
    VmfDiskMirror *mirror = opaque;

    while (wait_for_work(mirror) && mirror->on && send_all(mirror))
        ;
    let_go_of_all(mirror);
    return NULL;
}

static void mirror_free(VmfDiskMirror *mirror)
{
    pthread_cond_destroy(&mirror->changed);
    pthread_mutex_destroy(&mirror->lock);
    g_free(mirror->watched);
    g_free(mirror);
}

static bool begin_tees(VmfDiskMirror *mirror, GError **error)
{
    for (unsigned i = 0; i < mirror->source->n_disks; i++) {
        const VmfDiskSourceOne *one = &mirror->source->disks[i];

        if (!vmf_disk_tee_begin(one->disk, one->dirty, on_begun, mirror)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "disk %s: mirror: another has its writes", one->proof.name);
            return false;
        }
    }
    return true;
}

VmfDiskMirror *vmf_disk_mirror_start(VmfDiskSource *source, VmfSaveStream *stream, GError **error)
{
    VmfDiskMirror *mirror = g_new0(VmfDiskMirror, 1);

    *mirror = (VmfDiskMirror){.source = source, .stream = stream, .on = true, .watched = g_new0(Watched, source->n_disks)};
    pthread_mutex_init(&mirror->lock, NULL);
    pthread_cond_init(&mirror->changed, NULL);
    mirror->seen_ns = vmf_now_ns();
    for (unsigned i = 0; i < source->n_disks; i++)
        mirror->watched[i].moved_ns = mirror->seen_ns;
    bool begun = begin_tees(mirror, error);
    if (begun && pthread_create(&mirror->thread, NULL, mirror_main, mirror) == 0)
        return mirror;
    if (begun)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disks: mirror: no thread for it");
    let_go_of_all(mirror);
    mirror_free(mirror);
    return NULL;
}

bool vmf_disk_mirror_end(VmfDiskMirror *mirror, GError **error)
{
    if (!mirror)
        return true;
    let_go_of_all(mirror);
    pthread_mutex_lock(&mirror->lock);
    mirror->quit = true;
    pthread_cond_signal(&mirror->changed);
    pthread_mutex_unlock(&mirror->lock);
    pthread_join(mirror->thread, NULL);
    GError *failed = mirror->error;
    mirror_free(mirror);
    if (failed)
        g_propagate_error(error, failed);
    return !failed;
}

void vmf_disk_mirror_let_go(VmfDiskMirror *mirror)
{
    let_go_of_all(mirror);
}

bool vmf_disk_mirror_is_on(const VmfDiskMirror *mirror)
{
    return mirror->on;
}

bool vmf_disk_mirror_arrived(VmfDiskMirror *mirror, uint64_t number)
{
    bool found = false;

    for (unsigned i = 0; !found && i < mirror->source->n_disks; i++)
        found = vmf_disk_tee_arrived(mirror->source->disks[i].disk, number);
    return found || !mirror->on;
}

/* Whether any of its writes arrived since the last look, or none waits. */
static bool gets_on(const VmfDiskMirror *mirror, unsigned i, uint64_t *arrived, bool *waits)
{
    VmfTeeInfo info;

    vmf_disk_tee_get_info(mirror->source->disks[i].disk, &info);
    bool changed = info.n_arrived != *arrived;
    *arrived = info.n_arrived;
    *waits = info.n_waiting > 0;
    return changed || !*waits;
}

void vmf_disk_mirror_look(VmfDiskMirror *mirror, int64_t now_ns)
{
    uint64_t bytes = mirror->source->sent_bytes;
    bool moves = bytes != mirror->seen_bytes, any_waits = false;
    int64_t first_ns = now_ns;

    for (unsigned i = 0; i < mirror->source->n_disks; i++) {
        Watched *watched = &mirror->watched[i];
        bool waits, on = gets_on(mirror, i, &watched->arrived, &waits);

        if (on)
            watched->moved_ns = now_ns;
        first_ns = MIN(first_ns, watched->moved_ns);
        moves |= on && waits;
        any_waits |= waits;
    }
    if (moves || !any_waits)
        mirror->seen_ns = now_ns;
    mirror->seen_bytes = bytes;
    if (mirror->on && (now_ns - mirror->seen_ns > STUCK_NS || now_ns - first_ns > STUCK_BEHIND_NS))
        let_go_of_all(mirror);
}

void vmf_disk_mirror_caught_up(VmfDiskMirror *mirror)
{
    mirror->ended_before = sum_up(mirror).n_ended;
    mirror->caught_up = true;
}
