/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Clients of a control socket whose answers take time: what they asked for behind them, what others ask, who has gone meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "machine/control-client.h"

typedef struct {
    VmfControlClient *client; /* NULL: it was freed */
    int peer;                 /* -1: closed */
    unsigned n_requests;
    VmfControlAnswer *answer; /* to be given; NULL: none */
    bool gone;
    GString *received;
} Rig;

/* A request is its own answer; "later": that takes time. */
static json_t *request(void *opaque, VmfControlClient *client, json_t *request, const char *problem)
{
    Rig *rig = opaque;

    assert_null(problem);
    rig->n_requests++;
    if (!json_object_get(request, "later"))
        return json_incref(request);
    assert_null(rig->answer);
    rig->answer = vmf_control_client_defer(client);
    return NULL;
}

static void gone(void *opaque, VmfControlClient *client)
{
    ((Rig *)opaque)->gone = true;
}

static const VmfControlClientOps ops = {.request = request, .gone = gone};

static Rig *rig_new(void)
{
    Rig *rig = g_new0(Rig, 1);
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
    rig->peer = fds[1];
    rig->received = g_string_new(NULL);
    rig->client = vmf_control_client_new(fds[0], &ops, rig);
    return rig;
}

static void rig_free(Rig *rig)
{
    vmf_control_client_free(rig->client);
    if (rig->peer >= 0)
        close(rig->peer);
    g_string_free(rig->received, TRUE);
    g_free(rig);
}

static void go_on(void)
{
    while (g_main_context_iteration(NULL, FALSE))
        continue;
}

static void say(const Rig *rig, const char *text)
{
    assert_int_equal(send(rig->peer, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
    go_on();
}

/* What has come since the last time. True: and that was the end. */
static bool receive(Rig *rig)
{
    char text[4096];
    ssize_t n;

    g_string_truncate(rig->received, 0);
    while ((n = recv(rig->peer, text, sizeof(text), 0)) > 0)
        g_string_append_len(rig->received, text, n);
    return n == 0;
}

static void assert_received(Rig *rig, const char *expected)
{
    assert_false(receive(rig));
    assert_string_equal(rig->received->str, expected);
}

static void give(Rig *rig)
{
    VmfControlAnswer *answer = g_steal_pointer(&rig->answer);
    json_t *response = json_deep_copy(vmf_control_answer_request(answer));

    vmf_control_answer_give(answer, response);
    json_decref(response);
}

static void requests_keep_their_order(void **state)
{
    Rig *rig = rig_new();

    say(rig, "{\"id\":1}{\"later\":2}{\"id\":3}{\"later\":4}{\"id\":5}");
    say(rig, "{\"id\":6}");
    assert_received(rig, "{\"id\":1}\r\n");
    assert_int_equal(rig->n_requests, 2);
    give(rig);
    assert_int_equal(rig->n_requests, 2); /* not from within whoever gave it */
    go_on();
    assert_received(rig, "{\"later\":2}\r\n{\"id\":3}\r\n");
    assert_int_equal(rig->n_requests, 4);
    give(rig);
    go_on();
    assert_received(rig, "{\"later\":4}\r\n{\"id\":5}\r\n{\"id\":6}\r\n");
    rig_free(rig);
}

static void others_are_served_and_events_go_on(void **state)
{
    Rig *rig = rig_new(), *other = rig_new();
    json_t *event = json_pack("{s:s}", "event", "STOP");

    say(rig, "{\"later\":1}");
    say(other, "{\"id\":1}");
    assert_received(other, "{\"id\":1}\r\n");
    vmf_control_client_send(rig->client, event);
    assert_received(rig, "{\"event\":\"STOP\"}\r\n");
    give(rig);
    assert_received(rig, "{\"later\":1}\r\n");
    go_on();
    say(rig, "{\"id\":2}");
    assert_received(rig, "{\"id\":2}\r\n");
    json_decref(event);
    rig_free(other);
    rig_free(rig);
}

static void hang_up(Rig *rig)
{
    close(rig->peer);
    rig->peer = -1;
    go_on();
}

static void who_has_gone_is_let_go(void **state)
{
    for (unsigned freed = 0; freed < 2; freed++) {
        Rig *rig = rig_new();

        say(rig, "{\"later\":1}{\"id\":2}");
        hang_up(rig);
        assert_true(rig->gone);
        if (freed)
            g_clear_pointer(&rig->client, vmf_control_client_free);
        give(rig);
        go_on();
        assert_int_equal(rig->n_requests, 1);
        rig_free(rig);
    }
}

/* It has not been noticed when the answer comes. */
static void who_goes_at_that_moment_is_let_go(void **state)
{
    Rig *rig = rig_new();

    say(rig, "{\"later\":1}{\"id\":2}");
    close(rig->peer);
    rig->peer = -1;
    give(rig);
    assert_true(rig->gone);
    go_on();
    assert_int_equal(rig->n_requests, 1);
    rig_free(rig);
}

/* It says no more, and still listens. */
static void half_closed_clients_get_their_answers(void **state)
{
    Rig *rig = rig_new();

    say(rig, "{\"later\":1}{\"id\":2}");
    shutdown(rig->peer, SHUT_WR);
    go_on();
    assert_false(rig->gone);
    assert_received(rig, "");
    give(rig);
    go_on();
    assert_true(receive(rig));
    assert_string_equal(rig->received->str, "{\"later\":1}\r\n{\"id\":2}\r\n");
    assert_true(rig->gone);
    rig_free(rig);
}

/* As a server does that ends: it answers, and carries out nothing more. */
static void the_end_comes_before_what_follows(void **state)
{
    Rig *rig = rig_new();

    say(rig, "{\"later\":1}{\"id\":2}");
    give(rig);
    vmf_control_client_flush(rig->client, 0);
    g_clear_pointer(&rig->client, vmf_control_client_free);
    go_on();
    assert_int_equal(rig->n_requests, 1);
    assert_true(receive(rig));
    assert_string_equal(rig->received->str, "{\"later\":1}\r\n");
    rig_free(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_keep_their_order),
        cmocka_unit_test(others_are_served_and_events_go_on),
        cmocka_unit_test(who_has_gone_is_let_go),
        cmocka_unit_test(who_goes_at_that_moment_is_let_go),
        cmocka_unit_test(half_closed_clients_get_their_answers),
        cmocka_unit_test(the_end_comes_before_what_follows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
