/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guest on its way out of a machine here, to another host or into an image: starts it through the machine's control
 * socket, shows how it goes, says how it ended. The machine needs nobody to look on; when this process goes, what it
 * started does not.
 */
#ifndef VMFERRY_TOOLS_OUTGOING_H
#define VMFERRY_TOOLS_OUTGOING_H

#include <stdint.h>

#include "tools/common.h"
#include "tools/progress.h"

typedef struct {
    const VmfCommon *common;
    const char *name, *uri;
    const char *doing; /* after the name, ahead of the URI, with detach: "migrates to" */
    bool saves;        /* into an image: nobody else gets the guest */
    const char *after_move;  /* the command that the machine gets once the guest has moved away: "quit". NULL: none */
    const char *after_write; /* once it was written to where nobody answers: "quit", "cont". NULL: none */
    bool detach;       /* return once it has begun */
    int progress_fd;   /* for --progress=FD; -1: none */

    /* Private from here on. */
    VmfClient *client;
    VmfProgress progress;
    json_t *machine; /* x-vmferry-query-machine */
    json_t *detail;  /* x-vmferry of query-migrate, the latest; of the end, once it has ended */
    bool held;       /* nobody knows who has the guest; the machine goes on asking, this command does not wait for it */
    bool switches;   /* the guest was or is being handed over, as far as it was told */
} VmfOutgoing;

/* Sends migrate with @arguments (taken over) and stays until the end, unless detached. Returns a VmfExit. */
int vmf_outgoing_run(VmfOutgoing *outgoing, json_t *arguments);

/* An option and the parameter of the machine that it sets. */
typedef struct {
    const char *text; /* as given; NULL: it was not */
    const char *option, *parameter;
    bool (*parse)(const char *text, uint64_t *value, GError **error);
} VmfOutgoingOption;

bool vmf_outgoing_parse_channels(const char *text, uint64_t *value, GError **error);
/* Only what was given: the rest is the machine's to say, who may have been told by migrate-set-parameters. @audit may be
 * NULL. */
json_t *vmf_outgoing_parameters(const char *verb, const VmfOutgoingOption *options, size_t n, const char *audit,
                                GError **error);
/* --then, --audit and --progress, as far as they are the same for all. */
bool vmf_outgoing_check(const char *verb, const char *then, const char *audit, int progress_fd, GError **error);
/* @needing: an option that is for --disks; NULL: there is none. */
bool vmf_outgoing_check_disks(const char *verb, const char *disks, const char *needing, GError **error);

#endif
