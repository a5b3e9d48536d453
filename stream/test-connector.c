/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Connectors and listeners of every kind, each with the strangers and accidents that it may meet. */
#include "stream/channel-wait.h"
#include "stream/connector-address.h"
#include "stream/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <glib/gstdio.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define MS INT64_C(1000000)
#define S (1000 * MS)
#define FOR_EVER INT64_C(-1)

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

static int make_directory(void **state)
{
    *state = g_dir_make_tmp("vmferry-XXXXXX", NULL);
    return *state ? 0 : -1;
}

static int remove_directory(void **state)
{
    g_autofree char *directory = *state;
    g_autoptr(GDir) dir = g_dir_open(directory, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(directory, name, NULL);

        g_unlink(path);
    }
    return g_rmdir(directory);
}

static char *in_directory(void **state, const char *scheme, const char *name)
{
    return g_strdup_printf("%s%s/%s", scheme, (char *)*state, name);
}

static VmfConnector *connector(const char *uri, VmfConnectFlags flags)
{
    g_autoptr(GError) error = NULL;
    VmfConnector *made = vmf_connector_new(uri, flags, &error);

    if (!made)
        fail_msg("%s", error->message);
    return made;
}

static VmfListener *listener(const char *uri, VmfConnectFlags flags)
{
    g_autoptr(GError) error = NULL;
    VmfListener *made = vmf_listener_new(uri, flags, &error);

    if (!made)
        fail_msg("%s", error->message);
    return made;
}

static VmfChannel *open_one(VmfConnector *from)
{
    g_autoptr(GError) error = NULL;
    VmfChannel *channel = vmf_connector_open(from, 10 * S, &error);

    if (!channel)
        fail_msg("%s", error->message);
    return channel;
}

static VmfChannel *accept_one(VmfListener *at)
{
    g_autoptr(GError) error = NULL;
    VmfChannel *channel = vmf_listener_accept(at, 10 * S, &error);

    if (!channel)
        fail_msg("%s", error->message);
    return channel;
}

static void assert_refused(const char *uri, VmfConnectFlags flags, VmfErrorCode connector_code,
                           VmfErrorCode listener_code)
{
    g_autoptr(GError) connect_error = NULL, listen_error = NULL;

    assert_null(vmf_connector_new(uri, flags, &connect_error));
    assert_true(g_error_matches(connect_error, VMF_ERROR, connector_code));
    assert_null(vmf_listener_new(uri, flags, &listen_error));
    assert_true(g_error_matches(listen_error, VMF_ERROR, listener_code));
}

/* A word each way. */
static void assert_joined(VmfChannel *a, VmfChannel *b)
{
    char buf[4];

    assert_true(vmf_channel_write_all(a, "ping", 4, NULL));
    assert_true(vmf_channel_read_all(b, buf, 4, NULL));
    assert_memory_equal(buf, "ping", 4);
    assert_true(vmf_channel_write_all(b, "pong", 4, NULL));
    assert_true(vmf_channel_read_all(a, buf, 4, NULL));
    assert_memory_equal(buf, "pong", 4);
}

static void assert_meets(const char *listen_uri)
{
    g_autoptr(VmfListener) at = listener(listen_uri, 0);
    g_autoptr(VmfConnector) from = connector(vmf_listener_uri(at), 0);

    assert_false(vmf_connector_is_one_way(from));
    assert_false(vmf_listener_is_one_way(at));
    assert_int_equal(vmf_connector_max_channels(from), G_MAXUINT);
    assert_int_equal(vmf_listener_max_channels(at), G_MAXUINT);
    for (int i = 0; i < 3; i++) {
        g_autoptr(VmfChannel) a = open_one(from);
        g_autoptr(VmfChannel) b = accept_one(at);

        assert_joined(a, b);
    }
}

/* ---- sockets ---------------------------------------------------------------------------------------------------- */

static bool has_ip6_loopback(void)
{
    g_autoptr(VmfListener) at = vmf_listener_new("tcp:[::1]:0", 0, NULL);

    return at != NULL;
}

static void tcp_meets(void **state)
{
    assert_meets("tcp:127.0.0.1:0");
}

static void tcp_meets_by_name(void **state)
{
    struct addrinfo *found = NULL;

    if (getaddrinfo("localhost", NULL, NULL, &found)) {
        print_message("localhost has no address here: there is no /etc/hosts\n");
        skip();
    }
    freeaddrinfo(found);
    assert_meets("tcp:localhost:0");
}

static void tcp_meets_over_ip6(void **state)
{
    if (!has_ip6_loopback()) {
        print_message("there is no IPv6 loopback here\n");
        skip();
    }
    assert_meets("tcp:[::1]:0");
}

static void tcp_says_where_it_is(void **state)
{
    g_autoptr(VmfListener) at = listener("tcp:127.0.0.1:0", 0);
    g_autoptr(VmfConnector) from = connector(vmf_listener_uri(at), 0);
    g_autoptr(VmfChannel) a = open_one(from);
    g_autoptr(VmfChannel) b = accept_one(at);

    assert_true(g_str_has_prefix(vmf_listener_uri(at), "tcp:127.0.0.1:"));
    assert_string_not_equal(vmf_listener_uri(at), "tcp:127.0.0.1:0");
    assert_string_equal(vmf_channel_name(a), vmf_listener_uri(at));
    assert_true(g_str_has_prefix(vmf_channel_name(b), "tcp:127.0.0.1:"));
    assert_string_not_equal(vmf_channel_name(b), vmf_listener_uri(at));
}

static void a_wildcard_serves_both_families(void **state)
{
    g_autoptr(VmfListener) at = listener("tcp::0", VMF_CONNECT_INSECURE);
    g_autofree char *uri = g_strdup_printf("tcp:127.0.0.1:%s", strrchr(vmf_listener_uri(at), ':') + 1);
    g_autoptr(VmfConnector) from = connector(uri, 0);
    g_autoptr(VmfChannel) a = open_one(from);
    g_autoptr(VmfChannel) b = accept_one(at);

    assert_joined(a, b);
}

static void plaintext_off_the_loopback_is_refused(void **state)
{
    static const char *const off[] = {"tcp:10.0.0.2:4444",         "tcp:0.0.0.0:4444",         "tcp:[::]:4444",
                                      "tcp:[2001:db8::1]:4444",    "tcp:126.255.255.255:4444", "tcp:128.0.0.1:4444",
                                      "tcp:[::ffff:10.0.0.2]:4444"};

    for (size_t i = 0; i < G_N_ELEMENTS(off); i++) {
        G_GNUC_UNUSED g_autoptr(VmfConnector) allowed = connector(off[i], VMF_CONNECT_INSECURE);

        assert_refused(off[i], 0, VMF_ERROR_INSECURE, VMF_ERROR_INSECURE);
    }
    /* Every address of this host, for who listens; nobody, for who connects. */
    assert_refused("tcp::4444", 0, VMF_ERROR_URI, VMF_ERROR_INSECURE);
}

static void loopback_addresses(void **state)
{
    static const struct {
        const char *ip;
        bool loopback;
    } table[] = {
        {"127.0.0.1", true}, {"127.255.0.9", true}, {"128.0.0.1", false}, {"0.0.0.0", false}, {"1.0.0.127", false}};
    static const struct {
        const char *ip;
        bool loopback;
    } table6[] = {{"::1", true}, {"::", false}, {"::2", false}, {"::ffff:127.0.0.1", true}, {"::ffff:10.0.0.1", false}};

    for (size_t i = 0; i < G_N_ELEMENTS(table); i++) {
        struct sockaddr_in ip = {.sin_family = AF_INET};

        assert_int_equal(inet_pton(AF_INET, table[i].ip, &ip.sin_addr), 1);
        assert_int_equal(vmf_address_is_loopback((struct sockaddr *)&ip), table[i].loopback);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(table6); i++) {
        struct sockaddr_in6 ip = {.sin6_family = AF_INET6};

        assert_int_equal(inet_pton(AF_INET6, table6[i].ip, &ip.sin6_addr), 1);
        assert_int_equal(vmf_address_is_loopback((struct sockaddr *)&ip), table6[i].loopback);
    }
}

static void connecting_needs_a_port_and_a_listener(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfListener) at = listener("tcp:127.0.0.1:0", 0);
    g_autofree char *uri = g_strdup(vmf_listener_uri(at));
    g_autoptr(VmfConnector) from = connector(uri, 0);

    g_clear_pointer(&at, vmf_listener_free);
    assert_null(vmf_connector_open(from, 10 * S, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CONNECT));
    g_clear_error(&error);
    assert_null(vmf_connector_new("tcp:127.0.0.1:0", 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_URI));
}

static void a_taken_port_is_an_error(void **state)
{
    g_autoptr(VmfListener) at = listener("tcp:127.0.0.1:0", 0);
    g_autoptr(GError) error = NULL;

    assert_null(vmf_listener_new(vmf_listener_uri(at), 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CONNECT));
}

static void an_unknown_name_is_an_error(void **state)
{
    g_autoptr(VmfConnector) from = connector("tcp:nobody.invalid:4444", 0);
    g_autoptr(GError) error = NULL;

    assert_null(vmf_connector_open(from, 10 * S, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CONNECT));
}

/* Fills the backlog of a listener that nobody accepts from, so that one more has to wait. */
static VmfConnector *connector_that_waits(void **state, int *fd)
{
    g_autofree char *uri = in_directory(state, "unix:", "full");
    struct sockaddr_un address = vmf_address_unix(uri + strlen("unix:"));
    VmfConnector *from = connector(uri, 0);

    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(*fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(*fd, 0), 0);
    return from;
}

static void connecting_gives_up_in_time(void **state)
{
    int fd;
    g_autoptr(VmfConnector) from = connector_that_waits(state, &fd);
    G_GNUC_UNUSED g_autoptr(VmfChannel) first = open_one(from);
    g_autoptr(GError) error = NULL;

    assert_null(vmf_connector_open(from, 20 * MS, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT));
    close(fd);
}

static void *open_for_ever(void *from)
{
    GError *error = NULL;

    assert_null(vmf_connector_open(from, FOR_EVER, &error));
    return error;
}

static void shutdown_wakes_who_connects(void **state)
{
    int fd;
    g_autoptr(VmfConnector) from = connector_that_waits(state, &fd);
    G_GNUC_UNUSED g_autoptr(VmfChannel) first = open_one(from);
    g_autoptr(GError) error = NULL;
    pthread_t thread;
    void *result;

    pthread_create(&thread, NULL, open_for_ever, from);
    g_usleep(2000);
    vmf_connector_shutdown(from);
    pthread_join(thread, &result);
    error = result;
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
    close(fd);
}

static void unix_meets(void **state)
{
    g_autofree char *uri = in_directory(state, "unix:", "socket");

    assert_meets(uri);
    assert_int_equal(access(uri + strlen("unix:"), F_OK), -1);
}

static void a_unix_socket_is_its_owners(void **state)
{
    g_autofree char *uri = in_directory(state, "unix:", "socket");
    G_GNUC_UNUSED g_autoptr(VmfListener) at = listener(uri, 0);
    struct stat st;

    assert_int_equal(stat(uri + strlen("unix:"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void a_stale_socket_is_replaced_a_live_one_not(void **state)
{
    g_autofree char *uri = in_directory(state, "unix:", "socket");
    struct sockaddr_un address = vmf_address_unix(uri + strlen("unix:"));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_autoptr(VmfListener) at = NULL;
    g_autoptr(GError) error = NULL;

    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd);
    at = listener(uri, 0);
    assert_null(vmf_listener_new(uri, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CONNECT));
    assert_int_equal(access(uri + strlen("unix:"), F_OK), 0);
}

static void a_busy_socket_is_not_stale(void **state)
{
    int fd;
    g_autoptr(VmfConnector) from = connector_that_waits(state, &fd);
    G_GNUC_UNUSED g_autoptr(VmfChannel) first = open_one(from);
    g_autoptr(GError) error = NULL;

    assert_null(vmf_listener_new(from->uri->text, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CONNECT));
    close(fd);
}

static void a_file_in_the_way_stays(void **state)
{
    g_autofree char *uri = in_directory(state, "unix:", "precious");
    g_autoptr(GError) error = NULL;

    assert_true(g_file_set_contents(uri + strlen("unix:"), "data", 4, NULL));
    assert_null(vmf_listener_new(uri, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CONNECT));
    assert_int_equal(access(uri + strlen("unix:"), F_OK), 0);
}

static void a_successors_socket_stays(void **state)
{
    g_autofree char *uri = in_directory(state, "unix:", "socket");
    g_autoptr(VmfListener) former = listener(uri, 0);
    g_autoptr(VmfListener) successor = NULL;

    assert_int_equal(unlink(uri + strlen("unix:")), 0);
    successor = listener(uri, 0);
    g_clear_pointer(&former, vmf_listener_free);
    assert_int_equal(access(uri + strlen("unix:"), F_OK), 0);
}

static void strangers_come_and_go(void **state)
{
    g_autoptr(VmfListener) at = listener("tcp:127.0.0.1:0", 0);
    g_autoptr(VmfConnector) from = connector(vmf_listener_uri(at), 0);
    G_GNUC_UNUSED g_autoptr(VmfChannel) silent = open_one(from);
    g_autoptr(VmfChannel) a = NULL, b = NULL, stranger = NULL;
    g_autoptr(GError) error = NULL;
    char buf[4];

    vmf_channel_free(open_one(from)); /* gone before it is accepted */
    a = open_one(from);

    stranger = accept_one(at);
    assert_false(vmf_channel_read_all_deadline(stranger, buf, 4, vmf_deadline_after(MS), &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT));
    g_clear_error(&error);
    g_clear_pointer(&stranger, vmf_channel_free);

    stranger = accept_one(at);
    assert_false(vmf_channel_read_all_deadline(stranger, buf, 4, vmf_deadline_after(10 * S), &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));

    b = accept_one(at);
    assert_joined(a, b);
}

/* ---- accepting -------------------------------------------------------------------------------------------------- */

static void *accept_for_ever(void *at)
{
    GError *error = NULL;

    assert_null(vmf_listener_accept(at, FOR_EVER, &error));
    return error;
}

static void assert_accept_ends(VmfListener *at)
{
    g_autoptr(GError) error = NULL;
    pthread_t thread;
    void *result;

    assert_null(vmf_listener_accept(at, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT));
    g_clear_error(&error);
    assert_null(vmf_listener_accept(at, MS, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT));
    g_clear_error(&error);

    pthread_create(&thread, NULL, accept_for_ever, at);
    g_usleep(2000);
    vmf_listener_shutdown(at);
    pthread_join(thread, &result);
    error = result;
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
    g_clear_error(&error);
    assert_null(vmf_listener_accept(at, FOR_EVER, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
}

static void accepting_has_an_end(void **state)
{
    g_autofree char *uri = in_directory(state, "unix:", "socket");
    g_autoptr(VmfListener) tcp = listener("tcp:127.0.0.1:0", 0);
    g_autoptr(VmfListener) local = listener(uri, 0);
    g_autoptr(VmfListener) memory = NULL;
    g_autoptr(VmfConnector) from = NULL;

    vmf_memory_link_new(0, &from, &memory);
    assert_accept_ends(tcp);
    assert_accept_ends(local);
    assert_accept_ends(memory);
}

/* ---- the memory link -------------------------------------------------------------------------------------------- */

static void memory_meets(void **state)
{
    g_autoptr(VmfConnector) from = NULL;
    g_autoptr(VmfListener) at = NULL;
    g_autoptr(VmfChannel) a1 = NULL, a2 = NULL, b1 = NULL, b2 = NULL;

    vmf_memory_link_new(16, &from, &at);
    assert_false(vmf_connector_is_one_way(from));
    assert_string_equal(vmf_listener_uri(at), "memory:");
    a1 = open_one(from);
    a2 = open_one(from);
    b1 = accept_one(at);
    b2 = accept_one(at);
    assert_joined(a1, b1);
    assert_joined(a2, b2);
    g_clear_pointer(&from, vmf_connector_free);
    g_clear_pointer(&at, vmf_listener_free);
    assert_joined(a1, b1);
}

static void memory_ends_go_in_any_order(void **state)
{
    VmfConnector *from;
    VmfListener *at;
    g_autoptr(VmfChannel) waiting = NULL;
    g_autoptr(GError) error = NULL;
    char buf;

    vmf_memory_link_new(0, &from, &at);
    waiting = open_one(from);
    vmf_listener_free(at);
    assert_false(vmf_channel_read_all(waiting, &buf, 1, NULL));
    assert_null(vmf_connector_open(from, FOR_EVER, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CONNECT));
    vmf_connector_free(from);

    vmf_memory_link_new(0, &from, &at);
    vmf_channel_free(open_one(from));
    vmf_connector_free(from);
    vmf_listener_free(at);
}

/* ---- wraps ------------------------------------------------------------------------------------------------------ */

static VmfChannel *count_and_note(VmfChannel *channel, unsigned index, void *opaque)
{
    VmfChannel **wrapped = opaque;

    wrapped[index] = vmf_filter_count(channel);
    return wrapped[index];
}

static void wraps_see_every_channel(void **state)
{
    g_autoptr(VmfConnector) from = NULL;
    g_autoptr(VmfListener) at = NULL;
    VmfChannel *opened[2] = {0}, *accepted[2] = {0}, *plain;

    vmf_memory_link_new(0, &from, &at);
    vmf_connector_set_wrap(from, count_and_note, opened);
    vmf_listener_set_wrap(at, count_and_note, accepted);
    for (int i = 0; i < 2; i++) {
        VmfChannel *a = open_one(from), *b = accept_one(at);

        assert_ptr_equal(a, opened[i]);
        assert_ptr_equal(b, accepted[i]);
        assert_joined(opened[i], accepted[i]);
        assert_int_equal(vmf_filter_count_sent(opened[i]), 4);
        assert_int_equal(vmf_filter_count_received(accepted[i]), 4);
    }
    vmf_connector_set_wrap(from, NULL, NULL);
    plain = open_one(from);
    assert_string_equal(plain->ops->kind, "memory");
    vmf_channel_free(plain);
    for (int i = 0; i < 2; i++) {
        vmf_channel_free(opened[i]);
        vmf_channel_free(accepted[i]);
    }
}

/* ---- descriptors ------------------------------------------------------------------------------------------------ */

static char *fd_uri(int fd)
{
    return g_strdup_printf("fd:%d", fd);
}

static void a_socket_descriptor_goes_both_ways(void **state)
{
    int fds[2], result = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds);
    g_autofree char *from_uri = fd_uri(fds[0]), *at_uri = fd_uri(fds[1]);
    g_autoptr(VmfConnector) from = connector(from_uri, 0);
    g_autoptr(VmfListener) at = listener(at_uri, 0);
    g_autoptr(VmfChannel) a = open_one(from);
    g_autoptr(VmfChannel) b = accept_one(at);
    g_autoptr(GError) error = NULL;

    assert_int_equal(result, 0);
    assert_false(vmf_connector_is_one_way(from) || vmf_listener_is_one_way(at));
    assert_int_equal(vmf_connector_max_channels(from), 1);
    assert_int_equal(vmf_listener_max_channels(at), 1);
    assert_joined(a, b);
    assert_null(vmf_connector_open(from, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
    g_clear_error(&error);
    assert_null(vmf_listener_accept(at, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
}

static void a_pipe_descriptor_goes_one_way(void **state)
{
    int fds[2], result = pipe2(fds, O_CLOEXEC);
    g_autofree char *from_uri = fd_uri(fds[1]), *at_uri = fd_uri(fds[0]);
    g_autoptr(VmfConnector) from = connector(from_uri, 0);
    g_autoptr(VmfListener) at = listener(at_uri, 0);
    g_autoptr(VmfChannel) a = open_one(from);
    g_autoptr(VmfChannel) b = accept_one(at);
    char buf[4];

    assert_int_equal(result, 0);
    assert_true(vmf_connector_is_one_way(from) && vmf_listener_is_one_way(at));
    assert_true(vmf_channel_is_one_way(a) && vmf_channel_is_one_way(b));
    assert_true(vmf_channel_write_all(a, "ping", 4, NULL));
    assert_true(vmf_channel_read_all(b, buf, 4, NULL));
}

static void descriptors_that_will_not_do(void **state)
{
    int fds[2];
    g_autofree char *read_end = NULL, *write_end = NULL, *closed = NULL, *datagram = NULL;
    g_autoptr(GError) error = NULL;

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    read_end = fd_uri(fds[0]);
    write_end = fd_uri(fds[1]);
    assert_null(vmf_connector_new(read_end, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
    g_clear_error(&error);
    assert_null(vmf_listener_new(write_end, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
    close(fds[0]);
    close(fds[1]);
    closed = fd_uri(fds[0]);
    assert_refused(closed, 0, VMF_ERROR_URI, VMF_ERROR_URI);
    assert_refused("fd:2147483647", 0, VMF_ERROR_URI, VMF_ERROR_URI);

    fds[0] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    datagram = fd_uri(fds[0]);
    assert_refused(datagram, 0, VMF_ERROR_UNSUPPORTED, VMF_ERROR_UNSUPPORTED);
    assert_refused(datagram, VMF_CONNECT_INSECURE, VMF_ERROR_UNSUPPORTED, VMF_ERROR_UNSUPPORTED);
    close(fds[0]);
}

static void an_unused_descriptor_is_closed(void **state)
{
    int fds[2], result = pipe2(fds, O_CLOEXEC);
    g_autofree char *uri = fd_uri(fds[1]);
    char buf;

    assert_int_equal(result, 0);
    vmf_connector_free(connector(uri, 0));
    assert_int_equal(read(fds[0], &buf, 1), 0);
    close(fds[0]);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static void assert_contents(const char *path, const char *expected)
{
    g_autofree char *contents = NULL;

    assert_true(g_file_get_contents(path, &contents, NULL, NULL));
    assert_string_equal(contents, expected);
}

static void write_file(const char *uri, const char *text, bool finish)
{
    g_autoptr(VmfConnector) from = connector(uri, 0);
    g_autoptr(VmfChannel) file = open_one(from);

    assert_true(vmf_connector_is_one_way(from));
    assert_true(vmf_channel_is_one_way(file));
    assert_true(vmf_channel_write_all(file, text, strlen(text), NULL));
    if (finish)
        assert_true(vmf_channel_finish(file, NULL));
}

static void a_file_appears_when_it_is_whole(void **state)
{
    g_autofree char *uri = in_directory(state, "file:", "saved"), *partial = in_directory(state, "", "saved.partial");
    const char *path = uri + strlen("file:");
    struct stat st;

    write_file(uri, "half", false);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(partial, F_OK), -1);

    write_file(uri, "whole", true);
    assert_contents(path, "whole");
    assert_int_equal(access(partial, F_OK), -1);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);

    write_file(uri, "ha", false);
    assert_contents(path, "whole");
    write_file(uri, "other", true);
    assert_contents(path, "other");
}

static void leftovers_are_taken_over(void **state)
{
    g_autofree char *uri = in_directory(state, "file:", "saved"), *partial = in_directory(state, "", "saved.partial");
    struct stat st;

    assert_true(g_file_set_contents(partial, "a longer leftover", -1, NULL));
    assert_int_equal(chmod(partial, 0644), 0);
    write_file(uri, "new", true);
    assert_contents(uri + strlen("file:"), "new");
    assert_int_equal(stat(uri + strlen("file:"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void two_writers_are_kept_apart(void **state)
{
    g_autofree char *uri = in_directory(state, "file:", "saved");
    g_autoptr(VmfConnector) one = connector(uri, 0), two = connector(uri, 0);
    g_autoptr(VmfChannel) file = open_one(one);
    g_autoptr(GError) error = NULL;

    assert_null(vmf_connector_open(two, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    assert_non_null(strstr(error->message, "somebody else"));
    assert_true(vmf_channel_finish(file, NULL));
    g_clear_pointer(&file, vmf_channel_free);
    file = open_one(two);
}

static void a_link_to_a_file_stays_one(void **state)
{
    g_autofree char *uri = in_directory(state, "file:", "link"), *target = in_directory(state, "", "target");

    assert_true(g_file_set_contents(target, "old", -1, NULL));
    assert_int_equal(symlink("target", uri + strlen("file:")), 0);
    write_file(uri, "new", true);
    assert_contents(target, "new");
    assert_true(g_file_test(uri + strlen("file:"), G_FILE_TEST_IS_SYMLINK));
}

static void a_device_is_written_in_place(void **state)
{
    struct stat st;

    write_file("file:/dev/null", "gone", true);
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    assert_int_equal(access("/dev/null.partial", F_OK), -1);
}

static void a_file_is_read_once(void **state)
{
    g_autofree char *uri = in_directory(state, "file:", "saved");
    g_autoptr(VmfListener) at = NULL;
    g_autoptr(VmfChannel) file = NULL;
    char buf[5];
    bool ended;

    write_file(uri, "whole", true);
    at = listener(uri, 0);
    assert_true(vmf_listener_is_one_way(at));
    assert_int_equal(vmf_listener_max_channels(at), 1);
    file = accept_one(at);
    assert_int_equal(vmf_channel_wait_readable(file, 0, NULL), 1);
    assert_true(vmf_channel_read_all(file, buf, 5, NULL));
    assert_memory_equal(buf, "whole", 5);
    assert_true(vmf_channel_read_all_or_end(file, buf, 1, &ended, NULL));
    assert_true(ended);
    assert_null(vmf_listener_accept(at, 0, NULL));
    vmf_listener_free(listener(uri, 0)); /* never accepted */
}

static void files_that_will_not_do(void **state)
{
    g_autofree char *missing = in_directory(state, "file:", "missing"),
                    *nowhere = in_directory(state, "file:", "no/where");
    g_autofree char *directory = in_directory(state, "file:", ""), *fifo = in_directory(state, "file:", "fifo");
    g_autoptr(VmfConnector) from = connector(nowhere, 0);
    g_autoptr(GError) error = NULL;

    assert_null(vmf_listener_new(missing, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    g_clear_error(&error);
    assert_null(vmf_listener_new(directory, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
    g_clear_error(&error);
    assert_int_equal(mkfifo(fifo + strlen("file:"), 0600), 0);
    assert_null(vmf_listener_new(fifo, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
    g_clear_error(&error);
    assert_null(vmf_connector_open(from, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
}

static void a_full_disk_is_an_error(void **state)
{
    g_autoptr(VmfConnector) from = NULL;
    g_autoptr(VmfChannel) file = NULL;
    g_autoptr(GError) error = NULL;

    if (access("/dev/full", W_OK) != 0) {
        print_message("there is no /dev/full here\n");
        skip();
    }
    from = connector("file:/dev/full", 0);
    file = open_one(from);
    assert_false(vmf_channel_write_all(file, "x", 1, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
}

#define IN_DIRECTORY(f) cmocka_unit_test_setup_teardown(f, make_directory, remove_directory)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tcp_meets),
        cmocka_unit_test(tcp_meets_by_name),
        cmocka_unit_test(tcp_meets_over_ip6),
        cmocka_unit_test(tcp_says_where_it_is),
        cmocka_unit_test(a_wildcard_serves_both_families),
        cmocka_unit_test(plaintext_off_the_loopback_is_refused),
        cmocka_unit_test(loopback_addresses),
        cmocka_unit_test(connecting_needs_a_port_and_a_listener),
        cmocka_unit_test(a_taken_port_is_an_error),
        cmocka_unit_test(an_unknown_name_is_an_error),
        IN_DIRECTORY(connecting_gives_up_in_time),
        IN_DIRECTORY(shutdown_wakes_who_connects),
        IN_DIRECTORY(unix_meets),
        IN_DIRECTORY(a_unix_socket_is_its_owners),
        IN_DIRECTORY(a_stale_socket_is_replaced_a_live_one_not),
        IN_DIRECTORY(a_busy_socket_is_not_stale),
        IN_DIRECTORY(a_file_in_the_way_stays),
        IN_DIRECTORY(a_successors_socket_stays),
        cmocka_unit_test(strangers_come_and_go),
        IN_DIRECTORY(accepting_has_an_end),
        cmocka_unit_test(memory_meets),
        cmocka_unit_test(memory_ends_go_in_any_order),
        cmocka_unit_test(wraps_see_every_channel),
        cmocka_unit_test(a_socket_descriptor_goes_both_ways),
        cmocka_unit_test(a_pipe_descriptor_goes_one_way),
        cmocka_unit_test(descriptors_that_will_not_do),
        cmocka_unit_test(an_unused_descriptor_is_closed),
        IN_DIRECTORY(a_file_appears_when_it_is_whole),
        IN_DIRECTORY(leftovers_are_taken_over),
        IN_DIRECTORY(two_writers_are_kept_apart),
        IN_DIRECTORY(a_link_to_a_file_stays_one),
        cmocka_unit_test(a_device_is_written_in_place),
        IN_DIRECTORY(a_file_is_read_once),
        IN_DIRECTORY(files_that_will_not_do),
        cmocka_unit_test(a_full_disk_is_an_error),
    };

    return cmocka_run_group_tests_name("connector", tests, NULL, NULL);
}
