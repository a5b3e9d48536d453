/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The target: vmf_target_run() waits for a caller that fits (incoming.c), loads what it sends, and takes part in the handover. Page
 * channels have a thread each, which places pages and acknowledges them; the main channel is read here.
 */
#include <vmferry/error.h>

#include "migration/target.h"
#include "ram/block.h"
#include "stream/channel.h"
#include "stream/clock.h"

#define LAST_PAGES_NS (10 * VMF_NS_PER_S) /* from SWITCHOVER until every page channel has ended */
#define FAREWELL_NS (2 * VMF_NS_PER_S)    /* for the source to read why, and to close */
#define FIRST_EPOCH 1

typedef struct {
    VmfTarget *target;
    VmfChannel *channel;
    VmfRecordReader *reader;
    VmfRecordWriter *writer;
    VmfReceiver receiver;
    pthread_t thread;
    bool done; /* under the session's lock */
} PageChannel;


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
static void page_failed(VmfTarget *target, unsigned channel, GError *error)
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

static bool is_expected(const VmfTarget *target, const VmfPreamble *preamble)
{
    if (target->over || !target->announced || preamble->epoch != target->page_channels.epoch ||
        preamble->channel >= target->page_channels.count ||
        memcmp(preamble->session, target->page_channels.session, sizeof(preamble->session)) != 0)
        return false;
    for (guint i = 0; i < target->pages->len; i++)
        if (((PageChannel *)g_ptr_array_index(target->pages, i))->receiver.channel == preamble->channel)
            return false;
    return true;
}

/* False: there is no thread for it, and @channel is the caller's still. */
static bool start_page_channel_locked(VmfTarget *target, VmfChannel *channel, const VmfPreamble *preamble)
{
    PageChannel *page = g_new0(PageChannel, 1);

    page->target = target;
    page->channel = channel;
    page->reader = vmf_record_reader_new(channel, target->incoming->format);
    page->writer = vmf_record_writer_new(channel, target->incoming->format);
    vmf_receiver_init(&page->receiver, target->ram, page->reader, page->writer, preamble->channel, preamble->epoch);
    if (pthread_create(&page->thread, NULL, page_main, page) != 0) {
        vmf_receiver_clear(&page->receiver);
        vmf_record_reader_free(page->reader);
        vmf_record_writer_free(page->writer);
        g_free(page);
        return false;
    }
    g_ptr_array_add(target->session->channels, channel);
    g_ptr_array_add(target->pages, page);
    return true;
}

/* A caller's thread brings a channel. The source may be quicker than the main channel's reader: then it waits for the announcement. */
static bool join_page_channel(void *opaque, VmfChannel *channel, const VmfPreamble *preamble)
{
    VmfTarget *target = opaque;
    VmfSession *session = target->session;
    int64_t deadline = vmf_now_ns() + VMF_NS_PER_S;

    pthread_mutex_lock(&session->lock);
    while (!target->announced && !target->over && !vmf_session_is_cancelled(session) && vmf_session_wait_locked(session, deadline))
        ;
    bool joined = is_expected(target, preamble) && start_page_channel_locked(target, channel, preamble);
    pthread_mutex_unlock(&session->lock);
    return joined;
}

/* Waits until every page channel has ended. */
static bool join_all(VmfTarget *target, GError **error)
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

static bool set_up_ram(VmfTarget *target, GError **error)
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

static bool take_page_channels(VmfTarget *target, const VmfRecord *record, GError **error)
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

static bool take_round(VmfTarget *target, const VmfRecord *record, GError **error)
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

static bool take_ping(VmfTarget *target, const VmfRecord *record, GError **error)
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

static void set_must_send(VmfTarget *target, bool must)
{
    pthread_mutex_lock(&target->session->lock);
    target->heard_ns = must ? vmf_now_ns() : 0;
    pthread_mutex_unlock(&target->session->lock);
}

/* It may take its time, in which nothing is read: what the source sends meanwhile is not missed. */
static bool take_own_record(VmfTarget *target, const VmfRecord *record, bool *taken, GError **error)
{
    set_must_send(target, false);
    bool good = vmf_owners_take(target->owners, target->incoming->reader, record, taken, error);
    set_must_send(target, target->incoming->writer);
    return good;
}

static bool take_record(VmfTarget *target, const VmfRecord *record, GError **error)
{
    switch (record->type) {
    case VMF_RECORD_PAGE_CHANNELS:
        return take_page_channels(target, record, error);
    case VMF_RECORD_SECTION:
        return vmf_section_load_take(&target->sections, record, error);
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
    bool taken;
    if (!take_own_record(target, record, &taken, error))
        return false;
    if (taken)
        return true;
    if (vmf_static_data_is_static(record->type)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_LATE, "record 0x%x: static data after its end", record->type);
        return false;
    }
    vmf_record_set_order_error(error, record->type, "here");
    return false;
}

/* A channel that breaks because a page channel did says less than that one's error. */
static bool explain(VmfTarget *target, GError **error)
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
bool vmf_target_next_record(VmfTarget *target, VmfRecord *record, GError **error)
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
static bool load(VmfTarget *target, VmfRecord *record, GError **error)
{
    *record = target->incoming->first;
    while (record->type != VMF_RECORD_SWITCHOVER)
        if (!take_record(target, record, error) || !vmf_target_next_record(target, record, error))
            return false;
    return true;
}

/* ---- handover -------------------------------------------------------------------------------------------------------------- */

static bool all_arrived(VmfTarget *target, GError **error)
{
    for (guint i = 0; i < target->owners->len; i++) {
        const VmfOwner *owner = vmf_owner(target->owners, i);
        if (owner->records && owner->records->arrived && !owner->records->arrived(owner->opaque, error))
            return false;
    }
    return vmf_session_fault(target->session, "target.arrived", error);
}

/* Ahead of the owners' cleanup. Who was killed puts nothing right. */
static void tell_owners(VmfTarget *target, bool ours)
{
    bool known = ours || (!vmf_target_exchange_is_held(&target->exchange) && !target->session->killed);

    for (guint i = 0; i < target->owners->len; i++) {
        const VmfOwner *owner = vmf_owner(target->owners, i);
        if (owner->records && owner->records->settled)
            owner->records->settled(owner->opaque, ours, known);
    }
}

static bool check_switchover(VmfTarget *target, const VmfSwitchover *message, GError **error)
{
    if (!join_all(target, error) || !vmf_section_load_check_complete(&target->sections, error))
        return false;
    if (target->ram && !vmf_ram_load_check(target->ram, message, error))
        return false;
    if (message->static_sum != target->incoming->static_sum) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATIC_SUM, "static data: sum differs from the source's");
        return false;
    }
    if (!vmf_section_load_check_sum(&target->sections, message->device_sum, error))
        return false;
    if (message->flags & VMF_SWITCHOVER_AUDIT && target->ram && !vmf_ram_load_audit(target->ram, &target->session->cancelled, error))
        return false;
    return all_arrived(target, error);
}

void vmf_target_note_running(VmfTarget *target)
{
    pthread_mutex_lock(&target->session->lock);
    target->session->statistics.total_ns = (uint64_t)(vmf_now_ns() - target->begun_ns);
    target->session->statistics.verified = VMF_VERIFIED_TRANSPORT;
    pthread_mutex_unlock(&target->session->lock);
    vmf_guest_adopt_uuid(target->session->guest, target->incoming->static_data->machine.uuid);
    vmf_session_set_status(target->session, VMF_STATUS_COMPLETED);
}

/* A file or a pipe: nobody to answer, the checks decide. */
static bool finish_one_way(VmfTarget *target, GError **error)
{
    const VmfGuestOps *ops = vmf_guest_ops(target->session->guest);
    void *guest = vmf_guest_opaque(target->session->guest);
    VmfRecord record;

    if (!vmf_target_next_record(target, &record, error))
        return false;
    if (record.type != VMF_RECORD_END || !vmf_empty_check(&record, NULL)) {
        vmf_record_set_order_error(error, record.type, "where END has to");
        return false;
    }
    if (ops->storage_acquire && !ops->storage_acquire(guest, error))
        return false;
    if (target->run && !ops->start(guest, error)) {
        if (ops->storage_release)
            ops->storage_release(guest, NULL);
        return false;
    }
    target->one_way_done = true;
    vmf_target_note_running(target);
    return true;
}

static bool hand_over(VmfTarget *target, const VmfRecord *record, GError **error)
{
    g_autoptr(GError) why = NULL;

    vmf_session_set_status(target->session, VMF_STATUS_DEVICE);
    if (!vmf_switchover_decode(record, target->incoming->format.swap, target->ram ? target->ram->n_blocks : 0, &target->offer, error))
        return false;
    target->run = target->offer.flags & VMF_SWITCHOVER_RUN;
    bool good = check_switchover(target, &target->offer, &why);
    if (target->incoming->writer)
        return vmf_target_hand_over(target, why, error);
    if (!good)
        g_propagate_error(error, g_steal_pointer(&why));
    return good && finish_one_way(target, error);
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------- */

static uint64_t count_records_locked(const VmfTarget *target)
{
    uint64_t n = target->incoming->reader->n_records;

    for (guint i = 0; i < target->pages->len; i++)
        n += ((PageChannel *)g_ptr_array_index(target->pages, i))->reader->n_records;
    return n;
}

/* An accepted source that says nothing would keep everybody else out for ever: it is given up, as if it had failed. */
static void look_for_life_locked(VmfTarget *target)
{
    VmfSession *session = target->session;
    int64_t now = vmf_now_ns();

    if (!target->heard_ns)
        return;
    uint64_t n = count_records_locked(target);
    if (n != target->n_heard)
        target->heard_ns = now;
    target->n_heard = n;
    if (now - target->heard_ns <= session->silence_ns || target->page_error)
        return;
    g_set_error(&target->page_error, VMF_ERROR, VMF_ERROR_TIMEOUT, "source: has sent nothing for %.3g s",
                (double)session->silence_ns / VMF_NS_PER_S);
    for (guint i = 0; i < session->channels->len; i++)
        vmf_channel_shutdown(g_ptr_array_index(session->channels, i));
    pthread_cond_broadcast(&session->changed);
}

static void tick(void *opaque)
{
    VmfTarget *target = opaque;
    VmfSession *session = target->session;

    pthread_mutex_lock(&session->lock);
    look_for_life_locked(target);
    if (target->deadline_ns && vmf_now_ns() > target->deadline_ns)
        for (guint i = 0; i < session->channels->len; i++)
            vmf_channel_shutdown(g_ptr_array_index(session->channels, i));
    pthread_mutex_unlock(&session->lock);
}

static void gather(void *opaque, VmfStatistics *statistics)
{
    VmfTarget *target = opaque;
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
    vmf_disk_target_gather(target->disks, statistics);
}

static void show_statistics(VmfTarget *target, bool show)
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
static void tell_failure(VmfTarget *target, const GError *why)
{
    if (target->session->killed || !target->incoming->writer || target->exchange.state != VMF_TARGET_LOADING ||
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
static bool exchange_host_names(VmfTarget *target, GError **error)
{
    const char *own = target->session->host_name, *theirs = target->incoming->static_data->host;

    vmf_session_set_peer_host_name(target->session, g_strdup(theirs));
    return !target->incoming->writer || !*own || vmf_target_host_send(target->incoming->writer, own, error);
}

/* The source writes down whose word will count, ahead of the stop. */
static bool name_state_directory(VmfTarget *target, GError **error)
{
    VmfJournal *journal = target->session->parameters.journal;
    uint8_t id[16];

    if (!journal || !target->incoming->writer)
        return true;
    vmf_journal_id(journal, id);
    return vmf_target_state_send(target->incoming->writer, id, error);
}

static bool receive(VmfTarget *target, GError **error)
{
    VmfRecord record;

    vmf_session_add_channel(target->session, target->incoming->channel);
    target->begun_ns = vmf_now_ns();
    vmf_disk_target_begin(target->disks, target->incoming->static_data, target->incoming->format.swap, target->incoming->writer);
    if (!exchange_host_names(target, error) || !name_state_directory(target, error) || !set_up_ram(target, error) ||
        !vmf_section_load_begin(&target->sections, target->incoming->static_data, target->incoming->format.swap,
                                target->incoming->missing, error))
        return false;
    show_statistics(target, true);
    vmf_session_set_status(target->session, VMF_STATUS_ACTIVE);
    set_must_send(target, target->incoming->writer); /* a pipe may be slow to come */
    bool loaded = vmf_session_fault(target->session, "target.accepted", error) && load(target, &record, error);
    set_must_send(target, false);
    return loaded && vmf_session_fault(target->session, "target.loaded", error) && hand_over(target, &record, error);
}

static bool wait_and_receive(VmfTarget *target, GError **error)
{
    VmfReceptionConfig config = {
        .session = target->session,
        .ours = target->ours,
        .owners = target->owners,
        .page_channel = join_page_channel,
        .question = vmf_target_question,
        .answered = vmf_target_answered,
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

static void set_over(VmfTarget *target)
{
    pthread_mutex_lock(&target->session->lock);
    target->over = true;
    pthread_cond_broadcast(&target->session->changed);
    pthread_mutex_unlock(&target->session->lock);
}

static void clean_up(VmfTarget *target, bool done)
{
    set_over(target);
    show_statistics(target, false);
    vmf_session_shutdown_channels(target->session);
    g_clear_pointer(&target->reception, vmf_reception_free);
    g_ptr_array_unref(target->pages);
    tell_owners(target, done);
    vmf_section_load_clear(&target->sections);
    vmf_disk_target_free(target->disks);
    if (!done && target->ram && !vmf_target_exchange_is_held(&target->exchange))
        vmf_ram_load_discard(target->ram);
    vmf_receiver_clear(&target->inline_receiver);
    vmf_ram_load_free(target->ram);
    if (target->incoming)
        vmf_session_remove_channel(target->session, target->incoming->channel);
    vmf_incoming_free(target->incoming);
    vmf_owners_free(target->owners);
    vmf_static_data_free(target->ours);
    vmf_target_handover_clear(target);
    g_clear_error(&target->page_error);
}

static void settle(VmfTarget *target, bool done, const GError *error)
{
    VmfSession *session = target->session;

    if (vmf_target_exchange_is_held(&target->exchange)) {
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
    g_autofree VmfTarget *target = g_new0(VmfTarget, 1);
    GError *why = NULL;

    target->session = session;
    target->pages = g_ptr_array_new_with_free_func(page_channel_free);
    vmf_target_handover_init(target);
    bool has_ram = vmf_guest_n_ram(session->guest) > 0;
    /* RAM's pages have records of their own, so there is nothing for a handler to load. */
    static const VmfSaveHandlers ram_handlers = {.size = sizeof(VmfSaveHandlers)};
    target->owners = vmf_owners_new(session->guest, &ram_handlers, has_ram ? target : NULL, false);
    target->disks = vmf_disk_target_new(session);
    VmfOwner of_disks = vmf_disk_target_owner(target->disks);
    vmf_owners_add(target->owners, &of_disks);
    vmf_section_load_init(&target->sections, target->owners);
    target->ours = vmf_static_data_of(session->guest, target->owners);
    vmf_session_set_status(session, VMF_STATUS_SETUP);
    bool done = vmf_guest_check(session->guest, &why) && wait_and_receive(target, &why);
    clean_up(target, done);
    settle(target, done, why);
    if (why)
        g_propagate_error(error, why);
    return done;
}
