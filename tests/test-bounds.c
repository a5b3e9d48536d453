/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a peer can cost a target in memory, time and connections: one that sends too much, too slowly, or nothing, and a crowd that
 * holds a thousand connections while a guest arrives.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "stream/channel.h"
#include "stream/clock.h"
#include "stream/header.h"
#include "tests/forge.h"
#include "tests/world.h"

#define CROWD 1000
#define CALLERS_MAX 128
#define MANY 100 /* few enough that nobody has to go */
#define MIB (UINT64_C(1) << 20)
#define UNKNOWN_OPTIONAL (0x33u | VMF_RECORD_OPTIONAL)

static const VmfStreamFormat format = {.version = 3};

/* ---- a crowd --------------------------------------------------------------------------------------------------------------- */

typedef struct {
    pid_t pid;
    int report; /* one octet once all are connected */
} Crowd;

static int call(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        _exit(1);
    return fd;
}

/* In a process of its own: descriptors are counted for each. Whoever is sent away comes again if it @insists. */
_Noreturn static void be_a_crowd(uint16_t port, int report, bool insists)
{
    static struct pollfd fds[CROWD];

    for (unsigned i = 0; i < CROWD; i++)
        fds[i] = (struct pollfd){.fd = call(port), .events = POLLIN};
    if (write(report, "!", 1) != 1)
        _exit(1);
    while (insists && poll(fds, CROWD, -1) > 0) {
        for (unsigned i = 0; i < CROWD; i++)
            if (fds[i].revents) {
                close(fds[i].fd);
                fds[i].fd = call(port);
            }
        usleep(20000);
    }
    for (;;)
        pause();
}

static Crowd crowd_new(uint16_t port, bool insists)
{
    Crowd crowd;
    int ends[2];
    char octet;

    assert_int_equal(pipe(ends), 0);
    crowd.pid = fork();
    assert_true(crowd.pid >= 0);
    if (crowd.pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that is killed leaves no crowd behind */
        for (int fd = 3; fd < 1024; fd++)
            if (fd != ends[1])
                close(fd);
        be_a_crowd(port, ends[1], insists);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &octet, 1), 1);
    crowd.report = ends[0];
    return crowd;
}

static void crowd_free(const Crowd *crowd)
{
    kill(crowd->pid, SIGKILL);
    waitpid(crowd->pid, NULL, 0);
    close(crowd->report);
}

static uint64_t of_status(const char *name)
{
    g_autofree char *text = NULL;
    char *at;

    assert_true(g_file_get_contents("/proc/self/status", &text, NULL, NULL));
    at = strstr(text, name);
    assert_non_null(at);
    return g_ascii_strtoull(at + strlen(name), NULL, 10);
}

typedef struct {
    VmfSession *session;
    bool done;
    GError *error;
} Side;

static void *run_side(void *opaque)
{
    Side *side = opaque;

    side->done = vmf_session_run(side->session, &side->error);
    return NULL;
}

#define ENDING 16 /* callers whose place is free again, and whose threads are not gone yet */

/* All of them call, and more than so many are never served at a time: seen over a while, since they are accepted one after the other. */
static void await_callers(uint64_t threads)
{
    uint64_t most = 0;

    for (unsigned looks = 0; looks < 200; looks += most >= threads + CALLERS_MAX / 2) {
        most = MAX(most, of_status("Threads:"));
        g_usleep(1000);
    }
    if (most > threads + 2 + CALLERS_MAX + ENDING)
        fail_msg("%" G_GUINT64_FORMAT " threads", most - threads);
}

/* The crowd is there first. */
static void migrate_beside_a_crowd(bool insists)
{
    g_autoptr(VmfListener) listener = vmf_listener_new("tcp:127.0.0.1:0", 0, NULL);
    g_autoptr(VmfConnector) connector = vmf_connector_new(vmf_listener_uri(listener), 0, NULL);
    uint16_t port = (uint16_t)atoi(strrchr(vmf_listener_uri(listener), ':') + 1);
    VmfMachine *from = vmf_test_machine("from", 8, VMF_RAM_ANON, 4 * MIB, MIB), *to = vmf_test_machine("to", 8, VMF_RAM_ANON, 4 * MIB, MIB);
    VmfParameters parameters;
    pthread_t thread;

    vmf_parameters_init(&parameters);
    parameters.downtime_limit_ns = UINT64_C(1000000000);
    Side target = {.session = vmf_session_new_target(vmf_machine_guest(to), listener, &parameters, NULL, NULL)};
    Side source = {.session = vmf_session_new_source(vmf_machine_guest(from), connector, &parameters, NULL, NULL)};
    uint64_t threads = of_status("Threads:");
    pthread_create(&thread, NULL, run_side, &target);
    Crowd crowd = crowd_new(port, insists);
    await_callers(threads);
    assert_true(vmf_machine_start(from, NULL));
    run_side(&source);
    pthread_join(thread, NULL);
    if (!source.done || !target.done)
        fail_msg("%s; %s", source.error ? source.error->message : "", target.error ? target.error->message : "");
    assert_true(vmf_machine_is_running(to));
    crowd_free(&crowd);
    vmf_session_free(source.session);
    vmf_session_free(target.session);
    vmf_machine_free(from);
    vmf_machine_free(to);
}

static void test_a_thousand_idle_connections(void **state)
{
    migrate_beside_a_crowd(false);
}

static void test_a_thousand_that_come_again(void **state)
{
    migrate_beside_a_crowd(true);
}

/* ---- too much -------------------------------------------------------------------------------------------------------------- */

/* Up to the first static record, then a record that is passed over, as long as any may be, without its last octets. */
static VmfChannel *say_much(ForgeTarget *target)
{
    ForgeSource *source = forge_source_new(target, format);
    g_autofree uint8_t *octets = g_malloc0(VMF_RECORD_BODY_MAX / 2);

    assert_true(forge_step(source, FORGE_IMAGE) && forge_step(source, FORGE_MACHINE));
    forge_header(source, UNKNOWN_OPTIONAL, VMF_RECORD_BODY_MAX, VMF_RECORD_BODY_MAX);
    forge_octets(source, octets, VMF_RECORD_BODY_MAX / 2);
    VmfChannel *channel = g_steal_pointer(&source->channel);
    forge_source_free(source);
    return channel;
}

static void test_memory_of_strangers(void **state)
{
    ForgeTarget *target = forge_target_new();
    g_autoptr(GPtrArray) crowd = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_channel_free);

    g_ptr_array_add(crowd, say_much(target)); /* what is there once and for all */
    uint64_t before = of_status("RssAnon:");
    for (unsigned i = 1; i < MANY; i++)
        g_ptr_array_add(crowd, say_much(target));
    uint64_t kib = of_status("RssAnon:") - before;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    kib = 0; /* their own memory is counted with it */
#endif
    /* The links between them have a mebibyte in each direction; bodies kept would be 2 MiB more for each. */
    if (kib > MANY * UINT64_C(2500))
        fail_msg("%u callers cost %" G_GUINT64_FORMAT " KiB", MANY, kib);
    forge_target_finish(target, true);
    forge_target_free(target);
}

/* ---- too slowly, or nothing ------------------------------------------------------------------------------------------------ */

/* Octet after octet: it never ends, but the time it has does. */
static void test_a_drip(void **state)
{
    ForgeTarget *target = forge_target_new_with(200 * VMF_NS_PER_MS, 0);
    ForgeSource *source = forge_source_new(target, format);
    bool open = true;

    assert_true(forge_step(source, FORGE_IMAGE) && forge_step(source, FORGE_MACHINE));
    forge_header(source, UNKNOWN_OPTIONAL, VMF_RECORD_BODY_MAX, VMF_RECORD_BODY_MAX);
    while (open) {
        open = vmf_channel_write_all(source->channel, "", 1, NULL);
        g_usleep(5000);
    }
    forge_target_await_events(target, 1);
    forge_source_free(source);
    ForgeSource *good = forge_source_new(target, format);
    assert_true(forge_all(good));
    forge_target_finish(target, false);
    assert_true(target->done);
    forge_source_free(good);
    forge_target_free(target);
}

/* Accepted, and then nothing more: it does not keep the target for ever. */
static void silent_after(ForgeStep last, unsigned n_pages)
{
    ForgeTarget *target = forge_target_new_with(0, 200 * VMF_NS_PER_MS);
    ForgeSource *source = forge_source_new(target, format);
    VmfPreamble preamble = forge_preamble(0);

    source->n_pages = n_pages;
    for (ForgeStep step = FORGE_IMAGE; step <= last; step++)
        assert_true(forge_step(source, step));
    if (n_pages > 0)
        assert_true(forge_join(source, target, &preamble));
    forge_target_finish(target, false);
    assert_false(target->done);
    assert_true(g_error_matches(target->error, VMF_ERROR, VMF_ERROR_TIMEOUT));
    assert_true(forge_target_is_empty(target));
    forge_source_free(source);
    forge_target_free(target);
}

static void test_silence(void **state)
{
    silent_after(FORGE_PAGE_CHANNELS, 0);
    silent_after(FORGE_PAGE_CHANNELS, 1);
    silent_after(FORGE_STATE, 0);
}

/* A source that waits for its owner's word says that it is there. */
static void test_a_pause_is_no_silence(void **state)
{
    VmfMachine *from = vmf_test_machine("from", 4, VMF_RAM_ANON, 0, 0), *to = vmf_test_machine("to", 4, VMF_RAM_ANON, 0, 0);
    VmfStatistics statistics = {.size = sizeof(statistics)};
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.source_parameters.pause_before_switchover = true;
    trip.target_silence_ns = 1500 * VMF_NS_PER_MS;
    VmfTripRunning *running = vmf_trip_start(&trip, vmf_machine_guest(from), vmf_machine_guest(to));
    while (statistics.status != VMF_STATUS_PRE_SWITCHOVER) {
        g_usleep(1000);
        vmf_session_get_statistics(vmf_trip_source(running), &statistics);
    }
    g_usleep(2500000);
    assert_true(vmf_session_continue(vmf_trip_source(running), NULL));
    if (!vmf_trip_finish(running))
        fail_msg("%s; %s", trip.source_error ? trip.source_error->message : "", trip.target_error ? trip.target_error->message : "");
    vmf_trip_clear(&trip);
    vmf_machine_free(from);
    vmf_machine_free(to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_thousand_idle_connections),
        cmocka_unit_test(test_a_thousand_that_come_again),
        cmocka_unit_test(test_memory_of_strangers),
        cmocka_unit_test(test_a_drip),
        cmocka_unit_test(test_silence),
        cmocka_unit_test(test_a_pause_is_no_silence),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
