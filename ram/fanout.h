/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Rounds over several lanes: threads that serve them, alive as long as the fan-out, and the session's thread, which starts a round and
 * waits for its end.
 */
#ifndef RAM_FANOUT_H
#define RAM_FANOUT_H

#include "ram/lane.h"

typedef struct VmfFanout VmfFanout;

/*
 * @lanes: one for each lane of @save, copied; their sinks are taken, also on failure. Starts the threads: no more than @n_threads, where
 * lanes can share one. 0: as many as there are CPUs for this process.
 */
VmfFanout *vmf_fanout_new(VmfRamSave *save, const VmfLaneConfig *lanes, unsigned n_lanes, unsigned n_threads, GError **error);
/* Ends the threads and waits for them. What they wait for must have been shut down if it can block. */
void vmf_fanout_free(VmfFanout *fanout);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfFanout, vmf_fanout_free)

/*
 * Sends every chunk that has dirty pages now, once. The first round also closes the counts. False: the first error of any lane;
 * the others have stopped then.
 */
bool vmf_fanout_round(VmfFanout *fanout, GError **error);

#endif
