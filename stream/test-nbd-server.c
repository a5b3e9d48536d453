/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/test-nbd-server.h"

#include <endian.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define OPTION_MAGIC UINT64_C(0x49484156454F5054) /* IHAVEOPT */
#define REPLY_MAGIC UINT64_C(0x0003e889045565a9)
#define SIMPLE_MAGIC 0x67446698u
#define CHUNK_MAGIC 0x668e33efu
#define COMMAND_MAGIC 0x25609513u
#define OPTION_BYTES_MAX 4096u

enum { OPTION_GO = 7, OPTION_STRUCTURED = 8, OPTION_SET_CONTEXTS = 10 };
enum { REPLY_DONE = 1, REPLY_INFO = 3, REPLY_CONTEXT = 4 };
#define REPLY_UNKNOWN 0x80000001u
enum { DISCONNECT = 2 };
enum { HAS_FLAGS = 1, READ_ONLY = 2, SEND_FLUSH = 4 };

struct VmfTestNbdServer {
    char *directory, *path, *uri;
    int listener;
    pthread_t thread;
    uint64_t size;
    uint16_t flags; /* of the export */
    bool (*answer)(void *opaque, const VmfTestNbdCommand *command);
    void *opaque;
};

/* Big-endian, packed. */
static void put(GByteArray *bytes, uint64_t value, unsigned octets)
{
    uint64_t big = htobe64(value);

    g_byte_array_append(bytes, (const uint8_t *)&big + (8 - octets), octets);
}

static uint64_t get(const uint8_t *at, unsigned octets)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < octets; i++)
        value = value << 8 | at[i];
    return value;
}

static bool send_all(int fd, const GByteArray *bytes)
{
    return send(fd, bytes->data, bytes->len, MSG_NOSIGNAL) == (ssize_t)bytes->len;
}

static bool receive(int fd, void *data, size_t length)
{
    return length == 0 || recv(fd, data, length, MSG_WAITALL) == (ssize_t)length;
}

/* ---- shaking hands ----------------------------------------------------------------------------------------------- */

static bool reply(int fd, uint32_t option, uint32_t type, const GByteArray *body)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    put(bytes, REPLY_MAGIC, 8);
    put(bytes, option, 4);
    put(bytes, type, 4);
    put(bytes, body ? body->len : 0, 4);
    if (body)
        g_byte_array_append(bytes, body->data, body->len);
    return send_all(fd, bytes);
}

/* All that are asked for are there, numbered from 1. Returns the last one's number; 0: nonsense. */
static uint32_t tell_contexts(int fd, const uint8_t *data, uint32_t length)
{
    uint32_t at = 4 + (uint32_t)get(data, 4), n = (uint32_t)get(data + at, 4);

    at += 4;
    for (uint32_t i = 1; i <= n; i++) {
        g_autoptr(GByteArray) body = g_byte_array_new();
        uint32_t name = (uint32_t)get(data + at, 4);

        if (at + 4 + name > length)
            return 0;
        put(body, i, 4);
        g_byte_array_append(body, data + at + 4, name);
        reply(fd, OPTION_SET_CONTEXTS, REPLY_CONTEXT, body);
        at += 4 + name;
    }
    return reply(fd, OPTION_SET_CONTEXTS, REPLY_DONE, NULL) ? n : 0;
}

static bool go(const VmfTestNbdServer *server, int fd)
{
    g_autoptr(GByteArray) body = g_byte_array_new();

    put(body, 0, 2); /* the export: */
    put(body, server->size, 8);
    put(body, server->flags, 2);
    return reply(fd, OPTION_GO, REPLY_INFO, body) && reply(fd, OPTION_GO, REPLY_DONE, NULL);
}

/* Returns false when the client has gone. */
static bool shake_hands(const VmfTestNbdServer *server, int fd, uint32_t *context)
{
    g_autoptr(GByteArray) hello = g_byte_array_new();
    uint8_t data[OPTION_BYTES_MAX], head[16], flags[4];

    g_byte_array_append(hello, (const uint8_t *)"NBDMAGIC", 8);
    put(hello, OPTION_MAGIC, 8);
    put(hello, 1 | 2, 2); /* fixed newstyle, no zeroes */
    if (!send_all(fd, hello) || !receive(fd, flags, sizeof(flags)))
        return false;
    while (receive(fd, head, sizeof(head))) {
        uint32_t option = (uint32_t)get(head + 8, 4), length = (uint32_t)get(head + 12, 4);

        if (length > sizeof(data) || !receive(fd, data, length))
            return false;
        if (option == OPTION_GO)
            return go(server, fd);
        if (option == OPTION_SET_CONTEXTS)
            *context = tell_contexts(fd, data, length);
        else if (!reply(fd, option, option == OPTION_STRUCTURED ? REPLY_DONE : REPLY_UNKNOWN, NULL))
            return false;
    }
    return false;
}

/* ---- commands ---------------------------------------------------------------------------------------------------- */

static bool skip_data(int fd, uint32_t length)
{
    g_autofree uint8_t *data = g_malloc(length + 1);

    return receive(fd, data, length);
}

static void serve(const VmfTestNbdServer *server, int fd)
{
    VmfTestNbdCommand command = {.fd = fd};
    uint8_t head[28];

    if (!shake_hands(server, fd, &command.context))
        return;
    while (receive(fd, head, sizeof(head)) && get(head, 4) == COMMAND_MAGIC) {
        command.type = (uint16_t)get(head + 6, 2);
        command.cookie = get(head + 8, 8);
        command.offset = get(head + 16, 8);
        command.length = (uint32_t)get(head + 24, 4);
        if (command.type == VMF_TEST_NBD_WRITE && !skip_data(fd, command.length))
            return;
        if (command.type == DISCONNECT || !server->answer(server->opaque, &command))
            return;
    }
}

void vmf_test_nbd_tell(const VmfTestNbdCommand *command, const uint32_t (*extents)[2], size_t n, bool last)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    put(bytes, CHUNK_MAGIC, 4);
    put(bytes, last, 2);
    put(bytes, 5, 2); /* block status */
    put(bytes, command->cookie, 8);
    put(bytes, 4 + 8 * n, 4);
    put(bytes, command->context, 4);
    for (size_t i = 0; i < n; i++) {
        put(bytes, extents[i][0], 4);
        put(bytes, extents[i][1], 4);
    }
    send_all(command->fd, bytes);
}

void vmf_test_nbd_tell_done(const VmfTestNbdCommand *command)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    put(bytes, SIMPLE_MAGIC, 4);
    put(bytes, 0, 4);
    put(bytes, command->cookie, 8);
    send_all(command->fd, bytes);
}

/* ---- beginning and end ------------------------------------------------------------------------------------------- */

/* One client after the other, until the socket is shut down. */
static void *server_main(void *opaque)
{
    const VmfTestNbdServer *server = opaque;
    int fd;

    while ((fd = accept(server->listener, NULL, NULL)) >= 0) {
        serve(server, fd);
        close(fd);
    }
    return NULL;
}

static VmfTestNbdServer *server_new(uint64_t size, uint16_t flags, bool (*answer)(void *opaque, const VmfTestNbdCommand *command),
                                    void *opaque)
{
    VmfTestNbdServer *server = g_new0(VmfTestNbdServer, 1);
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    server->directory = g_dir_make_tmp("vmf-nbd-XXXXXX", NULL);
    server->path = g_build_filename(server->directory, "socket", NULL);
    server->uri = g_strconcat("nbd:unix:", server->path, NULL);
    server->size = size;
    server->flags = flags;
    server->answer = answer;
    server->opaque = opaque;
    server->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_strlcpy(address.sun_path, server->path, sizeof(address.sun_path));
    if (bind(server->listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(server->listener, 4) < 0 ||
        pthread_create(&server->thread, NULL, server_main, server) != 0)
        g_error("no NBD server for a test");
    return server;
}

VmfTestNbdServer *vmf_test_nbd_server_new(uint64_t size, bool (*answer)(void *opaque, const VmfTestNbdCommand *command), void *opaque)
{
    return server_new(size, HAS_FLAGS | READ_ONLY, answer, opaque);
}

VmfTestNbdServer *vmf_test_nbd_server_new_writable(uint64_t size, bool (*answer)(void *opaque, const VmfTestNbdCommand *command),
                                                   void *opaque)
{
    return server_new(size, HAS_FLAGS | SEND_FLUSH, answer, opaque);
}

void vmf_test_nbd_server_free(VmfTestNbdServer *server)
{
    shutdown(server->listener, SHUT_RDWR);
    pthread_join(server->thread, NULL);
    close(server->listener);
    g_unlink(server->path);
    g_rmdir(server->directory);
    g_free(server->uri);
    g_free(server->path);
    g_free(server->directory);
    g_free(server);
}

const char *vmf_test_nbd_server_uri(const VmfTestNbdServer *server)
{
    return server->uri;
}
