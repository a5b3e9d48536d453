/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A VMM whose guest is a little memory and a disk that it writes all the while (latency.h), and how long its writes took: alone, or as the
 * source of a migration that takes the disk along. One process is one side and prints one line of JSON. scripts/bench block starts them.
 *
 * alone:  begins to write when it is started; a line on stdin begins what is measured, another one ends it.
 * source: begins to write when it is started, and migrates half a second later. Measured is what began before the guest was stopped, and
 *         with --mirror after the mirror began, which goes on for --seconds.
 */
#include <vmferry/vmferry.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/common.h"
#include "bench/disk-load.h"

#define MEMORY_BYTES (16u << 20)
#define WARM_UP_US 500000
#define ROUND_WAIT_NS (20 * 1000 * 1000)

typedef struct {
    char *role, *uri, *path, *bandwidth;
    int per_second, depth, seconds;
    int64_t goal_us;
    gboolean mirror, verify;
} Options;

typedef struct {
    Options options;
    VmfDisk *disk;
    VmfGuest *guest;
    BenchDiskLoad *load; /* NULL: the guest does not write */
    bool running;
    int64_t from_ns, to_ns; /* what is measured */
} Bench;

static Bench *the_bench; /* a policy has no argument by which to reach it */

/* ---- the guest ------------------------------------------------------------------------------------------------------------ */

static bool guest_start(void *opaque, GError **error)
{
    Bench *bench = opaque;

    if (bench->load)
        bench_disk_load_go_on(bench->load);
    bench->running = true;
    return true;
}

static bool guest_stop(void *opaque, GError **error)
{
    Bench *bench = opaque;

    bench->to_ns = bench_now_ns();
    if (bench->load)
        bench_disk_load_pause(bench->load);
    bench->running = false;
    return true;
}

static bool guest_is_running(void *opaque)
{
    return ((Bench *)opaque)->running;
}

static const VmfGuestOps guest_ops = {
    .size = sizeof(VmfGuestOps), .stop = guest_stop, .start = guest_start, .is_running = guest_is_running};

static bool log_start(void *opaque, GError **error)
{
    return true;
}

static void log_stop(void *opaque)
{
}

/* Its memory does not change. */
static bool log_harvest(void *opaque, unsigned block, void (*report)(void *, uint64_t, const uint64_t *, size_t),
                        void *report_opaque, GError **error)
{
    return true;
}

static void log_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
}

static const VmfDirtyLogOps log_ops = {.size = sizeof(VmfDirtyLogOps),
                                       .name = "bench",
                                       .start = log_start,
                                       .stop = log_stop,
                                       .harvest = log_harvest,
                                       .clear = log_clear};

static bool make_guest(Bench *bench, GError **error)
{
    static const uint8_t uuid[16] = "benchmark guest";
    VmfDiskOptions options = {.size = sizeof(options),
                              .incoming = strcmp(bench->options.role, "target") == 0};
    g_autofree char *uri = g_strconcat("file:", bench->options.path, NULL);
    VmfRamBlock *ram = vmf_ram_block_new("ram", MEMORY_BYTES, VMF_RAM_ANON, 0, 0, error);

    if (!ram)
        return false;
    bench->guest = vmf_guest_new("bench", uuid, &guest_ops, bench);
    vmf_guest_set_dirty_log(bench->guest, &log_ops, bench);
    options.uri = uri;
    bench->disk = vmf_disk_open("disk", &options, error);
    return vmf_guest_add_ram(bench->guest, ram, NULL, error) && bench->disk &&
           (options.incoming || vmf_disk_acquire(bench->disk, error)) &&
           vmf_guest_add_disk(bench->guest, "disk", &vmf_disk_guest_ops, bench->disk, error);
}

/* ---- a mirror that goes on for a while -------------------------------------------------------------------------------------- */

static void *policy_create(void)
{
    return the_bench;
}

static void policy_destroy(void *policy)
{
}

static void policy_decide(void *policy, const VmfPolicyInput *input, VmfPolicyOutput *output)
{
    Bench *bench = policy;
    bool done = bench->from_ns > 0 && bench_now_ns() - bench->from_ns >= bench->options.seconds * BENCH_NS_PER_S;

    output->decision = done ? VMF_DECIDE_SWITCHOVER : VMF_DECIDE_ROUND;
    output->wait_ns = done ? 0 : ROUND_WAIT_NS;
}

static const VmfPolicyOps mirror_policy = {.size = sizeof(VmfPolicyOps),
                                           .name = "bench",
                                           .create = policy_create,
                                           .destroy = policy_destroy,
                                           .decide = policy_decide};

static void on_event(void *opaque, const char *id, const char *text)
{
    Bench *bench = opaque;

    if (strcmp(id, "disk.mirror") == 0)
        bench->from_ns = bench_now_ns();
    else if (strcmp(id, "disk.mirror-ended") == 0)
        fprintf(stderr, "disk-guest: %s\n", text);
}

/* ---- one side --------------------------------------------------------------------------------------------------------------- */

static void set_parameters(const Bench *bench, VmfParameters *parameters)
{
    vmf_parameters_init(parameters);
    parameters->audit = VMF_AUDIT_OFF;
    parameters->copy_disks = "all";
    parameters->verify_disks = bench->options.verify;
    parameters->mirror_disks = bench->options.mirror;
    parameters->max_bandwidth = bench->options.bandwidth ? bench_parse_size(bench->options.bandwidth) : 0;
    parameters->disk_latency_goal_ns = (uint64_t)bench->options.goal_us * 1000;
    if (bench->options.mirror)
        parameters->policy = &mirror_policy;
}

static void print_source(const Bench *bench, VmfSession *session, const BenchLatency *latency, int64_t cpu_ns)
{
    VmfStatistics s = {.size = sizeof(VmfStatistics)};

    vmf_session_get_statistics(session, &s);
    printf("{\"type\":\"result\",\"total_ns\":%" PRIu64 ",\"live_ns\":%" PRId64 ",\"cpu_ns\":%" PRId64 ",\"bytes\":%" PRIu64
           ",\"mirrored\":%" PRIu64 ",\"verified\":\"%s\",",
           s.total_ns, bench->to_ns - bench->from_ns, cpu_ns, s.disk_sent_bytes, s.disk_mirrored_writes, vmf_verified_word(s.verified));
    bench_latency_print("latency", latency, bench->from_ns, bench->to_ns);
    printf("}\n");
    fflush(stdout);
}

static bool be_source(Bench *bench, GError **error)
{
    static const VmfSessionOps ops = {.size = sizeof(VmfSessionOps), .event = on_event};
    g_autoptr(VmfConnector) connector = vmf_connector_new(bench->options.uri, 0, error);
    VmfParameters parameters;

    if (!connector)
        return false;
    set_parameters(bench, &parameters);
    g_autoptr(VmfSession) session = vmf_session_new_source(bench->guest, connector, &parameters, &ops, bench);
    bench->running = true;
    bench_wait_for_start();
    bench->load = bench_disk_load_start(bench->disk, (unsigned)bench->options.per_second, (unsigned)bench->options.depth);
    g_usleep(WARM_UP_US);
    int64_t cpu_ns = bench_cpu_ns();
    bench->from_ns = bench->options.mirror ? 0 : bench_now_ns();
    bool good = vmf_session_run(session, error);
    cpu_ns = bench_cpu_ns() - cpu_ns;
    const BenchLatency *latency = bench_disk_load_finish(bench->load);
    if (good)
        print_source(bench, session, latency, cpu_ns);
    return good;
}

static bool be_target(Bench *bench, GError **error)
{
    g_autoptr(VmfListener) listener = vmf_listener_new(bench->options.uri, 0, error);
    VmfParameters parameters;

    if (!listener)
        return false;
    set_parameters(bench, &parameters);
    g_autoptr(VmfSession) session = vmf_session_new_target(bench->guest, listener, &parameters, NULL, NULL);
    printf("{\"type\":\"listening\",\"uri\":\"%s\"}\n", vmf_listener_uri(listener));
    fflush(stdout);
    int64_t cpu_ns = bench_cpu_ns();
    bool good = vmf_session_run(session, error);
    if (good)
        printf("{\"type\":\"result\",\"cpu_ns\":%" PRId64 "}\n", bench_cpu_ns() - cpu_ns);
    fflush(stdout);
    return good;
}

static void wait_for_line(void)
{
    int c;

    while ((c = getchar()) != '\n')
        if (c == EOF)
            exit(1);
}

static bool be_alone(Bench *bench, GError **error)
{
    bench_wait_for_start();
    bench->load = bench_disk_load_start(bench->disk, (unsigned)bench->options.per_second, (unsigned)bench->options.depth);
    wait_for_line();
    bench->from_ns = bench_now_ns();
    int64_t cpu_ns = bench_cpu_ns();
    wait_for_line();
    bench->to_ns = bench_now_ns();
    cpu_ns = bench_cpu_ns() - cpu_ns;
    printf("{\"type\":\"result\",\"live_ns\":%" PRId64 ",\"cpu_ns\":%" PRId64 ",", bench->to_ns - bench->from_ns, cpu_ns);
    bench_latency_print("latency", bench_disk_load_finish(bench->load), bench->from_ns, bench->to_ns);
    printf("}\n");
    fflush(stdout);
    return true;
}

/* ---- options ---------------------------------------------------------------------------------------------------------------- */

static bool parse(Options *options, int argc, char **argv, GError **error)
{
    const GOptionEntry entries[] = {
        {"rate", 0, 0, G_OPTION_ARG_INT, &options->per_second, "Writes a second (1000)", "N"},
        {"depth", 0, 0, G_OPTION_ARG_INT, &options->depth, "Writes under way, at most (8)", "N"},
        {"uri", 0, 0, G_OPTION_ARG_STRING, &options->uri, "Where the migration goes, or comes from", "URI"},
        {"goal", 0, 0, G_OPTION_ARG_INT64, &options->goal_us, "The latency goal in microseconds (none)", "N"},
        {"bandwidth", 0, 0, G_OPTION_ARG_STRING, &options->bandwidth, "Bytes a second, at most (no limit)", "SIZE"},
        {"mirror", 0, 0, G_OPTION_ARG_NONE, &options->mirror, "Mirror what is written", NULL},
        {"seconds", 0, 0, G_OPTION_ARG_INT, &options->seconds, "... for so long (5)", "N"},
        {"verify", 0, 0, G_OPTION_ARG_NONE, &options->verify, "Compare the disks at the end", NULL},
        G_OPTION_ENTRY_NULL};
    g_autoptr(GOptionContext) context = g_option_context_new("alone|source|target DISK");

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, error))
        return false;
    options->role = argc == 3 ? argv[1] : (char *)"";
    options->path = argc == 3 ? argv[2] : NULL;
    bool alone = strcmp(options->role, "alone") == 0;
    if ((alone || ((strcmp(options->role, "source") == 0 || strcmp(options->role, "target") == 0) && options->uri)) &&
        options->per_second > 0 && options->depth > 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "expected alone, source or target, a disk, and for a migration --uri");
    return false;
}

int main(int argc, char **argv)
{
    static Bench bench = {.options = {.per_second = 1000, .depth = 8, .seconds = 5}};
    g_autoptr(GError) error = NULL;
    const char *role;

    the_bench = &bench;
    bool good = parse(&bench.options, argc, argv, &error) && make_guest(&bench, &error);
    role = bench.options.role;
    if (good)
        good = strcmp(role, "alone") == 0    ? be_alone(&bench, &error)
               : strcmp(role, "source") == 0 ? be_source(&bench, &error)
                                             : be_target(&bench, &error);
    if (!good)
        fprintf(stderr, "disk-guest: %s (%s)\n", error->message, vmf_error_id(error));
    vmf_guest_free(bench.guest);
    vmf_disk_free(bench.disk);
    return good ? 0 : 1;
}
