/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is known of a guest's owner, as people and programs are told: what was found, what it means, what to type. */
#ifndef VMFERRY_TOOLS_OWNERSHIP_WORDS_H
#define VMFERRY_TOOLS_OWNERSHIP_WORDS_H

#include "tools/ownership.h"

/* One sentence each, owned by the caller: the verdict, and what to type (NULL: nothing). */
char *vmf_ownership_verdict_text(const VmfOwnership *ownership);
char *vmf_ownership_advice(const VmfOwnership *ownership);
/* The guest is this source's again, and stands only because another has the lock of its storage. */
bool vmf_ownership_waits_for_storage(const VmfOwnership *ownership);
/* The guest was restored here, and stands because a part of its memory cannot be had. */
bool vmf_ownership_lacks_memory(const VmfOwnership *ownership);
/* What was found: a line for each of journal, machine and target; owned by the caller (g_strfreev). */
char **vmf_ownership_facts(const VmfOwnership *ownership);
/* The members of the summary, owned by the caller. */
json_t *vmf_ownership_json(const VmfOwnership *ownership);

#endif
