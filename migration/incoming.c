/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/incoming.h"

#include <vmferry/error.h>

#include "stream/channel.h"
#include "stream/clock.h"

#define TICK_NS (100 * VMF_NS_PER_MS)
#define BUSY_TICK_NS (10 * VMF_NS_PER_MS) /* while somebody is being served: the end of a session waits for the tick */
#define FAREWELL_NS (2 * VMF_NS_PER_S) /* for somebody who got an answer to read it, and to close */
#define CALLERS_MAX (64 + VMF_CHANNELS_MAX) /* connections that have not said who they are */
#define EVICTED 32                          /* so many of them have to go at a time when there is no room */
/* A body that a caller's record may take up: the greatest that any known type can need. */
#define CALLER_MEMORY (VMF_SECTION_CONTENT_MAX + 16)

typedef struct {
    VmfReception *reception;
    VmfChannel *channel; /* NULL once somebody else took it */
    int64_t deadline_ns; /* 0: none */
    bool spoke;          /* its first octets came */
    bool done;           /* the thread is about to end */
    pthread_t thread;
} Caller;

struct VmfReception {
    VmfReceptionConfig config;
    bool single; /* the listener gives one channel: what is wrong with it is the session's error */
    pthread_t thread;
    bool started;
    _Atomic bool quit;
    pthread_mutex_t judging; /* over owners: one caller is judged at a time */
    GArray *owners;          /* a copy; notes of who may win are made in it */
    GPtrArray *callers; /* under the session's lock, as what follows */
    VmfIncoming *winner;
    bool taken;
    GError *error; /* nothing can come any more, because of this */
};

void vmf_incoming_free(VmfIncoming *incoming)
{
    if (!incoming)
        return;
    vmf_record_reader_free(incoming->reader);
    vmf_record_writer_free(incoming->writer);
    vmf_static_data_free(incoming->static_data);
    vmf_channel_free(incoming->channel);
    g_free(incoming);
}

/* ---- static data ----------------------------------------------------------------------------------------------------------- */

/* The types at which a version 2 stream's static data has ended. */
static bool infers_end(uint32_t type)
{
    switch (type) {
    case VMF_RECORD_PREFLIGHT:
    case VMF_RECORD_PAGE_CHANNELS:
    case VMF_RECORD_PAGES:
    case VMF_RECORD_SECTION:
    case VMF_RECORD_SWITCHOVER:
    case VMF_RECORD_END:
        return true;
    }
    return false;
}

static bool static_error(GError **error, VmfErrorCode code, uint32_t type, const char *what)
{
    const char *name = vmf_record_name(type);
    g_autofree char *number = g_strdup_printf("0x%x", type);

    g_set_error(error, VMF_ERROR, code, "record %s: %s", name ? name : number, what);
    return false;
}

static bool is_skippable(const VmfRecord *record)
{
    return !vmf_record_name(record->type) && record->type & VMF_RECORD_OPTIONAL;
}

/* Takes one record of the static data. *@ended: STATIC_DATA_END, or what stands for it in version 2 (then the record is not used). */
static bool take_static(VmfIncoming *incoming, const VmfRecord *record, bool *ended, bool *inferred, GError **error)
{
    *ended = *inferred = false;
    if (!vmf_record_name(record->type))
        return static_error(error, VMF_ERROR_RECORD_UNKNOWN, record->type, "mandatory and unknown");
    if (record->type == VMF_RECORD_STATIC_DATA_END) {
        *ended = true;
        return vmf_empty_check(record, error);
    }
    if (vmf_static_data_is_static(record->type)) {
        if (incoming->format.version < 3 && record->type == VMF_RECORD_FEATURES)
            return static_error(error, VMF_ERROR_RECORD_ORDER, record->type, "version 2 has no such record");
        return vmf_static_data_take(incoming->static_data, record, incoming->format.swap, error);
    }
    if (incoming->format.version >= 3)
        return static_error(error, VMF_ERROR_STATIC_MISSING_END, record->type, "comes before STATIC_DATA_END");
    *ended = *inferred = infers_end(record->type);
    if (*ended || record->type == (uint32_t)VMF_RECORD_HINT || record->type == (uint32_t)VMF_RECORD_ROUND)
        return true;
    vmf_record_set_order_error(error, record->type, "in static data");
    return false;
}

/* Reads to the end of the static data; in version 2 that is the first record after it, which is then in incoming->first. */
static bool read_static(VmfIncoming *incoming, bool *have_first, GError **error)
{
    bool ended = false, inferred = false;
    VmfRecord record;

    while (!ended) {
        if (!vmf_record_read(incoming->reader, &record, error))
            return false;
        if (is_skippable(&record)) {
            if (incoming->reader->payload_left > 0 && !vmf_record_skip_payload(incoming->reader, record.length, error))
                return false;
            continue;
        }
        if (!take_static(incoming, &record, &ended, &inferred, error))
            return false;
    }
    if (!vmf_static_data_check(incoming->static_data, error))
        return false;
    incoming->static_sum = vmf_record_reader_sum_end(incoming->reader, inferred);
    if (inferred)
        incoming->missing |= VMF_MISSING_STATIC_END;
    if (!incoming->static_data->have_properties)
        incoming->missing |= VMF_MISSING_PROPERTIES;
    if (!incoming->static_data->have_features)
        incoming->missing |= VMF_MISSING_FEATURES;
    incoming->first = record;
    *have_first = inferred;
    return true;
}

static bool read_headers(VmfIncoming *incoming, uint8_t image[VMF_IMAGE_HEADER_SIZE], GError **error)
{
    uint8_t machine[VMF_MACHINE_HEADER_SIZE];

    if (!vmf_image_header_decode(image, &incoming->format, error))
        return false;
    incoming->reader = vmf_record_reader_new(incoming->channel, incoming->format);
    incoming->reader->memory_max = CALLER_MEMORY;
    vmf_record_reader_sum_begin(incoming->reader);
    XXH3_64bits_update(incoming->reader->sum, image, VMF_IMAGE_HEADER_SIZE);
    if (!incoming->format.one_way && !vmf_channel_is_one_way(incoming->channel))
        incoming->writer = vmf_record_writer_new(incoming->channel, incoming->format);
    if (!vmf_channel_read_all(incoming->channel, machine, sizeof(machine), error))
        return false;
    XXH3_64bits_update(incoming->reader->sum, machine, sizeof(machine));
    if (!incoming->format.one_way && !incoming->writer) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_FEATURE, "image header: the stream wants answers and this channel has no way back");
        return false;
    }
    return vmf_machine_header_decode(machine, incoming->format.swap, &incoming->static_data->machine, error);
}

/* ---- the answer ------------------------------------------------------------------------------------------------------------ */

static bool check_presence(const VmfIncoming *incoming, GError **error)
{
    const VmfStaticData *data = incoming->static_data;

    if (data->have_sections && (data->have_features || incoming->format.version < 3))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_ORDER, "static data: record %s is missing",
                data->have_sections ? "FEATURES" : "SECTIONS");
    return false;
}

static void set_features(VmfIncoming *incoming)
{
    if (incoming->format.version < 3)
        incoming->features = VMF_FEATURE_SUMS | (incoming->format.one_way ? 0 : VMF_FEATURE_ACKS);
    else
        incoming->features = incoming->static_data->features_offered & VMF_FEATURES_KNOWN;
}

static bool send_verdict(VmfIncoming *incoming, bool accepted, char **texts, GError **error)
{
    VmfVerdict verdict = {
        .accepted = accepted,
        .features = incoming->features,
        .page_channels = VMF_CHANNELS_MAX,
        .texts = texts,
    };

    return !incoming->writer || vmf_verdict_send(incoming->writer, &verdict, error);
}

/* Refuses with one text, as far as the caller can be told. */
static void refuse(VmfIncoming *incoming, const char *text)
{
    char *texts[] = {(char *)text, NULL};

    send_verdict(incoming, false, texts, NULL);
}

/*
 * Closing while there is unread input may take back what was written, and a caller that is still writing would see a broken channel in
 * place of the answer: so who was answered closes first.
 */
static void see_off(VmfIncoming *incoming)
{
    int64_t deadline = vmf_now_ns() + FAREWELL_NS;
    uint8_t scratch[4096];

    while (incoming->writer && vmf_channel_read_all_deadline(incoming->channel, scratch, sizeof(scratch), deadline, NULL))
        ;
}

/* It may wait for a server on which a disk is: whoever has the session's lock would keep the whole session waiting, also who cancels it. */
static char **incompatibilities(VmfReception *reception, const VmfIncoming *incoming)
{
    const VmfReceptionConfig *config = &reception->config;

    pthread_mutex_lock(&reception->judging);
    char **texts = vmf_compatibility_check(incoming->static_data, config->ours, reception->owners, config->session->guest);
    pthread_mutex_unlock(&reception->judging);
    return texts;
}

static bool judge(VmfReception *reception, VmfIncoming *incoming, GError **error)
{
    const VmfReceptionConfig *config = &reception->config;

    if (!check_presence(incoming, error))
        return false;
    set_features(incoming);
    g_auto(GStrv) texts = incompatibilities(reception, incoming);
    if (texts[0]) {
        g_autofree char *all = g_strjoinv("; ", texts);
        send_verdict(incoming, false, texts, NULL);
        see_off(incoming);
        vmf_session_set_incompatibilities(config->session, texts);
        g_set_error(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE, "static data: %s", all);
        return false;
    }
    bool answered = incoming->format.version >= 3 || incoming->first.type == VMF_RECORD_PREFLIGHT;
    return !answered || send_verdict(incoming, true, NULL, error);
}

static bool read_first(VmfIncoming *incoming, GError **error)
{
    do {
        if (!vmf_record_read(incoming->reader, &incoming->first, error))
            return false;
        if (is_skippable(&incoming->first) && incoming->reader->payload_left > 0 &&
            !vmf_record_skip_payload(incoming->reader, incoming->first.length, error))
            return false;
    } while (is_skippable(&incoming->first));
    if (incoming->first.type == VMF_RECORD_STATIC_DATA_END)
        return static_error(error, VMF_ERROR_STATIC_DOUBLE_END, incoming->first.type, "twice");
    if (vmf_static_data_is_static(incoming->first.type))
        return static_error(error, VMF_ERROR_STATIC_LATE, incoming->first.type, "static data after STATIC_DATA_END");
    return true;
}

VmfIncoming *vmf_incoming_read(VmfChannel *channel, GError **error)
{
    g_autoptr(VmfIncoming) incoming = g_new0(VmfIncoming, 1);
    uint8_t image[VMF_IMAGE_HEADER_SIZE];
    bool have_first;

    incoming->channel = channel;
    incoming->static_data = vmf_static_data_new();
    if (!vmf_channel_read_all(channel, image, sizeof(image), error) || !read_headers(incoming, image, error))
        return NULL;
    if (!incoming->format.one_way) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_FEATURE, "image header: the stream wants answers, and here nobody gives any");
        return NULL;
    }
    if (!read_static(incoming, &have_first, error) || !check_presence(incoming, error) || (!have_first && !read_first(incoming, error)))
        return NULL;
    set_features(incoming);
    incoming->reader->memory_max = 0;
    return g_steal_pointer(&incoming);
}

/* ---- callers --------------------------------------------------------------------------------------------------------------- */

/* Hands the caller over, if it is the first, with the versions of its sections. */
static bool win(VmfReception *reception, VmfIncoming *incoming)
{
    VmfSession *session = reception->config.session;

    pthread_mutex_lock(&session->lock);
    bool first = !reception->taken && !reception->quit;
    if (first) {
        vmf_compatibility_note(incoming->static_data, reception->config.owners);
        reception->taken = true;
        reception->winner = incoming;
        pthread_cond_broadcast(&session->changed);
    }
    pthread_mutex_unlock(&session->lock);
    return first;
}

static bool is_taken(VmfReception *reception)
{
    pthread_mutex_lock(&reception->config.session->lock);
    bool taken = reception->taken;
    pthread_mutex_unlock(&reception->config.session->lock);
    return taken;
}

/* Takes the channel out of the deadline's reach: it belongs to somebody else now, or is about to be closed. */
static VmfChannel *steal_channel(Caller *caller)
{
    VmfSession *session = caller->reception->config.session;

    pthread_mutex_lock(&session->lock);
    VmfChannel *channel = g_steal_pointer(&caller->channel);
    pthread_mutex_unlock(&session->lock);
    return channel;
}

static bool serve_main(Caller *caller, const uint8_t opening[8], GError **error)
{
    VmfReception *reception = caller->reception;
    g_autoptr(VmfIncoming) incoming = g_new0(VmfIncoming, 1);
    uint8_t image[VMF_IMAGE_HEADER_SIZE];
    bool have_first;

    incoming->channel = caller->channel;
    incoming->static_data = vmf_static_data_new();
    memcpy(image, opening, 8);
    bool good = vmf_channel_read_all(incoming->channel, image + 8, sizeof(image) - 8, error) && read_headers(incoming, image, error);
    if (good && is_taken(reception)) {
        refuse(incoming, "target.busy: here a migration is under way");
        see_off(incoming);
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "target: busy with another migration");
        good = false;
    }
    good = good && read_static(incoming, &have_first, error) && judge(reception, incoming, error) &&
           (have_first || read_first(incoming, error));
    if (good && incoming->first.type == VMF_RECORD_PREFLIGHT) {
        vmf_session_event(reception->config.session, "preflight", "%s asked whether its guest would be taken: yes",
                          incoming->static_data->host ? incoming->static_data->host : vmf_channel_name(incoming->channel));
        see_off(incoming);
        good = !reception->single;
        if (!good)
            g_set_error(error, VMF_ERROR, VMF_ERROR_CUT, "stream: it was a preflight only");
    } else if (good && steal_channel(caller)) {
        if (win(reception, incoming)) {
            g_steal_pointer(&incoming);
            return true;
        }
        refuse(incoming, "target.busy: here a migration is under way");
        see_off(incoming);
        return true;
    }
    /* The caller's thread closes the channel. */
    incoming->channel = NULL;
    return good;
}

static bool serve_pages(Caller *caller, const uint8_t opening[8], GError **error)
{
    const VmfReceptionConfig *config = &caller->reception->config;
    uint8_t wire[VMF_PREAMBLE_SIZE];
    VmfPreamble preamble;
    VmfStreamFormat format;

    memcpy(wire, opening, 8);
    if (!vmf_channel_read_all(caller->channel, wire + 8, sizeof(wire) - 8, error) ||
        !vmf_preamble_decode(wire, &preamble, &format, error))
        return false;
    VmfChannel *channel = steal_channel(caller);
    if (!channel || config->page_channel(config->opaque, channel, &preamble))
        return true;
    vmf_channel_free(channel);
    g_set_error(error, VMF_ERROR, VMF_ERROR_HANDSHAKE, "page channel %u: of no session here", preamble.channel);
    return false;
}

/* The channel stays the caller's: its deadline bounds how long somebody may go on asking. */
static bool serve_question(Caller *caller, VmfRecordReader *reader, VmfRecordWriter *writer, const VmfTokenPreamble *preamble,
                           GError **error)
{
    const VmfReceptionConfig *config = &caller->reception->config;
    VmfAnswerMessage message = {0};
    VmfQuestion question;
    VmfRecord record;

    if (!vmf_record_read_known(reader, &record, error) || !vmf_question_decode(&record, preamble->token, &question, error))
        return false;
    message.answer = config->question(config->opaque, preamble->token, question, error);
    memcpy(message.token, preamble->token, sizeof(message.token));
    if (config->session->parameters.journal)
        vmf_journal_id(config->session->parameters.journal, message.state_directory);
    bool sent = message.answer != VMF_ANSWER_NONE && vmf_answer_send(writer, &message, error);
    config->answered(config->opaque);
    return sent;
}

static bool serve_token(Caller *caller, const uint8_t opening[8], GError **error)
{
    uint8_t wire[VMF_PREAMBLE_SIZE];
    VmfTokenPreamble preamble;
    VmfStreamFormat format;
    GError *why = NULL;

    memcpy(wire, opening, 8);
    if (!vmf_channel_read_all(caller->channel, wire + 8, sizeof(wire) - 8, error) ||
        !vmf_token_preamble_decode(wire, &preamble, &format, error))
        return false;
    VmfRecordReader *reader = vmf_record_reader_new(caller->channel, format);
    VmfRecordWriter *writer = vmf_record_writer_new(caller->channel, format);
    reader->memory_max = CALLER_MEMORY;
    while (serve_question(caller, reader, writer, &preamble, &why))
        ;
    vmf_record_reader_free(reader);
    vmf_record_writer_free(writer);
    bool hung_up = g_error_matches(why, VMF_ERROR, VMF_ERROR_CUT);
    if (hung_up)
        g_error_free(why);
    else
        g_propagate_error(error, why);
    return hung_up;
}

static void set_spoke(Caller *caller)
{
    VmfSession *session = caller->reception->config.session;

    pthread_mutex_lock(&session->lock);
    caller->spoke = true;
    pthread_mutex_unlock(&session->lock);
}

static bool serve(Caller *caller, GError **error)
{
    uint8_t opening[8];

    if (!vmf_channel_read_all(caller->channel, opening, sizeof(opening), error))
        return false;
    set_spoke(caller);
    switch (vmf_opening_classify(opening)) {
    case VMF_OPENING_MAIN:
        return serve_main(caller, opening, error);
    case VMF_OPENING_PAGES:
        return serve_pages(caller, opening, error);
    case VMF_OPENING_TOKEN:
        return serve_token(caller, opening, error);
    default:
        g_set_error(error, VMF_ERROR, VMF_ERROR_MAGIC, "connection: not a vmferry stream");
        return false;
    }
}

static void give_up(VmfReception *reception, GError *error)
{
    VmfSession *session = reception->config.session;

    pthread_mutex_lock(&session->lock);
    if (!reception->error)
        reception->error = error;
    else
        g_error_free(error);
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
}

static void *caller_main(void *opaque)
{
    Caller *caller = opaque;
    VmfReception *reception = caller->reception;
    VmfSession *session = reception->config.session;
    g_autofree char *name = g_strdup(vmf_channel_name(caller->channel));
    GError *error = NULL;

    bool good = serve(caller, &error);
    vmf_channel_free(steal_channel(caller));
    if (!good && reception->single) {
        give_up(reception, g_steal_pointer(&error));
    } else if (!good && !reception->quit) {
        bool stranger = g_error_matches(error, VMF_ERROR, VMF_ERROR_MAGIC) || g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT);
        vmf_session_event(session, stranger ? "stranger" : "refused", "%s: %s: %s", name, vmf_error_id(error), error->message);
    }
    g_clear_error(&error);
    pthread_mutex_lock(&session->lock);
    caller->done = true;
    pthread_cond_broadcast(&session->changed); /* there is room */
    pthread_mutex_unlock(&session->lock);
    return NULL;
}

/* ---- accepting ------------------------------------------------------------------------------------------------------------- */

/*
 * With no room left some have to go, so that whoever holds connections open and says nothing keeps nobody out: first the silent ones,
 * the oldest ahead. Several at a time, so that a crowd is through in no time.
 */
static void evict_locked(VmfReception *reception)
{
    unsigned n = 0;

    for (unsigned speakers = 0; speakers < 2; speakers++)
        for (guint i = 0; i < reception->callers->len && n < (speakers ? 1 : EVICTED); i++) {
            Caller *caller = g_ptr_array_index(reception->callers, i);
            if (caller->spoke != speakers || !caller->channel)
                continue;
            vmf_channel_shutdown(caller->channel);
            n++;
        }
}

/* Joins threads that are done; shuts channels that are late, or (@all) every one. Returns how many callers are left. */
static unsigned reap(VmfReception *reception, bool all)
{
    VmfSession *session = reception->config.session;
    g_autoptr(GPtrArray) ended = g_ptr_array_new_with_free_func(g_free);
    int64_t now = vmf_now_ns();

    pthread_mutex_lock(&session->lock);
    for (guint i = reception->callers->len; i-- > 0;) {
        Caller *caller = g_ptr_array_index(reception->callers, i);
        if (caller->done)
            g_ptr_array_add(ended, g_ptr_array_remove_index(reception->callers, i));
        else if (caller->channel && (all || (caller->deadline_ns && now > caller->deadline_ns)))
            vmf_channel_shutdown(caller->channel);
    }
    if (reception->callers->len >= CALLERS_MAX)
        evict_locked(reception);
    unsigned left = reception->callers->len;
    pthread_mutex_unlock(&session->lock);
    for (guint i = 0; i < ended->len; i++)
        pthread_join(((Caller *)g_ptr_array_index(ended, i))->thread, NULL);
    return left;
}

static void admit(VmfReception *reception, VmfChannel *channel)
{
    VmfSession *session = reception->config.session;
    Caller *caller = g_new0(Caller, 1);

    caller->reception = reception;
    caller->channel = channel;
    caller->deadline_ns = reception->single ? 0 : vmf_now_ns() + session->handshake_ns;
    pthread_mutex_lock(&session->lock);
    bool started = pthread_create(&caller->thread, NULL, caller_main, caller) == 0;
    if (started)
        g_ptr_array_add(reception->callers, caller);
    pthread_mutex_unlock(&session->lock);
    if (started)
        return;
    vmf_channel_free(channel);
    g_free(caller);
}

static void sleep_until_tick(VmfReception *reception, int64_t tick_ns)
{
    VmfSession *session = reception->config.session;

    pthread_mutex_lock(&session->lock);
    if (!reception->quit)
        vmf_session_wait_locked(session, vmf_now_ns() + tick_ns);
    pthread_mutex_unlock(&session->lock);
}

static void *reception_main(void *opaque)
{
    VmfReception *reception = opaque;
    VmfSession *session = reception->config.session;
    bool listening = true;

    while (!reception->quit) {
        GError *error = NULL;
        unsigned callers = reap(reception, false);
        bool room = callers < CALLERS_MAX;
        int64_t tick_ns = callers > 0 || is_taken(reception) ? BUSY_TICK_NS : TICK_NS;
        VmfChannel *channel = listening && room ? vmf_listener_accept(session->listener, tick_ns, &error) : NULL;
        if (channel) {
            admit(reception, channel);
            listening = !reception->single;
        } else if (error && !g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT)) {
            give_up(reception, g_steal_pointer(&error));
            listening = false;
        } else if (!listening || !room) {
            sleep_until_tick(reception, tick_ns);
        }
        g_clear_error(&error);
        reception->config.tick(reception->config.opaque);
    }
    return NULL;
}

VmfReception *vmf_reception_new(const VmfReceptionConfig *config, GError **error)
{
    g_autoptr(VmfReception) reception = g_new0(VmfReception, 1);

    reception->config = *config;
    reception->single = vmf_listener_max_channels(config->session->listener) == 1;
    reception->callers = g_ptr_array_new();
    reception->owners = g_array_copy(config->owners);
    pthread_mutex_init(&reception->judging, NULL);
    int failed = pthread_create(&reception->thread, NULL, reception_main, reception);
    reception->started = failed == 0;
    if (failed) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "target: thread: %s", g_strerror(failed));
        return NULL;
    }
    return g_steal_pointer(&reception);
}

void vmf_reception_free(VmfReception *reception)
{
    if (!reception)
        return;
    pthread_mutex_lock(&reception->config.session->lock);
    atomic_store(&reception->quit, true);
    pthread_cond_broadcast(&reception->config.session->changed);
    pthread_mutex_unlock(&reception->config.session->lock);
    if (reception->started)
        pthread_join(reception->thread, NULL);
    while (reap(reception, true) > 0)
        g_usleep(1000);
    vmf_incoming_free(reception->winner);
    g_ptr_array_unref(reception->callers);
    g_array_unref(reception->owners);
    pthread_mutex_destroy(&reception->judging);
    g_clear_error(&reception->error);
    g_free(reception);
}

VmfIncoming *vmf_reception_wait(VmfReception *reception, GError **error)
{
    VmfSession *session = reception->config.session;

    pthread_mutex_lock(&session->lock);
    while (!reception->winner && !reception->error && !vmf_session_is_cancelled(session))
        pthread_cond_wait(&session->changed, &session->lock);
    VmfIncoming *winner = g_steal_pointer(&reception->winner);
    GError *failure = !winner && reception->error ? g_error_copy(reception->error) : NULL;
    pthread_mutex_unlock(&session->lock);
    if (winner)
        return winner;
    if (vmf_session_is_cancelled(session)) {
        g_clear_error(&failure);
        vmf_session_check_cancelled(session, error);
    } else {
        g_propagate_error(error, failure);
    }
    return NULL;
}
