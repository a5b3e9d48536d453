/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/link.h"

#include <string.h>

#include "stream/channel-wait.h"
#include "stream/channel.h"
#include "stream/connector.h"
#include "stream/listener.h"
#include "stream/wire.h"
#include "tests/fuzz/fuzz.h"

#define PARTS_MAX 8
#define QUIET_NS (3 * VMF_NS_PER_MS)
#define TURN_NS (10 * VMF_NS_PER_MS) /* how long an answer waits to be asked for, while nothing moves */

typedef struct {
    const uint8_t *data;
    size_t size;
} Part;

struct VmfFuzzLink {
    uint8_t *copy; /* answers: of the input */
    Part parts[PARTS_MAX];
    unsigned n_parts, n_taken;
    bool answers;
    VmfSession *session; /* NULL: none runs */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned live;  /* channels that were given and not freed */
    uint64_t moves; /* reads and writes */
    bool ending;    /* a channel was shut down: nobody is to wait for us */
};

typedef struct {
    VmfChannel base;
    VmfFuzzLink *link; /* NULL: none */
    const uint8_t *at;
    size_t left;
    GByteArray *into;   /* NULL: what is written goes nowhere */
    _Atomic bool down;
    /* answers: */
    size_t record_left;            /* octets to the next record's header */
    unsigned pongs;                /* that were given */
    _Atomic uint64_t cookie;       /* of the latest PING */
    _Atomic unsigned written[128]; /* records of each type that the source wrote */
} FuzzChannel;

typedef struct {
    VmfListener base;
    VmfFuzzLink *link;
} FuzzListener;

typedef struct {
    VmfConnector base;
    VmfFuzzLink *link;
} FuzzConnector;

/* ---- parts ----------------------------------------------------------------------------------------------------------------- */

static bool is_start(const uint8_t *at, size_t left)
{
    static const uint8_t image[12] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 'V', 'M', 'F', 'Y'};

    return (left >= 8 && memcmp(at, "VMFPAGES", 8) == 0) || (left >= sizeof(image) && memcmp(at, image, sizeof(image)) == 0);
}

static void add_part(VmfFuzzLink *link, const uint8_t *data, size_t size)
{
    bool separated = link->answers && size >= 8 && memcmp(data, "VMFPAGES", 8) == 0;

    link->parts[link->n_parts++] = separated ? (Part){data + 8, size - 8} : (Part){data, size};
}

VmfFuzzLink *vmf_fuzz_link_new(const uint8_t *data, size_t size, bool answers)
{
    VmfFuzzLink *link = g_new0(VmfFuzzLink, 1);
    size_t begin = 0;

    link->answers = answers;
    data = answers && size > 0 ? link->copy = g_memdup2(data, size) : data; /* no octets have no copy */
    pthread_mutex_init(&link->lock, NULL);
    vmf_cond_init(&link->changed);
    for (size_t i = 1; i < size && link->n_parts < PARTS_MAX - 1; i++) {
        if ((data[i] != 'V' && data[i] != 0xff) || !is_start(data + i, size - i))
            continue;
        add_part(link, data + begin, i - begin);
        begin = i;
    }
    add_part(link, data + begin, size - begin);
    return link;
}

void vmf_fuzz_link_free(VmfFuzzLink *link)
{
    FUZZ_CHECK(link->live == 0);
    pthread_cond_destroy(&link->changed);
    pthread_mutex_destroy(&link->lock);
    g_free(link->copy);
    g_free(link);
}

unsigned vmf_fuzz_link_n_parts(const VmfFuzzLink *link)
{
    return link->n_parts;
}

/* ---- channels -------------------------------------------------------------------------------------------------------------- */

static void moved(VmfFuzzLink *link)
{
    if (!link)
        return;
    pthread_mutex_lock(&link->lock);
    link->moves++;
    pthread_cond_broadcast(&link->changed);
    pthread_mutex_unlock(&link->lock);
}

static uint64_t cookie_at(const uint8_t *at)
{
    uint64_t cookie;

    memcpy(&cookie, at, sizeof(cookie));
    return cookie;
}

static void put_cookie(uint8_t *at, uint64_t cookie)
{
    memcpy(at, &cookie, sizeof(cookie));
}

/* How many records of a type the source has written on this channel. */
static unsigned written_of(FuzzChannel *channel, uint32_t type)
{
    return channel->written[type % G_N_ELEMENTS(channel->written)];
}

/* Whether the source has asked for the answer that lies at the front. */
static bool is_due(FuzzChannel *channel)
{
    VmfWireRecordHeader header;
    uint64_t sequence = 0;

    memcpy(&header, channel->at, sizeof(header));
    switch (header.type) {
    case VMF_RECORD_PONG:
        return written_of(channel, VMF_RECORD_PING) > channel->pongs;
    case VMF_RECORD_ACK:
        if (channel->left >= sizeof(header) + 16)
            memcpy(&sequence, channel->at + sizeof(header) + 8, sizeof(sequence));
        return written_of(channel, VMF_RECORD_PAGES) >= sequence;
    case VMF_RECORD_READY:
    case VMF_RECORD_REFUSED:
        return written_of(channel, VMF_RECORD_SWITCHOVER) > 0;
    case VMF_RECORD_RUNNING:
    case VMF_RECORD_NEVER:
        return written_of(channel, VMF_RECORD_RUN) + written_of(channel, VMF_RECORD_QUERY) > 0;
    }
    return true;
}

/*
 * A source that is answered before it asked stops at once, as it does when the answers end, and nothing behind that would ever be tried.
 * So an answer waits until it has been asked for, and the end until the source has said all that it has to say, for a moment.
 */
static void await_turn(FuzzChannel *channel)
{
    VmfFuzzLink *link = channel->link;
    VmfWireRecordHeader header;
    int64_t deadline = vmf_now_ns() + TURN_NS;
    bool quiet = false;

    if (!link || !link->answers || channel->record_left > 0)
        return;
    bool whole = channel->left >= sizeof(header);
    pthread_mutex_lock(&link->lock);
    for (uint64_t moves = link->moves; !channel->down && !quiet && !(whole && is_due(channel)); moves = link->moves) {
        bool woken = vmf_cond_wait_until(&link->changed, &link->lock, deadline);
        quiet = !woken && moves == link->moves;
        if (moves != link->moves)
            deadline = vmf_now_ns() + TURN_NS;
    }
    pthread_mutex_unlock(&link->lock);
    if (!whole)
        return;
    memcpy(&header, channel->at, sizeof(header));
    channel->record_left = sizeof(header) + ((size_t)header.length + 7) / 8 * 8;
    if (header.type != VMF_RECORD_PONG)
        return;
    channel->pongs++;
    /* The source takes the cookie for the time at which it asked: one without its top bit becomes the right one. */
    if (channel->left >= sizeof(header) + 8 && !(channel->at[sizeof(header) + 7] & 0x80))
        put_cookie((uint8_t *)channel->at + sizeof(header), channel->cookie); /* in the link's own copy */
}

static ssize_t fuzz_readv(VmfChannel *base, const struct iovec *iov, int n, GError **error)
{
    FuzzChannel *channel = (FuzzChannel *)base;
    ssize_t got = 0;

    await_turn(channel);
    for (int i = 0; i < n && channel->left > 0 && !channel->down; i++) {
        size_t length = MIN(iov[i].iov_len, channel->left);
        if (channel->record_left > 0)
            length = MIN(length, channel->record_left);
        memcpy(iov[i].iov_base, channel->at, length);
        channel->at += length;
        channel->left -= length;
        channel->record_left -= MIN(channel->record_left, length);
        got += (ssize_t)length;
    }
    moved(channel->link);
    return got;
}

/* The engine writes whole records, each at the start of a vector's entry or behind others in it. */
static void note_written(FuzzChannel *channel, const struct iovec *iov)
{
    const uint8_t *at = iov->iov_base;
    size_t left = iov->iov_len;
    VmfWireRecordHeader header;

    while (left >= sizeof(header)) {
        memcpy(&header, at, sizeof(header));
        size_t length = sizeof(header) + ((size_t)header.length + 7) / 8 * 8;
        if (header.type == VMF_RECORD_PING && length <= left)
            channel->cookie = cookie_at(at + sizeof(header));
        channel->written[header.type % G_N_ELEMENTS(channel->written)]++;
        if (length > left)
            break;
        at += length;
        left -= length;
    }
}

static ssize_t fuzz_writev(VmfChannel *base, const struct iovec *iov, int n, GError **error)
{
    FuzzChannel *channel = (FuzzChannel *)base;

    if (channel->down)
        return vmf_channel_error_shut_down(base, error);
    for (int i = 0; channel->into && i < n; i++)
        g_byte_array_append(channel->into, iov[i].iov_base, (guint)iov[i].iov_len);
    if (channel->link && channel->link->answers)
        note_written(channel, iov);
    moved(channel->link);
    return (ssize_t)vmf_iov_length(iov, n);
}

static int fuzz_wait_readable(VmfChannel *base, int64_t timeout_ns, GError **error)
{
    return 1;
}

static void set_ending(VmfFuzzLink *link)
{
    pthread_mutex_lock(&link->lock);
    link->ending = true;
    pthread_cond_broadcast(&link->changed);
    pthread_mutex_unlock(&link->lock);
}

static void fuzz_shutdown(VmfChannel *base)
{
    FuzzChannel *channel = (FuzzChannel *)base;

    channel->down = true;
    if (channel->link)
        set_ending(channel->link);
}

static void fuzz_free(VmfChannel *base)
{
    VmfFuzzLink *link = ((FuzzChannel *)base)->link;

    if (!link)
        return;
    pthread_mutex_lock(&link->lock);
    link->live--;
    pthread_cond_broadcast(&link->changed);
    pthread_mutex_unlock(&link->lock);
}

static const VmfChannelOps channel_ops = {
    .kind = "fuzz",
    .readv = fuzz_readv,
    .writev = fuzz_writev,
    .wait_readable = fuzz_wait_readable,
    .shutdown = fuzz_shutdown,
    .free = fuzz_free,
};

VmfChannel *vmf_fuzz_channel_new(const uint8_t *data, size_t size)
{
    FuzzChannel *channel = g_new0(FuzzChannel, 1);

    vmf_channel_init(&channel->base, &channel_ops, "peer", false);
    channel->at = data;
    channel->left = size;
    return &channel->base;
}

VmfChannel *vmf_fuzz_channel_into(GByteArray *bytes)
{
    VmfChannel *channel = vmf_fuzz_channel_new(NULL, 0);

    ((FuzzChannel *)channel)->into = bytes;
    return channel;
}

/* The next part's; lock held. */
static VmfChannel *take_part_locked(VmfFuzzLink *link)
{
    Part *part = &link->parts[link->n_taken++];
    VmfChannel *channel = vmf_fuzz_channel_new(part->data, part->size);

    ((FuzzChannel *)channel)->link = link;
    link->live++;
    return channel;
}

/* ---- the target's end ------------------------------------------------------------------------------------------------------ */

/* All parts have called. Until @deadline_ns, or until nothing will come of them any more: true. */
static bool await_quiet_locked(VmfFuzzLink *link, int64_t deadline_ns)
{
    bool quiet = false;

    while (!link->ending && link->live > 0 && !quiet && vmf_now_ns() < deadline_ns) {
        uint64_t moves = link->moves;
        bool woken = vmf_cond_wait_until(&link->changed, &link->lock, vmf_now_ns() + QUIET_NS);
        quiet = !woken && moves == link->moves;
    }
    return quiet || link->live == 0;
}

static VmfChannel *fuzz_accept(VmfListener *listener, int64_t deadline_ns, GError **error)
{
    VmfFuzzLink *link = ((FuzzListener *)listener)->link;
    VmfSession *waits_in_vain = NULL;
    VmfChannel *channel = NULL;

    pthread_mutex_lock(&link->lock);
    if (link->n_taken < link->n_parts && !link->ending)
        channel = take_part_locked(link);
    else if (await_quiet_locked(link, deadline_ns))
        waits_in_vain = link->session;
    pthread_mutex_unlock(&link->lock);
    if (waits_in_vain)
        vmf_session_cancel(waits_in_vain);
    if (!channel)
        vmf_listener_error_timeout(listener, error);
    return channel;
}

static void listener_shutdown(VmfListener *listener)
{
    set_ending(((FuzzListener *)listener)->link);
}

VmfListener *vmf_fuzz_link_listener(VmfFuzzLink *link, bool single)
{
    static const VmfListenerOps ops = {.accept = fuzz_accept, .shutdown = listener_shutdown};
    FuzzListener *listener = g_new0(FuzzListener, 1);

    listener->link = link;
    listener->base.ops = &ops;
    listener->base.max_channels = single ? 1 : G_MAXUINT;
    listener->base.bound_uri = g_strdup("fuzz:");
    vmf_wake_init(&listener->base.wake, NULL);
    return &listener->base;
}

/* ---- the source's end ------------------------------------------------------------------------------------------------------ */

static VmfChannel *fuzz_open(VmfConnector *connector, int64_t deadline_ns, GError **error)
{
    VmfFuzzLink *link = ((FuzzConnector *)connector)->link;
    VmfChannel *channel = NULL;

    pthread_mutex_lock(&link->lock);
    if (link->n_taken < link->n_parts)
        channel = take_part_locked(link);
    pthread_mutex_unlock(&link->lock);
    if (!channel)
        g_set_error(error, VMF_ERROR, VMF_ERROR_CONNECT, "fuzz: connect: nobody is there");
    return channel;
}

VmfConnector *vmf_fuzz_link_connector(VmfFuzzLink *link, bool single)
{
    static const VmfConnectorOps ops = {.open = fuzz_open};
    FuzzConnector *connector = g_new0(FuzzConnector, 1);

    connector->link = link;
    connector->base.ops = &ops;
    connector->base.max_channels = single ? 1 : G_MAXUINT;
    vmf_wake_init(&connector->base.wake, NULL);
    return &connector->base;
}

bool vmf_fuzz_link_run(VmfFuzzLink *link, VmfSession *session, GError **error)
{
    link->session = session;
    bool done = vmf_session_run(session, error);
    link->session = NULL;
    return done;
}
