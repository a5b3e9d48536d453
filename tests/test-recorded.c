/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the engine writes is what docs/stream-format.rst says: whole migrations are recorded, on every channel and in
 * both directions, and the independent reader (scripts/verify-stream, its path is the argument) has to agree with each.
 * With a damaged copy it must not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/record-filter.h"
#include "tests/world.h"

#define MIB (UINT64_C(1) << 20)

static const char *verify_stream;

typedef enum { MEMORY, ONE_SOCKET, INTO_A_FILE } Link;

typedef struct {
    const char *name;
    unsigned version;
    unsigned channels;
    Link link;
    VmfAudit audit;
    bool paused;
    bool idle; /* nothing is written while it moves */
} Case;

static const Case cases[] = {
    {"v3, a channel", 3, 1, MEMORY, VMF_AUDIT_OFF, false, false},
    {"v3, two channels, audit before", 3, 2, MEMORY, VMF_AUDIT_BEFORE, false, false},
    {"v3, four channels", 3, 4, MEMORY, VMF_AUDIT_AFTER, false, false},
    {"v3, pages on the main channel", 3, 2, ONE_SOCKET, VMF_AUDIT_OFF, false, false},
    {"v3, into a file", 3, 2, INTO_A_FILE, VMF_AUDIT_OFF, false, false},
    {"v3, a paused guest", 3, 2, MEMORY, VMF_AUDIT_OFF, true, true},
    {"v3, an idle guest into a file", 3, 1, INTO_A_FILE, VMF_AUDIT_OFF, false, true},
    {"v2, a channel", 2, 1, MEMORY, VMF_AUDIT_OFF, false, false},
    {"v2, two channels", 2, 2, MEMORY, VMF_AUDIT_AFTER, false, false},
    {"v2, four channels, an idle guest", 2, 4, MEMORY, VMF_AUDIT_OFF, false, true},
    {"v2, pages on the main channel", 2, 2, ONE_SOCKET, VMF_AUDIT_OFF, false, false},
    {"v2, into a file", 2, 2, INTO_A_FILE, VMF_AUDIT_OFF, false, false},
    {"v2, a paused guest", 2, 1, MEMORY, VMF_AUDIT_OFF, true, true},
};

/* ---- recording ------------------------------------------------------------------------------------------------- */

/* The files of one migration: the main channel and its return path, then each page channel and its. */
typedef struct {
    char *folder;
    unsigned n_channels; /* opened */
    bool one_way;
} Recording;

static char *file_of(const Recording *recording, unsigned index, bool returned)
{
    g_autofree char *name = g_strdup_printf("%u%s", index, returned ? "-return" : "");

    return g_build_filename(recording->folder, name, NULL);
}

static VmfChannel *record(VmfChannel *channel, unsigned index, void *opaque)
{
    Recording *recording = opaque;
    g_autofree char *written = file_of(recording, index, false);

    recording->n_channels = MAX(recording->n_channels, index + 1);
    return vmf_filter_record(channel, recording->one_way ? NULL : written, NULL);
}

/* What the target says is recorded there: the source stops reading when it knows enough. Channels are accepted in any
 * order. */
static VmfChannel *record_return(VmfChannel *channel, unsigned index, void *opaque)
{
    g_autofree char *returned = file_of(opaque, index, true);

    return vmf_filter_record(channel, returned, NULL);
}

static void recording_init(Recording *recording, bool one_way)
{
    *recording = (Recording){.one_way = one_way};
    recording->folder = g_dir_make_tmp("vmferry-recorded-XXXXXX", NULL);
    assert_non_null(recording->folder);
}

static void recording_clear(Recording *recording)
{
    for (unsigned i = 0; i <= VMF_CHANNELS_MAX; i++) {
        g_autofree char *written = file_of(recording, i, false), *returned = file_of(recording, i, true);
        g_unlink(written);
        g_unlink(returned);
    }
    g_rmdir(recording->folder);
    g_free(recording->folder);
}

static void make_link(const Case *of, Recording *recording, VmfConnector **connector, VmfListener **listener)
{
    g_autofree char *path = file_of(recording, 0, false), *from = NULL, *to = NULL;
    int ends[2];

    *listener = NULL;
    switch (of->link) {
    case MEMORY:
        vmf_memory_link_new(0, connector, listener);
        break;
    case ONE_SOCKET:
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
        from = g_strdup_printf("fd:%d", ends[0]);
        to = g_strdup_printf("fd:%d", ends[1]);
        *connector = vmf_connector_new(from, 0, NULL);
        *listener = vmf_listener_new(to, 0, NULL);
        assert_non_null(*listener);
        break;
    case INTO_A_FILE:
        from = g_strdup_printf("file:%s", path);
        *connector = vmf_connector_new(from, 0, NULL);
        break;
    }
    assert_non_null(*connector);
    vmf_connector_set_wrap(*connector, record, recording);
    if (*listener)
        vmf_listener_set_wrap(*listener, record_return, recording);
}

static void *target_main(void *opaque)
{
    g_autoptr(GError) error = NULL;

    if (!vmf_session_run(opaque, &error))
        print_message("target: %s\n", error->message);
    return NULL;
}

static VmfParameters parameters_of(const Case *of)
{
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    parameters.stream_version = of->version;
    parameters.channels = of->channels;
    parameters.audit = of->audit;
    parameters.minimum_rounds = of->idle ? 1 : 3;
    parameters.host_name = "a";
    return parameters;
}

static void move(const Case *of, Recording *recording)
{
    g_autoptr(VmfMachine) a = vmf_test_machine("a", 4, VMF_RAM_ANON, of->idle ? 0 : 20 * MIB, of->idle ? 0 : MIB / 4);
    g_autoptr(VmfMachine) b = vmf_test_machine("b", 4, VMF_RAM_ANON, 0, 0);
    VmfParameters parameters = parameters_of(of);
    g_autoptr(GError) error = NULL;
    VmfConnector *connector;
    VmfListener *listener;
    VmfSession *target = NULL;
    pthread_t thread;

    assert_true(vmf_machine_start(a, NULL));
    g_usleep(50000);
    if (of->paused)
        assert_true(vmf_machine_stop(a, NULL));
    make_link(of, recording, &connector, &listener);
    if (listener) {
        target = vmf_session_new_target(vmf_machine_guest(b), listener, &parameters, NULL, NULL);
        assert_int_equal(pthread_create(&thread, NULL, target_main, target), 0);
    }
    VmfSession *source = vmf_session_new_source(vmf_machine_guest(a), connector, &parameters, NULL, NULL);
    bool done = vmf_session_run(source, &error);
    if (!done && target)
        vmf_session_cancel(target);
    if (target)
        pthread_join(thread, NULL);
    vmf_session_free(source);
    vmf_session_free(target);
    vmf_connector_free(connector);
    vmf_listener_free(listener);
    if (!done)
        fail_msg("%s: %s", of->name, error->message);
    assert_int_equal(vmf_machine_is_running(b), listener && !of->paused);
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

static void add(GPtrArray *arguments, const Recording *recording, const char *option, unsigned index, bool returned)
{
    if (option)
        g_ptr_array_add(arguments, g_strdup(option));
    g_ptr_array_add(arguments, file_of(recording, index, returned));
}

/* The reader's exit code; what it said is shown when that is not @expected. */
static void verify(const char *name, const Recording *recording, int expected)
{
    g_autoptr(GPtrArray) arguments = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *out = NULL, *err = NULL;
    int status = 0;

    g_ptr_array_add(arguments, g_strdup(verify_stream));
    add(arguments, recording, NULL, 0, false);
    for (unsigned i = 1; i < recording->n_channels; i++)
        add(arguments, recording, "--page-channel", i, false);
    for (unsigned i = 0; !recording->one_way && i < recording->n_channels; i++)
        add(arguments, recording, "--return", i, true);
    g_ptr_array_add(arguments, NULL);
    assert_true(
        g_spawn_sync(NULL, (char **)arguments->pdata, NULL, G_SPAWN_DEFAULT, NULL, NULL, &out, &err, &status, NULL));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != expected)
        fail_msg("%s: status %d where exit code %d was expected:\n%s%s", name, status, expected, out, err);
    if (expected == 0)
        print_message("%s: %s", name, out);
}

static void check_channels(const Case *of, const Recording *recording)
{
    assert_int_equal(recording->n_channels, of->link == MEMORY ? 1 + of->channels : 1);
}

static void the_reader_agrees_with_every_stream(void **state)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        Recording recording;
        recording_init(&recording, cases[i].link == INTO_A_FILE);
        move(&cases[i], &recording);
        check_channels(&cases[i], &recording);
        verify(cases[i].name, &recording, 0);
        recording_clear(&recording);
    }
}

/* Inverts one bit of a file, in the middle or @from_start. */
static void damage(const Recording *recording, unsigned index, bool returned, long from_start)
{
    g_autofree char *path = file_of(recording, index, returned);
    FILE *file = fopen(path, "r+");

    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long at = from_start ? from_start : ftell(file) / 2;
    assert_int_equal(fseek(file, at, SEEK_SET), 0);
    int byte = fgetc(file);
    assert_true(byte != EOF);
    assert_int_equal(fseek(file, at, SEEK_SET), 0);
    fputc(byte ^ 0x10, file);
    fclose(file);
}

/* A bit of the static data, of a page on its way, of an acknowledgement: each time only that, put right again for the
 * next. */
static void the_reader_finds_a_bit_that_changed(void **state)
{
    static const struct {
        unsigned index;
        bool returned;
        long from_start;
    } places[] = {{0, false, 100}, {0, false, 0}, {1, false, 0}, {2, false, 60}, {0, true, 20}, {1, true, 0}};
    static const Case once = {"v3, to be damaged", 3, 2, MEMORY, VMF_AUDIT_OFF, true, true};
    Recording recording;

    recording_init(&recording, false);
    move(&once, &recording);
    for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
        damage(&recording, places[i].index, places[i].returned, places[i].from_start);
        verify("damaged", &recording, 1);
        damage(&recording, places[i].index, places[i].returned, places[i].from_start);
    }
    verify("put right", &recording, 0);
    recording_clear(&recording);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_reader_agrees_with_every_stream),
        cmocka_unit_test(the_reader_finds_a_bit_that_changed),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s VERIFY-STREAM\n", argv[0]);
        return 2;
    }
    verify_stream = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
