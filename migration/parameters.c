/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Parameters: defaults, ranges, and a struct that can grow in either direction. */
#include "migration/parameters.h"
#include "migration/ops.h"

#include <vmferry/error.h>

#include "stream/pack.h"

#define MS UINT64_C(1000000) /* ns */

/* What the first release's struct ends with. */
#define PARAMETERS_LEAST VMF_SIZE_UP_TO(VmfParameters, fault_opaque)

static const VmfParameters defaults = {
    .size = sizeof(VmfParameters),
    .channels = 2,
    .downtime_limit_ns = 20 * MS,
    .max_bandwidth = 0,
    .switchover_timeout_ns = 2000 * MS,
    .timeout_ns = 0,
    .audit = VMF_AUDIT_AFTER,
    .stream_version = 3,
    .dry_run = false,
    .pause_before_switchover = false,
    .minimum_rounds = 0,
    .throttle_maximum = 99,
    .policy = &vmf_policy_default,
    .host_name = NULL,
    .fault = NULL,
    .fault_opaque = NULL,
};

void vmf_parameters_init_sized(VmfParameters *parameters, size_t size)
{
    size_t known = MIN(size, sizeof(defaults));

    memset(parameters, 0, size);
    memcpy(parameters, &defaults, known);
    memcpy(parameters, &size, MIN(size, sizeof(size)));
}

/* One number, its range, and how it is called where people set it. */
static bool check_range(const char *name, uint64_t value, uint64_t least, uint64_t most, const char *unit,
                        GError **error)
{
    if (value >= least && value <= most)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                "parameters: %s: %" G_GUINT64_FORMAT "%s is out of range (%" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT
                "%s)",
                name, value, unit, least, most, unit);
    return false;
}

/* Version 2 has fixed features, and this is none of them. */
static bool check_audit(const VmfParameters *p, GError **error)
{
    if (p->stream_version != 2 || p->audit != VMF_AUDIT_BEFORE)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "parameters: audit before: stream version 2 has no such feature");
    return false;
}

static bool check_numbers(const VmfParameters *p, GError **error)
{
    return check_range("channels", p->channels, 1, VMF_CHANNELS_MAX, "", error) &&
           check_range("downtime-limit", p->downtime_limit_ns, 1, VMF_DOWNTIME_LIMIT_MAX_NS, " ns", error) &&
           check_range("switchover-timeout", p->switchover_timeout_ns, 1, VMF_SWITCHOVER_TIMEOUT_MAX_NS, " ns",
                       error) &&
           check_range("audit", p->audit, 0, VMF_AUDIT_N - 1, "", error) &&
           check_audit(p, error) && check_range("stream-version", p->stream_version, 2, 3, "", error) &&
           check_range("minimum-rounds", p->minimum_rounds, 0, VMF_MINIMUM_ROUNDS_MAX, "", error) &&
           check_range("throttle-maximum", p->throttle_maximum, 0, 99, " %", error);
}

static bool check_host_name(const char *name, GError **error)
{
    if (!name)
        return true;
    if (strlen(name) <= VMF_HOST_NAME_MAX && vmf_is_text(name, strlen(name)))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "parameters: host-name: at most %d bytes of UTF-8 without control characters",
                VMF_HOST_NAME_MAX);
    return false;
}

static bool check_policy(const VmfPolicyOps *policy, GError **error)
{
    if (!policy || VMF_OPS_HAS(policy, decide))
        return true;
    g_set_error_literal(error, VMF_ERROR, VMF_ERROR_USAGE, "parameters: policy: it has no way to decide");
    return false;
}

/* Version 2 has fixed features, and this is none of them. */
static bool check_disks(const VmfParameters *p, GError **error)
{
    if (p->stream_version != 2 || !p->copy_disks || !*p->copy_disks || strcmp(p->copy_disks, "none") == 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "parameters: disks: stream version 2 copies none");
    return false;
}

static bool check(const VmfParameters *parameters, GError **error)
{
    return check_disks(parameters, error) && check_numbers(parameters, error) && check_host_name(parameters->host_name, error) &&
           check_policy(parameters->policy, error);
}

bool vmf_parameters_check(const VmfParameters *parameters, GError **error)
{
    VmfParameters own;

    return vmf_parameters_copy(&own, parameters, error);
}

bool vmf_parameters_copy(VmfParameters *own, const VmfParameters *theirs, GError **error)
{
    vmf_parameters_init_sized(own, sizeof(*own));
    if (theirs->size < PARAMETERS_LEAST) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "parameters: size: %zu bytes is less than any release had",
                    theirs->size);
        return false;
    }
    memcpy(own, theirs, MIN(theirs->size, sizeof(*own)));
    own->size = sizeof(*own);
    if (!check(own, error))
        return false;
    if (!own->policy)
        own->policy = &vmf_policy_default;
    if (!own->host_name)
        own->host_name = "";
    return true;
}
