/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest that is saved as it is at one moment and runs on meanwhile: the image is of that moment, and the guest none
 * the wiser. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "ram/block.h"
#include "ram/uffd.h"
#include "tests/image-check.h"
#include "tests/save-rig.h"

#define MIB (UINT64_C(1) << 20)
#define BEFORE 20000000 /* instructions, until it has written all of its set */
#define AFTER 3000000

/* Writes 8 MiB all over, 12 times a second. */
static VmfMachine *make(VmfRamBackend backend)
{
    VmfMachineConfig config = {
        .name = "guest",
        .memory_bytes = 24 * MIB,
        .ram_backend = backend,
        .dirty_bytes_per_second = 100 * MIB,
        .set_bytes = 8 * MIB,
        .seed = 11,
    };
    VmfMachine *machine = vmf_machine_new(&config, NULL);

    assert_non_null(machine);
    return machine;
}

static VmfMachine *make_running(VmfRamBackend backend)
{
    VmfMachine *machine = make(backend);

    assert_true(vmf_machine_run_to(machine, BEFORE, NULL));
    assert_true(vmf_machine_start(machine, NULL));
    return machine;
}

static uint64_t instructions_of(VmfMachine *machine)
{
    VmfMachineInfo info;

    vmf_machine_get_info(machine, &info);
    assert_int_equal(info.guest_errors, 0);
    return info.instructions;
}

static void assert_lives(VmfMachine *machine)
{
    uint64_t before = instructions_of(machine);

    assert_true(vmf_machine_is_running(machine));
    while (instructions_of(machine) < before + 500000)
        g_usleep(1000);
}

static void rig_init(VmfSaveRig *rig)
{
    vmf_save_rig_init(rig);
    rig->options.point_in_time = rig->options.resume = true;
}

static void save(VmfSaveRig *rig, VmfMachine *machine)
{
    if (!vmf_save_rig_run(rig, vmf_machine_guest(machine)))
        fail_msg("%s\n%s", rig->error->message, rig->events->str);
    assert_int_equal(rig->statistics.outcome, VMF_OUTCOME_COMPLETED);
    assert_int_equal(rig->statistics.round, 1);
    assert_int_equal(rig->statistics.pages_resent, 0);
    assert_int_equal(rig->statistics.ram_remaining_bytes, 0);
}

static void assert_fails(VmfSaveRig *rig, VmfMachine *machine, VmfErrorCode code, const char *words)
{
    vmf_save_rig_put_old(rig);
    assert_false(vmf_save_rig_run(rig, vmf_machine_guest(machine)));
    if (!g_error_matches(rig->error, VMF_ERROR, code) || !strstr(rig->error->message, words))
        fail_msg("%s", rig->error->message);
    vmf_save_rig_assert_old(rig);
    assert_lives(machine);
}

/* Both are at the same instruction, now and a while later. */
static void assert_same(VmfMachine *one, VmfMachine *other)
{
    uint8_t found[16], expected[16];

    for (uint64_t at = instructions_of(one), i = 0; i < 2; i++, at += AFTER) {
        assert_true(vmf_machine_run_to(one, at, NULL));
        assert_true(vmf_machine_run_to(other, at, NULL));
        assert_true(vmf_machine_hash(one, found, NULL));
        assert_true(vmf_machine_hash(other, expected, NULL));
        assert_memory_equal(found, expected, sizeof(found));
    }
}

static VmfMachine *restore(const VmfSaveRig *rig, VmfRamBackend backend)
{
    g_autofree char *uri = g_strconcat("file:", rig->path, NULL);
    VmfRestoreOptions options = {.size = sizeof(options), .uri = uri, .buffered = true, .paused = true};
    VmfMachine *machine = make(backend);
    VmfParameters parameters;
    g_autoptr(GError) error = NULL;

    vmf_parameters_init(&parameters);
    g_autoptr(VmfSession) session =
        vmf_session_new_restore(vmf_machine_guest(machine), &options, &parameters, NULL, NULL);
    if (!vmf_session_run(session, &error))
        fail_msg("%s", error->message);
    return machine;
}

/* ---- what the image holds --------------------------------------------------------------------------------------- */

/* Slowly, so that the guest writes all of its set while it is saved; what it would be at that count tells the truth. */
static void the_image_is_the_guest_at_the_moment(void **state)
{
    static const VmfRamBackend backends[] = {VMF_RAM_ANON, VMF_RAM_MEMFD};

    for (unsigned i = 0; i < 2 * G_N_ELEMENTS(backends); i++) {
        VmfRamBackend backend = backends[i / 2];
        g_autoptr(VmfMachine) machine = make_running(backend), truth = make(backend);
        g_auto(VmfSaveRig) rig;

        rig_init(&rig);
        rig.parameters.max_bandwidth = 40 * MIB;
        rig.parameters.channels = i % 2 ? 3 : 1;
        rig.parameters.audit = i % 2 ? VMF_AUDIT_BEFORE : VMF_AUDIT_AFTER;
        uint64_t begun = instructions_of(machine);
        save(&rig, machine);
        uint64_t ended = instructions_of(machine);
        assert_int_equal(rig.statistics.verified, i % 2 ? VMF_VERIFIED_FULL : VMF_VERIFIED_NOT_APPLICABLE);
        assert_true(rig.statistics.downtime_ns > 0 && rig.statistics.downtime_ns < rig.statistics.total_ns);
        assert_non_null(strstr(rig.events->str, "point-in-time: "));
        assert_lives(machine);
        g_autoptr(VmfSeenImage) seen = vmf_see_image(rig.path, NULL);
        assert_true(seen->summary.flags & VMF_SWITCHOVER_RUN);
        assert_true(seen->n_data >= 8 * MIB / VMF_PAGE_SIZE);
        assert_int_equal(rig.statistics.pages_data, seen->n_data);
        assert_int_equal(rig.statistics.bytes_sent, seen->n_data * VMF_PAGE_SIZE);
        g_autoptr(VmfMachine) restored = restore(&rig, backend);
        uint64_t instant = instructions_of(restored);
        assert_in_range(instant, begun, ended);
        assert_same(restored, truth);
        assert_true(vmf_machine_stop(machine, NULL));
        assert_same(machine, truth); /* nor has it done the guest any harm */
    }
}

/* A guest that does all there is to do at the worst of times, from within the session's own thread. */
typedef struct {
    VmfGuest *guest;
    VmfRamBlock *block;
    bool running;
    uint64_t log[8 * MIB / VMF_PAGE_SIZE / 64];
    uint8_t *then; /* its memory as it stopped */
} Sudden;

static void write_page(Sudden *sudden, uint64_t page, uint8_t value)
{
    memset(vmf_ram_block_page(sudden->block, page), value, VMF_PAGE_SIZE);
    sudden->log[page / 64] |= UINT64_C(1) << page % 64;
}

/* It writes until the very last: a page that is in the image by then, and some of which nobody has heard. */
static bool sudden_stop(void *opaque, GError **error)
{
    Sudden *sudden = opaque;

    if (sudden->running) {
        write_page(sudden, 0, 2);
        write_page(sudden, 1001, 2);
        write_page(sudden, 1500, 4);
        write_page(sudden, 2047, 2);
        memcpy(sudden->then, vmf_ram_block_host(sudden->block), vmf_ram_block_size(sudden->block));
    }
    sudden->running = false;
    return true;
}

/* And then all that it has. */
static bool sudden_start(void *opaque, GError **error)
{
    Sudden *sudden = opaque;

    sudden->running = true;
    for (uint64_t page = 0; page < vmf_ram_block_n_pages(sudden->block); page++)
        write_page(sudden, page, 3);
    return true;
}

static bool sudden_runs(void *opaque)
{
    return ((Sudden *)opaque)->running;
}

static bool log_start(void *opaque, GError **error)
{
    Sudden *sudden = opaque;

    memset(sudden->log, 0, sizeof(sudden->log));
    return true;
}

static void log_stop(void *opaque)
{
}

static bool log_harvest(void *opaque, unsigned block, void (*report)(void *, uint64_t, const uint64_t *, size_t),
                        void *report_opaque, GError **error)
{
    Sudden *sudden = opaque;

    if (sudden->running)
        write_page(sudden, 1500, 2);
    report(report_opaque, 0, sudden->log, G_N_ELEMENTS(sudden->log));
    return true;
}

static void log_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    fail_msg("the log is cleared");
}

static void what_is_written_last_is_in_it_and_what_is_written_next_is_not(void **state)
{
    static const uint8_t uuid[16] = {1};
    const VmfGuestOps guest_ops = {
        .size = sizeof(guest_ops), .stop = sudden_stop, .start = sudden_start, .is_running = sudden_runs};
    const VmfDirtyLogOps log_ops = {.size = sizeof(log_ops),
                                    .name = "sudden",
                                    .start = log_start,
                                    .stop = log_stop,
                                    .harvest = log_harvest,
                                    .clear = log_clear};
    g_autofree Sudden *sudden = g_new0(Sudden, 1);
    g_autofree uint8_t *then = g_malloc0(8 * MIB);
    g_autoptr(VmfGuest) guest = vmf_guest_new("none", uuid, &guest_ops, sudden);
    g_auto(VmfSaveRig) rig;

    rig_init(&rig);
    *sudden = (Sudden){.guest = guest, .running = true, .then = then};
    sudden->block = vmf_ram_block_new("ram", 8 * MIB, VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    assert_true(vmf_guest_add_ram(guest, sudden->block, NULL, NULL));
    vmf_guest_set_dirty_log(guest, &log_ops, sudden);
    for (uint64_t page = 0; page < 700; page += 1 + page / 100)
        write_page(sudden, page, 1);
    rig.parameters.audit = VMF_AUDIT_BEFORE;
    if (!vmf_save_rig_run(&rig, guest))
        fail_msg("%s", rig.error->message);
    assert_int_equal(rig.statistics.verified, VMF_VERIFIED_FULL);
    assert_true(sudden->running);
    memcpy(vmf_ram_block_host(sudden->block), then, 8 * MIB);
    vmf_seen_image_free(vmf_see_image(rig.path, guest));
}

static void a_paused_guest_stays_paused(void **state)
{
    g_autoptr(VmfMachine) machine = make(VMF_RAM_ANON);
    g_auto(VmfSaveRig) rig;

    rig_init(&rig);
    assert_true(vmf_machine_run_to(machine, BEFORE, NULL));
    save(&rig, machine);
    assert_false(vmf_machine_is_running(machine));
    assert_int_equal(rig.statistics.verified, VMF_VERIFIED_FULL);
    g_autoptr(VmfSeenImage) seen = vmf_see_image(rig.path, vmf_machine_guest(machine));
    assert_false(seen->summary.flags & VMF_SWITCHOVER_RUN);
}

static void moments_follow_each_other(void **state)
{
    g_autoptr(VmfMachine) machine = make_running(VMF_RAM_ANON);
    g_auto(VmfSaveRig) rig;

    rig_init(&rig);
    rig.parameters.audit = VMF_AUDIT_BEFORE;
    for (unsigned i = 0; i < 5; i++) {
        save(&rig, machine);
        assert_int_equal(rig.statistics.verified, VMF_VERIFIED_FULL);
        vmf_seen_image_free(vmf_see_image(rig.path, NULL));
    }
    assert_lives(machine);
    rig.options.point_in_time = false; /* and an ordinary one */
    assert_true(vmf_save_rig_run(&rig, vmf_machine_guest(machine)));
    assert_lives(machine);
}

/* ---- ends that are none ----------------------------------------------------------------------------------------- */

static void what_would_stop_the_guest_is_refused(void **state)
{
    g_autoptr(VmfMachine) machine = make_running(VMF_RAM_ANON);
    g_auto(VmfSaveRig) rig;

    rig_init(&rig);
    rig.options.stop_first = true;
    assert_fails(&rig, machine, VMF_ERROR_USAGE, "point in time");
    rig.options.stop_first = rig.options.resume = false;
    assert_fails(&rig, machine, VMF_ERROR_USAGE, "point in time");
    rig.options.resume = true;
    rig.parameters.pause_before_switchover = true;
    assert_fails(&rig, machine, VMF_ERROR_USAGE, "point in time");
    rig.parameters.pause_before_switchover = false;
    save(&rig, machine);
}

static uint64_t disk_size(void *opaque)
{
    return MIB;
}

static char *disk_text(void *opaque, GError **error)
{
    return g_strdup("disk");
}

static void disks_are_for_their_owner_to_see_to(void **state)
{
    const VmfDiskOps disk = {.size = sizeof(disk), .size_bytes = disk_size, .identity = disk_text, .mark = disk_text};
    g_autoptr(VmfMachine) machine = make_running(VMF_RAM_ANON);
    g_auto(VmfSaveRig) rig;

    rig_init(&rig);
    assert_true(vmf_guest_add_disk(vmf_machine_guest(machine), "root", &disk, NULL, NULL));
    assert_fails(&rig, machine, VMF_ERROR_USAGE, "its disks");
    rig.options.ram_only = true;
    save(&rig, machine);
    g_autoptr(VmfSeenImage) seen = vmf_see_image(rig.path, NULL);
    assert_true(seen->ram_only);
}

/* A dirty log over userfaultfd, or a restore that is not over. */
static void memory_that_is_watched_already_is_refused(void **state)
{
    g_autoptr(VmfMachine) machine = make_running(VMF_RAM_ANON);
    g_auto(VmfSaveRig) rig;
    int other = vmf_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP, NULL, NULL);

    rig_init(&rig);
    VmfRamBlock *block = vmf_guest_ram(vmf_machine_guest(machine), 0);
    assert_true(other >= 0);
    assert_true(
        vmf_uffd_register(other, vmf_ram_block_host(block), vmf_ram_block_size(block), UFFDIO_REGISTER_MODE_WP));
    assert_fails(&rig, machine, VMF_ERROR_UNSUPPORTED, "point-in-time capture: watched already");
    close(other);
    save(&rig, machine);
}

/* The first image fails at some write, after the moment. */
static void storage_that_fails_is_nothing_to_the_guest(void **state)
{
    static const VmfStorageFault faults[] = {
        {.kind = VMF_STORAGE_FAULT_FULL, .after_bytes = 3 * MIB},
        {.kind = VMF_STORAGE_FAULT_ERROR, .on = VMF_STORAGE_FAULT_ON_COMMIT},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(faults); i++) {
        g_autoptr(VmfMachine) machine = make_running(VMF_RAM_ANON);
        g_auto(VmfSaveRig) rig;

        rig_init(&rig);
        rig.options.buffered = true;
        rig.faults = &faults[i];
        rig.n_faults = 1;
        assert_fails(&rig, machine, i == 0 ? VMF_ERROR_NO_SPACE : VMF_ERROR_IO, "");
        assert_int_equal(rig.statistics.outcome, VMF_OUTCOME_FAILED);
        rig.faults = NULL;
        save(&rig, machine);
    }
}

/* From its first moment on to after its last. */
static void it_can_be_cancelled_at_any_moment(void **state)
{
    g_autoptr(VmfMachine) machine = make_running(VMF_RAM_ANON);
    unsigned n_cancelled = 0;
    bool whole = false;

    for (unsigned step = 0; step < 40 && !whole; step++) {
        g_auto(VmfSaveRig) rig;

        rig_init(&rig);
        rig.parameters.channels = 1 + step % 3;
        rig.parameters.audit = step % 2 ? VMF_AUDIT_BEFORE : VMF_AUDIT_AFTER;
        vmf_save_rig_put_old(&rig);
        vmf_save_rig_start(&rig, vmf_machine_guest(machine));
        g_usleep(step * step * 500);
        vmf_session_cancel(rig.session);
        whole = vmf_save_rig_finish(&rig);
        if (!whole) {
            assert_int_equal(rig.statistics.outcome, VMF_OUTCOME_CANCELLED);
            vmf_save_rig_assert_old(&rig);
            n_cancelled++;
        }
        assert_lives(machine);
    }
    assert_true(n_cancelled > 2);
}

static void a_slow_one_is_cancelled_at_once(void **state)
{
    g_autoptr(VmfMachine) machine = make_running(VMF_RAM_ANON);
    VmfStatistics statistics = {.size = sizeof(statistics)};
    g_auto(VmfSaveRig) rig;

    rig_init(&rig);
    vmf_save_rig_put_old(&rig);
    rig.parameters.max_bandwidth = 100000; /* minutes */
    vmf_save_rig_start(&rig, vmf_machine_guest(machine));
    do {
        g_usleep(500);
        vmf_session_get_statistics(rig.session, &statistics);
    } while (statistics.downtime_ns == 0 || statistics.pages_data == 0);
    assert_int_equal(statistics.status, VMF_STATUS_ACTIVE);
    assert_lives(machine); /* nothing that it writes waits for that bandwidth */
    vmf_session_cancel(rig.session);
    assert_false(vmf_save_rig_finish(&rig));
    assert_true(g_error_matches(rig.error, VMF_ERROR, VMF_ERROR_CANCELLED));
    vmf_save_rig_assert_old(&rig);
    assert_lives(machine);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_image_is_the_guest_at_the_moment),
        cmocka_unit_test(what_is_written_last_is_in_it_and_what_is_written_next_is_not),
        cmocka_unit_test(a_paused_guest_stays_paused),
        cmocka_unit_test(moments_follow_each_other),
        cmocka_unit_test(what_would_stop_the_guest_is_refused),
        cmocka_unit_test(disks_are_for_their_owner_to_see_to),
        cmocka_unit_test(memory_that_is_watched_already_is_refused),
        cmocka_unit_test(storage_that_fails_is_nothing_to_the_guest),
        cmocka_unit_test(it_can_be_cancelled_at_any_moment),
        cmocka_unit_test(a_slow_one_is_cancelled_at_once),
    };
    GError *error = NULL;
    int fd = vmf_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM, NULL, &error);

    if (fd < 0) {
        print_message("%s\n", error->message);
        return 77;
    }
    close(fd);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
