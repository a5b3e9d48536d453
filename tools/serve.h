/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A machine that this process makes, serves on its control socket and ends with: what verbs that do so have in common. The steps are called
 * in the order in which they stand here; whatever fails, vmf_serve_clear() is due.
 */
#ifndef VMFERRY_TOOLS_SERVE_H
#define VMFERRY_TOOLS_SERVE_H

#include <vmferry/journal.h>

#include "machine/control.h"
#include "tools/common.h"
#include "tools/disk-option.h"
#include "tools/event-log.h"
#include "tools/faults.h"

/* Of the command line; strings owned. */
typedef struct {
    char *dirty_log, *backend, *ram, *console, *lock, *state_dir, *host_name;
    char **faults, **disks;
    gboolean paused, daemon, unpaced, small_pages, insecure;
} VmfServeOptions;

/* The options of @o (VmfServeOptions *), for an array of GOptionEntry. */
#define VMF_SERVE_ENTRIES(o)                                                                                                            \
    {"backend", 0, 0, G_OPTION_ARG_STRING, &(o)->backend,                                                                               \
     "What executes the guest: rv32, kvm, or auto, which is kvm where it works (auto)", "NAME"},                                        \
    {"dirty-log", 0, 0, G_OPTION_ARG_STRING, &(o)->dirty_log,                                                                           \
     "How its writes are recorded: auto, rv32, kvm-bitmap, kvm-ring or uffd-wp (auto)", "NAME"},                                        \
    {"ram", 0, 0, G_OPTION_ARG_STRING, &(o)->ram, "What its memory is made of: anon, memfd or hugetlb (anon)", "KIND"},                 \
    {"small-pages", 0, 0, G_OPTION_ARG_NONE, &(o)->small_pages, "No transparent huge pages", NULL},                                     \
    {"paused", 0, 0, G_OPTION_ARG_NONE, &(o)->paused, "Do not run the guest before cont", NULL},                                        \
    {"daemon", 0, 0, G_OPTION_ARG_NONE, &(o)->daemon, "Go on in the background once the control socket answers", NULL},                 \
    {"console", 0, 0, G_OPTION_ARG_FILENAME, &(o)->console, "Append the guest's console to FILE (beside the control socket)", "FILE"},  \
    {"unpaced", 0, 0, G_OPTION_ARG_NONE, &(o)->unpaced, "Let the guest run as fast as it can", NULL},                                   \
    {"lock", 0, 0, G_OPTION_ARG_FILENAME, &(o)->lock,                                                                                   \
     "A file whose lock stands for shared storage: held while the guest may run here, handed over with it", "FILE"},                    \
    {"disk", 0, 0, G_OPTION_ARG_STRING_ARRAY, &(o)->disks,                                                                              \
     "A disk: a file (made with that size where it is not there), a block device or nbd:…; may be repeated",                            \
     "NAME=URI[,size=SIZE][,sector=N][,readonly][,buffered][,no-lock]"},                                                                \
    {"state-dir", 0, 0, G_OPTION_ARG_FILENAME, &(o)->state_dir, "What survives a reboot is kept there", "DIR"},                         \
    {"fault", 0, 0, G_OPTION_ARG_STRING_ARRAY, &(o)->faults,                                                                            \
     "For trying audits and handovers: something goes wrong here", "FAULT"},                                                            \
    {"host-name", 0, 0, G_OPTION_ARG_STRING, &(o)->host_name, "What messages call this host (its host name)", "NAME"},                  \
    {"insecure", 0, 0, G_OPTION_ARG_NONE, &(o)->insecure, "Allow plaintext off the loopback", NULL}

typedef struct {
    VmfCommon common;
    VmfServeOptions options;
    const char *verb; /* for messages */
    const char *name; /* the machine's */
    bool incoming;    /* the guest is to arrive; otherwise it is this machine's own */
    /* Every event that clients get. May be NULL. */
    void (*event)(void *opaque, const json_t *event);
    void *opaque;

    VmfMachineConfig config; /* strings borrowed */
    VmfDiskArguments disks;
    char *socket_path, *console_path, *state_path;
    int name_fd;  /* holds the claim on the name; -1 */
    int ready_fd; /* of a daemon that its parent waits for; -1 */
    VmfMachine *machine;
    VmfControl *control;
    VmfJournal *journal;
    VmfFaults *faults; /* for tests; NULL: none */
    VmfEventLog *log;  /* NULL: none is asked for */
} VmfServe;

/* Before anything is parsed into @serve. */
void vmf_serve_init(VmfServe *serve, const char *verb);
void vmf_serve_clear(VmfServe *serve);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(VmfServe, vmf_serve_clear)

/* Sets what the options say in @serve->config; name and all else of it are the caller's, before or after. */
bool vmf_serve_configure(VmfServe *serve, GError **error);
/* Puts "VERB: OPTION: " ahead of the error of what was not @parsed, and returns it. */
bool vmf_serve_named(const VmfServe *serve, bool parsed, const char *option, GError **error);

/* With --daemon: goes on in a child, whose parent waits for vmf_serve_ready(). Ahead of any thread. */
bool vmf_serve_fork(VmfServe *serve, GError **error);

/* Directories, the claim on the name, journal, machine and control. */
bool vmf_serve_open(VmfServe *serve, GError **error);
/* The first line on stdout, and what people should know of the machine. */
void vmf_serve_announce(const VmfServe *serve);
/* A daemon is left alone from here on. */
bool vmf_serve_ready(VmfServe *serve, GError **error);
/* Serves until the machine's end. @start: the guest is started first. */
bool vmf_serve_until_end(VmfServe *serve, bool start, GError **error);

#endif
