/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The load path, whole: a target session that a peer calls with any number of connections (link.h). A one-way stream that comes alone is
 * loaded as from a file.
 */
#include <vmferry/error.h>

#include "stream/header.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/guest.h"
#include "tests/fuzz/link.h"
#include "tests/fuzz/stream-mutator.h"

static void check_end(VmfFuzzGuest *guest, bool done, const GError *error, const VmfStatistics *statistics)
{
    FUZZ_CHECK(done == (error == NULL));
    FUZZ_CHECK(guest->setups == guest->cleanups);
    FUZZ_CHECK(guest->running == (guest->starts > 0) && guest->starts <= 1);
    FUZZ_CHECK(done || !guest->running);
    bool disk_is_there = vmf_fuzz_guest_take_disk(guest);
    FUZZ_CHECK(done || statistics->outcome == VMF_OUTCOME_HELD || !disk_is_there);
    if (done)
        return;
    FUZZ_CHECK(error->domain == VMF_ERROR && error->code != VMF_ERROR_INTERNAL && *error->message);
    FUZZ_CHECK(g_utf8_validate(error->message, -1, NULL));
    if (guest->setups > 0 && statistics->outcome != VMF_OUTCOME_HELD)
        FUZZ_CHECK(vmf_fuzz_guest_is_empty(guest));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static VmfFuzzGuest *guest;
    bool one_way = size > 17 && data[17] & VMF_OPTION_ONE_WAY;
    VmfStatistics statistics = {.size = sizeof(statistics)};
    VmfParameters parameters;
    GError *error = NULL;

    if (!guest) {
        guest = vmf_fuzz_guest_new(false);
        vmf_fuzz_guest_add_disks(guest);
    }
    vmf_fuzz_guest_reset(guest, false);
    vmf_parameters_init(&parameters);
    VmfFuzzLink *link = vmf_fuzz_link_new(data, size, false);
    VmfListener *listener = vmf_fuzz_link_listener(link, one_way && vmf_fuzz_link_n_parts(link) == 1);
    VmfSession *session = NULL;
    session = vmf_session_new_target(guest->guest, listener, &parameters, &vmf_fuzz_session_ops, &session);
    bool done = vmf_fuzz_link_run(link, session, &error);
    vmf_session_get_statistics(session, &statistics);
    check_end(guest, done, error, &statistics);
    g_clear_error(&error);
    vmf_session_free(session);
    vmf_listener_free(listener);
    vmf_fuzz_link_free(link);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    return vmf_fuzz_mutate_stream(data, size, max_size, seed);
}
