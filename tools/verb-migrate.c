/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>
#include <vmferry/vmferry.h>

#include "machine/bitmap-map.h"
#include "tools/common.h"
#include "tools/numbers.h"
#include "tools/outgoing.h"

static const char description[] = "Moves the guest of machine NAME, running, to the machine that waits at URI "
                                  "(tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND), or "
                                  "writes it to file:PATH. The last line says who runs the guest and what it cost. "
                                  "Ctrl-C cancels, a second one only stops waiting.\n\n"
                                  "Exit status: 0 the guest is at the target (or the file is whole), 1 failed and the "
                                  "guest is where it was, 2 usage, 3 done with a "
                                  "warning, 4 nobody knows who runs the guest, 77 not supported here.";

typedef struct {
    char *channels, *downtime_limit, *max_bandwidth, *audit, *stream_version, *switchover_timeout, *timeout, *then;
    char *disks, *incremental, *bitmaps, *disk_latency_goal, *max_cpu_throttle;
    gboolean dry_run, one_way, keep, detach, pause, insecure, verify_disks, mirror;
    int progress_fd;
} Options;

typedef struct {
    VmfCommon common;
    Options options;
    const char *name, *uri; /* the operands */
} Migrate;

static void clear(Migrate *migrate)
{
    Options *o = &migrate->options;
    char *strings[] = {o->channels,       o->downtime_limit,     o->max_bandwidth, o->audit,
                       o->stream_version, o->switchover_timeout, o->timeout,       o->then,          o->disks,
                       o->incremental,    o->bitmaps,            o->disk_latency_goal,
                       o->max_cpu_throttle};

    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++)
        g_free(strings[i]);
    vmf_common_clear(&migrate->common);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Migrate, clear)

/* ---- the command line -------------------------------------------------------------------------------------------- */

static bool parse_options(Migrate *migrate, int argc, char **argv, int *exit_code)
{
    Options *o = &migrate->options;
    const GOptionEntry entries[] = {
        {"channels", 0, 0, G_OPTION_ARG_STRING, &o->channels, "Page channels, 1 to 64 (2)", "N"},
        {"downtime-limit", 0, 0, G_OPTION_ARG_STRING, &o->downtime_limit, "How long the guest may stand still (20ms)",
         "TIME"},
        {"max-bandwidth", 0, 0, G_OPTION_ARG_STRING, &o->max_bandwidth, "Over all channels, a second (no limit)",
         "SIZE"},
        {"max-cpu-throttle", 0, 0, G_OPTION_ARG_STRING, &o->max_cpu_throttle,
         "Slow a guest that writes too fast by no more than this; 0: never (99)", "PERCENT"},
        {"audit", 0, 0, G_OPTION_ARG_STRING, &o->audit, "Compare all memory: after, before the guest runs, off (after)",
         "WHEN"},
        {"dry-run", 0, 0, G_OPTION_ARG_NONE, &o->dry_run,
         "Ask the target whether it would take the guest, move nothing", NULL},
        {"stream-version", 0, 0, G_OPTION_ARG_STRING, &o->stream_version, "3 or 2 (3)", "N"},
        {"one-way", 0, 0, G_OPTION_ARG_NONE, &o->one_way,
         "Nobody answers: write a stream, leave the guest stopped here", NULL},
        {"then", 0, 0, G_OPTION_ARG_STRING, &o->then, "After a stream was written: stop, cont or quit (stop)", "WHAT"},
        {"keep", 0, 0, G_OPTION_ARG_NONE, &o->keep, "Do not end the machine that the guest has left", NULL},
        {"detach", 0, 0, G_OPTION_ARG_NONE, &o->detach, "Return at once; see status --follow", NULL},
        {"pause-before-switchover", 0, 0, G_OPTION_ARG_NONE, &o->pause, "Wait there until cont", NULL},
        {"switchover-timeout", 0, 0, G_OPTION_ARG_STRING, &o->switchover_timeout,
         "How long the target may take beyond the downtime limit (2s)", "TIME"},
        {"timeout", 0, 0, G_OPTION_ARG_STRING, &o->timeout, "Give up when the guest has not moved by then (never)",
         "TIME"},
        {"disks", 0, 0, G_OPTION_ARG_STRING, &o->disks,
         "Copy these disks with the guest: all, none, or names; the others are shared (none)", "NAME,…"},
        {"incremental", 0, 0, G_OPTION_ARG_STRING, &o->incremental,
         "The target has a base of these disks: send what this bitmap of each has, compare the rest", "BITMAP"},
        {"bitmaps", 0, 0, G_OPTION_ARG_STRING, &o->bitmaps,
         "Dirty bitmaps move with the guest: all, none, or a mapping in JSON (none)", "WHICH"},
        {"disk-latency-goal", 0, 0, G_OPTION_ARG_STRING, &o->disk_latency_goal,
         "Copy disks only as fast as the guest's writes to them end in this time (as fast as can be)", "TIME"},
        {"mirror", 0, 0, G_OPTION_ARG_NONE, &o->mirror,
         "After the first pass the guest's writes to copied disks go to both ends at once", NULL},
        {"verify-disks", 0, 0, G_OPTION_ARG_NONE, &o->verify_disks,
         "Read copied disks once more at both ends before the guest runs, and compare", NULL},
        {"insecure", 0, 0, G_OPTION_ARG_NONE, &o->insecure, "Allow plaintext off the loopback", NULL},
        {"progress", 0, 0, G_OPTION_ARG_INT, &o->progress_fd, "Write JSON status lines to this descriptor", "FD"},
        G_OPTION_ENTRY_NULL};

    o->progress_fd = -1;
    if (!vmf_common_parse(&migrate->common, argc, argv, "NAME URI", description, entries, 2, exit_code))
        return false;
    migrate->name = migrate->common.operands[0];
    migrate->uri = migrate->common.operands[1];
    return true;
}

static bool parse_stream_version(const char *text, uint64_t *value, GError **error)
{
    return vmf_parse_number(text, 2, 3, value, error);
}

static bool parse_percent(const char *text, uint64_t *value, GError **error)
{
    return vmf_parse_number(text, 0, 99, value, error);
}

static json_t *parameters_of(const Options *o, GError **error)
{
    const VmfOutgoingOption table[] = {
        {o->channels, "--channels", "multifd-channels", vmf_outgoing_parse_channels},
        {o->downtime_limit, "--downtime-limit", "x-vmferry-downtime-limit-ns", vmf_parse_duration},
        {o->max_bandwidth, "--max-bandwidth", "max-bandwidth", vmf_parse_size},
        {o->max_cpu_throttle, "--max-cpu-throttle", "max-cpu-throttle", parse_percent},
        {o->stream_version, "--stream-version", "x-vmferry-stream-version", parse_stream_version},
        {o->switchover_timeout, "--switchover-timeout", "x-vmferry-switchover-timeout-ns", vmf_parse_duration},
        {o->disk_latency_goal, "--disk-latency-goal", "x-vmferry-disk-latency-goal-ns", vmf_parse_duration},
        {o->timeout, "--timeout", "x-vmferry-timeout-ns", vmf_parse_duration},
    };
    json_t *parameters = vmf_outgoing_parameters("migrate", table, G_N_ELEMENTS(table), o->audit, error);

    if (parameters && o->pause)
        json_object_set_new(parameters, "x-vmferry-pause-before-switchover", json_true());
    if (parameters && o->disks)
        json_object_set_new(parameters, "x-vmferry-disks", json_string(o->disks));
    if (parameters && o->incremental)
        json_object_set_new(parameters, "x-vmferry-incremental-bitmap", json_string(o->incremental));
    if (parameters && o->mirror)
        json_object_set_new(parameters, "x-vmferry-mirror-disks", json_true());
    if (parameters && o->verify_disks)
        json_object_set_new(parameters, "x-vmferry-verify-disks", json_true());
    return parameters;
}

/* One of those that say how disks are copied; NULL: there is none. */
static const char *option_of_disks(const Options *o)
{
    return o->incremental         ? "--incremental"
           : o->mirror            ? "--mirror"
           : o->verify_disks      ? "--verify-disks"
           : o->disk_latency_goal ? "--disk-latency-goal"
                                  : NULL;
}

static bool check_options(const Migrate *migrate, GError **error)
{
    const Options *o = &migrate->options;

    if (!vmf_outgoing_check_disks("migrate", o->disks, option_of_disks(o), error))
        return false;
    if (!o->then || o->one_way || g_str_has_prefix(migrate->uri, "file:"))
        return vmf_outgoing_check("migrate", o->then, o->audit, o->progress_fd, error);
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                "migrate: --then: the guest moves away; it is for file: and --one-way");
    return false;
}

static json_t *migrate_arguments(const Migrate *migrate, GError **error)
{
    const Options *o = &migrate->options;
    json_t *parameters = check_options(migrate, error) ? parameters_of(o, error) : NULL;

    if (!parameters)
        return NULL;
    json_t *bitmaps = o->bitmaps ? vmf_bitmap_map_parse(o->bitmaps, error) : json_false();
    if (!bitmaps) {
        json_decref(parameters);
        g_prefix_error(error, "migrate: --bitmaps: ");
        return NULL;
    }
    /* Who stays to see the end does what comes then; a machine that quit by itself could not be asked how it went. */
    return json_pack("{s:s,s:b,s:b,s:b,s:s,s:o,s:o*}", "uri", migrate->uri, "x-vmferry-dry-run", o->dry_run,
                     "x-vmferry-one-way", o->one_way, "x-vmferry-insecure", o->insecure, "x-vmferry-then",
                     o->detach && o->then ? o->then : "stop", "x-vmferry-parameters", parameters,
                     "x-vmferry-bitmaps", o->bitmaps ? bitmaps : NULL);
}

int vmf_verb_migrate(int argc, char **argv)
{
    g_auto(Migrate) migrate = {0};
    const Options *o = &migrate.options;
    g_autoptr(GError) error = NULL;
    json_t *arguments;
    int exit_code;

    if (!parse_options(&migrate, argc, argv, &exit_code))
        return exit_code;
    arguments = migrate_arguments(&migrate, &error);
    if (!arguments)
        return vmf_common_fail(&migrate.common, error);
    VmfOutgoing outgoing = {
        .common = &migrate.common,
        .name = migrate.name,
        .uri = migrate.uri,
        .doing = "migrates to",
        .after_move = o->keep ? NULL : "quit",
        .after_write = o->then && strcmp(o->then, "stop") != 0 ? o->then : NULL,
        .detach = o->detach,
        .progress_fd = o->progress_fd,
    };
    return vmf_outgoing_run(&outgoing, arguments);
}
