/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the watchdog of a source looks at: the user's limits, and a target that is not there any more. */
#include "migration/source.h"

#include <vmferry/error.h>

#include "stream/channel.h"
#include "stream/clock.h"

#define CANCEL_NS (300 * VMF_NS_PER_MS) /* for ABORT to get out */
#define EASE_NS (1 * VMF_NS_PER_S)     /* the same for so long: to slow the guest helps nobody */
#define SILENCE_NS (30 * VMF_NS_PER_S) /* nothing sent and nothing acknowledged, though something waits: nobody is there */

static bool check_timeout(const VmfSource *source, int64_t now, GError **why)
{
    uint64_t timeout_ns = source->session->parameters.timeout_ns;

    if (timeout_ns == 0 || source->stopped_ns != 0 || now - source->started_ns < (int64_t)timeout_ns)
        return true;
    g_set_error(why, VMF_ERROR, VMF_ERROR_TIMEOUT, "precopy: not done in %.1f s", (double)timeout_ns / 1e9);
    return false;
}

/* A channel that only carries away (a file, a pipe) may be as slow as it likes: nobody waits for its guest. */
static bool check_stop(const VmfSource *source, int64_t now, GError **why)
{
    if (source->stopped_ns == 0 || source->format.one_way || now < vmf_source_stop_deadline(source))
        return true;
    g_set_error(why, VMF_ERROR, VMF_ERROR_SWITCHOVER_TIMEOUT,
                "target: the last pages and the state did not get through in %.1f s", (double)(now - source->stopped_ns) / 1e9);
    return false;
}

static uint64_t octets_moved(const VmfSource *source)
{
    uint64_t octets = vmf_filter_count_sent(source->main.count) + vmf_filter_count_received(source->main.count);

    for (guint i = 0; i < source->pages->len; i++) {
        const VmfSourceChannel *channel = g_ptr_array_index(source->pages, i);
        octets += vmf_filter_count_sent(channel->count) + vmf_filter_count_received(channel->count);
    }
    return octets;
}

/* From the acceptance on: the channels are all there, and stay until this thread has ended. */
static bool check_silence(VmfSource *source, int64_t now, GError **why)
{
    if (source->begun_ns == 0 || source->format.one_way || !source->ram.save)
        return true;
    uint64_t octets = octets_moved(source);
    bool waits = vmf_flight_unacknowledged_bytes(source->ram.save->flight) > 0 || vmf_disk_source_waits(&source->disks);
    if (octets != source->octets_seen || !waits) {
        source->octets_seen = octets;
        source->octets_seen_ns = now;
    }
    vmf_source_ease(source, now - source->octets_seen_ns > EASE_NS);
    if (now - source->octets_seen_ns < SILENCE_NS)
        return true;
    g_set_error(why, VMF_ERROR, VMF_ERROR_TIMEOUT, "target: nothing got through for %.0f s", (double)SILENCE_NS / 1e9);
    return false;
}

int64_t vmf_source_stop_deadline(const VmfSource *source)
{
    const VmfSession *session = source->session;

    return source->stopped_ns + (int64_t)(session->downtime_limit_ns + session->parameters.switchover_timeout_ns) +
           session->stop_allowance_ns;
}

bool vmf_source_look(void *opaque, GError **why)
{
    VmfSource *source = opaque;
    int64_t now = vmf_now_ns();

    vmf_disk_source_look(&source->disks, now);
    /* What passes from now on is not for shutting channels. */
    if (atomic_load(&source->session->offer) == VMF_OFFER_LEFT)
        return true;
    /* A cancel is said on the main channel, if that goes at once. */
    if (vmf_session_is_cancelled(source->session)) {
        source->cancelled_ns = source->cancelled_ns ? source->cancelled_ns : now;
        if (now - source->cancelled_ns > CANCEL_NS)
            vmf_session_wake(source->session);
        return true;
    }
    return check_timeout(source, now, why) && check_stop(source, now, why) && check_silence(source, now, why);
}
