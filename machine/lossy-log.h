/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A dirty log that loses one write: a fault, put around a log that works, with which the audits are tried. At a harvest
 * chosen by a seed, one page of those that were written is cleared and not reported; from then on it is an honest log
 * again, which reports the page if it is written another time.
 */
#ifndef MACHINE_LOSSY_LOG_H
#define MACHINE_LOSSY_LOG_H

#include <vmferry/guest.h>

typedef struct VmfLossyLog VmfLossyLog;

/* @guest: whose log it is. @inner is not copied. */
VmfLossyLog *vmf_lossy_log_new(VmfGuest *guest, const VmfDirtyLogOps *inner, void *inner_opaque, uint64_t seed);
void vmf_lossy_log_free(VmfLossyLog *log);

/* Named as the inner log is; their opaque is the VmfLossyLog. */
const VmfDirtyLogOps *vmf_lossy_log_ops(const VmfLossyLog *log);

/* Whether it has lost its write, and which. Any thread. */
bool vmf_lossy_log_lost(VmfLossyLog *log, unsigned *block, uint64_t *page);

#endif
