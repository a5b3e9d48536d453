/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Both ends of a migration in one process, for tests: two reference machines, a link between them, a session on each side in its own
 * thread.
 */
#ifndef TESTS_WORLD_H
#define TESTS_WORLD_H

#include <pthread.h>

#include <vmferry/vmferry.h>

#include "machine/machine.h"

/* One migration's settings and what came of it. */
typedef struct {
    const char *listen_uri; /* NULL: memory channels */
    bool is_over_fd;        /* a pair of sockets instead: one channel, which cannot be opened again */
    VmfParameters source_parameters;
    VmfParameters target_parameters;
    int64_t target_silence_ns; /* how long a source may say nothing; 0: as it is */
    VmfChannelWrap wrap_source; /* around what the source opens */
    VmfChannelWrap wrap_target;
    void *wrap_opaque;
    bool keeps_holds; /* a session that holds the guest is not cancelled */

    bool source_done, target_done;
    GError *source_error, *target_error;
    VmfStatistics source, target;
    char *events; /* all events of both sides, one a line "source id: text" */
} VmfTrip;

void vmf_trip_init(VmfTrip *trip);
void vmf_trip_clear(VmfTrip *trip);

/* Runs a migration from @source to @target to its end at both. Returns whether both say that it was done. */
bool vmf_trip_run(VmfTrip *trip, VmfGuest *source, VmfGuest *target);

/* The same in pieces, for tests that interfere. */
typedef struct VmfTripRunning VmfTripRunning;
VmfTripRunning *vmf_trip_start(VmfTrip *trip, VmfGuest *source, VmfGuest *target);
VmfSession *vmf_trip_source(VmfTripRunning *running);
VmfSession *vmf_trip_target(VmfTripRunning *running);
bool vmf_trip_finish(VmfTripRunning *running);

/* A journal in a directory of its own. */
typedef struct {
    char *directory;
    VmfJournal *journal;
} VmfTestJournal;

void vmf_test_journal_init(VmfTestJournal *journal);
/* Removes it with its directory. Returns the state of its entry, of which there must not be more than one; NONE: there is none. Asserts. */
VmfJournalState vmf_test_journal_clear(VmfTestJournal *journal);

/* A machine with @memory_mib of memory that dirties @dirty over @set bytes, unpaced. Asserts. */
VmfMachine *vmf_test_machine(const char *name, unsigned memory_mib, VmfRamBackend backend, uint64_t dirty, uint64_t set);

#endif
