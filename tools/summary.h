/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a migration came to: who runs the guest, what it cost, with what exit code. */
#ifndef VMFERRY_TOOLS_SUMMARY_H
#define VMFERRY_TOOLS_SUMMARY_H

#include <jansson.h>
#include <stdbool.h>

typedef enum {
    VMF_HOLD_HANDOVER,         /* "handover": the last question of the handover was not answered */
    VMF_HOLD_DIED_WITH_SOURCE, /* "died-with-source": the machine's process is gone, no switchover was seen to begin */
    VMF_HOLD_SOURCE_GONE,      /* "source-gone": it is gone, and a switchover had begun */
    VMF_HOLD_UNWATCHED,        /* "unwatched": the migration goes on, and this command does not see it any more */
} VmfHold;

typedef struct {
    const char *name;      /* of the machine */
    const char *host_name; /* this host's */
    const json_t *detail;  /* x-vmferry of query-migrate, of a migration that has ended */
    const json_t *machine; /* x-vmferry-query-machine, as it was when the guest was last here */
    bool was_running;      /* before the migration */
    bool runs_here;        /* now */
    bool machine_gone;     /* its process has ended meanwhile */
    VmfHold hold;          /* of the outcome "held": what is not known, and why */
} VmfSummary;

int vmf_summary_exit_code(const VmfSummary *summary);
/* {"type":"summary", …}, owned by the caller. */
json_t *vmf_summary_json(const VmfSummary *summary);
/* One sentence, without "vmferry: " and newline; owned by the caller (g_free). */
char *vmf_summary_text(const VmfSummary *summary);
/* The error, what does not fit, what is to be looked at; says nothing when all is well. */
void vmf_summary_complain(const VmfSummary *summary, bool json);

#endif
