/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/qmp-error.h"

#include <string.h>
#include <vmferry/error.h>

/* What follows @prefix in @message, or NULL. */
static const char *after(const char *message, const char *prefix)
{
    return g_str_has_prefix(message, prefix) ? message + strlen(prefix) : NULL;
}

static char *cut_cause(const char *peer)
{
    return peer ? g_strdup_printf("the connection to the %s was cut", peer) : g_strdup("the stream was cut off");
}

/*
 * By the error's id, for where a message is about octets or records and people want to know what happened. Elsewhere
 * the whole message: any part of it alone leaves out what it is about.
 */
char *vmf_qmp_error_cause(const GError *error, const char *peer)
{
    g_autofree char *message = g_utf8_make_valid(error->message, -1);
    const char *detail;

    if (g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT))
        return cut_cause(peer);
    if (g_error_matches(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE) && (detail = after(message, "target: refuses: ")))
        return g_strdup_printf("the target would not take it: %s", detail);
    if (g_error_matches(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE) && (detail = after(message, "static data: ")))
        return g_strdup_printf("the guest does not fit this machine: %s", detail);
    if (g_error_matches(error, VMF_ERROR, VMF_ERROR_REFUSED) && (detail = after(message, "target: ")))
        return g_strdup_printf("the target refused the handover: %s", detail);
    return g_steal_pointer(&message);
}

/* A target that will not take a disk has the settings of its source. */
const char *vmf_qmp_error_hint(const GError *error)
{
    const char *detail = NULL;

    if (g_error_matches(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE) && !(detail = after(error->message, "target: refuses: ")))
        detail = after(error->message, "static data: ");
    if (!detail || !g_str_has_prefix(detail, "disk.place: "))
        return vmf_error_hint(error);
    return vmf_error_hint(&(GError){.domain = VMF_ERROR, .code = VMF_ERROR_DISK_PLACE});
}

json_t *vmf_qmp_error_object(const GError *error, const char *peer)
{
    g_autofree char *message = g_utf8_make_valid(error->message, -1); /* it may quote a path, which is any bytes */
    g_autofree char *cause = vmf_qmp_error_cause(error, peer);

    return json_pack("{s:s,s:s,s:s,s:s}", "id", vmf_error_id(error), "message", message, "cause", cause, "hint",
                     vmf_qmp_error_hint(error));
}
