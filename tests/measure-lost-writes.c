/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For scripts/lost-writes: how often each audit finds a lost write, and what the log audit costs, over many seeds. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "machine/machine-private.h"
#include "tests/lost-writes.h"

#define MIB (UINT64_C(1) << 20)

typedef struct {
    const char *backend, *log;
    uint64_t max_bandwidth; /* bytes a second; 0: none */
} Case;

static const Case cases[] = {
    {"rv32", "rv32", 0},
    {"kvm", "kvm-bitmap", 0},
    {"kvm", "uffd-wp", 0},
    {"rv32", "rv32", 125000000},
    {"kvm", "kvm-bitmap", 125000000},
    {"kvm", "uffd-wp", 125000000},
};

typedef struct {
    unsigned found[VMF_FINDING_N];
    uint64_t audit_cpu_ns, rounds_ns, pages_looked_at, pages;
} Sums;

static VmfLostWriteSetting setting_of(const Case *c, VmfAudit audit)
{
    return (VmfLostWriteSetting){
        .machine = {.name = "guest", .backend = c->backend, .dirty_log = c->log, .memory_bytes = 80 * MIB,
                    .dirty_bytes_per_second = 20 * MIB, .set_bytes = 64 * MIB, .seed = 7},
        .audit = audit,
        .minimum_rounds = 6,
        .max_bandwidth = c->max_bandwidth,
    };
}

static bool works(const Case *c, GError **error)
{
    VmfLostWriteSetting setting = setting_of(c, VMF_AUDIT_AFTER);

    if (strcmp(c->backend, "kvm") == 0 && !vmf_kvm_works(error))
        return false;
    VmfMachine *machine = vmf_machine_new(&setting.machine, error);
    vmf_machine_free(machine);
    return machine != NULL;
}

static unsigned n_mattered(const Sums *sums)
{
    return sums->found[VMF_FOUND_BY_LOG_AUDIT] + sums->found[VMF_FOUND_BY_FULL_AUDIT];
}

/* False: an audit was wrong. */
static bool run_seeds(const Case *c, VmfAudit audit, unsigned n, uint64_t first_seed, Sums *sums)
{
    VmfLostWriteSetting setting = setting_of(c, audit);

    for (uint64_t seed = first_seed; n_mattered(sums) < n; seed++) {
        VmfLostWriteRun run = vmf_lose_write(&setting, seed);
        sums->found[run.finding]++;
        sums->audit_cpu_ns += run.log_audit_cpu_ns;
        sums->rounds_ns += run.rounds_ns;
        sums->pages_looked_at += run.log_audit_pages;
        sums->pages += run.pages;
        if (run.finding == VMF_FOUND_WRONG)
            fprintf(stderr, "lost-writes: %s: seed %" PRIu64 ": %s\n", c->log, seed, run.text);
        g_free(run.text);
        if (run.finding == VMF_FOUND_WRONG)
            return false;
    }
    return true;
}

static void show(const Case *c, VmfAudit audit, const Sums *sums, bool json)
{
    double share = sums->rounds_ns ? 100.0 * (double)sums->audit_cpu_ns / (double)sums->rounds_ns : 0;
    double looked = sums->pages ? (double)sums->pages_looked_at / (double)sums->pages : 0;
    g_autofree char *link =
        c->max_bandwidth ? g_strdup_printf("%" PRIu64 " MB/s", c->max_bandwidth / 1000000) : g_strdup("no limit");

    printf(json ? "{\"dirty_log\":\"%s\",\"max_bandwidth\":\"%s\",\"audit\":\"%s\",\"found\":%u,\"found_by_log_audit\":%u,"
                  "\"found_by_full_audit\":%u,\"found_by_sum\":%u,\"harmless\":%u,"
                  "\"log_audit_percent_of_core\":%.2f,\"looked_at_per_page_sent\":%.2f}\n"
                : "%-11s %-9s %-7s %6u %9u %10u %3u %8u %8.1f %% %11.2f\n",
           c->log, link, vmf_audit_name(audit), n_mattered(sums), sums->found[VMF_FOUND_BY_LOG_AUDIT],
           sums->found[VMF_FOUND_BY_FULL_AUDIT], sums->found[VMF_FOUND_BY_SUM], sums->found[VMF_FOUND_HARMLESS],
           share, looked);
    fflush(stdout);
}

static bool measure(const Case *c, VmfAudit audit, unsigned n, uint64_t first_seed, bool json)
{
    g_autoptr(GError) error = NULL;
    Sums sums = {0};

    if (!works(c, &error)) {
        fprintf(stderr, "lost-writes: skipped: %s\n", error->message);
        return true;
    }
    if (!run_seeds(c, audit, n, first_seed, &sums))
        return false;
    show(c, audit, &sums, json);
    return true;
}

int main(int argc, char **argv)
{
    g_autofree char *audit_name = g_strdup("before"), *log = NULL;
    int n = 100, first_seed = 1;
    gboolean json = false;
    const GOptionEntry entries[] = {
        {"runs", 0, 0, G_OPTION_ARG_INT, &n, "So many runs in which the lost write made a difference, each (100)", "N"},
        {"seed", 0, 0, G_OPTION_ARG_INT, &first_seed, "The first seed (1)", "N"},
        {"audit", 0, 0, G_OPTION_ARG_STRING, &audit_name, "before or after (before)", "WHEN"},
        {"dirty-log", 0, 0, G_OPTION_ARG_STRING, &log, "Only this one", "NAME"},
        {"json", 0, 0, G_OPTION_ARG_NONE, &json, "A line of JSON for each", NULL},
        G_OPTION_ENTRY_NULL};
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) error = NULL;
    VmfAudit audit;
    bool good = true;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || argc > 1 || n < 1 || first_seed < 1 ||
        !vmf_audit_parse(audit_name, &audit, &error) || audit == VMF_AUDIT_OFF) {
        fprintf(stderr, "lost-writes: %s\n", error ? error->message : "wrong arguments; see --help");
        return 2;
    }
    if (!json)
        printf("dirty log   link      audit    found log audit full audit sum harmless  of a core  looked at\n");
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++)
        if (!log || strcmp(log, cases[i].log) == 0)
            good &= measure(&cases[i], audit, (unsigned)n, (uint64_t)first_seed, json);
    return good ? 0 : 1;
}
