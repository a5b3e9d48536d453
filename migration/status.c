/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Words, and the table of transitions.
 *
 * A session is one migration, so the final statuses have no way out. Five rows carry a decision:
 *  - setup may end in completed: a preflight is a whole migration that moves nothing.
 *  - pre-switchover goes on to active: the guest ran meanwhile, so that what it wrote is sent before the stop.
 *  - device may not return to active: a source that takes the guest back has failed or was cancelled, it does not try
 * again by itself.
 *  - postcopy-active comes after device: the guest runs, and what of its memory it has not asked for is still on its
 * way.
 *  - cancelling may end in failed (the guest could not be started again) but never in completed: a cancel that comes
 * after RUN is too late, and the session stays in device.
 */
#include "migration/status.h"

#include <vmferry/error.h>

#define BIT(status) (1u << (status))

static const unsigned may_follow[] = {
    [VMF_STATUS_NONE] = BIT(VMF_STATUS_SETUP),
    [VMF_STATUS_SETUP] =
        BIT(VMF_STATUS_ACTIVE) | BIT(VMF_STATUS_COMPLETED) | BIT(VMF_STATUS_FAILED) | BIT(VMF_STATUS_CANCELLING),
    [VMF_STATUS_ACTIVE] =
        BIT(VMF_STATUS_PRE_SWITCHOVER) | BIT(VMF_STATUS_DEVICE) | BIT(VMF_STATUS_FAILED) | BIT(VMF_STATUS_CANCELLING),
    [VMF_STATUS_PRE_SWITCHOVER] = BIT(VMF_STATUS_ACTIVE) | BIT(VMF_STATUS_FAILED) | BIT(VMF_STATUS_CANCELLING),
    [VMF_STATUS_DEVICE] =
        BIT(VMF_STATUS_POSTCOPY_ACTIVE) | BIT(VMF_STATUS_COMPLETED) | BIT(VMF_STATUS_FAILED) | BIT(VMF_STATUS_CANCELLING),
    [VMF_STATUS_POSTCOPY_ACTIVE] = BIT(VMF_STATUS_COMPLETED) | BIT(VMF_STATUS_FAILED) | BIT(VMF_STATUS_CANCELLING),
    [VMF_STATUS_COMPLETED] = 0,
    [VMF_STATUS_FAILED] = 0,
    [VMF_STATUS_CANCELLING] = BIT(VMF_STATUS_FAILED) | BIT(VMF_STATUS_CANCELLED),
    [VMF_STATUS_CANCELLED] = 0,
};
_Static_assert(G_N_ELEMENTS(may_follow) == VMF_STATUS_N, "a row for each status");
_Static_assert(VMF_STATUS_N <= 32, "a row is a word of bits");

bool vmf_status_may(VmfStatus from, VmfStatus to)
{
    if ((unsigned)from >= VMF_STATUS_N || (unsigned)to >= VMF_STATUS_N)
        return false;
    return may_follow[from] & BIT(to);
}

bool vmf_status_is_final(VmfStatus status)
{
    return (unsigned)status < VMF_STATUS_N && may_follow[status] == 0;
}

/* Every word that is asked for by number goes through here: a number out of range has no word, and no array is read
 * past its end. */
static const char *word_at(const char *const *words, size_t n_words, unsigned index)
{
    return index < n_words ? words[index] : "unknown";
}

static const char *const status_words[] = {
#define X(code, word) [code] = word,
    VMF_STATUSES(X)
#undef X
};
_Static_assert(G_N_ELEMENTS(status_words) == VMF_STATUS_N, "a word for each status");

const char *vmf_status_word(VmfStatus status)
{
    return word_at(status_words, G_N_ELEMENTS(status_words), status);
}

static const char *const outcome_words[] = {
    [VMF_OUTCOME_NONE] = "none",
    [VMF_OUTCOME_COMPLETED] = "completed",
    [VMF_OUTCOME_FAILED] = "failed",
    [VMF_OUTCOME_CANCELLED] = "cancelled",
    [VMF_OUTCOME_HELD] = "held",
    [VMF_OUTCOME_PREFLIGHT_OK] = "preflight-ok",
    [VMF_OUTCOME_PREFLIGHT_REFUSED] = "preflight-refused",
};
_Static_assert(G_N_ELEMENTS(outcome_words) == VMF_OUTCOME_N, "a word for each outcome");

const char *vmf_outcome_word(VmfOutcome outcome)
{
    return word_at(outcome_words, G_N_ELEMENTS(outcome_words), outcome);
}

static const char *const verified_words[] = {
    [VMF_VERIFIED_OFF] = "off",       [VMF_VERIFIED_TRANSPORT] = "transport",
    [VMF_VERIFIED_FULL] = "full",     [VMF_VERIFIED_NOT_APPLICABLE] = "not-applicable",
    [VMF_VERIFIED_FAILED] = "failed",
};
_Static_assert(G_N_ELEMENTS(verified_words) == VMF_VERIFIED_N, "a word for each degree of proof");

const char *vmf_verified_word(VmfVerified verified)
{
    return word_at(verified_words, G_N_ELEMENTS(verified_words), verified);
}

static const char *const audit_names[] = {
    [VMF_AUDIT_AFTER] = "after",
    [VMF_AUDIT_BEFORE] = "before",
    [VMF_AUDIT_OFF] = "off",
};
_Static_assert(G_N_ELEMENTS(audit_names) == VMF_AUDIT_N, "a name for each audit");

const char *vmf_audit_name(VmfAudit audit)
{
    return word_at(audit_names, G_N_ELEMENTS(audit_names), audit);
}

bool vmf_audit_parse(const char *name, VmfAudit *out, GError **error)
{
    *out = VMF_AUDIT_AFTER;
    for (unsigned i = 0; i < G_N_ELEMENTS(audit_names); i++) {
        if (!g_strcmp0(name, audit_names[i])) {
            *out = i;
            return true;
        }
    }
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "audit: '%s': expected after, before or off", name ? name : "");
    return false;
}
