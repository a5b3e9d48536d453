/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How fast the guest writes, measured over a moment.
 *
 * The log tells a page once a round, so over a long round a guest that writes its working set ten times looks like one that writes it
 * once: neither the need for throttling nor its effect can be seen. So between two rounds the log is cleared for some of the chunks
 * that the guest has just written (their pages stay pending), and what is written there within a moment is counted. Nothing is sent
 * meanwhile, so the caller does this where the moment is short beside a round.
 */
#ifndef RAM_DIRTY_SAMPLE_H
#define RAM_DIRTY_SAMPLE_H

#include "ram/ram-save.h"

typedef struct VmfDirtySample VmfDirtySample;

/* After a harvest, with no lane under way. NULL: nothing is pending, so there is nothing to measure. */
VmfDirtySample *vmf_dirty_sample_begin(VmfRamSave *save);
/* Harvests, and puts the rate into @save->dirty_rate. */
bool vmf_dirty_sample_end(VmfDirtySample *sample, GError **error);
void vmf_dirty_sample_free(VmfDirtySample *sample);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfDirtySample, vmf_dirty_sample_free)

#endif
