/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One save in this process, for tests: its settings, its session in a thread, and what came of it. */
#ifndef TESTS_SAVE_RIG_H
#define TESTS_SAVE_RIG_H

#include <pthread.h>

#include <vmferry/vmferry.h>

#include "machine/machine.h"
#include "stream/storage-fault.h"

typedef struct {
    char *folder; /* its own; removed at the end with all that is in it */
    char *path;   /* of the image */
    VmfSaveOptions options;
    VmfParameters parameters;
    const VmfStorageFault *faults; /* of the storage; NULL: it is sound */
    size_t n_faults;

    VmfSession *session;
    VmfStorage *storage; /* the session's, while it runs, if faults were asked for */
    pthread_t thread;
    bool done;
    GError *error;
    VmfStatistics statistics;
    GString *events; /* "id: text", a line each */
} VmfSaveRig;

/*
 * A machine whose guest dirties a quarter of its @memory_mib at 8 MiB/s, and has filled it. Paced: a save's threads stand behind the
 * guest's, which would leave them little of a busy host.
 */
VmfMachine *vmf_save_machine(unsigned memory_mib);
/* The same, running. */
VmfMachine *vmf_save_machine_running(unsigned memory_mib);

void vmf_save_rig_init(VmfSaveRig *rig);
void vmf_save_rig_clear(VmfSaveRig *rig);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(VmfSaveRig, vmf_save_rig_clear)

/* Any number of times, one after the other. Returns whether it says that it is done. */
bool vmf_save_rig_run(VmfSaveRig *rig, VmfGuest *guest);
void vmf_save_rig_start(VmfSaveRig *rig, VmfGuest *guest);
bool vmf_save_rig_finish(VmfSaveRig *rig);

/* What stands where the image is to go before it does, and whether it is still that and alone in its folder. */
void vmf_save_rig_put_old(VmfSaveRig *rig);
void vmf_save_rig_assert_old(VmfSaveRig *rig);

#endif
