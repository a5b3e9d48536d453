/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults that a machine meets at named points of its handovers, for tests: `vmferry run --fault POINT=ACTION`.
 *
 * Points are what the engine tells VmfParameters.fault: a step and `.due` or `.done`, such as "source.send.run.done" or
 * "target.journal.started.due". An action happens the first time that its point is passed:
 *
 *   kill          the process is killed (SIGKILL)
 *   stop          it is stopped (SIGSTOP), until somebody sends SIGCONT
 *   cut[:TIME]    every channel to the peer is cut; those that are opened within TIME as well (none)
 *   silent[:TIME] nothing goes through any channel any more, nor through those that are opened within TIME (for ever)
 *
 * `--fault list` writes a line to standard error for each point that is passed.
 */
#ifndef VMFERRY_TOOLS_FAULTS_H
#define VMFERRY_TOOLS_FAULTS_H

#include <glib.h>
#include <stdbool.h>
#include <vmferry/channel.h>

typedef struct VmfFaults VmfFaults;

/* @texts as above, ends with NULL. */
VmfFaults *vmf_faults_new(const char *const *texts, GError **error);
void vmf_faults_free(VmfFaults *faults);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfFaults, vmf_faults_free)

/* What all channels have to go over. Owned by the faults. */
VmfLink *vmf_faults_link(VmfFaults *faults);
/* A session passes @point. Any thread. */
void vmf_faults_pass(VmfFaults *faults, const char *point);

#endif
