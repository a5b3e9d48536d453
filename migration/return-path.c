/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/return-path.h"

#include <vmferry/error.h>

#include "stream/channel.h"
#include "stream/clock.h"

#define MESSAGES_MAX 4         /* READY, RUNNING, REPORT, and one to spare */
#define MESSAGE_MAX (256u << 10) /* octets: a complaint of the greatest length, rounded up */
#define EXPLAIN_NS (500 * VMF_NS_PER_MS)

typedef struct {
    VmfReturnPath *path;
    VmfRecordReader *reader;
    unsigned lane;
    pthread_t thread;
    bool started;
} Reader;

struct VmfReturnPath {
    VmfSession *session;
    VmfRamSource *ram;
    GArray *owners;
    VmfStreamFormat format;
    Reader main;
    GPtrArray *lanes; /* Reader */
    GQueue messages;  /* VmfReturnMessage; under the session's lock */
    GError *failure;  /* likewise */
    _Atomic bool attached; /* the lanes are there: ram->save may be used */
    bool inline_acks;      /* pages travel on the main channel; set before `attached` */
    _Atomic bool offered;  /* SWITCHOVER is on its way: answers to it may come */
    _Atomic uint64_t rtt_ns;
    unsigned n_pongs; /* under the session's lock */
};

static void lane_free(void *p)
{
    Reader *reader = p;

    if (reader->started)
        pthread_join(reader->thread, NULL);
    vmf_record_reader_free(reader->reader);
    g_free(reader);
}

VmfReturnPath *vmf_return_path_new(VmfSession *session, VmfChannel *main, VmfStreamFormat format, VmfRamSource *ram, GArray *owners)
{
    VmfReturnPath *path = g_new0(VmfReturnPath, 1);

    path->session = session;
    path->ram = ram;
    path->owners = owners;
    path->format = format;
    path->main = (Reader){.path = path, .reader = vmf_record_reader_new(main, format)};
    path->lanes = g_ptr_array_new_with_free_func(lane_free);
    g_queue_init(&path->messages);
    return path;
}

static void message_free(void *p)
{
    vmf_return_message_clear(p);
    g_free(p);
}

void vmf_return_path_free(VmfReturnPath *path)
{
    if (!path)
        return;
    if (path->main.started)
        pthread_join(path->main.thread, NULL);
    vmf_record_reader_free(path->main.reader);
    g_ptr_array_unref(path->lanes);
    g_queue_clear_full(&path->messages, message_free);
    g_clear_error(&path->failure);
    g_free(path);
}

void vmf_return_message_clear(VmfReturnMessage *message)
{
    g_clear_pointer(&message->body, g_bytes_unref);
}

VmfRecord vmf_return_message_record(const VmfReturnMessage *message)
{
    uint32_t length = (uint32_t)g_bytes_get_size(message->body);

    return (VmfRecord){.type = message->type, .body = g_bytes_get_data(message->body, NULL), .length = length, .checked = length};
}

/* Whoever waits for room, for a slow channel or for an answer has to know at once. From the offer on the channels are still needed. */
static void fail(VmfReturnPath *path, GError *error)
{
    VmfSession *session = path->session;

    pthread_mutex_lock(&session->lock);
    if (path->failure)
        g_error_free(error);
    else
        path->failure = error;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
    if (path->attached)
        vmf_flight_close(path->ram->save->flight);
    for (guint i = 0; i < path->owners->len; i++) {
        const VmfOwner *owner = vmf_owner(path->owners, i);
        if (owner->records && owner->records->lost)
            owner->records->lost(owner->opaque);
    }
    if (!path->offered && !vmf_session_is_cancelled(session)) /* a cancel shuts what it has to itself */
        vmf_session_shutdown_channels(session);
}

void vmf_return_path_attached(VmfReturnPath *path, bool inline_acks)
{
    pthread_mutex_lock(&path->session->lock);
    path->inline_acks = inline_acks;
    path->attached = true;
    bool failed = path->failure != NULL;
    pthread_mutex_unlock(&path->session->lock);
    if (failed)
        vmf_flight_close(path->ram->save->flight);
}

void vmf_return_path_offer(VmfReturnPath *path)
{
    path->offered = true;
}

static bool take_failed(VmfReturnPath *path, const VmfRecord *record, GError **error)
{
    g_autofree char *id = NULL, *text = NULL;

    if (vmf_complaint_decode(record, path->format.swap, NULL, &id, &text, error))
        g_set_error(error, VMF_ERROR, VMF_ERROR_PEER, "target: %s: %s", id, text);
    return false;
}

static bool take_host(VmfReturnPath *path, const VmfRecord *record, GError **error)
{
    char *name;

    if (!vmf_target_host_decode(record, path->format.swap, &name, error))
        return false;
    vmf_session_set_peer_host_name(path->session, name);
    return true;
}

/* Once: a journal that names one directory must not be told of another. */
static bool take_state(VmfReturnPath *path, const VmfRecord *record, GError **error)
{
    static const uint8_t nobody[16];
    uint8_t id[16];

    if (!vmf_target_state_decode(record, id, error))
        return false;
    pthread_mutex_lock(&path->session->lock);
    bool first = memcmp(path->session->peer_state, nobody, sizeof(nobody)) == 0;
    if (first)
        memcpy(path->session->peer_state, id, sizeof(id));
    pthread_mutex_unlock(&path->session->lock);
    if (!first)
        vmf_record_set_order_error(error, record->type, "twice");
    return first;
}

static bool take_pong(VmfReturnPath *path, const VmfRecord *record, GError **error)
{
    uint64_t cookie, now = (uint64_t)vmf_now_ns(), best = atomic_load(&path->rtt_ns);

    if (!vmf_u64_decode(record, path->format.swap, &cookie, error))
        return false;
    if (cookie < now && (best == 0 || now - cookie < best)) {
        atomic_store(&path->rtt_ns, now - cookie);
        if (path->attached)
            vmf_flight_set_rtt(path->ram->save->flight, now - cookie);
    }
    pthread_mutex_lock(&path->session->lock);
    path->n_pongs++;
    pthread_cond_broadcast(&path->session->changed);
    pthread_mutex_unlock(&path->session->lock);
    return true;
}

/* A version 2 source does not wait for a verdict: one that comes later refuses. */
static bool take_refusal(VmfReturnPath *path, const VmfRecord *record, GError **error)
{
    VmfVerdict verdict;

    if (!vmf_verdict_decode(record, path->format.swap, &verdict, error))
        return false;
    if (verdict.accepted) {
        vmf_record_set_order_error(error, record->type, "twice");
    } else {
        vmf_session_set_incompatibilities(path->session, verdict.texts);
        g_autofree char *all = g_strjoinv("; ", verdict.texts);
        g_set_error(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE, "target: refuses: %s", all);
    }
    vmf_verdict_clear(&verdict);
    return false;
}

/* Answers to the offer wait for the session's thread; there are never more than these. */
static bool take_message(VmfReturnPath *path, const VmfRecord *record, GError **error)
{
    bool due = path->offered && record->checked <= MESSAGE_MAX;

    pthread_mutex_lock(&path->session->lock);
    due = due && g_queue_get_length(&path->messages) < MESSAGES_MAX;
    if (due) {
        VmfReturnMessage *message = g_new0(VmfReturnMessage, 1);
        *message = (VmfReturnMessage){record->type, g_bytes_new(record->body, record->checked)};
        g_queue_push_tail(&path->messages, message);
        pthread_cond_broadcast(&path->session->changed);
    }
    pthread_mutex_unlock(&path->session->lock);
    if (!due)
        vmf_record_set_order_error(error, record->type, path->offered ? "so often" : "ahead of SWITCHOVER");
    return due;
}

static bool take(VmfReturnPath *path, const VmfRecord *record, GError **error)
{
    switch (record->type) {
    case VMF_RECORD_ACK:
        if (path->attached && path->inline_acks)
            return vmf_ram_source_acknowledged(path->ram, record, path->format.swap, 0, error);
        break;
    case VMF_RECORD_VERDICT:
        return take_refusal(path, record, error);
    case VMF_RECORD_TARGET_HOST:
        return take_host(path, record, error);
    case VMF_RECORD_TARGET_STATE:
        return take_state(path, record, error);
    case VMF_RECORD_PONG:
        return take_pong(path, record, error);
    case VMF_RECORD_FAILED:
        return take_failed(path, record, error);
    case VMF_RECORD_READY:
    case VMF_RECORD_REFUSED:
    case VMF_RECORD_RUNNING:
    case VMF_RECORD_NEVER:
    case VMF_RECORD_REPORT:
        return take_message(path, record, error);
    }
    bool taken;
    if (!vmf_owners_answer(path->owners, record, path->format.swap, &taken, error))
        return false;
    if (!taken)
        vmf_record_set_order_error(error, record->type, "on the return path");
    return taken;
}

static void *main_thread(void *opaque)
{
    VmfReturnPath *path = opaque;
    GError *error = NULL;
    VmfRecord record;

    while (!error && vmf_record_read_known(path->main.reader, &record, &error))
        take(path, &record, &error);
    fail(path, error);
    return NULL;
}

bool vmf_return_path_read_verdict(VmfReturnPath *path, int64_t deadline_ns, VmfVerdict *verdict, GError **error)
{
    VmfRecord record;

    path->main.reader->deadline_ns = deadline_ns;
    bool read = vmf_record_read_known(path->main.reader, &record, error);
    path->main.reader->deadline_ns = 0;
    if (!read)
        return false;
    if (record.type == VMF_RECORD_VERDICT)
        return vmf_verdict_decode(&record, path->format.swap, verdict, error);
    if (record.type == VMF_RECORD_FAILED)
        return take_failed(path, &record, error);
    vmf_record_set_order_error(error, record.type, "ahead of VERDICT");
    return false;
}

bool vmf_return_path_start(VmfReturnPath *path, GError **error)
{
    int failed = pthread_create(&path->main.thread, NULL, main_thread, path);

    path->main.started = failed == 0;
    if (failed)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "return path: thread: %s", g_strerror(failed));
    return failed == 0;
}

static void *lane_thread(void *opaque)
{
    Reader *reader = opaque;
    GError *error = NULL;
    VmfRecord record;

    while (!error && vmf_record_read_known(reader->reader, &record, &error)) {
        if (record.type == VMF_RECORD_ACK)
            vmf_ram_source_acknowledged(reader->path->ram, &record, reader->path->format.swap, reader->lane, &error);
        else
            vmf_record_set_order_error(&error, record.type, "on the return path of a page channel");
    }
    /* The end of a page channel by itself is no news: the main channel says why, or the write that follows does. */
    if (!g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT)) {
        g_prefix_error(&error, "page channel %u: ", reader->lane);
        fail(reader->path, g_steal_pointer(&error));
    } else {
        vmf_flight_close(reader->path->ram->save->flight);
    }
    g_clear_error(&error);
    return NULL;
}

bool vmf_return_path_join(VmfReturnPath *path, VmfChannel *channel, unsigned lane, int64_t deadline_ns, GError **error)
{
    Reader *reader = g_new0(Reader, 1);
    VmfRecord record;

    *reader = (Reader){.path = path, .lane = lane, .reader = vmf_record_reader_new(channel, path->format)};
    g_ptr_array_add(path->lanes, reader);
    reader->reader->deadline_ns = deadline_ns;
    if (!vmf_record_read_known(reader->reader, &record, error)) {
        g_prefix_error(error, "page channel %u: handshake: ", lane);
        return false;
    }
    if (record.type != VMF_RECORD_ACK) {
        vmf_record_set_order_error(error, record.type, "ahead of the first ACK");
        return false;
    }
    reader->reader->deadline_ns = 0;
    if (!vmf_ram_source_acknowledged(path->ram, &record, path->format.swap, lane, error))
        return false;
    int failed = pthread_create(&reader->thread, NULL, lane_thread, reader);
    reader->started = failed == 0;
    if (failed)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "page channel %u: thread: %s", lane, g_strerror(failed));
    return failed == 0;
}

bool vmf_return_path_next(VmfReturnPath *path, int64_t deadline_ns, bool cancellable, VmfReturnMessage *message, GError **error)
{
    VmfSession *session = path->session;
    bool late = false;

    pthread_mutex_lock(&session->lock);
    while (g_queue_is_empty(&path->messages) && !path->failure && !late && !(cancellable && vmf_session_is_cancelled(session)))
        late = !vmf_session_wait_locked(session, deadline_ns);
    VmfReturnMessage *next = g_queue_pop_head(&path->messages);
    GError *failure = path->failure ? g_error_copy(path->failure) : NULL;
    pthread_mutex_unlock(&session->lock);
    if (next) {
        *message = *next;
        g_free(next);
        g_clear_error(&failure);
        return true;
    }
    if (failure)
        g_propagate_error(error, failure);
    else if (!late)
        g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "migration: cancelled");
    else
        g_set_error(error, VMF_ERROR, VMF_ERROR_TIMEOUT, "target: does not answer in time");
    return false;
}

static bool is_woken(const VmfReturnPath *path, unsigned ignore, VmfWakeReason *reason)
{
    const VmfSession *session = path->session;

    /* Ahead of what has come: an answer that is READY would be taken for more than the owner's word. */
    if (atomic_load(&session->cancelled) && !(ignore & (1u << VMF_WAKE_CANCEL)))
        *reason = VMF_WAKE_CANCEL;
    else if (!g_queue_is_empty((GQueue *)&path->messages))
        *reason = VMF_WAKE_MESSAGE;
    else if (path->failure && !(ignore & (1u << VMF_WAKE_CUT)))
        *reason = VMF_WAKE_CUT;
    else if (session->leaving)
        *reason = VMF_WAKE_LEAVE;
    else if (session->resolution.pending)
        *reason = VMF_WAKE_RESOLVE;
    else
        return false;
    return true;
}

VmfWakeReason vmf_return_path_wait(VmfReturnPath *path, int64_t deadline_ns, unsigned ignore, VmfReturnMessage *message,
                                   GError **failure)
{
    VmfSession *session = path->session;
    VmfWakeReason reason = VMF_WAKE_DUE;
    bool late = false;

    pthread_mutex_lock(&session->lock);
    while (!is_woken(path, ignore, &reason) && !late)
        late = !vmf_session_wait_locked(session, deadline_ns);
    VmfReturnMessage *next = reason == VMF_WAKE_MESSAGE ? g_queue_pop_head(&path->messages) : NULL;
    if (reason == VMF_WAKE_CUT)
        g_propagate_error(failure, g_error_copy(path->failure));
    pthread_mutex_unlock(&session->lock);
    if (next) {
        *message = *next;
        g_free(next);
    }
    return reason;
}

/*
 * Ahead of the thread, a version 2 target's refusal lies there unread, or the failure of one that accepted and could not set up; behind
 * what a target says of itself.
 */
static void explain_unstarted(VmfReturnPath *path, GError **error)
{
    GError *why = NULL;
    VmfRecord record = {0};

    while (!why && record.type != VMF_RECORD_VERDICT && record.type != VMF_RECORD_FAILED) {
        if (vmf_channel_wait_readable(path->main.reader->channel, EXPLAIN_NS, NULL) <= 0 ||
            !vmf_record_read_known(path->main.reader, &record, NULL))
            return;
        if (record.type == VMF_RECORD_VERDICT)
            take_refusal(path, &record, &why);
        else if (record.type == VMF_RECORD_FAILED)
            take_failed(path, &record, &why);
    }
    if (!why)
        return;
    g_clear_error(error);
    g_propagate_error(error, why);
}

void vmf_return_path_explain(VmfReturnPath *path, GError **error)
{
    VmfSession *session = path->session;
    int64_t deadline = vmf_now_ns() + EXPLAIN_NS;

    if (vmf_session_is_cancelled(session))
        return;
    if (!path->main.started) {
        explain_unstarted(path, error);
        return;
    }
    pthread_mutex_lock(&session->lock);
    while (!path->failure && vmf_session_wait_locked(session, deadline))
        ;
    GError *failure = path->failure ? g_error_copy(path->failure) : NULL;
    pthread_mutex_unlock(&session->lock);
    if (!failure)
        return;
    g_clear_error(error);
    g_propagate_error(error, failure);
}

void vmf_return_path_await_pong(VmfReturnPath *path, unsigned n_pongs, int64_t deadline_ns)
{
    VmfSession *session = path->session;

    pthread_mutex_lock(&session->lock);
    while (path->n_pongs < n_pongs && !path->failure && !vmf_session_is_cancelled(session) && !session->expiry &&
           vmf_session_wait_locked(session, deadline_ns))
        ;
    pthread_mutex_unlock(&session->lock);
}

uint64_t vmf_return_path_rtt_ns(VmfReturnPath *path)
{
    return atomic_load(&path->rtt_ns);
}
