/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/restore-rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdatomic.h>
#include <string.h>

#include <vmferry/error.h>
#include <vmferry/handlers.h>

/* ---- the guest ---------------------------------------------------------------------------------------------------------- */

static bool guest_stop(void *opaque, GError **error)
{
    Guest *guest = opaque;

    __atomic_store_n(&guest->running, false, __ATOMIC_RELAXED);
    if (guest->n_stops++ == 0 && guest->stopped)
        guest->stopped(guest, guest->opaque);
    return true;
}

static bool guest_start(void *opaque, GError **error)
{
    Guest *guest = opaque;

    __atomic_store_n(&guest->running, true, __ATOMIC_RELAXED);
    guest->n_starts++;
    if (guest->started)
        guest->started(guest, guest->opaque);
    return true;
}

static bool guest_is_running(void *opaque)
{
    return __atomic_load_n(&((Guest *)opaque)->running, __ATOMIC_RELAXED); /* another thread may let it run */
}

static bool guest_release(void *opaque, GError **error)
{
    ((Guest *)opaque)->locked = false;
    return true;
}

static bool guest_acquire(void *opaque, GError **error)
{
    Guest *guest = opaque;

    if (!guest->may_lock)
        g_set_error(error, VMF_ERROR, VMF_ERROR_GUEST, "storage: another has it");
    guest->locked = guest->may_lock;
    if (guest->next_mark) {
        g_free(guest->disk_mark);
        guest->disk_mark = g_steal_pointer(&guest->next_mark);
    }
    return guest->may_lock;
}

static bool guest_memory_lost(void *opaque)
{
    return ((Guest *)opaque)->leaves_lost_memory;
}

static const VmfGuestOps guest_ops = {
    .size = sizeof(VmfGuestOps),
    .stop = guest_stop,
    .start = guest_start,
    .is_running = guest_is_running,
    .storage_release = guest_release,
    .storage_acquire = guest_acquire,
    .memory_lost = guest_memory_lost,
};

static bool section_load(void *opaque, uint32_t version, const uint8_t *data, size_t length, bool last, GError **error)
{
    Section *section = opaque;

    g_string_append_len(section->loaded, (const char *)data, (gssize)length);
    return true;
}

static void section_cleanup(void *opaque)
{
    ((Section *)opaque)->guest->n_cleanups++;
}

static const VmfSaveHandlers section_handlers = {
    .size = sizeof(VmfSaveHandlers), .load_state = section_load, .load_cleanup = section_cleanup};

static uint64_t disk_size(void *opaque)
{
    return UINT64_C(1) << 30;
}

static char *disk_identity(void *opaque, GError **error)
{
    return g_strdup(((Guest *)opaque)->disk_identity);
}

static char *disk_mark(void *opaque, GError **error)
{
    return g_strdup(((Guest *)opaque)->disk_mark);
}

const VmfDiskOps guest_disk_ops = {
    .size = sizeof(VmfDiskOps), .size_bytes = disk_size, .identity = disk_identity, .mark = disk_mark};

static void add_block(VmfGuest *guest, const char *name, uint32_t n_pages, VmfRamBackend backend, VmfRamFlags flags, uint64_t address)
{
    VmfRamBlock *block = vmf_ram_block_new(name, (uint64_t)n_pages * PAGE, backend, flags, address, NULL);

    assert_non_null(block);
    assert_true(vmf_guest_add_ram(guest, block, NULL, NULL));
}

Guest *guest_new(VmfRamBackend backend, VmfRamFlags flags, uint32_t ram_pages, bool has_disk)
{
    static const uint8_t no_uuid[16];
    Guest *guest = g_new0(Guest, 1);

    guest->may_lock = true;
    guest->disk_identity = g_strdup("uuid1");
    guest->disk_mark = g_strdup("mark");
    guest->events = g_string_new(NULL);
    guest->statuses = g_string_new(NULL);
    guest->guest = vmf_guest_new("rv32", no_uuid, &guest_ops, guest);
    vmf_guest_set_property(guest->guest, "cpu", "rv32");
    add_block(guest->guest, "ram", ram_pages, backend, flags, 0x80000000);
    add_block(guest->guest, "rom", FORGE_IMAGE_ROM_PAGES, backend, flags | VMF_RAM_ROM, 0x1000);
    memset(vmf_ram_block_host(vmf_guest_ram(guest->guest, 1)), 0x5a, PAGE * FORGE_IMAGE_ROM_PAGES);
    for (unsigned i = 0; i < 2; i++)
        guest->sections[i] = (Section){guest, g_string_new(NULL)};
    assert_true(vmf_guest_add_handlers(guest->guest, "cpu", 0, 1, &section_handlers, &guest->sections[0], NULL));
    assert_true(vmf_guest_add_handlers(guest->guest, "timer", 0, 2, &section_handlers, &guest->sections[1], NULL));
    if (has_disk)
        assert_true(vmf_guest_add_disk(guest->guest, "hda", &guest_disk_ops, guest, NULL));
    return guest;
}

Guest *fitting_guest(void)
{
    return guest_new(VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES, FORGE_IMAGE_RAM_PAGES, true);
}

void guest_free(Guest *guest)
{
    vmf_guest_free(guest->guest);
    for (unsigned i = 0; i < 2; i++)
        g_string_free(guest->sections[i].loaded, true);
    g_string_free(guest->events, true);
    g_string_free(guest->statuses, true);
    g_free(guest->disk_identity);
    g_free(guest->disk_mark);
    g_free(guest->next_mark);
    g_free(guest);
}

/* ---- restoring it ------------------------------------------------------------------------------------------------------- */

static void on_event(void *opaque, const char *id, const char *text)
{
    Guest *guest = opaque;

    g_string_append_printf(guest->events, "%s: %s\n", id, text);
}

static void on_status(void *opaque, VmfStatus status)
{
    g_string_append_printf(((Guest *)opaque)->statuses, "%s ", vmf_status_word(status));
}

static const VmfSessionOps session_ops = {.size = sizeof(VmfSessionOps), .event = on_event, .status_changed = on_status};

void trial_init(Trial *trial, const char *uri)
{
    memset(trial, 0, sizeof(*trial));
    trial->options = (VmfRestoreOptions){.size = sizeof(VmfRestoreOptions), .uri = uri, .buffered = true, .backend = "threads"};
    vmf_parameters_init(&trial->parameters);
    trial->parameters.fault_opaque = trial;
}

void trial_clear(Trial *trial)
{
    g_clear_pointer(&trial->incompatibilities, g_strfreev);
    vmf_session_free(atomic_exchange(&trial->session, NULL));
}

bool trial_run(Trial *trial, Guest *guest, GError **error)
{
    trial_clear(trial);
    VmfSession *session = vmf_session_new_restore(guest->guest, &trial->options, &trial->parameters, &session_ops, guest);

    atomic_store(&trial->session, session);
    if (trial->cancelled)
        vmf_session_cancel(session);
    bool done = vmf_session_run(session, error);
    trial->statistics.size = sizeof(trial->statistics);
    vmf_session_get_statistics(session, &trial->statistics);
    trial->incompatibilities = vmf_session_incompatibilities(session);
    return done;
}

uint64_t pages_of(const ForgeImage *image)
{
    uint64_t n = 0;

    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++)
        for (uint32_t page = 0; page < image->blocks[b].n_pages; page++) {
            const uint8_t *at = image->blocks[b].memory + (size_t)page * PAGE;
            n += at[0] != 0 || memcmp(at, at + 1, PAGE - 1) != 0;
        }
    return n;
}

void assert_memory(Guest *guest, const ForgeImage *image)
{
    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++) {
        const uint8_t *host = vmf_ram_block_host(vmf_guest_ram(guest->guest, b));
        for (uint32_t page = 0; page < image->blocks[b].n_pages; page++)
            if (memcmp(host + (size_t)page * PAGE, image->blocks[b].memory + (size_t)page * PAGE, PAGE) != 0)
                fail_msg("block %u, page %u differs", b, page);
    }
}

void assert_nothing(Guest *guest)
{
    for (unsigned b = 0; b < FORGE_IMAGE_BLOCKS; b++) {
        const VmfRamBlock *block = vmf_guest_ram(guest->guest, b);
        const uint8_t *host = vmf_ram_block_host(block);
        for (uint64_t i = 0; i < vmf_ram_block_size(block); i++)
            if (host[i])
                fail_msg("block %u: something is left", b);
    }
    assert_false(guest->locked);
    assert_false(guest->running);
}

void assert_refused(Trial *trial, Guest *guest, const char *id, const char *words)
{
    g_autoptr(GError) error = NULL;

    assert_false(trial_run(trial, guest, &error));
    image_assert_id(error, id, words);
    if (!strstr(error->message, words))
        fail_msg("expected '%s' in: %s", words, error->message);
    assert_int_equal(trial->statistics.outcome, VMF_OUTCOME_FAILED);
    assert_int_equal(trial->statistics.status, VMF_STATUS_FAILED);
    assert_int_equal(guest->n_starts, 0);
}

void assert_restored(Trial *trial, Guest *guest, const ForgeImage *image)
{
    GError *error = NULL;

    bool done = trial_run(trial, guest, &error);
    image_no_error(error);
    assert_true(done);
    assert_memory(guest, image);
    assert_int_equal(trial->statistics.status, VMF_STATUS_COMPLETED);
    assert_int_equal(trial->statistics.outcome, VMF_OUTCOME_COMPLETED);
    assert_int_equal(trial->statistics.verified, VMF_VERIFIED_TRANSPORT);
    assert_true(guest->locked);
    assert_int_equal(guest->n_cleanups, 2);
}
