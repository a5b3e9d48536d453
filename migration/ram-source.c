/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/ram-source.h"

#include <vmferry/error.h>

#include "ram/block.h"
#include "stream/clock.h"

#define LOG_AUDIT_PERCENT 5 /* of a core, while the guest runs */
#define LANDING_NS (20 * VMF_NS_PER_MS) /* waited for at most, so that a cancel and new limits are seen */

static void tell_mended(void *opaque, const char *text)
{
    vmf_session_event(opaque, "chunk.mended", "%s", text);
}

bool vmf_ram_source_attach(VmfRamSource *ram, const VmfRamWays *ways, void *opaque, unsigned n_lanes, bool acknowledged,
                           GError **error)
{
    VmfGuest *guest = ram->session->guest;
    g_autofree VmfRamBlock **blocks = g_new0(VmfRamBlock *, vmf_guest_n_ram(guest));
    g_autoptr(VmfPresence) presence = vmf_guest_presence(guest);
    VmfRamSaveConfig config = {
        .n_lanes = n_lanes,
        .acknowledged = acknowledged,
        .log_audit_percent = ram->session->parameters.audit == VMF_AUDIT_OFF ? 0 : LOG_AUDIT_PERCENT,
        .log = ram->session->stop_first ? NULL : vmf_guest_dirty_log(guest),
        .log_opaque = vmf_guest_dirty_log_opaque(guest),
        .presence = presence,
        .mended = tell_mended,
        .opaque = ram->session,
    };

    for (unsigned b = 0; b < vmf_guest_n_ram(guest); b++)
        blocks[b] = vmf_guest_ram(guest, b);
    ram->ways = ways;
    ram->ways_opaque = opaque;
    ram->n_lanes = n_lanes;
    ram->save = vmf_ram_save_new(blocks, vmf_guest_n_ram(guest), &config, error);
    return ram->save != NULL;
}

void vmf_ram_source_clear(VmfRamSource *ram)
{
    g_clear_pointer(&ram->fanout, vmf_fanout_free);
    g_clear_pointer(&ram->save, vmf_ram_save_free);
    g_clear_pointer(&ram->streams, g_free);
}

/* ---- streams --------------------------------------------------------------------------------------------------------------- */

static bool stream_lane(void *opaque, VmfRamSave *save, unsigned index, VmfLaneConfig *lane, GError **error)
{
    VmfRamSource *ram = opaque;

    ram->streams[index].save = save;
    *lane = vmf_stream_sink_lane(&ram->streams[index], ram->hints);
    return true;
}

static bool streams_end(void *opaque, GError **error)
{
    VmfRamSource *ram = opaque;

    for (unsigned i = 0; i < ram->n_lanes; i++)
        if (!vmf_stream_sink_end_mark(&ram->streams[i], error))
            return false;
    return true;
}

static const VmfRamWays stream_ways = {.lane = stream_lane, .end = streams_end};

bool vmf_ram_source_attach_streams(VmfRamSource *ram, VmfRecordWriter *const *writers, unsigned n_lanes, uint32_t epoch,
                                   bool acknowledged, bool hints, GError **error)
{
    ram->hints = hints;
    ram->epoch = epoch;
    ram->streams = g_new0(VmfStreamSink, n_lanes);
    for (unsigned i = 0; i < n_lanes; i++)
        ram->streams[i] = (VmfStreamSink){.writer = writers[i], .lane = i, .epoch = epoch};
    return vmf_ram_source_attach(ram, &stream_ways, ram, n_lanes, acknowledged, error);
}

bool vmf_ram_source_acknowledged(VmfRamSource *ram, const VmfRecord *record, bool swap, unsigned lane, GError **error)
{
    g_autoptr(GArray) entries = NULL;
    VmfAck ack;

    if (!vmf_ack_decode(record, swap, &ack, &entries, error))
        return false;
    g_autofree VmfChunkId *ids = g_new0(VmfChunkId, entries->len + 1);
    g_autofree uint64_t *sums = g_new0(uint64_t, entries->len + 1);
    for (guint i = 0; i < entries->len; i++) {
        const VmfAckEntry *entry = &g_array_index(entries, VmfAckEntry, i);
        ids[i] = (VmfChunkId){entry->block, entry->chunk};
        sums[i] = entry->sum;
    }
    if (ack.epoch == ram->epoch && ack.channel == lane &&
        vmf_flight_land(ram->save->flight, lane, ack.sequence, entries->len, ids, sums, vmf_ram_save_compare, ram->save))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_PEER, "record ACK: page channel %u: acknowledges what was not sent", lane);
    return false;
}

void vmf_ram_source_summarize(const VmfRamSource *ram, VmfSwitchover *message)
{
    message->n_blocks = ram->save ? ram->save->n_blocks : 0;
    message->blocks = g_new0(VmfBlockSummary, message->n_blocks + 1);
    for (unsigned b = 0; b < message->n_blocks; b++) {
        const VmfRamSaveBlock *own = &ram->save->blocks[b];
        message->blocks[b] = (VmfBlockSummary){own->data, own->zero, own->hole, vmf_digest_table_total(own->digests)};
    }
}

/* ---- handlers -------------------------------------------------------------------------------------------------------------- */

bool vmf_ram_source_prepare(void *opaque, GError **error)
{
    VmfRamSource *ram = opaque;
    VmfGuest *guest = ram->session->guest;

    if (ram->session->stop_first || vmf_guest_dirty_log(guest) || !vmf_guest_ops(guest)->is_running(vmf_guest_opaque(guest)))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "guest: it runs and has no dirty log: stop it first");
    return false;
}

static bool ram_setup(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfRamSource *ram = opaque;
    g_autofree VmfLaneConfig *lanes = g_new0(VmfLaneConfig, ram->n_lanes);
    unsigned made = 0;

    if (!vmf_ram_save_begin(ram->save, error))
        return false;
    if (ram->ways->begin)
        ram->ways->begin(ram->ways_opaque, ram->save);
    while (made < ram->n_lanes && ram->ways->lane(ram->ways_opaque, ram->save, made, &lanes[made], error))
        made++;
    if (made == ram->n_lanes)
        ram->fanout = vmf_fanout_new(ram->save, lanes, ram->n_lanes, 0, error);
    else
        for (unsigned i = 0; i < made; i++)
            vmf_page_sink_free(&lanes[i].sink);
    return ram->fanout != NULL;
}

/*
 * A round that has less to send than what is still under way would not arrive sooner for being sent now: it first lets that come down.
 * Otherwise a slow link, or one whose rate is not known yet, would see hundreds of rounds of a few pages each.
 */
static bool ram_iterate(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfRamSource *ram = opaque;

    if (ram->save->round > 0)
        vmf_flight_wait(ram->save->flight, vmf_ram_save_pending_bytes(ram->save), LANDING_NS);
    return vmf_fanout_round(ram->fanout, error);
}

static void ram_pending_estimate(void *opaque, VmfPending *pending)
{
    VmfRamSource *ram = opaque;

    if (ram->save)
        pending->precopy_bytes += vmf_ram_save_pending_bytes(ram->save) + vmf_flight_unacknowledged_bytes(ram->save->flight);
}

static bool ram_pending_exact(void *opaque, VmfPending *pending, GError **error)
{
    VmfRamSource *ram = opaque;

    VmfGuest *guest = ram->session->guest;

    bool live = vmf_guest_ops(guest)->is_running(vmf_guest_opaque(guest));
    if (live ? !vmf_ram_save_harvest_audited(ram->save, error) : !vmf_ram_save_harvest(ram->save, error))
        return false;
    ram_pending_estimate(ram, pending);
    return true;
}

static bool ram_complete(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfRamSource *ram = opaque;

    return vmf_fanout_round(ram->fanout, error) && (!ram->ways->end || ram->ways->end(ram->ways_opaque, error));
}

static void ram_cleanup(void *opaque)
{
    VmfRamSource *ram = opaque;

    g_clear_pointer(&ram->fanout, vmf_fanout_free);
    if (ram->save)
        vmf_ram_save_end(ram->save);
}

static const VmfSaveHandlers handlers = {
    .size = sizeof(VmfSaveHandlers),
    .save_prepare = vmf_ram_source_prepare,
    .save_setup = ram_setup,
    .save_iterate = ram_iterate,
    .pending_estimate = ram_pending_estimate,
    .pending_exact = ram_pending_exact,
    .save_complete = ram_complete,
    .save_cleanup = ram_cleanup,
};

const VmfSaveHandlers *vmf_ram_source_handlers(void)
{
    return &handlers;
}
