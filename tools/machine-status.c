/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/machine-status.h"

/* Adds what @command answers; false with @error. */
static bool add(json_t *status, VmfClient *client, const char *command, GError **error)
{
    json_t *answer = vmf_client_execute(client, command, NULL, error);

    if (!answer)
        return false;
    json_object_update(status, answer);
    json_decref(answer);
    return true;
}

json_t *vmf_machine_status(VmfClient *client, GError **error)
{
    json_t *status = json_pack("{s:s}", "type", "status");
    json_t *migration = NULL, *detail;

    if (add(status, client, "x-vmferry-query-machine", error) && add(status, client, "query-status", error))
        migration = vmf_client_execute(client, "query-migrate", NULL, error);
    if (!migration) {
        json_decref(status);
        return NULL;
    }
    detail = json_object_get(migration, "x-vmferry");
    json_object_set(status, "migration", detail ? detail : json_null());
    json_decref(migration);
    return status;
}
