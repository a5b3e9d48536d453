/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A VMM whose guest is nothing but memory: its vCPU is stopped, or idle where live rounds are timed. One process is the source or the
 * target of one migration, or saves into an image or restores from one, and prints what it cost as one line of JSON. scripts/bench starts
 * them, see docs/benchmarks.rst.
 *
 * An idle guest has scattered pages and a dirty log that reports so many of them as written at each harvest, so that a round over a large
 * and nearly clean memory has something to find. A guest that is restored lazily has a vCPU that touches pages as soon as it is started,
 * one that is saved as it is at one moment a vCPU that writes.
 */
#include <vmferry/vmferry.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/common.h"
#include "bench/engine-memory.h"
#include "bench/toucher.h"
#include "bench/writer.h"

#define ROUNDS_MAX 1000
#define SEED 7

typedef struct {
    char *role, *uri, *size_text, *fill, *touch_text, *piece_text, *audit, *order, *rate_text;
    int channels, rounds, dirty_pages, every, touches;
    gboolean watch_memory, buffered, record;
    BenchKind kind;
} Options;

typedef struct {
    Options options;
    uint64_t size, touch, piece;
    VmfRamBlock *ram; /* the guest's */
    VmfGuest *guest;
    bool running;
    BenchToucher *vcpu; /* of a guest that is restored lazily */
    int64_t begun_ns;
    BenchWriter *writer; /* of one that is saved as it runs */
    int64_t stopped_ns, pause_ns;
    uint64_t harvests;
    unsigned n_rounds;
    int64_t round_end_ns[ROUNDS_MAX];
} Bench;

static Bench *the_bench; /* a policy has no argument by which to reach it */

/* ---- the guest ------------------------------------------------------------------------------------------------------------ */

static bool guest_start(void *opaque, GError **error)
{
    Bench *bench = opaque;

    if (bench->writer) {
        bench_writer_go(bench->writer);
        bench->pause_ns = bench_now_ns() - bench->stopped_ns;
    }
    bench->running = true;
    if (strcmp(bench->options.role, "restore-lazy") == 0 && !bench->vcpu)
        bench->vcpu = bench_toucher_start(vmf_ram_block_host(bench->ram), bench->size, (unsigned)bench->options.every,
                                          (unsigned)bench->options.touches);
    return true;
}

static bool guest_stop(void *opaque, GError **error)
{
    Bench *bench = opaque;

    bench->stopped_ns = bench_now_ns();
    if (bench->writer && bench->running)
        bench_writer_stop(bench->writer);
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

static bool log_harvest(void *opaque, unsigned block, void (*report)(void *, uint64_t, const uint64_t *, size_t),
                        void *report_opaque, GError **error)
{
    Bench *bench = opaque;

    bench->harvests++;
    for (int n = 0; bench->running && !bench->writer && n < bench->options.dirty_pages; n++) {
        uint64_t nth = bench->harvests * (uint64_t)bench->options.dirty_pages + (uint64_t)n;
        uint64_t n_pieces = bench->touch / bench->piece, pages = bench->piece / BENCH_PAGE;
        uint64_t page = bench_scattered_piece(bench->size, bench->piece, SEED, nth % n_pieces) / BENCH_PAGE + nth / n_pieces % pages;
        uint64_t word = UINT64_C(1) << page % 64;
        report(report_opaque, page / 64, &word, 1);
    }
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

/* What raw-image does. */
static void fill_chunks(uint8_t *memory, uint64_t size, unsigned every)
{
    for (uint64_t chunk = 0; chunk < size / BENCH_CHUNK; chunk++)
        if (bench_holds_data(chunk, every))
            bench_fill_random(memory + chunk * BENCH_CHUNK, BENCH_CHUNK, chunk);
}

static void fill(Bench *bench)
{
    void *memory = vmf_ram_block_host(bench->ram);
    const char *how = bench->options.fill;

    if (strcmp(how, "random") == 0)
        bench_fill_random(memory, bench->size, SEED);
    else if (strcmp(how, "zero") == 0)
        bench_fill_zero(memory, bench->size);
    else if (strcmp(how, "scattered") == 0)
        bench_fill_scattered(memory, bench->size, bench->touch, bench->piece, SEED);
    else if (strcmp(how, "chunks") == 0)
        fill_chunks(memory, bench->size, (unsigned)bench->options.every);
    else if (strcmp(how, "untouched") != 0)
        bench_die("--fill: random, zero, scattered, chunks or untouched");
}

static bool make_guest(Bench *bench, GError **error)
{
    static const uint8_t uuid[16] = "benchmark guest";
    BenchKind kind = bench->options.kind;

    bench->ram = vmf_ram_block_new("ram", bench->size, kind.memfd ? VMF_RAM_MEMFD : VMF_RAM_ANON,
                                   kind.huge ? 0 : VMF_RAM_NO_HUGE_PAGES, 0, error);
    if (!bench->ram)
        return false;
    bench->guest = vmf_guest_new("bench", uuid, &guest_ops, bench);
    if (bench->options.rounds > 0)
        vmf_guest_set_dirty_log(bench->guest, &log_ops, bench);
    return vmf_guest_add_ram(bench->guest, bench->ram, NULL, error);
}

/* ---- the policy: so many rounds, each with its time ---------------------------------------------------------------------------- */

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

    if (bench->n_rounds < ROUNDS_MAX)
        bench->round_end_ns[bench->n_rounds++] = bench_now_ns();
    output->decision = bench->n_rounds > (unsigned)bench->options.rounds ? VMF_DECIDE_SWITCHOVER : VMF_DECIDE_ROUND;
}

static const VmfPolicyOps round_policy = {.size = sizeof(VmfPolicyOps),
                                          .name = "bench",
                                          .create = policy_create,
                                          .destroy = policy_destroy,
                                          .decide = policy_decide};

static void set_parameters(Bench *bench, VmfParameters *parameters)
{
    vmf_parameters_init(parameters);
    parameters->channels = (unsigned)bench->options.channels;
    if (!vmf_audit_parse(bench->options.audit, &parameters->audit, NULL))
        bench_die("--audit");
    if (bench->options.rounds > 0)
        parameters->policy = &round_policy;
}

/* ---- one side --------------------------------------------------------------------------------------------------------------- */

static void print_result(const Bench *bench, VmfSession *session, int64_t cpu_ns, const BenchMemoryResult *memory)
{
    VmfStatistics s = {.size = sizeof(VmfStatistics)};

    vmf_session_get_statistics(session, &s);
    printf("{\"type\":\"result\",\"role\":\"%s\",\"total_ns\":%" PRIu64 ",\"cpu_ns\":%" PRId64 ",\"downtime_ns\":%" PRIu64,
           bench->options.role, s.total_ns, cpu_ns, s.downtime_ns);
    printf(",\"rounds\":%u,\"bytes_sent\":%" PRIu64 ",\"pages_data\":%" PRIu64 ",\"pages_zero\":%" PRIu64 ",\"pages_hole\":%" PRIu64,
           s.round, s.bytes_sent, s.pages_data, s.pages_zero, s.pages_hole);
    printf(",\"verified\":\"%s\",\"round_ns\":[", vmf_verified_word(s.verified));
    for (unsigned i = 1; i < bench->n_rounds; i++)
        printf("%s%" PRId64, i > 1 ? "," : "", bench->round_end_ns[i] - bench->round_end_ns[i - 1]);
    printf("]");
    if (memory)
        printf(",\"engine_peak_bytes\":%" PRIu64 ",\"guest_start_bytes\":%" PRIu64 ",\"guest_end_bytes\":%" PRIu64,
               memory->engine_peak_bytes, memory->guest_start_bytes, memory->guest_end_bytes);
    printf("}\n");
    fflush(stdout);
}

static bool run_session(Bench *bench, VmfSession *session, GError **error)
{
    bool watch = bench->options.watch_memory;
    int64_t cpu_ns = bench_cpu_ns();
    BenchMemory *memory = watch ? bench_memory_start(vmf_ram_block_host(bench->ram), bench->size) : NULL;

    bool good = vmf_session_run(session, error);
    cpu_ns = bench_cpu_ns() - cpu_ns;
    BenchMemoryResult result = watch ? bench_memory_stop(memory) : (BenchMemoryResult){0};
    if (good)
        print_result(bench, session, cpu_ns, watch ? &result : NULL);
    return good;
}

static bool be_source(Bench *bench, GError **error)
{
    g_autoptr(VmfConnector) connector = vmf_connector_new(bench->options.uri, 0, error);
    VmfParameters parameters;

    if (!connector)
        return false;
    fill(bench);
    bench->running = bench->options.rounds > 0;
    set_parameters(bench, &parameters);
    g_autoptr(VmfSession) session = vmf_session_new_source(bench->guest, connector, &parameters, NULL, NULL);
    bench_wait_for_start();
    return run_session(bench, session, error);
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
    return run_session(bench, session, error);
}

static bool save(Bench *bench, GError **error)
{
    VmfSaveOptions save = {
        .size = sizeof(save), .uri = bench->options.uri, .buffered = bench->options.buffered, .stop_first = true, .ram_only = true};
    VmfParameters parameters;

    fill(bench);
    bench->running = true; /* and is so again when it is restored */
    set_parameters(bench, &parameters);
    g_autoptr(VmfSession) session = vmf_session_new_save(bench->guest, &save, &parameters, NULL, NULL);
    bench_wait_for_start();
    return run_session(bench, session, error);
}

static bool restore(Bench *bench, GError **error)
{
    VmfRestoreOptions from = {.size = sizeof(from), .uri = bench->options.uri, .buffered = bench->options.buffered};
    VmfParameters parameters;

    set_parameters(bench, &parameters);
    g_autoptr(VmfSession) session = vmf_session_new_restore(bench->guest, &from, &parameters, NULL, NULL);
    bench_wait_for_start();
    return run_session(bench, session, error);
}

static void print_instant(const Bench *bench, int64_t writer_cpu_ns, uint64_t n_pages)
{
    printf("{\"type\":\"pause\",\"pause_ns\":%" PRId64 ",\"writer_cpu_ns\":%" PRId64 ",\"pages_written\":%" PRIu64 "}\n", bench->pause_ns,
           writer_cpu_ns, n_pages);
    fflush(stdout);
}

/* Once its vCPU has written for a second. What the guest met is told after the session's result. */
static bool save_instant(Bench *bench, GError **error)
{
    VmfSaveOptions save = {.size = sizeof(save), .uri = bench->options.uri, .buffered = bench->options.buffered, .point_in_time = true,
                           .resume = true, .ram_only = true};
    VmfParameters parameters;

    fill(bench);
    set_parameters(bench, &parameters);
    vmf_guest_set_dirty_log(bench->guest, &log_ops, bench); /* all that is written was there before */
    bench->writer = bench_writer_start(vmf_ram_block_host(bench->ram), bench->size, (unsigned)bench->options.every,
                                       bench_parse_size(bench->options.rate_text));
    g_autoptr(VmfSession) session = vmf_session_new_save(bench->guest, &save, &parameters, NULL, NULL);
    bench_wait_for_start();
    guest_start(bench, NULL);
    g_usleep(1000 * 1000);
    int64_t cpu_ns = bench_writer_cpu_ns(bench->writer);
    uint64_t n_pages = bench_writer_pages(bench->writer);
    bool good = run_session(bench, session, error);
    print_instant(bench, bench_writer_cpu_ns(bench->writer) - cpu_ns, bench_writer_pages(bench->writer) - n_pages);
    bench_writer_finish(bench->writer);
    return good;
}

static void print_lazy(const Bench *bench, VmfSession *session, const BenchTouches *touches, int64_t cpu_ns)
{
    VmfStatistics s = {.size = sizeof(VmfStatistics)};

    vmf_session_get_statistics(session, &s);
    printf("{\"type\":\"touches\",\"start_ns\":%" PRIu64 ",\"first_ns\":%" PRId64 ",\"most_ns\":%" PRId64 ",\"total_ns\":%" PRId64,
           s.start_ns, touches->first_ns - bench->begun_ns, touches->most_ns - bench->begun_ns, touches->all_ns - bench->begun_ns);
    printf(",\"faults\":%" PRIu64 ",\"fault_p50_ns\":%" PRIu64 ",\"fault_p99_ns\":%" PRIu64 ",\"fault_max_ns\":%" PRIu64, s.faults,
           s.fault_p50_ns, s.fault_p99_ns, s.fault_max_ns);
    printf(",\"working_set_ns\":%" PRIu64 ",\"cpu_ns\":%" PRId64 "}\n", s.working_set_ns, cpu_ns);
    fflush(stdout);
}

/* Until all of its memory is there; what its vCPU met meanwhile is told first. */
static bool restore_lazily(Bench *bench, GError **error)
{
    VmfRestoreOptions from = {.size = sizeof(from), .uri = bench->options.uri, .buffered = bench->options.buffered,
                              .mode = VMF_RESTORE_LAZY, .order_path = bench->options.order, .record_order = bench->options.record};
    VmfParameters parameters;

    set_parameters(bench, &parameters);
    g_autoptr(VmfSession) session = vmf_session_new_restore(bench->guest, &from, &parameters, NULL, NULL);
    bench_wait_for_start();
    int64_t cpu_ns = bench_cpu_ns();
    bench->begun_ns = bench_now_ns();
    if (!run_session(bench, session, error))
        return false;
    BenchTouches touches = bench_toucher_finish(bench->vcpu);
    print_lazy(bench, session, &touches, bench_cpu_ns() - cpu_ns);
    return true;
}

typedef struct {
    const char *name;
    bool (*run)(Bench *bench, GError **error);
} Role;

static const Role roles[] = {{"source", be_source}, {"target", be_target}, {"save", save}, {"restore", restore},
                             {"restore-lazy", restore_lazily}, {"save-instant", save_instant}};

static const Role *find_role(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(roles); i++)
        if (g_strcmp0(roles[i].name, name) == 0)
            return &roles[i];
    return NULL;
}

static bool parse(Options *options, int argc, char **argv, GError **error)
{
    const GOptionEntry entries[] = {
        {"size", 0, 0, G_OPTION_ARG_STRING, &options->size_text, "Guest RAM (2G)", "SIZE"},
        {"fill", 0, 0, G_OPTION_ARG_STRING, &options->fill, "random, zero, scattered, chunks or untouched (random)", "HOW"},
        {"touch", 0, 0, G_OPTION_ARG_STRING, &options->touch_text, "How much is scattered (256M)", "SIZE"},
        {"piece", 0, 0, G_OPTION_ARG_STRING, &options->piece_text, "In pieces of that size (2M)", "SIZE"},
        {"channels", 0, 0, G_OPTION_ARG_INT, &options->channels, "Page channels (2)", "N"},
        {"rounds", 0, 0, G_OPTION_ARG_INT, &options->rounds, "The guest is idle, not stopped; time so many live rounds", "N"},
        {"dirty-pages", 0, 0, G_OPTION_ARG_INT, &options->dirty_pages, "Written before each of these rounds (1000)", "N"},
        {"audit", 0, 0, G_OPTION_ARG_STRING, &options->audit, "after, before or off (off)", "WHEN"},
        {"huge", 0, 0, G_OPTION_ARG_NONE, &options->kind.huge, "Transparent huge pages", NULL},
        {"memfd", 0, 0, G_OPTION_ARG_NONE, &options->kind.memfd, "RAM in a memfd", NULL},
        {"every", 0, 0, G_OPTION_ARG_INT, &options->every, "Of chunks: data in each N-th alone (0: in three of four)", "N"},
        {"touches", 0, 0, G_OPTION_ARG_INT, &options->touches, "Pages that the guest touches, restored lazily (20000)", "N"},
        {"rate", 0, 0, G_OPTION_ARG_STRING, &options->rate_text, "Written a second, by a guest that is saved as it runs (100M)", "SIZE"},
        {"order", 0, 0, G_OPTION_ARG_STRING, &options->order, "Restored lazily: read ahead in the order of this file", "PATH"},
        {"record", 0, 0, G_OPTION_ARG_NONE, &options->record, "... or write that order", NULL},
        {"buffered", 0, 0, G_OPTION_ARG_NONE, &options->buffered, "Images through the page cache", NULL},
        {"watch-memory", 0, 0, G_OPTION_ARG_NONE, &options->watch_memory, "Measure memory instead of time", NULL},
        G_OPTION_ENTRY_NULL};
    g_autoptr(GOptionContext) context = g_option_context_new("source|target|save|save-instant|restore|restore-lazy URI");

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, error))
        return false;
    options->role = argc == 3 ? argv[1] : NULL;
    options->uri = argc == 3 ? argv[2] : NULL;
    if (find_role(options->role) && options->every >= 0 && options->touches > 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "expected source, target, save, save-instant, restore or restore-lazy, and a URI");
    return false;
}

int main(int argc, char **argv)
{
    static Bench bench = {.options = {.size_text = "2G",
                                      .fill = "random",
                                      .touch_text = "256M",
                                      .piece_text = "2M",
                                      .audit = "off",
                                      .channels = 2,
                                      .touches = 20000,
                                      .rate_text = "100M",
                                      .dirty_pages = 1000}};
    g_autoptr(GError) error = NULL;

    the_bench = &bench;
    bool good = parse(&bench.options, argc, argv, &error);
    if (good) {
        bench.size = bench_parse_size(bench.options.size_text);
        bench.touch = bench_parse_size(bench.options.touch_text);
        bench.piece = bench_parse_size(bench.options.piece_text);
        good = make_guest(&bench, &error) && find_role(bench.options.role)->run(&bench, &error);
    }
    if (!good)
        fprintf(stderr, "bench-guest: %s (%s)\n", error->message, vmf_error_id(error));
    vmf_guest_free(bench.guest);
    return good ? 0 : 1;
}
