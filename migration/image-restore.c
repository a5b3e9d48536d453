/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Restoring a guest: nobody is asked and nobody is told, so the steps follow one another, each one a function below, and the first that
 * fails ends it. Until the guest is started nothing has happened that cannot be taken back; whatever fails, its memory is given back.
 *
 * Disks that the image holds are written first of all, and have their names before anything else can fail that takes long; or, lazily,
 * are there from then on for whoever reads and writes them, and have their names at the end. Those that it does not hold are looked at
 * twice. Ahead of the pages, for people who would otherwise wait for a refusal; and when storage is
 * this guest's alone, because only then nobody can write to them any more.
 */
#include "migration/image-restore.h"

#include <vmferry/error.h>

#include "migration/compatibility.h"
#include "migration/image-disks.h"
#include "migration/restore-lazy.h"
#include "stream/clock.h"

/* ---- does it fit? ---------------------------------------------------------------------------------------------------------- */

static bool open_image(VmfRestore *restore, GError **error)
{
    VmfStorageOptions options = vmf_restore_storage_options(&restore->options);

    options.cancelled = &restore->session->cancelled;
    restore->chain = vmf_image_chain_open(restore->options.uri, restore->options.parents, &options, error);
    if (!restore->chain)
        return false;
    restore->image = vmf_image_chain_layer(restore->chain, 0);
    for (uint32_t b = 0; b < restore->image->summary.n_blocks - restore->image->layout.n_disks; b++)
        restore->data_bytes += restore->image->summary.blocks[b].data * VMF_PAGE_SIZE;
    return true;
}

static bool check_guest(VmfRestore *restore, GError **error)
{
    VmfSession *session = restore->session;

    g_auto(GStrv) texts =
        vmf_compatibility_check(restore->image->static_data, restore->ours, restore->owners, session->guest);
    if (!texts[0])
        return true;
    g_autofree char *all = g_strjoinv("; ", texts);
    vmf_session_set_incompatibilities(session, texts);
    g_set_error(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE, "%s: static data: %s", restore->options.uri, all);
    return false;
}

/* Version 1 has a word for it, and no place. */
static bool check_contained(const VmfRestore *restore, GError **error)
{
    const GArray *disks = restore->image->disks;

    for (guint i = 0; i < disks->len; i++) {
        const VmfImageDisk *disk = &g_array_index(disks, VmfImageDisk, i);
        if (!disk->contained || vmf_image_file_find_disk(restore->image, disk->name) >= 0)
            continue;
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED,
                    "%s: disk %s: its content is said to be in the image, which has no place for it", restore->options.uri, disk->name);
        return false;
    }
    return true;
}

static bool check_disks(VmfRestore *restore, GError **error)
{
    if (restore->image->ram_only)
        return true;
    if (!check_contained(restore, error))
        return false;
    g_auto(GStrv) texts = vmf_image_disks_compare(restore->session->guest, restore->image->disks, error);
    if (!texts)
        return false;
    if (texts[0] && !restore->options.force_stale_disks) {
        g_autofree char *all = g_strjoinv("; ", texts);
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_DISK, "%s: %s", restore->options.uri, all);
        return false;
    }
    for (char **text = texts; *text && restore->storage_taken; text++)
        vmf_session_event(restore->session, "disk.stale", "%s", *text);
    return true;
}

static bool check(VmfRestore *restore, GError **error)
{
    return vmf_guest_check(restore->session->guest, error) && open_image(restore, error) && check_guest(restore, error) &&
           check_disks(restore, error);
}

/* ---- loading --------------------------------------------------------------------------------------------------------------- */

static void gather_loaded(VmfRestore *restore, VmfStatistics *statistics)
{
    VmfImageLoadProgress progress;

    vmf_image_load_progress(restore->load, &progress);
    statistics->pages_data = progress.pages;
    statistics->bytes_received = progress.pages * VMF_PAGE_SIZE;
    statistics->ram_remaining_bytes = restore->data_bytes - MIN(statistics->bytes_received, restore->data_bytes);
    statistics->n_channels = progress.n_threads;
    for (unsigned i = 0; i < progress.n_threads; i++)
        statistics->channel_bytes[i] = vmf_image_load_thread_bytes(restore->load, i);
}

static void gather(void *opaque, VmfStatistics *statistics)
{
    VmfRestore *restore = opaque;

    if (restore->disks)
        vmf_image_disk_load_gather(restore->disks, statistics);
    if (restore->server)
        vmf_restore_lazy_gather(restore, statistics);
    else
        gather_loaded(restore, statistics);
}

static void show_statistics(VmfRestore *restore, bool show)
{
    VmfSession *session = restore->session;

    pthread_mutex_lock(&session->lock);
    if (!show && session->gather)
        gather(restore, &session->statistics);
    session->gather = show ? gather : NULL;
    session->gather_opaque = restore;
    pthread_mutex_unlock(&session->lock);
}

/* Memory is emptied here, ROMs included: what a page of the image is not, is zeros. */
static bool set_up(VmfRestore *restore, GError **error)
{
    VmfGuest *guest = restore->session->guest;
    unsigned n = vmf_guest_n_ram(guest);
    g_autofree VmfRamBlock **blocks = g_new0(VmfRamBlock *, n + 1);
    uint64_t total = 0;

    for (unsigned b = 0; b < n; b++) {
        blocks[b] = vmf_guest_ram(guest, b);
        total += vmf_ram_block_size(blocks[b]);
    }
    pthread_mutex_lock(&restore->session->lock);
    restore->session->statistics.ram_total_bytes = total;
    pthread_mutex_unlock(&restore->session->lock);
    restore->load = vmf_image_load_new(restore->chain, blocks, n, error);
    if (!restore->load)
        return false;
    VmfMissing missing = restore->image->static_data->have_properties ? 0 : VMF_MISSING_PROPERTIES;
    return vmf_section_load_begin(&restore->sections, restore->image->static_data, restore->image->format.swap, missing, error);
}

static bool load_disks(VmfRestore *restore, GError **error)
{
    VmfImageDiskLoad *disks = vmf_image_disk_load_new(restore->chain, restore->session);

    pthread_mutex_lock(&restore->session->lock);
    restore->disks = disks;
    pthread_mutex_unlock(&restore->session->lock);
    bool lazy = restore->options.mode == VMF_RESTORE_LAZY;
    return (lazy ? vmf_restore_lazy_begin_disks(restore, error) : vmf_image_disk_load_run(disks, error)) &&
           vmf_session_fault(restore->session, "restore.disks", error);
}

static bool load_pages(VmfRestore *restore, GError **error)
{
    VmfSession *session = restore->session;

    return vmf_image_load_run(restore->load, session->parameters.channels, &session->cancelled, error) &&
           vmf_image_load_check(restore->load, &restore->image->summary, error);
}

static bool load_devices(VmfRestore *restore, GError **error)
{
    const GArray *sections = restore->image->sections;

    vmf_session_set_status(restore->session, VMF_STATUS_DEVICE);
    for (guint i = 0; i < sections->len; i++)
        if (!vmf_section_load_give(&restore->sections, &g_array_index(sections, VmfSection, i), error))
            return false;
    return vmf_section_load_check_complete(&restore->sections, error);
}

/* ---- the guest ------------------------------------------------------------------------------------------------------------- */

static bool take_storage(VmfRestore *restore, GError **error)
{
    const VmfGuestOps *ops = vmf_guest_ops(restore->session->guest);

    if (ops->storage_acquire && !ops->storage_acquire(vmf_guest_opaque(restore->session->guest), error))
        return false;
    restore->storage_taken = true;
    return check_disks(restore, error);
}

static void give_storage_back(VmfRestore *restore)
{
    const VmfGuestOps *ops = vmf_guest_ops(restore->session->guest);

    if (restore->storage_taken && ops->storage_release)
        ops->storage_release(vmf_guest_opaque(restore->session->guest), NULL);
    restore->storage_taken = false;
}

static bool start(VmfRestore *restore, GError **error)
{
    VmfSession *session = restore->session;

    if (!vmf_session_check_cancelled(session, error) || !vmf_session_fault(session, "restore.start", error))
        return false;
    vmf_guest_adopt_uuid(session->guest, restore->image->static_data->machine.uuid);
    if (!(restore->image->summary.flags & VMF_SWITCHOVER_RUN) || restore->options.paused)
        return true;
    if (!vmf_guest_ops(session->guest)->start(vmf_guest_opaque(session->guest), error))
        return false;
    restore->started = true;
    pthread_mutex_lock(&session->lock);
    session->statistics.start_ns = (uint64_t)(vmf_now_ns() - restore->begun_ns);
    pthread_mutex_unlock(&session->lock);
    return true;
}

static void note_whole(VmfRestore *restore)
{
    VmfSession *session = restore->session;

    pthread_mutex_lock(&session->lock);
    session->statistics.total_ns = (uint64_t)(vmf_now_ns() - restore->begun_ns);
    session->statistics.verified = VMF_VERIFIED_TRANSPORT;
    pthread_mutex_unlock(&session->lock);
    vmf_session_set_status(session, VMF_STATUS_COMPLETED);
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------- */

static void begin(VmfRestore *restore)
{
    static const VmfSaveHandlers ram_handlers = {.size = sizeof(VmfSaveHandlers)};
    VmfGuest *guest = restore->session->guest;

    restore->begun_ns = vmf_now_ns();
    restore->owners = vmf_owners_new(guest, &ram_handlers, vmf_guest_n_ram(guest) > 0 ? restore : NULL, false);
    restore->ours = vmf_static_data_of(guest, restore->owners);
    vmf_section_load_init(&restore->sections, restore->owners);
    vmf_session_set_status(restore->session, VMF_STATUS_SETUP);
}

/* Nothing of the guest is left, unless it is held: what could not be had of its memory stays out of everybody's reach then. */
static void give_up(VmfRestore *restore, const GError *why)
{
    VmfGuest *guest = restore->session->guest;

    if (g_error_matches(why, VMF_ERROR, VMF_ERROR_HELD)) {
        vmf_image_disk_load_end(restore->disks, VMF_RECEIVE_LEFT);
        return;
    }
    vmf_image_disk_load_end(restore->disks, VMF_RECEIVE_DROPPED); /* they could not be given back while they are not whole */
    give_storage_back(restore);
    for (unsigned b = 0; restore->load && b < vmf_guest_n_ram(guest); b++)
        vmf_ram_block_empty(vmf_guest_ram(guest, b), NULL);
}

/* @why NULL: all went well. */
static void clean_up(VmfRestore *restore, const GError *why)
{
    VmfGuest *guest = restore->session->guest;

    if (why && restore->started)
        vmf_guest_ops(guest)->stop(vmf_guest_opaque(guest), NULL);
    show_statistics(restore, false);
    vmf_image_disk_load_stop(restore->disks, why);
    vmf_restore_lazy_end(restore, why);
    vmf_section_load_clear(&restore->sections);
    if (why)
        give_up(restore, why);
    else
        vmf_image_disk_load_end(restore->disks, VMF_RECEIVE_KEPT);
    g_clear_pointer(&restore->disks, vmf_image_disk_load_free);
    g_clear_pointer(&restore->load, vmf_image_load_free);
    g_clear_pointer(&restore->chain, vmf_image_chain_free);
    g_clear_pointer(&restore->owners, vmf_owners_free);
    g_clear_pointer(&restore->ours, vmf_static_data_free);
}

static void settle(VmfSession *session, const GError *error)
{
    if (g_error_matches(error, VMF_ERROR, VMF_ERROR_HELD))
        return;
    if (g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED)) {
        vmf_session_set_status(session, VMF_STATUS_CANCELLING);
        vmf_session_set_status(session, VMF_STATUS_CANCELLED);
    } else {
        vmf_session_set_status(session, VMF_STATUS_FAILED);
    }
}

static bool accept(VmfRestore *restore, GError **error)
{
    show_statistics(restore, true);
    vmf_session_set_status(restore->session, VMF_STATUS_ACTIVE);
    return vmf_session_fault(restore->session, "restore.accepted", error);
}

/* Devices may read and write memory when they get their state. */
static bool restore_guest(VmfRestore *restore, GError **error)
{
    bool lazy = restore->options.mode == VMF_RESTORE_LAZY;

    return load_disks(restore, error) && (lazy ? vmf_restore_lazy_begin(restore, error) : load_pages(restore, error)) &&
           vmf_session_fault(restore->session, "restore.loaded", error) && load_devices(restore, error) && take_storage(restore, error) &&
           start(restore, error) && (!lazy || vmf_restore_lazy_fill(restore, error));
}

static bool restore_run(VmfSession *session, GError **error)
{
    VmfRestore *restore = session->own;
    GError *why = g_steal_pointer(&restore->options_error);

    begin(restore);
    bool done = !why && check(restore, &why) && set_up(restore, &why) && accept(restore, &why) && restore_guest(restore, &why);
    clean_up(restore, why);
    if (done) {
        note_whole(restore);
        return true;
    }
    settle(session, why);
    g_propagate_error(error, why);
    return false;
}

static void restore_free(void *opaque)
{
    VmfRestore *restore = opaque;

    vmf_restore_options_clear(&restore->options);
    g_clear_error(&restore->options_error);
    g_free(restore);
}

VmfSession *vmf_session_new_restore(VmfGuest *guest, const VmfRestoreOptions *options, const VmfParameters *parameters,
                                    const VmfSessionOps *ops, void *opaque)
{
    VmfSession *session = vmf_session_new(guest, parameters, ops, opaque);
    VmfRestore *restore = g_new0(VmfRestore, 1);

    restore->session = session;
    vmf_restore_options_copy(&restore->options, options, &restore->options_error);
    session->operation = "restore";
    session->run = restore_run;
    session->own = restore;
    session->free_own = restore_free;
    return session;
}
