/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz-record DIRECTORY: writes what real sessions said to each other as seeds: DIRECTORY/load/real-… and DIRECTORY/answers/real-….
 * Both sides are the guest of guest.c, over memory channels.
 */
#include <glib/gstdio.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include <vmferry/error.h>

#include "stream/connector.h"
#include "stream/message.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/guest.h"
#include "tests/fuzz/link.h"
#include "tests/record-filter.h"

#define MAIN_ONLY 8

/* As in fuzz-answers.c: what a target answered here fits the same migration there. */
ssize_t __wrap_getrandom(void *out, size_t length, unsigned flags);

ssize_t __wrap_getrandom(void *out, size_t length, unsigned flags)
{
    memset(out, 'T', length);
    return (ssize_t)length;
}

typedef struct {
    const char *name;
    uint8_t how; /* as in fuzz-answers.c */
} Case;

static const Case cases[] = {
    {"one-channel", 0}, {"two-channels", 2}, {"main-only", MAIN_ONLY}, {"audit", 16}, {"preflight", 32}, {"v2", 1}, {"v2-main-only", 9},
};

typedef struct {
    char *folder;
    unsigned n_channels;
} Recording;

static char *file_of(const Recording *recording, const char *direction, unsigned index)
{
    return g_strdup_printf("%s/%s-%u", recording->folder, direction, index);
}

static VmfChannel *record(VmfChannel *channel, unsigned index, void *opaque)
{
    Recording *recording = opaque;
    g_autofree char *said = file_of(recording, "said", index), *heard = file_of(recording, "heard", index);

    recording->n_channels = index + 1;
    return vmf_filter_record(channel, said, heard);
}

static void *run_target(void *session)
{
    g_autoptr(GError) error = NULL;

    vmf_session_run(session, &error);
    return NULL;
}

static void migrate(Recording *recording, uint8_t how)
{
    VmfFuzzGuest *from = vmf_fuzz_guest_new(true), *to = vmf_fuzz_guest_new(false);
    VmfParameters parameters;
    VmfConnector *connector;
    VmfListener *listener;
    GError *error = NULL;
    pthread_t thread;

    vmf_fuzz_guest_reset(from, true);
    vmf_memory_link_new(0, &connector, &listener);
    connector->max_channels = how & 8 ? 1 : G_MAXUINT;
    vmf_connector_set_wrap(connector, record, recording);
    vmf_parameters_init(&parameters);
    VmfSession *target = vmf_session_new_target(to->guest, listener, &parameters, NULL, NULL);
    parameters.stream_version = how & 1 ? 2 : 3;
    parameters.channels = 1 + (how >> 1 & 3);
    parameters.audit = how & 16 ? VMF_AUDIT_BEFORE : VMF_AUDIT_AFTER;
    parameters.dry_run = how & 32;
    parameters.downtime_limit_ns = UINT64_C(10000000000);
    VmfSession *source = vmf_session_new_source(from->guest, connector, &parameters, NULL, NULL);
    pthread_create(&thread, NULL, run_target, target);
    if (!vmf_session_run(source, &error))
        g_error("%s", error->message);
    if (parameters.dry_run)
        vmf_session_cancel(target);
    pthread_join(thread, NULL);
    vmf_session_free(source);
    vmf_session_free(target);
    vmf_connector_free(connector);
    vmf_listener_free(listener);
    vmf_fuzz_guest_free(from);
    vmf_fuzz_guest_free(to);
}

/* The files of one direction end to end; @separator stands ahead of all but the first. */
static void join(const Recording *recording, const char *direction, const char *separator, GString *into)
{
    for (unsigned i = 0; i < recording->n_channels; i++) {
        g_autofree char *path = file_of(recording, direction, i), *octets = NULL;
        gsize length;

        if (!g_file_get_contents(path, &octets, &length, NULL))
            g_error("%s: is not there", path);
        if (i > 0)
            g_string_append(into, separator);
        g_string_append_len(into, octets, (gssize)length);
        g_unlink(path);
    }
}

static void write_seed(const char *directory, const char *target, const char *name, const GString *octets)
{
    g_autofree char *folder = g_build_filename(directory, target, NULL);
    g_autofree char *path = g_strdup_printf("%s/real-%s", folder, name);
    g_autoptr(GError) error = NULL;

    if (g_mkdir_with_parents(folder, 0777) < 0 || !g_file_set_contents(path, octets->str, (gssize)octets->len, &error))
        g_error("%s: %s", path, error ? error->message : "cannot be made");
}

/* Where the record of @type begins in @heard; its length if there is none. */
static gsize find_record(const GString *heard, uint32_t type)
{
    VmfWireRecordHeader header;

    for (gsize at = 1; at + sizeof(header) <= heard->len; at += sizeof(header) + ((gsize)header.length + 7) / 8 * 8) {
        memcpy(&header, heard->str + at, sizeof(header));
        if (header.type == type)
            return at;
    }
    return heard->len;
}

/* The same migration, but where the target said @type it says @instead. */
static void write_complaint(const char *directory, const char *name, const GString *heard, uint32_t type, uint32_t instead)
{
    g_autoptr(GString) answers = g_string_new_len(heard->str, (gssize)find_record(heard, type));
    GByteArray *bytes = g_byte_array_new();
    VmfChannel *channel = vmf_fuzz_channel_into(bytes);
    VmfRecordWriter *writer = vmf_record_writer_new(channel, (VmfStreamFormat){.version = 3});
    g_autoptr(GError) why = g_error_new(VMF_ERROR, VMF_ERROR_GUEST, "it will not start");

    vmf_complaint_send(writer, instead, (const uint8_t *)"TTTTTTTTTTTTTTTT", why, NULL);
    g_string_append_len(answers, (const char *)bytes->data, bytes->len);
    write_seed(directory, "answers", name, answers);
    vmf_record_writer_free(writer);
    vmf_channel_free(channel);
    g_byte_array_unref(bytes);
}

static void record_case(const char *directory, const Case *of)
{
    Recording recording = {.folder = g_dir_make_tmp("vmf-fuzz-record-XXXXXX", NULL)};
    g_autoptr(GString) said = g_string_new(NULL), heard = g_string_new(NULL);

    migrate(&recording, of->how);
    g_string_append_c(heard, (char)of->how);
    join(&recording, "said", "", said);
    join(&recording, "heard", "VMFPAGES", heard);
    write_seed(directory, "load", of->name, said);
    write_seed(directory, "answers", of->name, heard);
    if (of->how == MAIN_ONLY) {
        write_complaint(directory, "refused", heard, VMF_RECORD_READY, VMF_RECORD_REFUSED);
        write_complaint(directory, "never", heard, VMF_RECORD_RUNNING, VMF_RECORD_NEVER);
    }
    g_rmdir(recording.folder);
    g_free(recording.folder);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: fuzz-record DIRECTORY\n");
        return 2;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        record_case(argv[1], &cases[i]);
    return 0;
}
