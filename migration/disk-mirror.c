/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation
 *
 *   guest's write:  dirty . storage . dirty . its end is kept ........................ let go: the guest is told
 *   mirror:                              count what was kept . pass . DISK_SYNC (written) . answer
 *
 * Whatever was kept when it counted is marked as dirty, and a pass sends all that is marked; once the target has
 * answered that all of it is written, those writes are at both ends. What ends meanwhile waits for the next turn: so
 * many writes share a turn, and none waits for more than two.
 *
 * A granule goes out whole, for it is what has a digest. It is read back for that, after the write has landed, by the
 * same requests as in any other pass: that copy, mirror and guest exclude each other comes from that there is but one
 * who sends.
 */
#include "migration/disk-mirror.h"

#include <vmferry/error.h>

#include "block/disk.h"
#include "stream/clock.h"

#define STUCK_NS                                                                                                       \
    (1 * VMF_NS_PER_S) /* in which a turn sends nothing and does not end: longer than a guest should wait for nothing  \
                        */

struct VmfDiskMirror {
    VmfDiskSource *source;
    VmfSaveStream *stream;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool kept, quit; /* under the lock */
    GError *error;   /* the thread's, until it has ended */
    _Atomic bool on;
    _Atomic uint64_t turns;          /* that have begun or ended: odd while one runs */
    uint64_t seen_turns, seen_bytes; /* the watchdog's: when anything moved last */
    int64_t seen_ns;
    _Atomic uint64_t writes;
    uint64_t *counts; /* the thread's: what was kept of each disk when the turn began */
};

static void on_kept(void *opaque)
{
    VmfDiskMirror *mirror = opaque;

    pthread_mutex_lock(&mirror->lock);
    mirror->kept = true;
    pthread_cond_signal(&mirror->changed);
    pthread_mutex_unlock(&mirror->lock);
}

static void let_go_of_all(VmfDiskMirror *mirror)
{
    mirror->on = false;
    for (unsigned i = 0; i < mirror->source->n_disks; i++)
        vmf_disk_stop_keeping_ends(mirror->source->disks[i].disk);
}

static bool take_turn(VmfDiskMirror *mirror)
{
    VmfDiskSource *source = mirror->source;
    uint64_t before = 0, after = 0;

    mirror->turns++;
    for (unsigned i = 0; i < source->n_disks; i++) {
        before += mirror->counts[i];
        mirror->counts[i] = vmf_disk_ends_kept(source->disks[i].disk);
        after += mirror->counts[i];
    }
    bool sent = vmf_disk_source_send_turn(source, mirror->stream, &mirror->error);
    mirror->turns++;
    for (unsigned i = 0; sent && mirror->on && i < source->n_disks; i++)
        vmf_disk_let_go(source->disks[i].disk, mirror->counts[i]);
    mirror->writes += sent && mirror->on ? after - before : 0;
    return sent;
}

/* False: it is to end. */
static bool wait_for_work(VmfDiskMirror *mirror)
{
    pthread_mutex_lock(&mirror->lock);
    while (!mirror->kept && !mirror->quit)
        pthread_cond_wait(&mirror->changed, &mirror->lock);
    bool goes_on = !mirror->quit;
    mirror->kept = false;
    pthread_mutex_unlock(&mirror->lock);
    return goes_on;
}

static void *mirror_main(void *opaque)
{
    VmfDiskMirror *mirror = opaque;

    while (mirror->on && take_turn(mirror) && wait_for_work(mirror))
        ;
    let_go_of_all(mirror);
    return NULL;
}

static void mirror_free(VmfDiskMirror *mirror)
{
    pthread_cond_destroy(&mirror->changed);
    pthread_mutex_destroy(&mirror->lock);
    g_free(mirror->counts);
    g_free(mirror);
}

static bool keep_ends(VmfDiskMirror *mirror, GError **error)
{
    for (unsigned i = 0; i < mirror->source->n_disks; i++) {
        const VmfDiskSourceOne *one = &mirror->source->disks[i];

        if (!vmf_disk_keep_ends(one->disk, on_kept, mirror)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "disk %s: mirror: another keeps its writes",
                        one->proof.name);
            return false;
        }
        mirror->counts[i] = vmf_disk_ends_kept(one->disk);
    }
    return true;
}

VmfDiskMirror *vmf_disk_mirror_start(VmfDiskSource *source, VmfSaveStream *stream, GError **error)
{
    VmfDiskMirror *mirror = g_new0(VmfDiskMirror, 1);

    *mirror =
        (VmfDiskMirror){.source = source, .stream = stream, .on = true, .counts = g_new0(uint64_t, source->n_disks)};
    pthread_mutex_init(&mirror->lock, NULL);
    pthread_cond_init(&mirror->changed, NULL);
    bool kept = keep_ends(mirror, error);
    if (kept && pthread_create(&mirror->thread, NULL, mirror_main, mirror) == 0)
        return mirror;
    if (kept)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disks: mirror: no thread for it");
    let_go_of_all(mirror);
    mirror_free(mirror);
    return NULL;
}

bool vmf_disk_mirror_end(VmfDiskMirror *mirror, GError **error)
{
    if (!mirror)
        return true;
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

bool vmf_disk_mirror_is_on(const VmfDiskMirror *mirror)
{
    return mirror->on;
}

void vmf_disk_mirror_look(VmfDiskMirror *mirror, int64_t now_ns)
{
    uint64_t turns = mirror->turns, bytes = mirror->source->sent_bytes;

    if (turns % 2 == 0 || turns != mirror->seen_turns || bytes != mirror->seen_bytes)
        mirror->seen_ns = now_ns;
    mirror->seen_turns = turns;
    mirror->seen_bytes = bytes;
    if (mirror->on && now_ns - mirror->seen_ns > STUCK_NS)
        let_go_of_all(mirror);
}

uint64_t vmf_disk_mirror_writes(const VmfDiskMirror *mirror)
{
    return mirror->writes;
}
