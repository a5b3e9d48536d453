/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Makes the machine that an image asks for, restores the guest into it, and serves it like run. */
#include <stdio.h>
#include <string.h>
#include <vmferry/vmferry.h>

#include "machine/qmp-error.h"
#include "tools/image-common.h"
#include "tools/numbers.h"
#include "tools/report.h"
#include "tools/serve.h"

#define LAZY_PLAIN "plain" /* --lazy without a value */

static const char description[] =
    "Restores the guest of IMAGE (a file, or nbd:HOST:PORT[:exportname=NAME], nbd://HOST/NAME, nbd+unix:///NAME?socket=PATH) as machine "
    "NAME, which is made as the image says, and runs it in the foreground until it is told to quit. The first line on stdout is that of "
    "'vmferry run'; another one says that the guest is there and what it cost.\n\n"
    "Exit status: 0 the machine was told to quit, 1 the guest could not be restored, 2 usage, 77 not supported here.";

typedef struct {
    char *channels, *io, *lazy;
    char **parents;
    gboolean buffered, force, force_stale_disks;
} Options;

typedef struct {
    VmfServe serve;
    Options options;
    char *uri, *order_path; /* order_path NULL: not lazy, or no place for it */
    uint64_t n_threads; /* 0: not said */
    bool over;          /* what comes now is about other migrations */
    bool held;          /* a part of its memory or of a disk cannot be had */
    GError *error;      /* of the end of a daemon's beginning */
} Restore;

static void clear(Restore *restore)
{
    vmf_serve_clear(&restore->serve);
    g_strfreev(restore->options.parents);
    g_free(restore->options.channels);
    g_free(restore->options.io);
    g_free(restore->options.lazy);
    g_free(restore->uri);
    g_free(restore->order_path);
    g_clear_error(&restore->error);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Restore, clear)

/* ---- the command line -------------------------------------------------------------------------------------------- */

/* An option with a value that can be left out; GOption has them only for callbacks, which get to know nobody here. */
static void spell_out_lazy(int argc, char **argv)
{
    static char plain[] = "--lazy=" LAZY_PLAIN;

    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--lazy") == 0)
            argv[i] = plain;
}

static bool parse_options(Restore *restore, int argc, char **argv, int *exit_code)
{
    Options *o = &restore->options;
    const GOptionEntry entries[] = {
        {"lazy", 0, 0, G_OPTION_ARG_STRING, &o->lazy,
         "(value optional) Run the guest first, and bring its memory as it asks for it; record: and note the order, for the next time",
         "record"},
        {"parent", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o->parents, "Where a parent of a layer is, tried first; may be repeated", "IMAGE"},
        {"channels", 0, 0, G_OPTION_ARG_STRING, &o->channels, "How many threads read, 1 to 64 (2)", "N"},
        {"buffered", 0, 0, G_OPTION_ARG_NONE, &o->buffered, "Read through the page cache", NULL},
        {"io", 0, 0, G_OPTION_ARG_STRING, &o->io, "How: io_uring, libaio, threads, or auto, the first that works (auto)", "HOW"},
        {"force", 0, 0, G_OPTION_ARG_NONE, &o->force, "Write disks of the image also over what holds a file system or a partition table",
         NULL},
        {"force-stale-disks", 0, 0, G_OPTION_ARG_NONE, &o->force_stale_disks, "Even though a disk has changed since", NULL},
        VMF_SERVE_ENTRIES(&restore->serve.options),
        G_OPTION_ENTRY_NULL};

    spell_out_lazy(argc, argv);
    if (!vmf_common_parse(&restore->serve.common, argc, argv, "IMAGE NAME", description, entries, 2, exit_code))
        return false;
    restore->serve.name = restore->serve.common.operands[1];
    restore->serve.incoming = true;
    return true;
}

static bool records(const Restore *restore)
{
    return restore->options.lazy && strcmp(restore->options.lazy, "record") == 0;
}

static bool parse_lazy(Restore *restore, GError **error)
{
    const char *value = restore->options.lazy;

    if (!value)
        return true;
    if (strcmp(value, LAZY_PLAIN) != 0 && !records(restore)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'%s': expected record, or no value", value);
        return false;
    }
    if (g_str_has_prefix(restore->uri, "file:"))
        restore->order_path = g_strconcat(restore->uri + strlen("file:"), ".order", NULL);
    if (restore->order_path || !records(restore))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'record': beside %s there is no place for it", restore->uri);
    return false;
}

static VmfRestoreOptions restore_options(const Restore *restore)
{
    const Options *o = &restore->options;

    return (VmfRestoreOptions){
        .size = sizeof(VmfRestoreOptions),
        .uri = restore->uri,
        .parents = (const char *const *)o->parents,
        .flags = restore->serve.options.insecure ? VMF_CONNECT_INSECURE : 0,
        .buffered = o->buffered,
        .backend = o->io,
        .force_stale_disks = o->force_stale_disks,
        .paused = restore->serve.options.paused,
        .mode = o->lazy ? VMF_RESTORE_LAZY : VMF_RESTORE_EAGER,
        .order_path = restore->order_path,
        .record_order = records(restore),
    };
}

/* Of the image and of its parents. */
static bool parse_uris(Restore *restore, GError **error)
{
    restore->uri = vmf_image_uri(restore->serve.common.operands[0], error);
    for (char **parent = restore->options.parents; restore->uri && parent && *parent; parent++) {
        char *uri = vmf_image_uri(*parent, error);
        if (!uri)
            return false;
        g_free(*parent);
        *parent = uri;
    }
    return restore->uri != NULL;
}

static bool configure(Restore *restore, GError **error)
{
    const Options *o = &restore->options;
    VmfServe *serve = &restore->serve;

    return parse_uris(restore, error) && vmf_serve_configure(serve, error) && vmf_image_check_io("restore", o->io, error) &&
           vmf_serve_named(serve, parse_lazy(restore, error), "--lazy", error) &&
           vmf_serve_named(serve, !o->channels || vmf_parse_number(o->channels, 1, VMF_CHANNELS_MAX, &restore->n_threads, error),
                           "--channels", error);
}

/* ---- the machine ------------------------------------------------------------------------------------------------- */

/* Those that the image holds arrive with the guest; the others are there. */
static void take_disks(Restore *restore, const VmfImageMachine *image)
{
    VmfServe *serve = &restore->serve;

    for (unsigned i = 0; i < serve->disks.n_disks; i++) {
        serve->disks.disks[i].incoming = vmf_image_machine_holds_disk(image, serve->disks.disks[i].name);
        serve->disks.disks[i].overwrite = restore->options.force;
    }
}

static bool machine_for_image(Restore *restore, GError **error)
{
    VmfRestoreOptions options = restore_options(restore);
    g_autoptr(VmfImageMachine) image = vmf_image_machine_read(&options, error);

    if (!image)
        return false;
    vmf_image_machine_uuid(image, restore->serve.config.uuid);
    take_disks(restore, image);
    return vmf_machine_config_for_image(&restore->serve.config, image, error);
}

static uint64_t number(const json_t *detail, const char *member)
{
    return json_integer_value(json_object_get(detail, member));
}

static const char *string(const json_t *detail, const char *member)
{
    const char *value = json_string_value(json_object_get(detail, member));

    return value ? value : "";
}

static const char *host_name(const Restore *restore)
{
    const char *name = restore->serve.options.host_name;

    return name ? name : g_get_host_name();
}

static const char *runs_text(const Restore *restore)
{
    return vmf_machine_is_running(restore->serve.machine) ? "now runs" : "is now paused";
}

/* "7 requests waited for disks (p50 310 us, p99 1.1 ms, longest 1.1 ms), " */
static void append_disks(GString *text, const json_t *detail)
{
    g_autofree char *p50 = vmf_format_ns(number(detail, "disk_fault_p50_ns")), *p99 = vmf_format_ns(number(detail, "disk_fault_p99_ns"));
    g_autofree char *longest = vmf_format_ns(number(detail, "disk_fault_max_ns"));

    if (number(detail, "disk_total_bytes") > 0)
        g_string_append_printf(text, "%" G_GUINT64_FORMAT " requests waited for disks (p50 %s, p99 %s, longest %s), ",
                               number(detail, "disk_faults"), p50, p99, longest);
}

/* "first instruction after 8.1 ms, 312 faults (p50 41 us, p99 180 us, longest 2.2 ms), 90 % of the working set after 95 ms, " */
static char *lazy_text(const Restore *restore, const json_t *detail)
{
    g_autofree char *start = vmf_format_ns(number(detail, "start_ns")), *set = vmf_format_ns(number(detail, "working_set_ns"));
    g_autofree char *p50 = vmf_format_ns(number(detail, "fault_p50_ns")), *p99 = vmf_format_ns(number(detail, "fault_p99_ns"));
    g_autofree char *longest = vmf_format_ns(number(detail, "fault_max_ns"));
    GString *text = g_string_new(NULL);

    if (!restore->options.lazy)
        return g_string_free(text, FALSE);
    if (number(detail, "start_ns") > 0)
        g_string_append_printf(text, "first instruction after %s, ", start);
    g_string_append_printf(text, "%u faults (p50 %s, p99 %s, longest %s), ", (unsigned)number(detail, "faults"), p50, p99, longest);
    append_disks(text, detail);
    if (number(detail, "working_set_ns") > 0)
        g_string_append_printf(text, "90 %% of the working set after %s, ", set);
    return g_string_free(text, FALSE);
}

static void say_restored(const Restore *restore, const json_t *detail)
{
    const VmfServe *serve = &restore->serve;
    g_autofree char *size = vmf_format_bytes(number(detail, "bytes_received")), *time = vmf_format_ns(number(detail, "total_ns"));
    g_autofree char *lazy = lazy_text(restore, detail);
    json_t *line = json_pack("{s:s,s:s,s:s,s:b,s:b}", "type", "summary", "name", serve->name, "target", host_name(restore), "running",
                             (int)vmf_machine_is_running(serve->machine), "lazy", restore->options.lazy != NULL);

    json_object_update(line, (json_t *)detail);
    json_object_del(line, "ended");
    vmf_report_line(serve->common.json, line, "%s %s at %s: restored from %s, %s%s in %s, verified: %s", serve->name, runs_text(restore),
                    host_name(restore), restore->uri, lazy, size, time, string(detail, "verified"));
}

/* A daemon has nothing to say any more once the guest is there. */
static void leave_alone(Restore *restore)
{
    if (!restore->error && !vmf_serve_ready(&restore->serve, &restore->error))
        vmf_control_quit(restore->serve.control, "host-error");
}

static void on_started(Restore *restore)
{
    const char *name = restore->serve.name;

    vmf_report_event(restore->serve.common.json,
                     json_pack("{s:s,s:s,s:s,s:s}", "type", "event", "name", name, "id", "restore.started", "text",
                               "the guest is there, and the rest of its memory follows"),
                     "vmferry: %s: %s at %s, and the rest of its memory follows", name, runs_text(restore), host_name(restore));
    leave_alone(restore);
}

/* With --json each event is a line already. Those of a migration that goes on meanwhile are for who began it. */
static void tell_event(Restore *restore, const json_t *data)
{
    static const char *const own[] = {"disk.stale", "order.ignored", "order.not-written", NULL};
    const char *name = restore->serve.name, *id = string(data, "id"), *text = string(data, "text");

    restore->held |= strcmp(id, "restore.held") == 0;
    if (restore->serve.common.json)
        return;
    if (strcmp(id, "restore.held") == 0)
        fprintf(stderr, "vmferry: %s stands still at %s: %s; 'vmferry resolve %s' says more, and settles it\n", name,
                host_name(restore), text, name);
    else if (g_strv_contains(own, id))
        fprintf(stderr, "vmferry: %s: %s\n", name, text);
}

static void on_whole(Restore *restore, const json_t *detail)
{
    restore->over = true;
    say_restored(restore, detail);
    leave_alone(restore);
}

/* Whether a migration that ended here took the guest away. */
static bool has_left(const json_t *detail)
{
    return strcmp(string(detail, "side"), "source") == 0 && !json_is_true(json_object_get(detail, "image")) &&
           strcmp(string(detail, "outcome"), "completed") == 0;
}

/* What is saved or moved on meanwhile ends for itself. */
static void on_ended(Restore *restore, const json_t *detail)
{
    bool is_restore = strcmp(string(detail, "side"), "target") == 0;

    if (is_restore && strcmp(string(detail, "outcome"), "completed") == 0)
        on_whole(restore, detail);
    else
        restore->over = is_restore || has_left(detail);
}

static void on_event(void *opaque, const json_t *event)
{
    Restore *restore = opaque;
    const json_t *data = json_object_get(event, "data");
    const char *name = string(event, "event");

    if (strcmp(name, "X_VMFERRY_EVENT") == 0)
        tell_event(restore, data);
    if (restore->over)
        return;
    if (strcmp(name, "MIGRATION") == 0 && strcmp(string(data, "status"), "postcopy-active") == 0)
        on_started(restore);
    else if (strcmp(name, "X_VMFERRY_EVENT") == 0 && strcmp(string(data, "id"), "restore.whole") == 0)
        on_whole(restore, json_object_get(data, "x-vmferry"));
    else if (strcmp(name, "X_VMFERRY_MIGRATION_ENDED") == 0)
        on_ended(restore, data);
}

static bool set_up(Restore *restore, GError **error)
{
    VmfRestoreOptions options = restore_options(restore);

    restore->serve.event = on_event;
    restore->serve.opaque = restore;
    if (!machine_for_image(restore, error) || !vmf_serve_open(&restore->serve, error) ||
        !vmf_control_restore(restore->serve.control, &options, (unsigned)restore->n_threads, error))
        return false;
    vmf_serve_announce(&restore->serve);
    return true;
}

static bool serve(Restore *restore, GError **error)
{
    if (!vmf_serve_until_end(&restore->serve, false, error))
        return false;
    if (!restore->error)
        return true;
    g_propagate_error(error, g_steal_pointer(&restore->error));
    return false;
}

/* A machine that ended while it was held has nothing left to be resolved: there is no peer that could have the guest. */
static int fail(const Restore *restore, const GError *error)
{
    json_t *object;

    if (!restore->held || !g_error_matches(error, VMF_ERROR, VMF_ERROR_HELD))
        return vmf_common_fail(&restore->serve.common, error);
    object = vmf_qmp_error_object(error, NULL);
    json_object_set_new(object, "hint", json_string("what the guest did since it was restored is gone with its machine; the image is as "
                                                    "it was: 'vmferry verify' says what is wrong with it"));
    vmf_report_error_object(restore->serve.common.json, object);
    json_decref(object);
    return VMF_EXIT_HELD;
}

int vmf_verb_restore(int argc, char **argv)
{
    g_auto(Restore) restore = {0};
    g_autoptr(GError) error = NULL;
    int exit_code;

    vmf_serve_init(&restore.serve, "restore");
    if (!parse_options(&restore, argc, argv, &exit_code))
        return exit_code;
    if (!configure(&restore, &error) || !vmf_serve_fork(&restore.serve, &error) || !set_up(&restore, &error) ||
        !serve(&restore, &error))
        return fail(&restore, error);
    return VMF_EXIT_OK;
}
