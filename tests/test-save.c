/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest that is saved while it runs: what the image then holds, and what becomes of the guest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "ram/block.h"
#include "ram/image-reader.h"
#include "tests/image-check.h"
#include "tests/save-rig.h"

#define MIB (UINT64_C(1) << 20)

static void save(VmfSaveRig *rig, VmfMachine *machine)
{
    if (!vmf_save_rig_run(rig, vmf_machine_guest(machine)))
        fail_msg("%s\n%s", rig->error->message, rig->events->str);
    assert_int_equal(rig->statistics.status, VMF_STATUS_COMPLETED);
    assert_int_equal(rig->statistics.outcome, VMF_OUTCOME_COMPLETED);
}

static void assert_lives(VmfMachine *machine)
{
    VmfMachineInfo before, after;

    assert_true(vmf_machine_is_running(machine));
    vmf_machine_get_info(machine, &before);
    do {
        g_usleep(1000);
        vmf_machine_get_info(machine, &after);
    } while (after.beats < before.beats + 3);
    assert_int_equal(after.guest_errors, 0);
}

static void assert_fails(VmfSaveRig *rig, VmfMachine *machine, VmfErrorCode code, const char *words)
{
    vmf_save_rig_put_old(rig);
    assert_false(vmf_save_rig_run(rig, vmf_machine_guest(machine)));
    if (!g_error_matches(rig->error, VMF_ERROR, code) || !strstr(rig->error->message, words))
        fail_msg("%s", rig->error->message);
    vmf_save_rig_assert_old(rig);
}

/* ---- what the image holds --------------------------------------------------------------------------------------- */

static void the_image_is_the_guest_at_the_stop(void **state)
{
    static const unsigned channels[] = {1, 2, 4};

    for (unsigned i = 0; i < G_N_ELEMENTS(channels); i++) {
        g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
        g_auto(VmfSaveRig) rig;

        vmf_save_rig_init(&rig);
        rig.parameters.channels = channels[i];
        rig.parameters.minimum_rounds = 4;
        save(&rig, machine);
        assert_false(vmf_machine_is_running(machine));
        assert_int_equal(rig.statistics.verified, VMF_VERIFIED_FULL);
        assert_true(rig.statistics.round >= 5);
        assert_true(rig.statistics.live_rounds_resent >= 1);
        assert_int_equal(rig.statistics.n_channels, channels[i]);
        g_autoptr(VmfSeenImage) seen = vmf_see_image(rig.path, vmf_machine_guest(machine));
        assert_true(seen->summary.flags & VMF_SWITCHOVER_RUN);
        assert_true(seen->n_data > 4 * MIB / VMF_PAGE_SIZE);
        assert_true(rig.statistics.bytes_sent > seen->n_data * VMF_PAGE_SIZE); /* the rounds wrote pages again */
        assert_true(vmf_machine_start(machine, NULL));
        assert_lives(machine);
    }
}

static void a_guest_that_goes_on_does_and_the_image_is_of_one_moment(void **state)
{
    static const struct {
        VmfAudit audit;
        VmfVerified verified;
    } cases[] = {
        {VMF_AUDIT_BEFORE, VMF_VERIFIED_FULL},
        {VMF_AUDIT_AFTER, VMF_VERIFIED_NOT_APPLICABLE},
        {VMF_AUDIT_OFF, VMF_VERIFIED_OFF},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
        g_auto(VmfSaveRig) rig;

        vmf_save_rig_init(&rig);
        rig.options.resume = true;
        rig.parameters.audit = cases[i].audit;
        save(&rig, machine);
        assert_lives(machine);
        assert_int_equal(rig.statistics.verified, cases[i].verified);
        assert_true(rig.statistics.downtime_ns > 0);
        g_autoptr(VmfSeenImage) seen = vmf_see_image(rig.path, NULL);
        assert_true(seen->summary.flags & VMF_SWITCHOVER_RUN);
        save(&rig, machine); /* again, over the first */
        assert_lives(machine);
        g_autoptr(VmfSeenImage) again = vmf_see_image(rig.path, NULL);
        assert_memory_not_equal(again->commit.id, seen->commit.id, VMF_IMAGE_ID_SIZE);
    }
}

static void a_guest_stopped_first_is_written_once(void **state)
{
    for (unsigned resume = 0; resume < 2; resume++) {
        g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
        g_auto(VmfSaveRig) rig;

        vmf_save_rig_init(&rig);
        rig.options.stop_first = true;
        rig.options.resume = resume;
        rig.parameters.max_bandwidth = 200 * MIB; /* it goes for a guest that stands still, too */
        save(&rig, machine);
        assert_int_equal(vmf_machine_is_running(machine), resume);
        assert_int_equal(rig.statistics.pages_resent, 0);
        assert_int_equal(rig.statistics.verified, resume ? VMF_VERIFIED_NOT_APPLICABLE : VMF_VERIFIED_FULL);
        g_autoptr(VmfSeenImage) seen = vmf_see_image(rig.path, resume ? NULL : vmf_machine_guest(machine));
        assert_true(seen->summary.flags & VMF_SWITCHOVER_RUN);
        assert_int_equal(rig.statistics.pages_data, seen->n_data);
    }
}

static void a_paused_guest_stays_paused(void **state)
{
    g_autoptr(VmfMachine) machine = vmf_save_machine(16);
    g_auto(VmfSaveRig) rig;
    uint8_t before[16], after[16];

    vmf_save_rig_init(&rig);
    assert_true(vmf_machine_hash(machine, before, NULL));
    rig.options.resume = true;
    save(&rig, machine);
    assert_false(vmf_machine_is_running(machine));
    assert_int_equal(rig.statistics.verified, VMF_VERIFIED_FULL); /* it stood still all along */
    assert_true(vmf_machine_hash(machine, after, NULL));
    assert_memory_equal(before, after, sizeof(before));
    g_autoptr(VmfSeenImage) seen = vmf_see_image(rig.path, vmf_machine_guest(machine));
    assert_false(seen->summary.flags & VMF_SWITCHOVER_RUN);
}

static VmfRamBlock *main_memory(VmfMachine *machine)
{
    VmfGuest *guest = vmf_machine_guest(machine);
    unsigned b = 0;

    while (strcmp(vmf_ram_block_name(vmf_guest_ram(guest, b)), "ram") != 0)
        b++;
    return vmf_guest_ram(guest, b);
}

/* A page that becomes zero while it is saved is one that is not there. */
static void memory_that_was_given_back_is_not_in_the_image(void **state)
{
    g_autoptr(VmfMachine) machine = vmf_save_machine(16);
    g_auto(VmfSaveRig) rig;

    vmf_save_rig_init(&rig);
    rig.parameters.pause_before_switchover = true;
    VmfRamBlock *ram = main_memory(machine);
    VmfStatistics statistics = {.size = sizeof(statistics)};
    uint8_t *page = vmf_ram_block_page(ram, vmf_ram_block_n_pages(ram) - 1), zeros[VMF_PAGE_SIZE] = {0};
    uint64_t address = vmf_ram_block_guest_address(ram) + vmf_ram_block_size(ram) - VMF_PAGE_SIZE;
    memset(page, 7, VMF_PAGE_SIZE);
    assert_true(vmf_machine_start(machine, NULL));
    vmf_save_rig_start(&rig, vmf_machine_guest(machine));
    do {
        g_usleep(500);
        vmf_session_get_statistics(rig.session, &statistics);
    } while (statistics.status != VMF_STATUS_PRE_SWITCHOVER);
    assert_true(vmf_machine_write_memory(machine, address, zeros, sizeof(zeros), NULL));
    assert_true(vmf_session_continue(rig.session, NULL));
    assert_true(vmf_save_rig_finish(&rig));
    vmf_seen_image_free(vmf_see_image(rig.path, vmf_machine_guest(machine)));
}

static void every_backend_writes_it(void **state)
{
    static const char *const backends[] = {"threads", "libaio", "io_uring"};

    for (unsigned i = 0; i < 2 * G_N_ELEMENTS(backends); i++) {
        g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
        g_auto(VmfSaveRig) rig;

        vmf_save_rig_init(&rig);
        rig.options.backend = backends[i / 2];
        rig.options.buffered = i % 2;
        rig.parameters.minimum_rounds = 3;
        if (!vmf_save_rig_run(&rig, vmf_machine_guest(machine))) {
            assert_true(g_error_matches(rig.error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
            print_message("%s: not here\n", backends[i / 2]);
            continue;
        }
        vmf_seen_image_free(vmf_see_image(rig.path, vmf_machine_guest(machine)));
    }
}

/* ---- layers ----------------------------------------------------------------------------------------------------- */

static void read_chunk(VmfImageReader *reader, VmfImageChain *chain, unsigned b, uint64_t c, uint8_t *memory)
{
    VmfImageChunk chunk;
    VmfPageSet zero, all;
    g_autoptr(GError) error = NULL;

    memset(memory, 0, VMF_CHUNK_SIZE);
    assert_true(vmf_image_chain_chunk(chain, b, c, &chunk, NULL, NULL));
    all = vmf_page_set_or(&chunk.data, &chunk.zero);
    if (!vmf_image_reader_read(reader, b, c, &all, memory, &zero, &error))
        fail_msg("%s", error->message);
}

/* Read through all of its layers, the image is the memory of @guest, which is stopped. */
static void assert_chain_is(const char *path, VmfGuest *guest, unsigned n_layers)
{
    g_autofree char *uri = g_strconcat("file:", path, NULL);
    VmfStorageOptions options = {.mode = VMF_STORAGE_READ, .buffered = true};
    g_autoptr(GError) error = NULL;
    VmfImageChain *chain = vmf_image_chain_open(uri, NULL, &options, &error);
    uint8_t *memory = g_aligned_alloc(1, VMF_CHUNK_SIZE, VMF_PAGE_SIZE);

    if (!chain)
        fail_msg("%s", error->message);
    assert_int_equal(vmf_image_chain_n_layers(chain), n_layers);
    VmfImageReader *reader = vmf_image_reader_new(chain, 1, NULL);
    for (unsigned b = 0; b < vmf_guest_n_ram(guest); b++) {
        VmfRamBlock *block = vmf_guest_ram(guest, b);
        for (uint64_t c = 0; c < vmf_ram_block_n_chunks(block); c++) {
            uint64_t first;
            size_t length = (size_t)vmf_ram_block_chunk_pages(block, c, &first) * VMF_PAGE_SIZE;
            read_chunk(reader, chain, b, c, memory);
            assert_memory_equal(memory, vmf_ram_block_page(block, first), length);
        }
    }
    vmf_image_reader_free(reader);
    vmf_image_chain_free(chain);
    g_aligned_free(memory);
}

static void a_layer_holds_what_differs(void **state)
{
    g_autoptr(VmfMachine) machine = vmf_save_machine(16);
    VmfGuest *guest = vmf_machine_guest(machine);
    VmfRamBlock *ram = main_memory(machine);
    uint8_t *last = vmf_ram_block_page(ram, vmf_ram_block_n_pages(ram) - 1);
    g_autofree char *parent = NULL;
    g_auto(VmfSaveRig) base, layer;

    vmf_save_rig_init(&base);
    vmf_save_rig_init(&layer);
    memset(last, 9, VMF_PAGE_SIZE);
    save(&base, machine);
    parent = g_strconcat("file:", base.path, NULL);
    layer.options.parent = parent;
    save(&layer, machine);
    assert_int_equal(layer.statistics.pages_data, base.statistics.pages_data); /* looked at; hardly any is written */
    assert_true(layer.statistics.bytes_sent < base.statistics.bytes_sent / 2);
    assert_chain_is(layer.path, guest, 2);
    memset(last, 0, VMF_PAGE_SIZE); /* what the parent has and the guest has no more */
    assert_true(vmf_machine_start(machine, NULL));
    layer.parameters.minimum_rounds = 8;
    save(&layer, machine);
    assert_true(layer.statistics.live_rounds_resent >= 1);
    assert_int_equal(layer.statistics.verified, VMF_VERIFIED_FULL);
    assert_chain_is(layer.path, guest, 2);
}

/* ---- header and tail -------------------------------------------------------------------------------------------- */

static void header_and_tail_say_what_the_guest_is(void **state)
{
    g_autoptr(VmfMachine) machine = vmf_save_machine(16);
    VmfGuest *guest = vmf_machine_guest(machine);
    g_auto(VmfSaveRig) rig;
    uint8_t uuid[16];

    vmf_save_rig_init(&rig);
    save(&rig, machine);
    g_autoptr(VmfSeenImage) seen = vmf_see_image(rig.path, guest);
    const VmfStaticData *data = seen->static_data;
    vmf_guest_uuid(guest, uuid);
    assert_string_equal(data->machine.architecture, "rv32");
    assert_memory_equal(data->machine.uuid, uuid, sizeof(uuid));
    assert_int_equal(data->features_offered, VMF_FEATURE_SUMS);
    assert_int_equal(data->features_required, VMF_FEATURE_SUMS);
    assert_int_equal(data->page_channels, 0);
    assert_int_equal(data->blocks->len, vmf_guest_n_ram(guest));
    assert_true(data->properties->len > 0);
    assert_true(seen->n_sections > 0);
    assert_int_equal(seen->disks->len, 0);
    assert_false(seen->ram_only);
    rig.options.ram_only = true;
    save(&rig, machine);
    g_autoptr(VmfSeenImage) ram_only = vmf_see_image(rig.path, guest);
    assert_true(ram_only->ram_only);
}

static uint64_t disk_size(void *opaque)
{
    return 5 * MIB;
}

static char *disk_identity(void *opaque, GError **error)
{
    return g_strdup("a disk");
}

/* What it is at the stop, and no earlier. */
static char *disk_mark(void *opaque, GError **error)
{
    return g_strdup(vmf_machine_is_running(opaque) ? "moving" : "still");
}

static char *no_mark(void *opaque, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "it does not answer");
    return NULL;
}

static void disks_are_named_with_their_state_at_the_stop(void **state)
{
    const VmfDiskOps disk = {
        .size = sizeof(disk), .size_bytes = disk_size, .identity = disk_identity, .mark = disk_mark};
    g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
    g_auto(VmfSaveRig) rig;

    vmf_save_rig_init(&rig);
    assert_true(vmf_guest_add_disk(vmf_machine_guest(machine), "root", &disk, machine, NULL));
    rig.options.resume = true;
    assert_fails(&rig, machine, VMF_ERROR_USAGE, "its disks");
    assert_lives(machine);
    rig.options.ram_only = true;
    save(&rig, machine);
    assert_lives(machine);
    g_autoptr(VmfSeenImage) without = vmf_see_image(rig.path, NULL);
    assert_int_equal(without->disks->len, 0);
    assert_true(without->ram_only);
    rig.options.ram_only = rig.options.resume = false;
    save(&rig, machine);
    g_autoptr(VmfSeenImage) with = vmf_see_image(rig.path, vmf_machine_guest(machine));
    assert_int_equal(with->disks->len, 1);
    const VmfImageDisk *seen = &g_array_index(with->disks, VmfImageDisk, 0);
    assert_string_equal(seen->name, "root");
    assert_string_equal(seen->identity, "a disk");
    assert_string_equal(seen->mark, "still");
    assert_int_equal(seen->size_bytes, 5 * MIB);
    assert_false(seen->contained);
}

static void a_disk_that_cannot_say_fails_the_save(void **state)
{
    const VmfDiskOps disk = {.size = sizeof(disk), .size_bytes = disk_size, .identity = disk_identity, .mark = no_mark};
    g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
    g_auto(VmfSaveRig) rig;

    vmf_save_rig_init(&rig);
    assert_true(vmf_guest_add_disk(vmf_machine_guest(machine), "root", &disk, NULL, NULL));
    assert_fails(&rig, machine, VMF_ERROR_IO, "disk root: mark: it does not answer");
    assert_lives(machine);
}

/* ---- ends that are none ----------------------------------------------------------------------------------------- */

static void what_means_nothing_is_refused(void **state)
{
    g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
    g_auto(VmfSaveRig) rig;

    vmf_save_rig_init(&rig);
    rig.parameters.dry_run = true;
    assert_fails(&rig, machine, VMF_ERROR_USAGE, "dry run");
    rig.parameters.dry_run = false;
    rig.parameters.stream_version = 2;
    assert_fails(&rig, machine, VMF_ERROR_USAGE, "version 2");
    rig.parameters.stream_version = 3;
    rig.parameters.channels = 65;
    assert_fails(&rig, machine, VMF_ERROR_USAGE, "channels");
    rig.parameters.channels = 1;
    rig.options.size = sizeof(size_t);
    assert_fails(&rig, machine, VMF_ERROR_USAGE, "size");
    rig.options.size = sizeof(rig.options);
    rig.options.uri = "tcp:127.0.0.1:1";
    assert_fails(&rig, machine, VMF_ERROR_URI, "tcp:");
    rig.options.uri = "file:/nowhere/at/all";
    assert_fails(&rig, machine, VMF_ERROR_IO, "No such file");
    rig.options.uri = NULL;
    assert_lives(machine);
    save(&rig, machine);
}

/* Waits for @status, or for the end. */
static void await_status(VmfSaveRig *rig, VmfStatus status)
{
    VmfStatistics statistics = {.size = sizeof(statistics)};

    do {
        g_usleep(500);
        vmf_session_get_statistics(rig->session, &statistics);
    } while (statistics.status < status);
}

static void a_cancelled_save_leaves_nothing(void **state)
{
    for (unsigned stop_first = 0; stop_first < 2; stop_first++) {
        g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
        g_auto(VmfSaveRig) rig;

        vmf_save_rig_init(&rig);
        vmf_save_rig_put_old(&rig);
        rig.options.stop_first = stop_first;
        rig.parameters.max_bandwidth = 100000; /* minutes */
        vmf_save_rig_start(&rig, vmf_machine_guest(machine));
        await_status(&rig, VMF_STATUS_ACTIVE);
        assert_int_equal(vmf_machine_is_running(machine), !stop_first);
        vmf_session_cancel(rig.session);
        assert_false(vmf_save_rig_finish(&rig));
        assert_true(g_error_matches(rig.error, VMF_ERROR, VMF_ERROR_CANCELLED));
        assert_int_equal(rig.statistics.outcome, VMF_OUTCOME_CANCELLED);
        vmf_save_rig_assert_old(&rig);
        assert_lives(machine);
    }
}

static void a_save_cancelled_ahead_of_its_stop_leaves_nothing(void **state)
{
    g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
    g_auto(VmfSaveRig) rig;

    vmf_save_rig_init(&rig);
    vmf_save_rig_put_old(&rig);
    rig.parameters.pause_before_switchover = true;
    vmf_save_rig_start(&rig, vmf_machine_guest(machine));
    await_status(&rig, VMF_STATUS_PRE_SWITCHOVER);
    vmf_session_cancel(rig.session);
    assert_false(vmf_save_rig_finish(&rig));
    assert_true(g_error_matches(rig.error, VMF_ERROR, VMF_ERROR_CANCELLED));
    vmf_save_rig_assert_old(&rig);
    assert_lives(machine);
}

static VmfDisk *disk_at(const char *path)
{
    g_autofree char *uri = g_strconcat("file:", path, NULL);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = MIB};
    VmfDisk *disk = vmf_disk_open("theirs", &options, NULL);

    assert_true(disk && vmf_disk_acquire(disk, NULL));
    return disk;
}

/* A disk is not replaced, whether it was there when the save began or has come since. */
static void a_disk_that_is_in_use_is_not_replaced(void **state)
{
    for (unsigned comes_later = 0; comes_later < 2; comes_later++) {
        g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
        g_autoptr(VmfDisk) disk = NULL;
        g_auto(VmfSaveRig) rig;
        struct stat status;

        vmf_save_rig_init(&rig);
        rig.parameters.pause_before_switchover = comes_later;
        if (!comes_later)
            disk = disk_at(rig.path);
        vmf_save_rig_start(&rig, vmf_machine_guest(machine));
        if (comes_later) {
            await_status(&rig, VMF_STATUS_PRE_SWITCHOVER);
            disk = disk_at(rig.path);
            assert_true(vmf_session_continue(rig.session, NULL));
        }
        assert_false(vmf_save_rig_finish(&rig));
        assert_true(g_error_matches(rig.error, VMF_ERROR, VMF_ERROR_LOCKED));
        assert_int_equal(rig.statistics.outcome, VMF_OUTCOME_FAILED);
        assert_int_equal(stat(rig.path, &status), 0);
        assert_int_equal(status.st_size, MIB);
        assert_true(vmf_disk_release(disk, NULL));
        rig.parameters.pause_before_switchover = false;
        save(&rig, machine);
    }
}

static void a_save_that_takes_too_long_is_given_up(void **state)
{
    g_autoptr(VmfMachine) machine = vmf_save_machine_running(16);
    g_auto(VmfSaveRig) rig;

    vmf_save_rig_init(&rig);
    rig.parameters.max_bandwidth = 100000;
    rig.parameters.timeout_ns = 200000000;
    assert_fails(&rig, machine, VMF_ERROR_TIMEOUT, "not done in");
    assert_lives(machine);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_image_is_the_guest_at_the_stop),
        cmocka_unit_test(a_guest_that_goes_on_does_and_the_image_is_of_one_moment),
        cmocka_unit_test(a_guest_stopped_first_is_written_once),
        cmocka_unit_test(a_paused_guest_stays_paused),
        cmocka_unit_test(memory_that_was_given_back_is_not_in_the_image),
        cmocka_unit_test(every_backend_writes_it),
        cmocka_unit_test(a_layer_holds_what_differs),
        cmocka_unit_test(header_and_tail_say_what_the_guest_is),
        cmocka_unit_test(disks_are_named_with_their_state_at_the_stop),
        cmocka_unit_test(a_disk_that_cannot_say_fails_the_save),
        cmocka_unit_test(what_means_nothing_is_refused),
        cmocka_unit_test(a_cancelled_save_leaves_nothing),
        cmocka_unit_test(a_save_cancelled_ahead_of_its_stop_leaves_nothing),
        cmocka_unit_test(a_disk_that_is_in_use_is_not_replaced),
        cmocka_unit_test(a_save_that_takes_too_long_is_given_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
