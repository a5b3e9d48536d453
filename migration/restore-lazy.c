/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. The fault server (ram/fault-server.h) has threads of its own; the session's thread only waits for what they
 * tell: all is there, or a page cannot be had. Everything else goes on without it. The guest is its owner's, who pauses and resumes
 * it; another session may move it away, which asks the guest's presence (ram/presence.h) for what is not here yet, so that pages that
 * are on their way are neither holes nor zeros for it.
 *
 * A page that cannot be had. The guest is stopped before anything else, wherever it is; the vCPU that asked for the page does not get past
 * that access. Then the session holds: what the guest did since it was restored is only here, and what becomes of it is a person's to say.
 * There is one thing to say, that it is given up, since memory that is not whole cannot be run. The image is still as it was.
 *
 * Disks. They are brought behind memory, which the guest needs first; what it asks of them meanwhile is brought at once
 * (image-disk-load.h). A part of one that cannot be had is what such a page is; a disk also has to be written, which may fail as well.
 *
 * At the end what the image says of the guest's memory is compared with what its tables hold, which an eager restore does before the guest
 * runs. It has to wait until here because it reads all of the tables; each page by itself was compared with its digest when it was placed.
 */
#include "migration/restore-lazy.h"

#include <stdatomic.h>
#include <vmferry/error.h>

#include "ram/image-pages.h"
#include "stream/clock.h"

#define RECORD_NS (2 * VMF_NS_PER_S) /* of touches that reading ahead does not hide, when they are recorded */
#define WAIT_NS (VMF_NS_PER_S / 10)
#define RUN_LOOK_NS (VMF_NS_PER_S / 100) /* how soon a guest's first run is seen */

/* ---- what is told by the server's threads ------------------------------------------------------------------------------- */

static void note_lost(VmfRestore *restore, const GError *error, bool disk)
{
    VmfSession *session = restore->session;

    pthread_mutex_lock(&session->lock);
    if (!restore->lost) {
        restore->lost = g_error_copy(error);
        restore->disk_lost = disk;
    }
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
}

static bool on_lost(void *opaque, unsigned block, uint64_t page, bool touched, const GError *error)
{
    VmfRestore *restore = opaque;
    VmfSession *session = restore->session;
    const VmfGuestOps *ops = vmf_guest_ops(session->guest);

    note_lost(restore, error, false);
    return ops->memory_lost && ops->memory_lost(vmf_guest_opaque(session->guest));
}

static void on_complete(void *opaque)
{
    VmfRestore *restore = opaque;

    pthread_mutex_lock(&restore->session->lock);
    restore->complete = true;
    pthread_cond_broadcast(&restore->session->changed);
    pthread_mutex_unlock(&restore->session->lock);
}

static void on_disk_lost(void *opaque, const GError *error)
{
    VmfRestore *restore = opaque;
    const VmfGuestOps *ops = vmf_guest_ops(restore->session->guest);

    if (ops->disk_lost)
        ops->disk_lost(vmf_guest_opaque(restore->session->guest));
    note_lost(restore, error, true);
}

static void on_disks_filled(void *opaque)
{
    VmfRestore *restore = opaque;

    pthread_mutex_lock(&restore->session->lock);
    restore->filled = true;
    pthread_cond_broadcast(&restore->session->changed);
    pthread_mutex_unlock(&restore->session->lock);
}

static const VmfImageDiskLoadOps disk_ops = {.lost = on_disk_lost, .filled = on_disks_filled};

static const VmfFaultServerOps server_ops = {.size = sizeof(VmfFaultServerOps), .lost = on_lost, .complete = on_complete};

/* ---- what another session asks ------------------------------------------------------------------------------------------ */

static bool pending(void *opaque, unsigned block, VmfDirtyBitmap *out, GError **error)
{
    VmfRestore *restore = opaque;
    uint64_t n_chunks = vmf_ram_block_n_chunks(vmf_guest_ram(restore->session->guest, block));
    VmfPageSet data;

    for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
        if (!vmf_image_pages_ops.may_have_data(restore->chain, block, chunk))
            continue;
        if (!vmf_image_pages_ops.data_pages(restore->chain, block, chunk, &data, error))
            return false;
        vmf_dirty_bitmap_or_words(out, chunk * VMF_CHUNK_WORDS, data.words, VMF_CHUNK_WORDS);
    }
    return true;
}

static bool ensure(void *opaque, unsigned block, uint64_t chunk, GError **error)
{
    VmfRestore *restore = opaque;

    atomic_store(&restore->asked_for, true);
    return vmf_fault_server_ensure(restore->server, block, chunk, error);
}

static const VmfPresenceOps presence_ops = {.pending = pending, .ensure = ensure};

/* ---- the order of touches ----------------------------------------------------------------------------------------------- */

/* It is a hint: one that cannot be used is told, one that is not there is none. */
static void read_order(VmfRestore *restore)
{
    const char *path = restore->options.order_path;
    g_autoptr(GError) error = NULL;

    if (!path || !g_file_test(path, G_FILE_TEST_EXISTS))
        return;
    restore->order = vmf_touch_order_read(path, restore->image->commit.id, &restore->image->commit.root, &error);
    if (error)
        vmf_session_event(restore->session, "order.ignored", "%s: it is passed over", error->message);
}

/* One that says something is not given up for one that says nothing. */
static void write_order(VmfRestore *restore)
{
    const VmfImageCommit *commit = &restore->image->commit;
    const char *path = restore->options.order_path;
    g_autoptr(GError) error = NULL;

    if (!restore->record)
        return;
    if (vmf_touch_order_length(restore->record) == 0)
        vmf_session_event(restore->session, "order.not-written", "order of touches %s: it is not written: nothing was touched", path);
    else if (!vmf_touch_order_write(restore->record, path, commit->id, &commit->root, &error))
        vmf_session_event(restore->session, "order.not-written", "%s: it is not written", error->message);
}

/* ---- beginning ---------------------------------------------------------------------------------------------------------- */

static bool make_server(VmfRestore *restore, GError **error)
{
    VmfGuest *guest = restore->session->guest;
    unsigned n = vmf_guest_n_ram(guest);
    g_autofree VmfRamBlock **blocks = g_new0(VmfRamBlock *, n + 1);
    VmfFaultServerConfig config = {
        .blocks = blocks,
        .n_blocks = n,
        .reader = &vmf_image_pages_ops,
        .source = restore->chain,
        .order = restore->order,
        .record = restore->record,
        .record_ns = RECORD_NS,
        .ops = &server_ops,
        .opaque = restore,
    };

    for (unsigned b = 0; b < n; b++)
        blocks[b] = vmf_guest_ram(guest, b);
    restore->server_began_ns = vmf_now_ns();
    VmfFaultServer *server = vmf_fault_server_new(&config, error);
    pthread_mutex_lock(&restore->session->lock);
    restore->server = server; /* from here on statistics are of it */
    pthread_mutex_unlock(&restore->session->lock);
    if (!server)
        return false;
    if (!restore->options.kernel_touches || vmf_fault_server_sees_kernel(restore->server))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED,
                "lazy restore: this host lets only user mode wait for memory, and the kernel touches that of this guest");
    return false;
}

bool vmf_restore_lazy_begin_disks(VmfRestore *restore, GError **error)
{
    return vmf_image_disk_load_begin(restore->disks, &disk_ops, restore, error);
}

bool vmf_restore_lazy_begin(VmfRestore *restore, GError **error)
{
    if (vmf_guest_n_ram(restore->session->guest) == 0) {
        restore->complete = true;
        return true;
    }
    read_order(restore);
    if (restore->options.record_order && restore->options.order_path)
        restore->record = vmf_touch_order_new();
    if (!make_server(restore, error))
        return false;
    restore->presence = vmf_presence_new(&presence_ops, restore);
    vmf_guest_set_presence(restore->session->guest, restore->presence);
    return true;
}

/* ---- the wait, and the hold --------------------------------------------------------------------------------------------- */

/* Until a person gives the guest up (true), or the session is left (false). */
static bool wait_for_word(VmfSession *session)
{
    pthread_mutex_lock(&session->lock);
    while (!session->resolution.pending && !session->leaving && !session->killed && !vmf_session_is_cancelled(session))
        vmf_session_wait_locked(session, vmf_now_ns() + WAIT_NS);
    bool given_up = session->resolution.pending;
    session->resolution.pending = false;
    pthread_mutex_unlock(&session->lock);
    return given_up;
}

/* Takes @why. Always false. */
static bool hold(VmfRestore *restore, GError *why, GError **error)
{
    VmfSession *session = restore->session;
    g_autofree char *text =
        g_strdup_printf("a part of %s cannot be had: %s", restore->disk_lost ? "a disk" : "its memory", why->message);

    vmf_guest_ops(session->guest)->stop(vmf_guest_opaque(session->guest), NULL);
    if (restore->presence)
        vmf_presence_close(restore->presence, why);
    vmf_session_set_hold(session, text);
    vmf_session_event(session, "restore.held", "%s", text);
    if (wait_for_word(session)) {
        vmf_session_set_hold(session, NULL);
        g_propagate_error(error, why);
        return false;
    }
    g_error_free(why);
    g_set_error(error, VMF_ERROR, VMF_ERROR_HELD, "restore: %s", text);
    return false;
}

/* For @done, which is under the session's lock. */
static bool wait_until(VmfRestore *restore, const bool *done, GError **error)
{
    VmfSession *session = restore->session;

    pthread_mutex_lock(&session->lock);
    while (!*done && !restore->lost && !vmf_session_is_cancelled(session))
        vmf_session_wait_locked(session, vmf_now_ns() + WAIT_NS);
    bool good = *done && !restore->lost;
    GError *lost = restore->lost ? g_error_copy(restore->lost) : NULL;
    pthread_mutex_unlock(&session->lock);
    if (lost)
        g_propagate_error(error, lost);
    return good || (!lost && vmf_session_check_cancelled(session, error));
}

static bool check_sums(VmfRestore *restore, GError **error)
{
    return vmf_image_load_survey(restore->load, &restore->session->cancelled, error) &&
           vmf_image_load_check(restore->load, &restore->image->summary, error);
}

/*
 * What a guest touches is recorded from its first run on, however long it was paused before. A migration or a save that asks for its memory
 * before that brings all of it, and leaves nothing to record.
 */
static void wait_for_run(VmfRestore *restore)
{
    VmfSession *session = restore->session;
    const VmfGuestOps *ops = vmf_guest_ops(session->guest);

    while (restore->record && !restore->started && !atomic_load(&restore->asked_for) &&
           !ops->is_running(vmf_guest_opaque(session->guest))) {
        pthread_mutex_lock(&session->lock);
        bool over = restore->lost || vmf_session_is_cancelled(session);
        if (!over)
            vmf_session_wait_locked(session, vmf_now_ns() + RUN_LOOK_NS);
        pthread_mutex_unlock(&session->lock);
        if (over)
            return; /* wait_until() says which */
    }
}

static bool fill_memory(VmfRestore *restore, GError **error)
{
    wait_for_run(restore);
    return (restore->complete || vmf_fault_server_fill(restore->server, error)) &&
           wait_until(restore, &restore->complete, error) && check_sums(restore, error);
}

static bool commit_disks(VmfRestore *restore, GError **error)
{
    return vmf_session_fault(restore->session, "restore.disks.filled", error) &&
           vmf_image_disk_load_commit(restore->disks, error) &&
           vmf_session_fault(restore->session, "restore.disks.named", error);
}

static bool fill_disks(VmfRestore *restore, GError **error)
{
    return vmf_session_fault(restore->session, "restore.disks.rest", error) &&
           vmf_image_disk_load_fill(restore->disks, error) && wait_until(restore, &restore->filled, error) &&
           commit_disks(restore, error);
}

bool vmf_restore_lazy_fill(VmfRestore *restore, GError **error)
{
    GError *why = NULL;

    vmf_session_set_status(restore->session, VMF_STATUS_POSTCOPY_ACTIVE);
    if (fill_memory(restore, &why) && fill_disks(restore, &why))
        return true;
    if (!g_error_matches(why, VMF_ERROR, VMF_ERROR_CANCELLED))
        return hold(restore, why, error);
    g_propagate_error(error, why);
    return false;
}

/* ---- the end ------------------------------------------------------------------------------------------------------------ */

void vmf_restore_lazy_end(VmfRestore *restore, const GError *why)
{
    if (restore->presence) {
        vmf_presence_close(restore->presence, why);
        vmf_guest_set_presence(restore->session->guest, NULL);
    }
    g_clear_pointer(&restore->server, vmf_fault_server_free);
    if (!why)
        write_order(restore);
    g_clear_pointer(&restore->presence, vmf_presence_unref);
    g_clear_pointer(&restore->order, vmf_touch_order_free);
    g_clear_pointer(&restore->record, vmf_touch_order_free);
    g_clear_error(&restore->lost);
}

void vmf_restore_lazy_gather(VmfRestore *restore, VmfStatistics *statistics)
{
    VmfFaultStatistics faults;

    vmf_fault_server_statistics(restore->server, &faults);
    statistics->bytes_received = faults.fault_bytes + faults.prefetch_bytes;
    statistics->pages_data = statistics->bytes_received / VMF_PAGE_SIZE;
    statistics->ram_remaining_bytes = restore->data_bytes - MIN(statistics->bytes_received, restore->data_bytes);
    statistics->faults = faults.n_faults;
    statistics->fault_p50_ns = faults.fault_p50_ns;
    statistics->fault_p99_ns = faults.fault_p99_ns;
    statistics->fault_max_ns = faults.fault_max_ns;
    if (faults.order_90_ns > 0)
        statistics->working_set_ns = faults.order_90_ns + (uint64_t)(restore->server_began_ns - restore->begun_ns);
}
