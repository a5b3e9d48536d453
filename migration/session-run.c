/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where a session turns to its side: apart, so that the sides can stand on session.c without it knowing them. */
#include <vmferry/error.h>

#include "migration/session.h"

bool vmf_session_run(VmfSession *session, GError **error)
{
    if (vmf_session_status(session) != VMF_STATUS_NONE) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "session: run: a session runs once");
        return false;
    }
    if (session->parameters_error) {
        g_propagate_error(error, g_error_copy(session->parameters_error));
        vmf_session_set_status(session, VMF_STATUS_SETUP);
        vmf_session_set_status(session, VMF_STATUS_FAILED);
        return false;
    }
    if (session->run)
        return session->run(session, error);
    return session->is_source ? vmf_source_run(session, error) : vmf_target_run(session, error);
}
