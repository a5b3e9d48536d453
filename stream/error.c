/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <vmferry/error.h>
#include <vmferry/vmferry.h>

/* G_DEFINE_QUARK would keep the number in a static variable that threads write without a lock. Errors are rare; looking it up is fine. */
GQuark vmf_error_quark(void)
{
    return g_quark_from_static_string("vmferry-error-quark");
}

static const struct {
    const char *id;
    const char *hint;
} codes[] = {
#define X(code, id, hint) [code] = {id, hint},
    VMF_ERROR_CODES(X)
#undef X
};

const char *vmf_error_id(const GError *error)
{
    if (error->domain == VMF_ERROR && error->code >= 0 && error->code < VMF_ERROR_N)
        return codes[error->code].id;
    return codes[VMF_ERROR_IO].id;
}

const char *vmf_error_hint(const GError *error)
{
    if (error->domain == VMF_ERROR && error->code >= 0 && error->code < VMF_ERROR_N)
        return codes[error->code].hint;
    return "";
}

const char *vmf_version(void)
{
    return VMF_VERSION;
}
