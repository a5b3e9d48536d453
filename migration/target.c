/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The target: vmf_target_run() waits for a caller that fits (incoming.c), loads what it sends, and takes part in the handover. Page
 * channels have a thread each, which places pages and acknowledges them; the main channel is read here.
 */
#include <vmferry/error.h>

#include "migration/handover.h"
#include "migration/incoming.h"
#include "ram/block.h"
#include "ram/receiver.h"
#include "stream/channel.h"
#include "stream/clock.h"

#define LAST_PAGES_NS (10 * VMF_NS_PER_S) /* from SWITCHOVER until every page channel has ended */
#define FAREWELL_NS (2 * VMF_NS_PER_S)    /* for the source to read why, and to close */
#define GAP_NS (2 * VMF_NS_PER_S)
#define FIRST_EPOCH 1

typedef struct {
    struct Target *target;
    VmfChannel *channel;
    VmfRecordReader *reader;
    VmfRecordWriter *writer;
    VmfReceiver receiver;
    pthread_t thread;
    bool done; /* under the session's lock */
} PageChannel;

typedef struct Target {
    VmfSession *session;
    GArray *owners;
    VmfStaticData *ours;
    VmfReception *reception;
    VmfIncoming *incoming;
    XXH3_state_t *device_sum;
    VmfRamLoad *ram;      /* NULL: the guest has none */
    VmfReceiver inline_receiver; /* pages on the main channel */
    bool inline_pages;
    bool announced;       /* PAGE_CHANNELS came */
    VmfPageChannels page_channels;
    GPtrArray *pages;     /* PageChannel; under the session's lock */
    GError *page_error;   /* the first of any of them; likewise */
    int64_t deadline_ns;  /* when the main channel is shut down by the tick; 0: never; likewise */
    uint8_t token[VMF_TOKEN_SIZE];
    VmfTargetState state;
    int64_t begun_ns;
} Target;

/* ---- page channels --------------------------------------------------------------------------------------------------------- */

static void page_channel_free(void *p)
{
    PageChannel *page = p;

    pthread_join(page->thread, NULL);
    vmf_session_remove_channel(page->target->session, page->channel);
    vmf_receiver_clear(&page->receiver);
    vmf_record_reader_free(page->reader);
    vmf_record_writer_free(page->writer);
    vmf_channel_free(page->channel);
    g_free(page);
}

/* The source is told by the first who fails; it closes, and the main channel's reader finds the error here. */
static void page_failed(Target *target, unsigned channel, GError *error)
{
    g_prefix_error(&error, "page channel %u: ", channel);
    pthread_mutex_lock(&target->session->lock);
    bool first = !target->page_error;
    if (first) {
        target->page_error = g_error_copy(error);
        target->deadline_ns = vmf_now_ns() + FAREWELL_NS;
    }
    pthread_cond_broadcast(&target->session->changed);
    pthread_mutex_unlock(&target->session->lock);
    if (first)
        vmf_complaint_send(target->incoming->writer, VMF_RECORD_FAILED, NULL, error, NULL);
    g_error_free(error);
}

static void *page_main(void *opaque)
{
    PageChannel *page = opaque;
    GError *error = NULL;

    if (!vmf_receiver_run(&page->receiver, &error))
        page_failed(page->target, page->receiver.channel, error);
    pthread_mutex_lock(&page->target->session->lock);
    page->done = true;
    pthread_cond_broadcast(&page->target->session->changed);
    pthread_mutex_unlock(&page->target->session->lock);
    return NULL;
}

static bool is_expected(const Target *target, const VmfPreamble *preamble)
{
    if (!target->announced || preamble->epoch != target->page_channels.epoch ||
        preamble->channel >= target->page_channels.count ||
        memcmp(preamble->session, target->page_channels.session, sizeof(preamble->session)) != 0)
        return false;
    for (guint i = 0; i < target->pages->len; i++)
        if (((PageChannel *)g_ptr_array_index(target->pages, i))->receiver.channel == preamble->channel)
            return false;
    return true;
}

/* A caller's thread brings a channel. The source may be quicker than the main channel's reader: then it waits for the announcement. */
static bool join_page_channel(void *opaque, VmfChannel *channel, const VmfPreamble *preamble)
{
    Target *target = opaque;
    VmfSession *session = target->session;
    int64_t deadline = vmf_now_ns() + VMF_NS_PER_S;

    pthread_mutex_lock(&session->lock);
    while (!target->announced && !vmf_session_is_cancelled(session) && vmf_session_wait_locked(session, deadline))
        ;
    bool expected = is_expected(target, preamble);
    if (expected) {
        PageChannel *page = g_new0(PageChannel, 1);
        page->target = target;
        page->channel = channel;
        page->reader = vmf_record_reader_new(channel, target->incoming->format);
        page->writer = vmf_record_writer_new(channel, target->incoming->format);
        vmf_receiver_init(&page->receiver, target->ram, page->reader, page->writer, preamble->channel, preamble->epoch);
        g_ptr_array_add(session->channels, channel);
        g_ptr_array_add(target->pages, page);
        if (pthread_create(&page->thread, NULL, page_main, page) != 0)
            g_error("page channel: no thread");
    }
    pthread_mutex_unlock(&session->lock);
    return expected;
}

/* Waits until every page channel has ended. */
static bool join_all(Target *target, GError **error)
{
    VmfSession *session = target->session;
    int64_t deadline = vmf_now_ns() + LAST_PAGES_NS;
    bool late = false, all = false;

    pthread_mutex_lock(&session->lock);
    while (!all && !late && !target->page_error && !vmf_session_is_cancelled(session)) {
        all = target->pages->len == target->page_channels.count;
        for (guint i = 0; all && i < target->pages->len; i++)
            all = ((PageChannel *)g_ptr_array_index(target->pages, i))->done;
        if (!all)
            late = !vmf_session_wait_locked(session, deadline);
    }
    GError *failure = target->page_error ? g_error_copy(target->page_error) : NULL;
    pthread_mutex_unlock(&session->lock);
    if (failure)
        g_propagate_error(error, failure);
    else if (!all && vmf_session_check_cancelled(session, error))
        g_set_error(error, VMF_ERROR, VMF_ERROR_TIMEOUT, "page channels: not all of them ended in time");
    if (all && target->ram && (!target->announced || (target->inline_pages && !target->inline_receiver.ended))) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_ORDER, "record SWITCHOVER: comes before %s",
                    target->announced ? "END_MARK" : "PAGE_CHANNELS");
        all = false;
    }
    return all && !failure;
}

/* ---- loading --------------------------------------------------------------------------------------------------------------- */

static bool set_up_ram(Target *target, GError **error)
{
    VmfGuest *guest = target->session->guest;
    unsigned n = vmf_guest_n_ram(guest);
    g_autofree VmfRamBlock **blocks = g_new0(VmfRamBlock *, n + 1);

    if (n == 0)
        return true;
    for (unsigned b = 0; b < n; b++)
        blocks[b] = vmf_guest_ram(guest, b);
    target->ram = vmf_ram_load_new(blocks, n, target->incoming->features & VMF_FEATURE_HINTS, error);
    return target->ram != NULL;
}

static bool set_up_owners(Target *target, GError **error)
{
    for (guint i = 0; i < target->owners->len; i++) {
        VmfOwner *owner = vmf_owner(target->owners, i);
        owner->begun = true;
        vmf_device_owner_set_swap(owner, target->incoming->format.swap);
        if (owner->handlers->load_setup && !owner->handlers->load_setup(owner->opaque, error))
            return false;
    }
    for (guint i = 0; i < target->owners->len; i++) {
        VmfOwner *owner = vmf_owner(target->owners, i);
        if (owner->handlers->static_data_done &&
            !owner->handlers->static_data_done(owner->opaque, target->incoming->missing, error))
            return false;
    }
    return true;
}

static bool take_page_channels(Target *target, const VmfRecord *record, GError **error)
{
    VmfSession *session = target->session;
    VmfPageChannels message;

    if (!vmf_page_channels_decode(record, target->incoming->format.swap, &message, error))
        return false;
    if (target->announced || !target->ram) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_ORDER, "record PAGE_CHANNELS: %s", target->ram ? "twice" : "the guest has no RAM");
        return false;
    }
    if (message.epoch != FIRST_EPOCH || (message.count > 0 && !target->incoming->writer)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record PAGE_CHANNELS: epoch %u, %u channels: not for this stream",
                    message.epoch, message.count);
        return false;
    }
    target->inline_pages = message.count == 0;
    if (target->inline_pages)
        vmf_receiver_init(&target->inline_receiver, target->ram, target->incoming->reader, target->incoming->writer, 0, message.epoch);
    pthread_mutex_lock(&session->lock);
    target->page_channels = message;
    target->announced = true;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
    return true;
}

/* Sections are numbered by the stream's list; the check of the static data made sure that each has an owner. */
static VmfOwner *owner_of(Target *target, uint32_t id)
{
    const GArray *sections = target->incoming->static_data->sections;

    if (id >= sections->len)
        return NULL;
    const VmfStaticSection *section = &g_array_index(sections, VmfStaticSection, id);
    for (guint i = 0; i < target->owners->len; i++) {
        VmfOwner *owner = vmf_owner(target->owners, i);
        if (owner->instance == section->instance && strcmp(owner->name, section->name) == 0)
            return owner;
    }
    return NULL;
}

static bool take_section(Target *target, const VmfRecord *record, GError **error)
{
    VmfSection section;

    if (!vmf_section_decode(record, target->incoming->format.swap, &section, error))
        return false;
    VmfOwner *owner = owner_of(target, section.id);
    if (!owner || owner->complete || section.part != owner->parts) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION, "record SECTION: id %u, part %u: %s", section.id, section.part,
                    owner ? "out of order" : "not in the list");
        return false;
    }
    bool last = section.flags & VMF_SECTION_LAST;
    XXH3_64bits_update(target->device_sum, record->body, record->checked);
    owner->parts++;
    owner->complete = last;
    if (!owner->handlers->load_state)
        return true;
    if (owner->handlers->load_state(owner->opaque, owner->stream_version, section.content, section.length, last, error))
        return true;
    g_prefix_error(error, "section %s %u: ", owner->name, owner->instance);
    return false;
}

static bool take_round(Target *target, const VmfRecord *record, GError **error)
{
    VmfUnpack unpack = vmf_unpack_begin(record->body, record->checked, target->incoming->format.swap);
    uint32_t round = vmf_unpack_u32(&unpack);

    vmf_unpack_zero(&unpack, 4);
    uint64_t pending = vmf_unpack_u64(&unpack);
    if (!vmf_unpack_done(&unpack)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record ROUND: does not fit its fields");
        return false;
    }
    pthread_mutex_lock(&target->session->lock);
    target->session->statistics.round = round;
    target->session->statistics.ram_remaining_bytes = pending;
    pthread_mutex_unlock(&target->session->lock);
    return true;
}

static bool take_ping(Target *target, const VmfRecord *record, GError **error)
{
    uint64_t cookie;

    return vmf_u64_decode(record, target->incoming->format.swap, &cookie, error) &&
           (!target->incoming->writer || vmf_u64_send(target->incoming->writer, VMF_RECORD_PONG, cookie, error));
}

static bool aborted(GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "source: took the guest back");
    return false;
}

static bool take_record(Target *target, const VmfRecord *record, GError **error)
{
    switch (record->type) {
    case VMF_RECORD_PAGE_CHANNELS:
        return take_page_channels(target, record, error);
    case VMF_RECORD_SECTION:
        return take_section(target, record, error);
    case VMF_RECORD_ROUND:
        return take_round(target, record, error);
    case VMF_RECORD_PING:
        return take_ping(target, record, error);
    case VMF_RECORD_ABORT:
        return aborted(error);
    case VMF_RECORD_END:
        g_set_error(error, VMF_ERROR, VMF_ERROR_CUT, "record END: the stream is not complete");
        return false;
    case VMF_RECORD_STATIC_DATA_END:
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_DOUBLE_END, "record STATIC_DATA_END: twice");
        return false;
    case VMF_RECORD_PAGES:
    case VMF_RECORD_HINT:
    case VMF_RECORD_END_MARK:
        if (target->inline_pages)
            return vmf_receiver_take(&target->inline_receiver, record, error);
        break;
    }
    if (vmf_static_data_is_static(record->type)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_LATE, "record 0x%x: static data after its end", record->type);
        return false;
    }
    vmf_record_set_order_error(error, record->type, "here");
    return false;
}

/* A channel that breaks because a page channel did says less than that one's error. */
static bool explain(Target *target, GError **error)
{
    pthread_mutex_lock(&target->session->lock);
    GError *first = target->page_error ? g_error_copy(target->page_error) : NULL;
    pthread_mutex_unlock(&target->session->lock);
    if (first) {
        g_clear_error(error);
        g_propagate_error(error, first);
    } else if (vmf_session_is_cancelled(target->session)) {
        g_clear_error(error);
        vmf_session_check_cancelled(target->session, error);
    }
    return false;
}

/* The next record that is not to be skipped. */
static bool next_record(Target *target, VmfRecord *record, GError **error)
{
    VmfRecordReader *reader = target->incoming->reader;
    bool skip = true;

    while (skip) {
        if ((target->inline_pages && !vmf_receiver_wait(&target->inline_receiver, error)) || !vmf_record_read(reader, record, error))
            return explain(target, error);
        skip = !vmf_record_name(record->type) && record->type & VMF_RECORD_OPTIONAL;
        if (skip && reader->payload_left > 0 && !vmf_record_skip_payload(reader, record->length, error))
            return explain(target, error);
    }
    return true;
}

/* Everything up to SWITCHOVER, which is left in @record. */
static bool load(Target *target, VmfRecord *record, GError **error)
{
    *record = target->incoming->first;
    while (record->type != VMF_RECORD_SWITCHOVER)
        if (!take_record(target, record, error) || !next_record(target, record, error))
            return false;
    return true;
}

/* ---- handover -------------------------------------------------------------------------------------------------------------- */

static bool check_sections(Target *target, GError **error)
{
    for (guint i = 0; i < target->owners->len; i++) {
        const VmfOwner *owner = vmf_owner(target->owners, i);
        if (owner->complete || !owner->has_section)
            continue;
        g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION, "section %s %u: not complete at SWITCHOVER", owner->name, owner->instance);
        return false;
    }
    return true;
}

static bool check_switchover(Target *target, const VmfSwitchover *message, GError **error)
{
    if (!join_all(target, error) || !check_sections(target, error))
        return false;
    if (target->ram && !vmf_ram_load_check(target->ram, message, error))
        return false;
    if (message->static_sum != target->incoming->static_sum) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_SUM, "static data: sum differs from the source's");
        return false;
    }
    if (message->device_sum != XXH3_64bits_digest(target->device_sum)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_SUM, "device state: sum differs from the source's");
        return false;
    }
    return !(message->flags & VMF_SWITCHOVER_AUDIT) || !target->ram || vmf_ram_load_audit(target->ram, &target->session->cancelled, error);
}

static bool send_ready(Target *target, const VmfSwitchover *message, GError **error)
{
    VmfReady ready = {
        .flags = message->flags & VMF_SWITCHOVER_AUDIT ? VMF_READY_AUDITED : 0,
        .static_sum = target->incoming->static_sum,
        .device_sum = XXH3_64bits_digest(target->device_sum),
        .n_blocks = target->ram ? target->ram->n_blocks : 0,
    };

    memcpy(ready.token, target->token, sizeof(ready.token));
    ready.sums = g_new0(uint64_t, ready.n_blocks + 1);
    for (unsigned b = 0; b < ready.n_blocks; b++)
        ready.sums[b] = vmf_digest_table_total(target->ram->blocks[b].digests);
    bool sent = vmf_ready_send(target->incoming->writer, &ready, error);
    vmf_ready_clear(&ready);
    return sent;
}

static bool start_guest(Target *target, bool run, GError **error)
{
    const VmfGuestOps *ops = vmf_guest_ops(target->session->guest);

    return !run || ops->start(vmf_guest_opaque(target->session->guest), error);
}

/* Waits for the source's decision: RUN or ABORT of our token. */
static bool await_decision(Target *target, VmfTargetEvent *event, GError **error)
{
    uint8_t token[VMF_TOKEN_SIZE];
    VmfRecord record;

    *event = VMF_TARGET_EV_LOST;
    do {
        if (!next_record(target, &record, error))
            return false;
    } while (record.type == VMF_RECORD_PING && take_ping(target, &record, error));
    if (*error)
        return false;
    if (record.type != VMF_RECORD_RUN && record.type != VMF_RECORD_ABORT) {
        vmf_record_set_order_error(error, record.type, "after SWITCHOVER");
        return false;
    }
    if (!vmf_token_decode(&record, token, error))
        return false;
    if (memcmp(token, target->token, sizeof(token)) != 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record %s: of another token", vmf_record_name(record.type));
        return false;
    }
    *event = record.type == VMF_RECORD_RUN ? VMF_TARGET_EV_RUN : VMF_TARGET_EV_ABORT;
    return true;
}

static void note_running(Target *target)
{
    pthread_mutex_lock(&target->session->lock);
    target->session->statistics.total_ns = (uint64_t)(vmf_now_ns() - target->begun_ns);
    target->session->statistics.verified = VMF_VERIFIED_TRANSPORT;
    pthread_mutex_unlock(&target->session->lock);
    vmf_guest_adopt_uuid(target->session->guest, target->incoming->static_data->machine.uuid);
    vmf_session_set_status(target->session, VMF_STATUS_COMPLETED);
}

/* Whether the source hears of it does not matter any more: the guest runs here. */
static void report(Target *target, bool run)
{
    const VmfGuestOps *ops = vmf_guest_ops(target->session->guest);
    VmfReport report = {.gap_known = false};
    VmfRecord record;

    memcpy(report.token, target->token, sizeof(report.token));
    if (run && ops->guest_gap)
        report.gap_known = ops->guest_gap(vmf_guest_opaque(target->session->guest), GAP_NS, &report.guest_gap_ns);
    pthread_mutex_lock(&target->session->lock);
    target->session->statistics.guest_gap_known = report.gap_known;
    target->session->statistics.guest_gap_ns = report.guest_gap_ns;
    target->deadline_ns = vmf_now_ns() + FAREWELL_NS;
    pthread_mutex_unlock(&target->session->lock);
    if (run && target->incoming->features & VMF_FEATURE_REPORT && !vmf_report_send(target->incoming->writer, &report, NULL))
        return;
    /* Until END, or the end of the channel, or the farewell's deadline: closing earlier might cut off what we said. */
    while (vmf_record_read(target->incoming->reader, &record, NULL) && record.type != VMF_RECORD_END &&
           target->incoming->reader->payload_left == 0)
        if (record.type == VMF_RECORD_QUERY)
            vmf_token_send(target->incoming->writer, VMF_RECORD_RUNNING, target->token, NULL);
}

static bool hold(GError **error)
{
    g_prefix_error(error, "handover: READY was sent and the source's decision did not come, the guest is held here, stopped: ");
    (*error)->domain = VMF_ERROR;
    (*error)->code = VMF_ERROR_HELD;
    return false;
}

static bool commit(Target *target, bool run, GError **error)
{
    GError *why = NULL;
    VmfTargetEvent event;

    await_decision(target, &event, error);
    if (event == VMF_TARGET_EV_RUN && !vmf_session_fault(target->session, "target.run.due", error))
        return false;
    if (event == VMF_TARGET_EV_RUN && !start_guest(target, run, &why))
        event = VMF_TARGET_EV_RUN_BAD;
    switch (vmf_handover_target_step(&target->state, event)) {
    case VMF_TARGET_DO_START:
        note_running(target);
        if (!vmf_session_fault(target->session, "target.running.due", NULL))
            return true;
        vmf_token_send(target->incoming->writer, VMF_RECORD_RUNNING, target->token, NULL);
        report(target, run);
        return true;
    case VMF_TARGET_DO_SEND_NEVER:
        vmf_complaint_send(target->incoming->writer, VMF_RECORD_NEVER, target->token, why, NULL);
        g_propagate_prefixed_error(error, why, "guest: start: ");
        return false;
    case VMF_TARGET_DO_HOLD:
        return hold(error);
    default:
        g_clear_error(&why);
        return event == VMF_TARGET_EV_ABORT ? aborted(error) : false;
    }
}

/* A file or a pipe: nobody to answer, the checks decide. */
static bool finish_one_way(Target *target, bool run, GError **error)
{
    VmfRecord record;

    if (!next_record(target, &record, error))
        return false;
    if (record.type != VMF_RECORD_END || !vmf_empty_check(&record, NULL)) {
        vmf_record_set_order_error(error, record.type, "where END has to");
        return false;
    }
    vmf_handover_target_step(&target->state, VMF_TARGET_EV_GOOD);
    if (!start_guest(target, run, error)) {
        vmf_handover_target_step(&target->state, VMF_TARGET_EV_RUN_BAD);
        return false;
    }
    vmf_handover_target_step(&target->state, VMF_TARGET_EV_RUN);
    note_running(target);
    return true;
}

static bool hand_over(Target *target, const VmfRecord *record, GError **error)
{
    VmfSwitchover message;
    GError *why = NULL;

    vmf_session_set_status(target->session, VMF_STATUS_DEVICE);
    if (!vmf_switchover_decode(record, target->incoming->format.swap, target->ram ? target->ram->n_blocks : 0, &message, error))
        return false;
    memcpy(target->token, message.token, sizeof(target->token));
    bool run = message.flags & VMF_SWITCHOVER_RUN;
    bool good = check_switchover(target, &message, &why);
    if (good && target->incoming->writer) {
        vmf_handover_target_step(&target->state, VMF_TARGET_EV_GOOD);
        good = vmf_session_fault(target->session, "target.ready.due", error);
        if (good) {
            send_ready(target, &message, NULL);
            good = vmf_session_fault(target->session, "target.ready.sent", error) && commit(target, run, error);
        }
    } else if (good) {
        good = finish_one_way(target, run, error);
    } else {
        vmf_handover_target_step(&target->state, VMF_TARGET_EV_BAD);
        if (target->incoming->writer)
            vmf_complaint_send(target->incoming->writer, VMF_RECORD_REFUSED, target->token, why, NULL);
        g_propagate_error(error, why);
    }
    vmf_switchover_clear(&message);
    return good;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------- */

static void tick(void *opaque)
{
    Target *target = opaque;
    VmfSession *session = target->session;

    pthread_mutex_lock(&session->lock);
    if (target->deadline_ns && vmf_now_ns() > target->deadline_ns)
        for (guint i = 0; i < session->channels->len; i++)
            vmf_channel_shutdown(g_ptr_array_index(session->channels, i));
    pthread_mutex_unlock(&session->lock);
}

static void gather(void *opaque, VmfStatistics *statistics)
{
    Target *target = opaque;
    uint64_t received = 0;

    statistics->n_channels = target->pages->len;
    for (guint i = 0; i < target->pages->len; i++) {
        PageChannel *page = g_ptr_array_index(target->pages, i);
        uint64_t bytes = atomic_load_explicit(&page->receiver.bytes, memory_order_relaxed);
        statistics->channel_bytes[page->receiver.channel] = bytes;
        received += bytes;
    }
    statistics->bytes_received = received + (target->inline_pages ? target->inline_receiver.bytes : 0);
    if (target->ram) {
        statistics->pages_data = target->ram->pages_data;
        statistics->pages_zero = target->ram->pages_zero;
    }
}

static void show_statistics(Target *target, bool show)
{
    VmfSession *session = target->session;
    uint64_t total = 0;

    for (unsigned b = 0; b < vmf_guest_n_ram(session->guest); b++)
        total += vmf_ram_block_size(vmf_guest_ram(session->guest, b));
    pthread_mutex_lock(&session->lock);
    session->statistics.ram_total_bytes = total;
    if (!show && session->gather)
        gather(target, &session->statistics);
    session->gather = show ? gather : NULL;
    session->gather_opaque = target;
    pthread_mutex_unlock(&session->lock);
}

/* Says why to a source that can still hear it. */
static void tell_failure(Target *target, const GError *why)
{
    if (target->session->killed || !target->incoming->writer || target->state != VMF_TARGET_LOADING ||
        vmf_session_is_cancelled(target->session))
        return;
    pthread_mutex_lock(&target->session->lock);
    bool told = target->page_error;
    /* The deadline is for the sending too: a source that does not read must not keep us. */
    if (!told)
        target->deadline_ns = vmf_now_ns() + FAREWELL_NS;
    pthread_mutex_unlock(&target->session->lock);
    if (told || !vmf_complaint_send(target->incoming->writer, VMF_RECORD_FAILED, NULL, why, NULL))
        return;
    /* A close with unread input would take the message back. */
    uint8_t scratch[4096];
    bool ended = false;
    while (!ended && vmf_channel_read_all_or_end(target->incoming->channel, scratch, 1, &ended, NULL))
        ;
}

/* Each host is told what the other is called, for what they say to people. */
static bool exchange_host_names(Target *target, GError **error)
{
    const char *own = target->session->host_name, *theirs = target->incoming->static_data->host;

    vmf_session_set_peer_host_name(target->session, g_strdup(theirs));
    return !target->incoming->writer || !*own || vmf_target_host_send(target->incoming->writer, own, error);
}

static bool receive(Target *target, GError **error)
{
    VmfRecord record;

    vmf_session_add_channel(target->session, target->incoming->channel);
    target->begun_ns = vmf_now_ns();
    if (!exchange_host_names(target, error) || !set_up_ram(target, error) || !set_up_owners(target, error))
        return false;
    show_statistics(target, true);
    vmf_session_set_status(target->session, VMF_STATUS_ACTIVE);
    return vmf_session_fault(target->session, "target.accepted", error) && load(target, &record, error) &&
           vmf_session_fault(target->session, "target.loaded", error) && hand_over(target, &record, error);
}

static bool wait_and_receive(Target *target, GError **error)
{
    VmfReceptionConfig config = {
        .session = target->session,
        .ours = target->ours,
        .owners = target->owners,
        .page_channel = join_page_channel,
        .tick = tick,
        .opaque = target,
    };

    target->reception = vmf_reception_new(&config, error);
    if (!target->reception)
        return false;
    target->incoming = vmf_reception_wait(target->reception, error);
    if (!target->incoming)
        return false;
    GError *why = NULL;
    if (receive(target, &why))
        return true;
    tell_failure(target, why);
    g_propagate_error(error, why);
    return false;
}

static void clean_up(Target *target, bool done)
{
    show_statistics(target, false);
    vmf_session_shutdown_channels(target->session);
    g_clear_pointer(&target->reception, vmf_reception_free);
    /* Once more: a page channel may have joined in between, and nobody else would ever wake its thread. */
    vmf_session_shutdown_channels(target->session);
    g_ptr_array_unref(target->pages);
    for (guint i = 0; i < target->owners->len; i++) {
        VmfOwner *owner = vmf_owner(target->owners, i);
        if (owner->begun && owner->handlers->load_cleanup)
            owner->handlers->load_cleanup(owner->opaque);
    }
    if (!done && target->ram && target->state != VMF_TARGET_HOLD)
        vmf_ram_load_discard(target->ram);
    vmf_receiver_clear(&target->inline_receiver);
    vmf_ram_load_free(target->ram);
    if (target->incoming)
        vmf_session_remove_channel(target->session, target->incoming->channel);
    vmf_incoming_free(target->incoming);
    vmf_owners_free(target->owners);
    vmf_static_data_free(target->ours);
    XXH3_freeState(target->device_sum);
    g_clear_error(&target->page_error);
}

static void settle(Target *target, bool done, const GError *error)
{
    VmfSession *session = target->session;

    if (target->state == VMF_TARGET_HOLD) {
        pthread_mutex_lock(&session->lock);
        session->statistics.outcome = VMF_OUTCOME_HELD;
        pthread_mutex_unlock(&session->lock);
    } else if (done) {
        return; /* said when it ran */
    } else if (g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED)) {
        vmf_session_set_status(session, VMF_STATUS_CANCELLING);
        vmf_session_set_status(session, VMF_STATUS_CANCELLED);
    } else {
        vmf_session_set_status(session, VMF_STATUS_FAILED);
    }
}

bool vmf_target_run(VmfSession *session, GError **error)
{
    g_autofree Target *target = g_new0(Target, 1);
    GError *why = NULL;

    target->session = session;
    target->pages = g_ptr_array_new_with_free_func(page_channel_free);
    target->device_sum = XXH3_createState();
    XXH3_64bits_reset(target->device_sum);
    bool has_ram = vmf_guest_n_ram(session->guest) > 0;
    /* RAM's pages have records of their own, so there is nothing for a handler to load. */
    static const VmfSaveHandlers ram_handlers = {.size = sizeof(VmfSaveHandlers)};
    target->owners = vmf_owners_new(session->guest, &ram_handlers, has_ram ? target : NULL, false);
    target->ours = vmf_static_data_of(session->guest, target->owners);
    vmf_session_set_status(session, VMF_STATUS_SETUP);
    bool done = vmf_guest_check(session->guest, &why) && wait_and_receive(target, &why);
    clean_up(target, done);
    settle(target, done, why);
    if (why)
        g_propagate_error(error, why);
    return done;
}
