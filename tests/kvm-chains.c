/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Every combination of vCPUs, dirty log, memory and channels, a chain of migrations each; a line a chain. Run by scripts/chains. */
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "machine/machine-private.h"
#include "tests/kvm-chain.h"

static int moves = 20;
static char *only;

typedef struct {
    unsigned passed, failed, skipped;
} Count;

static void run_chain(const VmfChainKind *kind, Count *count)
{
    g_autofree char *what = vmf_chain_describe(kind);
    g_autoptr(GError) error = NULL;
    VmfChainResult r;

    if (only && !strstr(what, only))
        return;
    if (vmf_chain_run(kind, (unsigned)moves, &r, &error)) {
        printf("passed: %s: %u migrations, verified: full, 0 errors, %" G_GUINT64_FORMAT " console lines, none lost (%" G_GUINT64_FORMAT
               " were begun at one host and ended at the next), %" G_GUINT64_FORMAT " pages sent again, longest downtime %.1f ms\n",
               what, r.moves, r.lines, r.cut_lines, r.pages_resent, (double)r.downtime_max_ns / 1e6);
        count->passed++;
    } else if (vmf_chain_is_skip(error)) {
        printf("skipped: %s: %s\n", what, error->message);
        count->skipped++;
    } else {
        printf("FAILED: %s: after %u migrations: %s\n", what, r.moves, error->message);
        count->failed++;
    }
    fflush(stdout);
}

static void run_all(Count *count)
{
    static const char *const logs[] = {"kvm-bitmap", "kvm-ring", "uffd-wp"};
    static const struct {
        VmfRamBackend ram;
        bool huge_pages;
    } memories[] = {{VMF_RAM_ANON, true}, {VMF_RAM_ANON, false}, {VMF_RAM_MEMFD, true}, {VMF_RAM_HUGETLB, true}};

    for (unsigned log = 0; log < G_N_ELEMENTS(logs); log++) {
        for (unsigned memory = 0; memory < G_N_ELEMENTS(memories); memory++) {
            for (unsigned vcpus = 1; vcpus <= 2; vcpus++) {
                for (unsigned channels = 1; channels <= 4; channels *= 2) {
                    VmfRamBackend ram = memories[memory].ram;
                    VmfChainKind kind = {vcpus, logs[log], ram, ram, memories[memory].huge_pages, channels, 0};

                    run_chain(&kind, count);
                }
            }
        }
    }
}

int main(int argc, char **argv)
{
    const GOptionEntry entries[] = {
        {"moves", 0, 0, G_OPTION_ARG_INT, &moves, "Migrations in a chain (20)", "N"},
        {"only", 0, 0, G_OPTION_ARG_STRING, &only, "Chains with TEXT in their description", "TEXT"},
        G_OPTION_ENTRY_NULL};
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) error = NULL;
    Count count = {0};

    setlocale(LC_ALL, "");
    signal(SIGPIPE, SIG_IGN);
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || argc > 1 || moves < 1) {
        fprintf(stderr, "kvm-chains: %s\n", error ? error->message : "expected options");
        return 2;
    }
    if (!vmf_kvm_works(&error)) {
        printf("skip: %s\n", error->message);
        return 77;
    }
    run_all(&count);
    printf("%u passed, %u failed, %u skipped\n", count.passed, count.failed, count.skipped);
    return count.failed ? 1 : count.passed ? 0 : 77;
}
