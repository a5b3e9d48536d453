/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/kvm-chain.h"
#include "tests/huge-pages.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifdef HAS_KVM
#include "machine/kvm.h"
#endif

#define MIB (UINT64_C(1) << 20)
#define MEMORY (VMF_CHAIN_HUGE_PAGES * 2 * MIB)
#define SET (32 * MIB)
#define NEVER_TOUCHED (24 * MIB)  /* of memory, at least */
#define DIRTY_MAX (2048 * MIB)    /* a second: more than there is time for */
#define LIFE_MS 60                /* how long the guest runs at each host */
#define LINE_MS 20
#define CLOCK_STEP_MAX_NS UINT64_C(20000000000)
#define LINE "guest: line "

typedef struct {
    const VmfChainKind *kind;
    VmfChainResult *result;
    GString *console; /* of the hosts that the guest has left */
    char *path;       /* of the console of the host where it is */
    VmfMachine *machine;
} Chain;

static void chain_clear(Chain *chain)
{
    vmf_machine_free(chain->machine);
    if (chain->path)
        unlink(chain->path);
    g_free(chain->path);
    if (chain->console)
        g_string_free(chain->console, true);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Chain, chain_clear)

__attribute__((format(printf, 2, 3))) static bool wrong(GError **error, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    g_set_error_literal(error, VMF_ERROR, VMF_ERROR_GUEST, text);
    return false;
}

bool vmf_chain_is_skip(const GError *error)
{
    return g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED) || g_error_matches(error, VMF_ERROR, VMF_ERROR_HUGE_PAGES);
}

static const char *memory_name(VmfRamBackend ram, bool huge_pages)
{
    return ram != VMF_RAM_ANON ? vmf_ram_backend_name(ram) : huge_pages ? "anon-huge" : "anon-4k";
}

char *vmf_chain_describe(const VmfChainKind *kind)
{
    g_autofree char *memory = g_strdup(memory_name(kind->ram, kind->huge_pages));

    if (kind->other != kind->ram) {
        g_free(memory);
        memory = g_strdup_printf("%s and %s", memory_name(kind->ram, kind->huge_pages), memory_name(kind->other, kind->huge_pages));
    }
    return g_strdup_printf("%u vCPU%s, %s, %s, %u channel%s", kind->vcpus, kind->vcpus == 1 ? "" : "s", kind->dirty_log, memory,
                           kind->channels, kind->channels == 1 ? "" : "s");
}

/* ---- hosts ------------------------------------------------------------------------------------------------------- */

static char *console_path(unsigned host)
{
    return g_strdup_printf("%s/vmferry-chain-%d-%u", g_get_tmp_dir(), (int)getpid(), host);
}

static VmfMachine *make(const Chain *chain, unsigned host, const char *console, GError **error)
{
    const VmfChainKind *kind = chain->kind;
    VmfMachineConfig config = {
        .name = "guest",
        .backend = "kvm",
        .vcpus = kind->vcpus,
        .dirty_log = kind->dirty_log,
        .memory_bytes = MEMORY,
        .ram_backend = host % 2 ? kind->other : kind->ram,
        .huge_pages = kind->huge_pages,
        .dirty_bytes_per_second = kind->dirty_bytes_per_second ? kind->dirty_bytes_per_second : DIRTY_MAX,
        .set_bytes = SET,
        .seed = 7,
        .line_ms = LINE_MS,
        .console_path = console,
    };

    return vmf_machine_new(&config, error);
}

static VmfMachineInfo info_of(VmfMachine *m)
{
    VmfMachineInfo info;

    vmf_machine_get_info(m, &info);
    return info;
}

/* Waits until the guest has lived @beats more milliseconds. */
static bool let_live(VmfMachine *m, uint64_t beats, GError **error)
{
    uint64_t until = info_of(m).beats + beats;

    while (info_of(m).beats < until) {
        if (!vmf_machine_is_running(m))
            return wrong(error, "the guest does not run");
        g_usleep(1000);
    }
    return true;
}

/* A guest that shares its processors with many takes its time. */
static bool let_fill_its_set(VmfMachine *m, GError **error)
{
    while (info_of(m).pages_written < SET / 4096) {
        if (!let_live(m, 1, error))
            return false;
    }
    return true;
}

/* The host is left: keeps what the guest said there. A line that was not complete has moved on with it. */
static bool leave_host(Chain *chain, VmfMachine *left, GError **error)
{
    g_autofree char *text = NULL;
    gsize length;

    vmf_machine_free(left);
    if (!g_file_get_contents(chain->path, &text, &length, error))
        return false;
    unlink(chain->path);
    g_clear_pointer(&chain->path, g_free);
    if (length && text[length - 1] != '\n')
        return wrong(error, "a line is cut between two consoles");
    g_string_append(chain->console, text);
    return true;
}

/* ---- a move ------------------------------------------------------------------------------------------------------ */

/* The clock as of the stop, and as it is at the target by now. */
static bool check_clock(VmfMachine *from, VmfMachine *to, GError **error)
{
#ifdef HAS_KVM
    struct kvm_clock_data now;
    uint64_t then_ns = from->kvm->wire.clock.clock_ns;

    if (ioctl(to->kvm->vm_fd, KVM_GET_CLOCK, &now) < 0)
        return wrong(error, "KVM_GET_CLOCK: %s", g_strerror(errno));
    if (now.clock < then_ns || now.clock - then_ns > CLOCK_STEP_MAX_NS)
        return wrong(error, "the guest's clock was at %" PRIu64 " ns when it was stopped and is at %" PRIu64 " ns now", then_ns,
                     (uint64_t)now.clock);
#endif
    return true;
}

static bool check_trip(const VmfTrip *trip, GError **error)
{
    if (trip->source.verified != VMF_VERIFIED_FULL)
        return wrong(error, "verified: %s", vmf_verified_word(trip->source.verified));
    if (trip->source.chunks_mended)
        return wrong(error, "%u chunks were mended", trip->source.chunks_mended);
    if (!trip->source.live_rounds_resent)
        return wrong(error, "no page was sent again while the guest ran");
    if (trip->source.pages_hole < NEVER_TOUCHED / 4096)
        return wrong(error, "%" PRIu64 " pages count as never touched, %" PRIu64 " are", trip->source.pages_hole, NEVER_TOUCHED / 4096);
    return true;
}

static bool move(VmfMachine *from, VmfMachine *to, const Chain *chain, GError **error)
{
    VmfChainResult *result = chain->result;
    VmfTrip trip;
    bool good;

    vmf_trip_init(&trip);
    trip.listen_uri = "tcp:127.0.0.1:0";
    trip.source_parameters.channels = chain->kind->channels;
    trip.source_parameters.minimum_rounds = 3;
    good = vmf_trip_run(&trip, vmf_machine_guest(from), vmf_machine_guest(to));
    if (!good)
        wrong(error, "source: %s; target: %s; %s", trip.source_error ? trip.source_error->message : "well",
              trip.target_error ? trip.target_error->message : "well", trip.events);
    good = good && check_trip(&trip, error) && check_clock(from, to, error);
    result->pages_resent += trip.source.pages_resent;
    result->downtime_max_ns = MAX(result->downtime_max_ns, trip.source.downtime_ns);
    result->guest_gap_max_ns = MAX(result->guest_gap_max_ns, trip.source.guest_gap_ns);
    vmf_trip_clear(&trip);
    return good;
}

static bool move_on(Chain *chain, unsigned host, GError **error)
{
    g_autofree char *path = console_path(host);
    VmfMachine *from = chain->machine, *to = make(chain, host, path, error);

    if (!to)
        return false;
    if (!move(from, to, chain, error) || vmf_machine_is_running(from)) {
        vmf_machine_free(to);
        unlink(path);
        return *error ? false : wrong(error, "the guest runs at both ends");
    }
    chain->result->cut_lines += from->console.length > 0;
    chain->machine = to;
    if (!leave_host(chain, from, error))
        return false;
    chain->path = g_steal_pointer(&path);
    return let_live(to, LIFE_MS, error);
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

/* Each line in its place, from the first to the last that was complete. */
static bool check_console(const char *text, uint64_t lines, GError **error)
{
    uint64_t expected = 0;

    for (const char *at = text, *end; *at; at = end + 1, expected++) {
        end = strchr(at, '\n');
        if (strncmp(at, LINE, strlen(LINE)) != 0 || strtoull(at + strlen(LINE), NULL, 10) != expected)
            return wrong(error, "console: line %" PRIu64 " is '%.*s'", expected, (int)(end - at), at);
    }
    return expected == lines || wrong(error, "console: %" PRIu64 " lines, the guest has said %" PRIu64, expected, lines);
}

static bool conclude(Chain *chain, GError **error)
{
    VmfMachine *last = g_steal_pointer(&chain->machine);
    VmfMachineInfo info;

    vmf_machine_stop(last, NULL);
    info = info_of(last);
    chain->result->lines = info.console_lines;
    chain->result->pages_written = info.pages_written;
    if (!leave_host(chain, last, error) || !check_console(chain->console->str, info.console_lines, error))
        return false;
    if (info.console_lines_lost || info.guest_errors)
        return wrong(error, "%" PRIu64 " lines could not be written, %" PRIu64 " errors found by the guest, the latest at 0x%" PRIx64,
                     info.console_lines_lost, info.guest_errors, info.guest_error_address);
    return info.vcpus == chain->kind->vcpus || wrong(error, "%u vCPUs", info.vcpus);
}

static bool run_chain(const VmfChainKind *kind, unsigned moves, VmfChainResult *result, GError **error)
{
    g_auto(Chain) chain = {.kind = kind, .result = result, .console = g_string_new(NULL), .path = console_path(0)};
    g_autoptr(GError) why = NULL;

    *result = (VmfChainResult){0};
    chain.machine = make(&chain, 0, chain.path, &why);
    bool good = chain.machine && vmf_machine_start(chain.machine, &why) && let_fill_its_set(chain.machine, &why);
    for (; good && result->moves < moves; result->moves++)
        good = move_on(&chain, result->moves + 1, &why);
    good = good && conclude(&chain, &why);
    if (!good)
        g_propagate_error(error, g_steal_pointer(&why));
    return good;
}

/* Without enough huge pages the first host cannot be made, and says so. */
bool vmf_chain_run(const VmfChainKind *kind, unsigned moves, VmfChainResult *result, GError **error)
{
    bool huge = kind->ram == VMF_RAM_HUGETLB || kind->other == VMF_RAM_HUGETLB;

    if (huge)
        vmf_test_huge_pages(2 * VMF_CHAIN_HUGE_PAGES);
    bool good = run_chain(kind, moves, result, error);
    if (huge)
        vmf_test_huge_pages_end();
    return good;
}
