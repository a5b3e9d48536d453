/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a source makes of a target's answers: a source session of a small guest that runs, on channels whose other direction is the
 * input. The first octet says how it migrates (bit 0: version 2, bits 1-2: page channels, bit 3: all on one channel, bit 4: audit
 * before, bit 5: preflight only); the answers on the main channel follow, then, each behind "VMFPAGES", those on the page channels.
 *
 * Tokens and session ids are not random here, so that a recorded READY is this migration's.
 */
#include <string.h>
#include <sys/random.h>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/guest.h"
#include "tests/fuzz/link.h"

ssize_t __wrap_getrandom(void *out, size_t length, unsigned flags);

ssize_t __wrap_getrandom(void *out, size_t length, unsigned flags)
{
    memset(out, 'T', length);
    return (ssize_t)length;
}

static VmfParameters parameters_of(uint8_t how)
{
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    parameters.stream_version = how & 1 ? 2 : 3;
    parameters.channels = 1 + (how >> 1 & 3);
    parameters.audit = how & 16 ? VMF_AUDIT_BEFORE : VMF_AUDIT_AFTER;
    parameters.dry_run = how & 32;
    parameters.downtime_limit_ns = UINT64_C(10000000000); /* the rounds end soon */
    return parameters;
}

/* The guest is at the source unless it was handed over, or nobody knows. */
static void check_end(const VmfFuzzGuest *guest, bool done, const GError *error, const VmfStatistics *statistics, bool dry_run)
{
    FUZZ_CHECK(done == (error == NULL));
    if (done)
        FUZZ_CHECK(guest->running == dry_run);
    else
        FUZZ_CHECK(guest->running == (statistics->outcome != VMF_OUTCOME_HELD));
    if (!done)
        FUZZ_CHECK(error->domain == VMF_ERROR && *error->message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static VmfFuzzGuest *guest;
    VmfStatistics statistics = {.size = sizeof(statistics)};
    GError *error = NULL;

    if (!guest)
        guest = vmf_fuzz_guest_new(true);
    if (size < 1)
        return 0;
    vmf_fuzz_guest_reset(guest, true);
    VmfParameters parameters = parameters_of(data[0]);
    VmfFuzzLink *link = vmf_fuzz_link_new(data + 1, size - 1, true);
    VmfConnector *connector = vmf_fuzz_link_connector(link, data[0] & 8);
    VmfSession *session = NULL;
    session = vmf_session_new_source(guest->guest, connector, &parameters, &vmf_fuzz_session_ops, &session);
    bool done = vmf_fuzz_link_run(link, session, &error);
    vmf_session_get_statistics(session, &statistics);
    check_end(guest, done, error, &statistics, parameters.dry_run);
    g_clear_error(&error);
    vmf_session_free(session);
    vmf_connector_free(connector);
    vmf_fuzz_link_free(link);
    return 0;
}
