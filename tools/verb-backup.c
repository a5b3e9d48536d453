/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "tools/common.h"
#include "tools/interrupts.h"
#include "tools/numbers.h"
#include "tools/report.h"

#define POLL_MS 100

static const char description[] = "Copies a disk of machine NAME as it is at one moment, now, while its guest goes on: "
                                  "to TARGET, a file, a block device or an NBD export "
                                  "(nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH). With --bitmap only what that "
                                  "has is copied, onto TARGET, which holds the base; "
                                  "the bitmap begins anew at that moment, if the backup succeeds. Ctrl-C cancels, a "
                                  "second one only stops waiting.\n\n"
                                  "Exit status: 0 the backup is whole and durable, 1 failed and the bitmap has all "
                                  "that it had, 2 usage, 4 it goes on and is not "
                                  "watched any more, 77 not supported here.";

typedef struct {
    char *bitmap, *max_bandwidth;
    gboolean full, force, buffered, insecure, detach;
    int progress_fd;
} Options;

typedef struct {
    VmfCommon common;
    Options options;
    char *target;
    VmfClient *client;
    FILE *programs;
    bool line_shown;
    bool cancel_sent;
} Backup;

static void clear(Backup *backup)
{
    g_free(backup->options.bitmap);
    g_free(backup->options.max_bandwidth);
    g_free(backup->target);
    vmf_client_free(backup->client);
    if (backup->programs)
        fclose(backup->programs);
    vmf_common_clear(&backup->common);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Backup, clear)

static const char *disk_of(const Backup *backup)
{
    return backup->common.operands[1];
}

/* A path is meant as it is here, wherever the machine's process stands. */
static char *uri_of(const char *text)
{
    if (g_str_has_prefix(text, "nbd:") || g_str_has_prefix(text, "nbd+"))
        return g_strdup(text);
    g_autofree char *path =
        g_canonicalize_filename(g_str_has_prefix(text, "file:") ? text + strlen("file:") : text, NULL);
    return g_strconcat("file:", path, NULL);
}

static json_t *arguments_of(const Backup *backup, GError **error)
{
    const Options *o = &backup->options;
    uint64_t speed = 0;

    if (o->full && !o->bitmap) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                    "backup: --full is about --bitmap: without one a backup is full");
        return NULL;
    }
    if (o->max_bandwidth && !vmf_parse_size(o->max_bandwidth, &speed, error))
        return NULL;
    json_t *arguments = json_pack("{s:s,s:s,s:s,s:I,s:b,s:b,s:b}", "device", disk_of(backup), "target", backup->target,
                                  "sync", o->bitmap && !o->full ? "incremental" : "full", "speed", (json_int_t)speed,
                                  "x-vmferry-buffered", o->buffered, "x-vmferry-insecure", o->insecure,
                                  "x-vmferry-force", o->force);
    if (o->bitmap)
        json_object_set_new(arguments, "bitmap", json_string(o->bitmap));
    return arguments;
}

/* ---- how it goes ------------------------------------------------------------------------------------------------- */

static uint64_t number(const json_t *object, const char *member)
{
    return (uint64_t)json_integer_value(json_object_get(object, member));
}

/* What the machine says of it, as a line of @type. */
static json_t *line_of(const Backup *backup, const char *type, const json_t *job)
{
    json_t *line = json_pack("{s:s,s:s,s:s,s:s,s:s?}", "type", type, "name", backup->common.operands[0], "disk",
                             disk_of(backup), "target", backup->target, "bitmap", backup->options.bitmap);

    json_object_update(line, json_object_get(job, "x-vmferry"));
    return line;
}

static void show(Backup *backup, const json_t *job)
{
    uint64_t total = number(job, "len"), done = number(job, "offset");
    g_autofree char *written = vmf_format_bytes(number(json_object_get(job, "x-vmferry"), "written_bytes"));

    if (backup->common.json)
        vmf_report_json(stdout, line_of(backup, "status", job));
    if (backup->programs)
        vmf_report_json(backup->programs, line_of(backup, "status", job));
    if (backup->common.json || !isatty(STDERR_FILENO))
        return;
    fprintf(stderr, "\rbackup of %s: %u %%, %s written\033[K", disk_of(backup),
            total ? (unsigned)(done * 100.0 / total) : 100, written);
    backup->line_shown = true;
}

static void show_running(Backup *backup)
{
    json_t *jobs = vmf_client_execute(backup->client, "query-block-jobs", NULL, NULL);
    const json_t *job;
    size_t i;

    json_array_foreach(jobs, i, job) if (g_strcmp0(json_string_value(json_object_get(job, "device")),
                                                   disk_of(backup)) == 0) show(backup, job);
    json_decref(jobs);
}

static void cancel_once(Backup *backup, VmfClient *client)
{
    json_t *done;

    if (backup->cancel_sent)
        return;
    done = vmf_client_execute(client, "block-job-cancel", json_pack("{s:s}", "device", disk_of(backup)), NULL);
    backup->cancel_sent = done != NULL;
    json_decref(done);
}

/* Until it has begun our connection has to wait, so another one cancels it. */
static void while_it_begins(void *opaque)
{
    Backup *backup = opaque;
    g_autoptr(VmfClient) other = NULL;

    if (!vmf_interrupts_cancel() || backup->cancel_sent)
        return;
    other = vmf_client_open(backup->common.runtime_dir, backup->common.operands[0], NULL);
    if (other)
        cancel_once(backup, other);
}

static bool is_end(const Backup *backup, const json_t *event)
{
    const char *name = json_string_value(json_object_get(event, "event"));
    const json_t *data = json_object_get(event, "data");

    return g_str_has_prefix(name, "BLOCK_JOB_") &&
           g_strcmp0(json_string_value(json_object_get(data, "device")), disk_of(backup)) == 0;
}

/* The event that tells its end, the caller's; NULL with @error: it will not be seen. */
static json_t *wait_for_end(Backup *backup, GError **error)
{
    GError *problem = NULL;

    while (!problem) {
        json_t *event = vmf_client_next_event(backup->client, POLL_MS, &problem);

        if (event && is_end(backup, event))
            return event;
        json_decref(event);
        if (vmf_interrupts_abandon())
            problem = g_error_new(VMF_ERROR, VMF_ERROR_ABANDONED,
                                  "machine %s: backup: it goes on, and is not waited for any more",
                                  backup->common.operands[0]);
        else if (vmf_interrupts_cancel())
            cancel_once(backup, backup->client);
        if (!event && !problem)
            show_running(backup);
    }
    g_propagate_error(error, problem);
    return NULL;
}

/* ---- its end ----------------------------------------------------------------------------------------------------- */

static int code_of_id(const char *id)
{
#define X(code, code_id, hint)                                                                                         \
    if (g_strcmp0(id, code_id) == 0)                                                                                   \
        return code;
    VMF_ERROR_CODES(X)
#undef X
    return VMF_ERROR_PEER;
}

static int conclude(Backup *backup, const json_t *event)
{
    const json_t *data = json_object_get(event, "data"), *figures = json_object_get(data, "x-vmferry");
    const char *why = json_string_value(json_object_get(data, "error"));
    bool cancelled = strcmp(json_string_value(json_object_get(event, "event")), "BLOCK_JOB_CANCELLED") == 0;
    g_autofree char *written = vmf_format_bytes(number(figures, "written_bytes"));
    g_autofree char *time = vmf_format_ns(number(figures, "total_ns"));
    json_t *summary = line_of(backup, "summary", data);

    json_object_set_new(summary, "outcome", json_string(cancelled ? "cancelled" : why ? "failed" : "completed"));
    if (backup->line_shown)
        fputs("\r\033[K", stderr);
    if (why) {
        g_autoptr(GError) error =
            g_error_new_literal(VMF_ERROR, code_of_id(json_string_value(json_object_get(data, "x-vmferry-id"))), why);
        int exit_code = vmf_common_fail(&backup->common, error);

        if (backup->common.json)
            vmf_report_json(stdout, summary);
        else
            json_decref(summary);
        return exit_code == VMF_EXIT_USAGE ? VMF_EXIT_FAILED : exit_code;
    }
    vmf_report_line(backup->common.json, summary, "vmferry: %s: disk %s: backed up to %s in %s: %s written",
                    backup->common.operands[0], disk_of(backup), backup->target, time, written);
    return VMF_EXIT_OK;
}

static int drive(Backup *backup, json_t *arguments)
{
    g_autoptr(GError) error = NULL;
    json_t *result, *event;
    int exit_code;

    vmf_client_forget_events(backup->client);
    result = vmf_client_execute_patiently(backup->client, "drive-backup", arguments, while_it_begins, backup, &error);
    if (!result)
        return vmf_common_fail(&backup->common, error);
    json_decref(result);
    if (backup->options.detach) {
        vmf_report_line(backup->common.json,
                        json_pack("{s:s,s:s,s:s,s:s}", "type", "status", "name", backup->common.operands[0], "disk",
                                  disk_of(backup), "status", "running"),
                        "vmferry: %s: disk %s is backed up to %s", backup->common.operands[0], disk_of(backup),
                        backup->target);
        return VMF_EXIT_OK;
    }
    event = wait_for_end(backup, &error);
    if (!event)
        return vmf_common_fail(&backup->common, error);
    exit_code = conclude(backup, event);
    json_decref(event);
    return exit_code;
}

static bool parse(Backup *backup, int argc, char **argv, int *exit_code)
{
    Options *o = &backup->options;
    const GOptionEntry entries[] = {
        {"bitmap", 0, 0, G_OPTION_ARG_STRING, &o->bitmap,
         "Copy what this bitmap has, onto the base in TARGET; it begins anew", "BITMAP"},
        {"full", 0, 0, G_OPTION_ARG_NONE, &o->full, "With --bitmap: copy all, as the base of what comes", NULL},
        {"force", 0, 0, G_OPTION_ARG_NONE, &o->force, "Overwrite a device whatever it holds", NULL},
        {"max-bandwidth", 0, 0, G_OPTION_ARG_STRING, &o->max_bandwidth, "Read and write so much a second (no limit)",
         "SIZE"},
        {"buffered", 0, 0, G_OPTION_ARG_NONE, &o->buffered, "Write through the page cache", NULL},
        {"insecure", 0, 0, G_OPTION_ARG_NONE, &o->insecure, "Allow plaintext NBD off the loopback", NULL},
        {"detach", 0, 0, G_OPTION_ARG_NONE, &o->detach, "Return once it has begun; events of the control socket tell the end",
         NULL},
        {"progress", 0, 0, G_OPTION_ARG_INT, &o->progress_fd, "Write JSON status lines to this descriptor", "FD"},
        G_OPTION_ENTRY_NULL};

    o->progress_fd = -1;
    if (!vmf_common_parse(&backup->common, argc, argv, "NAME DISK TARGET", description, entries, 3, exit_code))
        return false;
    backup->target = uri_of(backup->common.operands[2]);
    return true;
}

int vmf_verb_backup(int argc, char **argv)
{
    g_auto(Backup) backup = {0};
    g_autoptr(GError) error = NULL;
    json_t *arguments;
    int exit_code;

    if (!parse(&backup, argc, argv, &exit_code))
        return exit_code;
    arguments = arguments_of(&backup, &error);
    if (!arguments)
        return vmf_common_fail(&backup.common, error);
    if (backup.options.progress_fd >= 0)
        backup.programs = fdopen(backup.options.progress_fd, "w");
    backup.client = vmf_common_connect(&backup.common, &exit_code);
    if (!backup.client) {
        json_decref(arguments);
        return exit_code;
    }
    vmf_interrupts_catch();
    vmf_client_set_abandoned(backup.client, vmf_interrupts_abandon);
    return drive(&backup, arguments);
}
