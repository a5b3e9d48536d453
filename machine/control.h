/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The control of one machine: its socket in the QMP dialect (docs/qmp.rst), its migrations, its end.
 *
 * Everything here is for the thread that runs the default main context; migrations have threads of their own.
 */
#ifndef VMFERRY_MACHINE_CONTROL_H
#define VMFERRY_MACHINE_CONTROL_H

#include <jansson.h>
#include <vmferry/vmferry.h>

#include "machine/machine.h"

typedef struct VmfControl VmfControl;

typedef struct {
    VmfMachine *machine;   /* outlives the control */
    const char *name;      /* of the machine */
    const char *host_name; /* told to peers */
    const char *socket_path;
    bool incoming; /* the guest is to arrive: nothing runs before */
    bool paused;   /* with incoming: it does not run before cont */
    bool insecure; /* plaintext off the loopback is allowed */
    VmfJournal *journal;   /* of the handovers; outlives the control. NULL: none */
    const char *state_dir; /* where it is, for people; copied. NULL: nowhere */
    VmfLink *link;         /* all channels of migrations go over it, so that tests can let it fail; outlives the control. NULL: none */
    bool (*fault)(void *opaque, const char *point); /* VmfParameters.fault of each session; with this struct's opaque */
    /* Every event that the clients get, as they get it. Main loop's thread. May be NULL. */
    void (*event)(void *opaque, const json_t *event);
    /* What its migrations report, whatever the clients have switched off: each status (@id "status"), each event of the session, and
     * the end ("ended": the outcome, and why). @side: "source" or "target". Main loop's thread. May be NULL. */
    void (*log)(void *opaque, const char *side, const char *id, const char *text);
    void *opaque;
} VmfControlConfig;

/* Strings are copied. The socket answers once the main loop runs. */
VmfControl *vmf_control_new(const VmfControlConfig *config, GError **error);
/* Ends a migration that still runs (cancels and waits), closes the socket. NULL is allowed. */
void vmf_control_free(VmfControl *control);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfControl, vmf_control_free)

/*
 * Begins to wait for the guest at @uri; what is an image there (a file that begins as one does, an NBD export) is restored, by
 * @mode; a guest that comes by itself comes eagerly (VMF_ERROR_USAGE otherwise). Once only, and only with config.incoming.
 */
bool vmf_control_incoming(VmfControl *control, const char *uri, VmfRestoreMode mode, GError **error);
/* The same from the image that @options names, by @n_threads threads (0: as the parameters say). */
bool vmf_control_restore(VmfControl *control, const VmfRestoreOptions *options, unsigned n_threads, GError **error);
/* The address as bound, also after the guest has come; NULL: none was. */
const char *vmf_control_incoming_uri(const VmfControl *control);

/*
 * The owner's stop and cont; refused while the guest is not the owner's to run. cont also while the journal has an offer of this
 * machine's guest without an outcome (VMF_ERROR_OFFERED): the guest may be running elsewhere.
 */
bool vmf_control_stop_guest(VmfControl *control, GError **error);
bool vmf_control_cont_guest(VmfControl *control, GError **error);

/* Serves until quit. False with @error: the guest that was to arrive did not. */
bool vmf_control_run(VmfControl *control, GError **error);

/* A person's word on a guest that is held here, as vmf_session_resolve(). */
bool vmf_control_resolve(VmfControl *control, bool run, bool fenced, GError **error);

/*
 * Ends vmf_control_run() after the migration that runs has been cancelled. @reason as in QEMU's SHUTDOWN event. A guest that is held here
 * goes with it: vmf_control_run() then fails with VMF_ERROR_HELD, and what is known of the guest is in the journal alone.
 */
void vmf_control_quit(VmfControl *control, const char *reason);

#endif
