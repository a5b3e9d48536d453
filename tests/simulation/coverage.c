/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/simulation/coverage.h"

#include <stdint.h>
#include <string.h>

#include "migration/handover.h"

static uint64_t source_cells[VMF_SOURCE_N][VMF_SOURCE_EV_N], target_cells[VMF_TARGET_N][VMF_TARGET_EV_N];

VmfSourceAction __real_vmf_handover_source_step(const VmfSourceTable *table, VmfSourceState *state, VmfSourceEvent event);
VmfSourceAction __wrap_vmf_handover_source_step(const VmfSourceTable *table, VmfSourceState *state, VmfSourceEvent event);
VmfTargetAction __real_vmf_handover_target_step(const VmfTargetTable *table, VmfTargetState *state, VmfTargetEvent event);
VmfTargetAction __wrap_vmf_handover_target_step(const VmfTargetTable *table, VmfTargetState *state, VmfTargetEvent event);

VmfSourceAction __wrap_vmf_handover_source_step(const VmfSourceTable *table, VmfSourceState *state, VmfSourceEvent event)
{
    source_cells[*state][event]++;
    return __real_vmf_handover_source_step(table, state, event);
}

VmfTargetAction __wrap_vmf_handover_target_step(const VmfTargetTable *table, VmfTargetState *state, VmfTargetEvent event)
{
    target_cells[*state][event]++;
    return __real_vmf_handover_target_step(table, state, event);
}

void coverage_clear(void)
{
    memset(source_cells, 0, sizeof(source_cells));
    memset(target_cells, 0, sizeof(target_cells));
}

/* What the exchange never asks its table, and why. */
static const char *why_not_source(unsigned state, unsigned event)
{
    if (state == VMF_SOURCE_COMMITTING && event == VMF_SOURCE_EV_STARTED)
        return "STARTED is an answer, and nothing is asked before ASKING";
    if (state == VMF_SOURCE_RETURNING && event == VMF_SOURCE_EV_RUNNING)
        return "somebody said that the source is dead, had the target run, and erred";
    return NULL;
}

static void report_cell(FILE *out, const char *side, const char *state, const char *event, const char *why)
{
    fprintf(out, "  not reached: %s: %s on %s%s%s\n", side, state, event, why ? ": " : "", why ? why : "");
}

unsigned coverage_report(FILE *out)
{
    unsigned n_source = 0, n_source_reached = 0, n_target = 0, n_target_reached = 0, missing = 0;

    for (unsigned s = 0; s < VMF_SOURCE_N; s++)
        for (unsigned e = 0; e < VMF_SOURCE_EV_N; e++)
            if (vmf_source_table[s][e].next != VMF_SOURCE_PRECOPY) {
                n_source++;
                n_source_reached += source_cells[s][e] > 0;
            }
    for (unsigned s = 0; s < VMF_TARGET_N; s++)
        for (unsigned e = 0; e < VMF_TARGET_EV_N; e++)
            if (vmf_target_table[s][e].next != VMF_TARGET_LOADING) {
                n_target++;
                n_target_reached += target_cells[s][e] > 0;
            }
    fprintf(out, "cells reached: source %u of %u, target %u of %u\n", n_source_reached, n_source, n_target_reached, n_target);
    for (unsigned s = 0; s < VMF_SOURCE_N; s++)
        for (unsigned e = 0; e < VMF_SOURCE_EV_N; e++) {
            if (vmf_source_table[s][e].next == VMF_SOURCE_PRECOPY || source_cells[s][e] > 0)
                continue;
            report_cell(out, "source", vmf_source_state_name(s), vmf_source_event_name(e), why_not_source(s, e));
            missing += why_not_source(s, e) == NULL;
        }
    for (unsigned s = 0; s < VMF_TARGET_N; s++)
        for (unsigned e = 0; e < VMF_TARGET_EV_N; e++) {
            if (vmf_target_table[s][e].next == VMF_TARGET_LOADING || target_cells[s][e] > 0)
                continue;
            report_cell(out, "target", vmf_target_state_name(s), vmf_target_event_name(e), NULL);
            missing++;
        }
    return missing;
}
