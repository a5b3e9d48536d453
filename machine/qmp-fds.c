/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Descriptors that clients pass (SCM_RIGHTS) and name, for `fd:NAME`. The names belong to the machine, not to the
 * connection, so that one client can pass what another uses.
 */
#include "machine/qmp.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/error.h>

#define NAMED_FDS_MAX 64

json_t *vmf_qmp_getfd(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "fdname"));
    int fd;

    if (name[0] == '\0' || g_ascii_isdigit(name[0])) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "Parameter 'fdname' expects a name not starting with a digit");
        return NULL;
    }
    fd = vmf_control_client_take_fd(client);
    if (fd < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "No file descriptor supplied via SCM_RIGHTS");
        return NULL;
    }
    if (g_hash_table_size(control->fds) >= NAMED_FDS_MAX && !g_hash_table_contains(control->fds, name)) {
        close(fd);
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "%d descriptors have names already", NAMED_FDS_MAX);
        return NULL;
    }
    g_hash_table_replace(control->fds, g_strdup(name), GINT_TO_POINTER(fd));
    return json_object();
}

json_t *vmf_qmp_closefd(VmfControl *control, VmfControlClient *client, const json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "fdname"));

    if (!g_hash_table_remove(control->fds, name)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "File descriptor named '%s' not found", name);
        return NULL;
    }
    return json_object();
}

/* The name is used up: whoever opens fd:N owns the descriptor. */
char *vmf_control_resolve_uri(VmfControl *control, const char *uri, GError **error)
{
    void *name, *fd;

    if (!g_str_has_prefix(uri, "fd:") || g_ascii_isdigit(uri[3]))
        return g_strdup(uri);
    if (!g_hash_table_steal_extended(control->fds, uri + 3, &name, &fd)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_URI, "%s: no descriptor of that name: pass it with getfd", uri);
        return NULL;
    }
    g_free(name);
    return g_strdup_printf("fd:%d", GPOINTER_TO_INT(fd));
}
