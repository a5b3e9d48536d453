/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A dirty bitmap of an NBD export: QEMU's server tells one as a meta context, "qemu:dirty-bitmap:NAME", of which bit 0
 * of each extent's flags says that it is dirty. What the server says is checked as anything else that a peer says:
 * extents are cut off at the end of what was asked for, and an answer that does not get on is an error.
 */
#include <vmferry/bitmap.h>
#include <vmferry/error.h>

#include "stream/channel-wait.h"
#include "stream/storage-nbd-connection.h"

#define CONTEXT "qemu:dirty-bitmap:"
#define ASK_BYTES (1u << 30)
#define ANSWER_NS (10 * VMF_NS_PER_S)
#define FLAG_DIRTY 1u

typedef struct {
    const char *context;
    uint64_t at, end; /* of what was asked for; @at: told so far */
    bool (*extent)(void *opaque, uint64_t offset, uint64_t length);
    void *opaque;
    bool stopped; /* by the caller */
    bool done;
    int err;
} Walk;

static bool fail(const VmfStorageUri *uri, VmfErrorCode code, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, code, "%s: read bitmap: %s", uri->address->text, why);
    return false;
}

/* Called back with the answer's extents; those of other contexts are not ours. */
static int on_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t n, int *error)
{
    Walk *walk = opaque;

    if (strcmp(context, walk->context) != 0 || offset != walk->at)
        return 0;
    for (size_t i = 0; i + 1 < n && walk->at < walk->end && !walk->stopped; i += 2) {
        uint64_t length = MIN(entries[i], walk->end - walk->at);

        if (entries[i + 1] & FLAG_DIRTY && length > 0)
            walk->stopped = !walk->extent(walk->opaque, walk->at, length);
        walk->at += length;
    }
    return 0;
}

static int on_answered(void *opaque, int *error)
{
    Walk *walk = opaque;

    walk->done = true;
    walk->err = *error;
    return 1;
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
        if (nbd_aio_is_dead(connection->nbd) > 0 || nbd_aio_is_closed(connection->nbd) > 0 ||
            vmf_poll_until(&fd, 1, deadline_ns) <= 0)
            break;
        vmf_nbd_connection_poll(connection);
    }
    pthread_mutex_unlock(&connection->lock);
    return walk->done;
}

static bool ask(const VmfStorageUri *uri, VmfNbdConnection *connection, Walk *walk, uint64_t size, GError **error)
{
    nbd_extent_callback extent = {.callback = on_extents, .user_data = walk};
    nbd_completion_callback end = {.callback = on_answered, .user_data = walk};
    uint64_t from = walk->at;

    walk->end = MIN(size, from + ASK_BYTES);
    walk->done = false;
    if (nbd_aio_block_status(connection->nbd, walk->end - from, from, extent, end, 0) < 0)
        return fail(uri, VMF_ERROR_IO, nbd_get_error(), error);
    if (!wait_for_answer(connection, walk))
        return fail(uri, VMF_ERROR_IO, "the server does not answer", error);
    if (walk->err)
        return fail(uri, VMF_ERROR_IO, g_strerror(walk->err), error);
    if (walk->stopped)
        return fail(uri, VMF_ERROR_CANCELLED, "no more is wanted", error);
    return walk->at > from || fail(uri, VMF_ERROR_PEER, "the server's answer has nothing", error);
}

static bool walk_all(const VmfStorageUri *uri, VmfNbdConnection *connection, Walk *walk, uint64_t *size_bytes,
                     GError **error)
{
    int64_t size = nbd_get_size(connection->nbd);

    if (size < 0)
        return fail(uri, VMF_ERROR_PEER, "the server does not say how large it is", error);
    if (nbd_can_meta_context(connection->nbd, walk->context) <= 0)
        return fail(uri, VMF_ERROR_UNSUPPORTED, "the export has no such bitmap", error);
    *size_bytes = (uint64_t)size;
    while (walk->at < (uint64_t)size)
        if (!ask(uri, connection, walk, (uint64_t)size, error))
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
