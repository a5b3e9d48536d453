/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A dirty bitmap of an NBD export: QEMU's server tells one as a meta context, "qemu:dirty-bitmap:NAME", of which bit 0
 * of each extent's flags says that it is dirty. What the server says is checked as anything else that a peer says: the
 * one chunk of an answer has extents one behind the other, none of them empty, the last one perhaps past the end of what
 * was asked for but not past that of the export, without flags that nobody knows. Else a block that was changed would be
 * taken for clean. Answers get on at a rate that bounds their number.
 */
#include <vmferry/bitmap.h>
#include <vmferry/error.h>

#include "stream/channel-wait.h"
#include "stream/storage-nbd-connection.h"

#define CONTEXT "qemu:dirty-bitmap:"
#define ASK_BYTES (1u << 30)
#define ANSWER_NS (10 * VMF_NS_PER_S)
#define FLAG_DIRTY 1u
#define ANSWERS_MAX 1024u /* that begin in ASK_BYTES: of extents of 512 octets QEMU's server needs 16 */

typedef struct {
    const char *context;
    uint64_t at, end; /* of what was asked for; @at: told so far */
    bool (*extent)(void *opaque, uint64_t offset, uint64_t length);
    void *opaque;
    uint64_t size;
    uint64_t from;    /* where what was asked for begins */
    bool answered;    /* its chunk has come */
    unsigned n_answers;
    bool stopped;     /* by the caller */
    const char *wrong; /* with what the server says; NULL: nothing */
    bool done;
    int err;
} Walk;

static bool fail(const VmfStorageUri *uri, VmfErrorCode code, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, code, "%s: read bitmap: %s", uri->address->text, why);
    return false;
}

static void take_extent(Walk *walk, uint32_t length, uint32_t flags)
{
    if (length == 0)
        walk->wrong = "an extent of the server's has no length";
    else if (walk->at >= walk->end)
        walk->wrong = "the server has extents beyond what it was asked for";
    else if (length > walk->size - walk->at)
        walk->wrong = "an extent of the server's lies past the end of the export";
    else if (flags & ~FLAG_DIRTY)
        walk->wrong = "an extent of the server's has unknown flags";
    if (walk->wrong)
        return;
    uint64_t within = MIN(length, walk->end - walk->at);
    if (flags & FLAG_DIRTY)
        walk->stopped = !walk->extent(walk->opaque, walk->at, within);
    walk->at += within;
}

/* Called back with the answer's extents; those of other contexts are not ours. */
static int on_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t n, int *error)
{
    Walk *walk = opaque;

    if (strcmp(context, walk->context) != 0)
        return 0;
    if (walk->answered || offset != walk->from)
        walk->wrong = "the server answers twice, or another question";
    walk->answered = true;
    for (size_t i = 0; i + 1 < n && !walk->stopped && !walk->wrong; i += 2)
        take_extent(walk, entries[i], entries[i + 1]);
    return 0;
}

static int on_answered(void *opaque, int *error)
{
    Walk *walk = opaque;

    walk->done = true;
    walk->err = *error;
    return 1;
}

static bool is_gone(const VmfNbdConnection *connection)
{
    return nbd_aio_is_dead(connection->nbd) > 0 || nbd_aio_is_closed(connection->nbd) > 0;
}

/* Nobody else has the connection. */
static bool wait_for_answer(VmfNbdConnection *connection, const Walk *walk)
{
    int64_t deadline_ns = vmf_deadline_after(ANSWER_NS);

    pthread_mutex_lock(&connection->lock);
    while (!walk->done && vmf_now_ns() < deadline_ns) {
        struct pollfd fd = {.fd = nbd_aio_get_fd(connection->nbd), .events = POLLIN};

        if (nbd_aio_get_direction(connection->nbd) & LIBNBD_AIO_DIRECTION_WRITE)
            fd.events |= POLLOUT;
        if (is_gone(connection) || vmf_poll_until(&fd, 1, deadline_ns) <= 0)
            break;
        vmf_nbd_connection_poll(connection);
    }
    pthread_mutex_unlock(&connection->lock);
    return walk->done;
}

static bool check_pace(const VmfStorageUri *uri, Walk *walk, GError **error)
{
    walk->n_answers = walk->from / ASK_BYTES == walk->at / ASK_BYTES ? walk->n_answers + 1 : 0;
    if (walk->at == walk->from)
        return fail(uri, VMF_ERROR_PEER, "the server's answer has nothing", error);
    return walk->n_answers < ANSWERS_MAX || fail(uri, VMF_ERROR_PEER, "the server's answers do not get on", error);
}

static bool ask(const VmfStorageUri *uri, VmfNbdConnection *connection, Walk *walk, GError **error)
{
    nbd_extent_callback extent = {.callback = on_extents, .user_data = walk};
    nbd_completion_callback end = {.callback = on_answered, .user_data = walk};

    walk->from = walk->at;
    walk->end = MIN(walk->size, walk->from + ASK_BYTES);
    walk->done = walk->answered = false;
    if (nbd_aio_block_status(connection->nbd, walk->end - walk->from, walk->from, extent, end, 0) < 0)
        return fail(uri, VMF_ERROR_IO, nbd_get_error(), error);
    bool answered = wait_for_answer(connection, walk);
    if (walk->wrong)
        return fail(uri, VMF_ERROR_PEER, walk->wrong, error);
    if (is_gone(connection))
        return fail(uri, VMF_ERROR_IO, "the server has gone away", error);
    if (!answered)
        return fail(uri, VMF_ERROR_IO, "the server does not answer", error);
    if (walk->err)
        return fail(uri, VMF_ERROR_IO, g_strerror(walk->err), error);
    if (walk->stopped)
        return fail(uri, VMF_ERROR_CANCELLED, "no more is wanted", error);
    return check_pace(uri, walk, error);
}

static bool walk_all(const VmfStorageUri *uri, VmfNbdConnection *connection, Walk *walk, uint64_t *size_bytes,
                     GError **error)
{
    int64_t size = nbd_get_size(connection->nbd);

    if (size < 0)
        return fail(uri, VMF_ERROR_PEER, "the server does not say how large it is", error);
    if (nbd_can_meta_context(connection->nbd, walk->context) <= 0)
        return fail(uri, VMF_ERROR_UNSUPPORTED, "the export has no such bitmap", error);
    *size_bytes = walk->size = (uint64_t)size;
    while (walk->at < walk->size)
        if (!ask(uri, connection, walk, error))
            return false;
    return true;
}

bool vmf_read_export_bitmap(const char *uri_text, VmfConnectFlags flags, const char *name,
                            bool (*extent)(void *opaque, uint64_t offset, uint64_t length), void *opaque,
                            uint64_t *size_bytes, GError **error)
{
    g_autoptr(VmfStorageUri) uri = vmf_storage_uri_parse(uri_text, error);

    *size_bytes = 0;
    if (!uri)
        return false;
    if (uri->kind != VMF_STORAGE_URI_NBD) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_URI, "%s: read bitmap: it is no NBD export", uri_text);
        return false;
    }
    uri->context = g_strconcat(CONTEXT, name, NULL);
    VmfNbdConnection *connection = vmf_nbd_connect(uri, flags, NULL, error);
    if (!connection)
        return false;
    Walk walk = {.context = uri->context, .extent = extent, .opaque = opaque};
    bool done = walk_all(uri, connection, &walk, size_bytes, error);
    vmf_nbd_connection_free(connection);
    return done;
}
