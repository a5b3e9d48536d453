/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A cancel while the audit before RUN hashes the memory of a guest that stands: nobody waits for the rest of it, nor for
 * the target, and a READY that has come by then does not count.
 *
 * The audit is held at the first page of main memory, which cannot be read until the cancel is there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>

#include "machine/machine-private.h"
#include "tests/world.h"

/* What the handler of a signal can reach. */
static struct {
    uint8_t *memory; /* of the source's guest */
    size_t size_bytes;
    _Atomic unsigned n_touched;
    sem_t touched, may_go_on;
} held;

typedef struct {
    bool ready_first; /* the target has answered when the cancel comes; otherwise it has not begun to look */
    sem_t ready_sent, is_back;
} Play;

static void on_segv(int number, siginfo_t *info, void *context)
{
    if ((uintptr_t)info->si_addr - (uintptr_t)held.memory >= held.size_bytes) {
        signal(number, SIG_DFL); /* a defect, which then ends as it would have without us */
        return;
    }
    held.n_touched++;
    sem_post(&held.touched);
    while (sem_wait(&held.may_go_on) < 0)
        ;
    mprotect(held.memory, held.size_bytes, PROT_READ | PROT_WRITE);
}

static void await(sem_t *semaphore)
{
    while (sem_wait(semaphore) < 0)
        ;
}

/* By the thread that then audits. */
static bool at_source(void *opaque, const char *point)
{
    Play *play = opaque;

    if (strcmp(point, "source.send.switchover.done") != 0)
        return false;
    if (play->ready_first)
        await(&play->ready_sent);
    mprotect(held.memory, held.size_bytes, PROT_NONE);
    return false;
}

static bool at_target(void *opaque, const char *point)
{
    Play *play = opaque;

    if (!play->ready_first && strcmp(point, "target.loaded") == 0)
        await(&play->is_back);
    if (strcmp(point, "target.send.ready.done") == 0)
        sem_post(&play->ready_sent);
    return false;
}

static void await_guest(VmfMachine *machine)
{
    for (unsigned i = 0; i < 3000 && !vmf_machine_is_running(machine); i++)
        g_usleep(10000);
}

static void lives(VmfMachine *machine)
{
    VmfMachineInfo before, now;

    assert_true(vmf_machine_is_running(machine));
    vmf_machine_get_info(machine, &before);
    do {
        g_usleep(1000);
        vmf_machine_get_info(machine, &now);
    } while (now.beats < before.beats + 10);
    assert_int_equal(now.guest_errors, 0);
}

/* Cancels once the audit has touched what it cannot read. */
static void run(VmfTrip *trip, Play *play, VmfMachine *from, VmfMachine *to)
{
    VmfTripRunning *running = vmf_trip_start(trip, vmf_machine_guest(from), vmf_machine_guest(to));

    await(&held.touched);
    assert_false(vmf_machine_is_running(from));
    vmf_session_cancel(vmf_trip_source(running));
    sem_post(&held.may_go_on);
    await_guest(from);
    sem_post(&play->is_back);
    assert_false(vmf_trip_finish(running));
}

static void hold_audit_of(VmfMachine *machine)
{
    VmfRamBlock *block = vmf_guest_ram(vmf_machine_guest(machine), BLOCK_RAM);

    held.memory = vmf_ram_block_host(block);
    held.size_bytes = vmf_ram_block_size(block);
    held.n_touched = 0;
    sem_init(&held.touched, 0, 0);
    sem_init(&held.may_go_on, 0, 0);
}

/* And nothing of it is in the way of the next migration. */
static void moves_after_all(VmfMachine *from)
{
    g_autoptr(VmfMachine) to = vmf_test_machine("c", 16, VMF_RAM_ANON, 0, 0);
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.source_parameters.switchover_timeout_ns = 60 * UINT64_C(1000000000); /* whatever else this host does */
    assert_true(vmf_trip_run(&trip, vmf_machine_guest(from), vmf_machine_guest(to)));
    assert_int_equal(trip.source.verified, VMF_VERIFIED_FULL);
    assert_true(trip.source.audit_ns > 0);
    lives(to);
    vmf_trip_clear(&trip);
}

static void cancelled(bool ready_first)
{
    g_autoptr(VmfMachine) a = vmf_test_machine("a", 16, VMF_RAM_ANON, 16 << 20, 4 << 20);
    g_autoptr(VmfMachine) b = vmf_test_machine("b", 16, VMF_RAM_ANON, 0, 0);
    struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO}, before;
    Play play = {.ready_first = ready_first};
    VmfTestJournal from, to;
    VmfTrip trip;

    sem_init(&play.ready_sent, 0, 0);
    sem_init(&play.is_back, 0, 0);
    hold_audit_of(a);
    sigaction(SIGSEGV, &action, &before); /* here, as cmocka sets its own ahead of each test */
    vmf_test_journal_init(&from);
    vmf_test_journal_init(&to);
    vmf_trip_init(&trip);
    trip.source_parameters.journal = from.journal;
    trip.target_parameters.journal = to.journal;
    trip.source_parameters.switchover_timeout_ns = 60 * UINT64_C(1000000000);
    trip.source_parameters.fault = at_source;
    trip.target_parameters.fault = at_target;
    trip.source_parameters.fault_opaque = trip.target_parameters.fault_opaque = &play;
    trip.keeps_holds = true; /* the target's, until it has read ABORT */
    assert_true(vmf_machine_start(a, NULL));
    run(&trip, &play, a, b);
    sigaction(SIGSEGV, &before, NULL);
    assert_int_equal(held.n_touched, 1);
    assert_int_equal(trip.source.audit_ns, 0); /* it did not get to its end */
    assert_int_equal(trip.source.outcome, VMF_OUTCOME_CANCELLED);
    assert_string_equal(vmf_error_id(trip.source_error), "cancelled");
    assert_string_equal(trip.target_error->message, "source: took the guest back");
    assert_false(vmf_machine_is_running(b));
    lives(a);
    assert_int_equal(vmf_test_journal_clear(&from), VMF_JOURNAL_BACK);
    assert_int_equal(vmf_test_journal_clear(&to), VMF_JOURNAL_REFUSED);
    vmf_trip_clear(&trip);
    moves_after_all(a);
}

static void test_target_has_not_looked_yet(void **state)
{
    cancelled(false);
}

static void test_target_is_ready(void **state)
{
    cancelled(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_target_has_not_looked_yet),
        cmocka_unit_test(test_target_is_ready),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
