/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The QMP dialect: what a request looks like, which commands there are, what they answer.
 *
 * A command is one line of the table in qmp-commands.c: its name, what it does, and its arguments with their types,
 * which are checked before it is called. A failure is a GError and becomes {"error": {"class", "desc", "x-vmferry-id",
 * "x-vmferry-hint"}}.
 */
#ifndef VMFERRY_MACHINE_QMP_H
#define VMFERRY_MACHINE_QMP_H

#include <jansson.h>

#include "machine/control-state.h"

typedef enum { VMF_QMP_STRING, VMF_QMP_BOOL, VMF_QMP_INT, VMF_QMP_OBJECT, VMF_QMP_ARRAY, VMF_QMP_ANY } VmfQmpType;

typedef struct {
    const char *name; /* NULL ends a list; "*": any, the command checks them itself */
    VmfQmpType type;
    bool required;
} VmfQmpArgument;

typedef struct {
    const char *name;
    /*
     * Returns what "return" carries, owned by the caller; NULL with @error. @arguments fit the table. NULL without @error: the answer was
     * deferred (vmf_control_client_defer()), and comes by vmf_qmp_answer().
     */
    json_t *(*run)(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error);
    const VmfQmpArgument *arguments; /* NULL: none */
} VmfQmpCommand;

/* Sorted as people look for them; *n is their number. */
const VmfQmpCommand *vmf_qmp_commands(size_t *n);

/* The greeting, and the answer to one request (VmfControlServerOps). */
json_t *vmf_qmp_greeting(void *control);
json_t *vmf_qmp_request(void *control, VmfControlClient *client, json_t *request, const char *problem);

/* A deferred answer: takes over it and @result, which is what "return" carries; NULL: @error is the answer. The client may have gone. */
void vmf_qmp_answer(VmfControlAnswer *answer, json_t *result, const GError *error);

json_t *vmf_qmp_version(void);

/* Commands, by file. qmp-commands.c has those about the protocol itself. */
json_t *vmf_qmp_query_status(VmfControl *, VmfControlClient *, const json_t *, GError **); /* qmp-machine.c */
json_t *vmf_qmp_query_name(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_query_uuid(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_query_machine(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_stop(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_cont(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_quit(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_getfd(VmfControl *, VmfControlClient *, const json_t *, GError **); /* qmp-fds.c */
json_t *vmf_qmp_closefd(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_query_block(VmfControl *, VmfControlClient *, const json_t *, GError **); /* qmp-block.c */
json_t *vmf_qmp_bitmap_add(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_bitmap_remove(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_bitmap_clear(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_bitmap_enable(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_bitmap_disable(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_bitmap_merge(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_bitmap_set(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_drive_backup(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_query_block_jobs(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_block_job_cancel(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_migrate(VmfControl *, VmfControlClient *, const json_t *, GError **); /* qmp-migrate.c */
json_t *vmf_qmp_migrate_incoming(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_migrate_cancel(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_migrate_continue(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_resolve(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_query_migrate(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_set_parameters(VmfControl *, VmfControlClient *, const json_t *, GError **); /* qmp-parameters.c */
json_t *vmf_qmp_query_parameters(VmfControl *, VmfControlClient *, const json_t *, GError **);
json_t *vmf_qmp_set_capabilities(VmfControl *, VmfControlClient *, const json_t *, GError **); /* qmp-capabilities.c */
json_t *vmf_qmp_query_capabilities(VmfControl *, VmfControlClient *, const json_t *, GError **);

/* Puts the members of @values into @parameters, all or none. */
bool vmf_qmp_apply_parameters(VmfParameters *parameters, const json_t *values, GError **error);

/* What query-migrate answers, and its member x-vmferry: VmfStatistics as it is, units last (qmp-statistics.c). */
json_t *vmf_qmp_migration_info(VmfMigration *migration);
json_t *vmf_qmp_migration_detail(VmfMigration *migration);

#endif
