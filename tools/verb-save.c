/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>
#include <vmferry/vmferry.h>

#include "tools/image-common.h"
#include "tools/numbers.h"
#include "tools/outgoing.h"

static const char description[] =
    "Saves the guest of machine NAME, while it runs, into an image: FILE, a block device, or an NBD export "
    "(nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH). The guest is stopped only for what it wrote last, and then goes on. A "
    "file takes its name once it is whole; until then what had that name stays. Ctrl-C cancels, a second one only stops "
    "waiting.\n\n"
    "Exit status: 0 the image is whole, 1 failed and the guest is as it was, 2 usage, 3 done with a warning, 4 the save goes "
    "on and is not watched any more, 77 not supported here.";

typedef struct {
    char *then, *parent, *disks, *channels, *max_bandwidth, *downtime_limit, *timeout, *audit, *io;
    gboolean stop, point_in_time, buffered, ram_only, verify_disks, force, insecure, detach, pause;
    int progress_fd;
} Options;

typedef struct {
    VmfCommon common;
    Options options;
    const char *name; /* operand */
    char *uri, *parent;
} Save;

static void clear(Save *save)
{
    Options *o = &save->options;
    char *strings[] = {o->then,    o->parent, o->disks,     o->channels, o->max_bandwidth, o->downtime_limit,
                       o->timeout, o->audit,  o->io,       save->uri,        save->parent};

    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++)
        g_free(strings[i]);
    vmf_common_clear(&save->common);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Save, clear)

/* A path stands for itself, and is meant as it is here, wherever the machine's process stands. */
static char *uri_of(const char *text, GError **error)
{
    g_autofree char *uri = vmf_image_uri(text, error), *path = NULL;

    if (!uri || !g_str_has_prefix(uri, "file:") || strcmp(uri, "file:") == 0)
        return g_steal_pointer(&uri);
    path = g_canonicalize_filename(uri + strlen("file:"), NULL);
    return g_strconcat("file:", path, NULL);
}

static bool parse_options(Save *save, int argc, char **argv, int *exit_code)
{
    Options *o = &save->options;
    const GOptionEntry entries[] = {
        {"stop", 0, 0, G_OPTION_ARG_NONE, &o->stop, "Stop the guest ahead of the first page: each is written once", NULL},
        {"point-in-time", 0, 0, G_OPTION_ARG_NONE, &o->point_in_time,
         "The guest as it is at one moment, now: it runs on while that is written", NULL},
        {"then", 0, 0, G_OPTION_ARG_STRING, &o->then, "Afterwards: cont (go on, if it ran), stop, quit (cont)", "WHAT"},
        {"parent", 0, 0, G_OPTION_ARG_STRING, &o->parent, "Write a layer: only what differs from this image", "FILE|URI"},
        {"disks", 0, 0, G_OPTION_ARG_STRING, &o->disks, "Disks whose content is to be in the image: all, none, or names (none)",
         "NAME,…"},
        {"verify-disks", 0, 0, G_OPTION_ARG_NONE, &o->verify_disks,
         "Read them once more at the stop, and compare with what was written", NULL},
        {"ram-only", 0, 0, G_OPTION_ARG_NONE, &o->ram_only, "The image says nothing of the guest's disks", NULL},
        {"channels", 0, 0, G_OPTION_ARG_STRING, &o->channels, "Threads that write, 1 to 64 (2)", "N"},
        {"max-bandwidth", 0, 0, G_OPTION_ARG_STRING, &o->max_bandwidth, "While the guest runs, a second (no limit)", "SIZE"},
        {"downtime-limit", 0, 0, G_OPTION_ARG_STRING, &o->downtime_limit, "How long the guest may stand still (20ms)", "TIME"},
        {"timeout", 0, 0, G_OPTION_ARG_STRING, &o->timeout, "Give up when it has not come to the stop by then (never)", "TIME"},
        {"audit", 0, 0, G_OPTION_ARG_STRING, &o->audit,
         "Compare all memory with what was written: after (where the guest stays stopped), before it goes on, off (after)", "WHEN"},
        {"pause-before-switchover", 0, 0, G_OPTION_ARG_NONE, &o->pause, "Wait ahead of the stop until cont", NULL},
        {"force", 0, 0, G_OPTION_ARG_NONE, &o->force, "Overwrite a device whatever it holds", NULL},
        {"buffered", 0, 0, G_OPTION_ARG_NONE, &o->buffered, "Write through the page cache", NULL},
        {"io", 0, 0, G_OPTION_ARG_STRING, &o->io, "io_uring, libaio or threads (what works best here)", "BACKEND"},
        {"insecure", 0, 0, G_OPTION_ARG_NONE, &o->insecure, "Allow plaintext NBD off the loopback", NULL},
        {"detach", 0, 0, G_OPTION_ARG_NONE, &o->detach, "Return at once; see status --follow", NULL},
        {"progress", 0, 0, G_OPTION_ARG_INT, &o->progress_fd, "Write JSON status lines to this descriptor", "FD"},
        G_OPTION_ENTRY_NULL};

    o->progress_fd = -1;
    if (!vmf_common_parse(&save->common, argc, argv, "NAME FILE|URI", description, entries, 2, exit_code))
        return false;
    save->name = save->common.operands[0];
    return true;
}

static json_t *parameters_of(const Options *o, GError **error)
{
    const VmfOutgoingOption table[] = {
        {o->channels, "--channels", "multifd-channels", vmf_outgoing_parse_channels},
        {o->max_bandwidth, "--max-bandwidth", "max-bandwidth", vmf_parse_size},
        {o->downtime_limit, "--downtime-limit", "x-vmferry-downtime-limit-ns", vmf_parse_duration},
        {o->timeout, "--timeout", "x-vmferry-timeout-ns", vmf_parse_duration},
    };
    json_t *parameters = vmf_outgoing_parameters("save", table, G_N_ELEMENTS(table), o->audit, error);

    if (parameters && o->disks)
        json_object_set_new(parameters, "x-vmferry-disks", json_string(o->disks));
    if (parameters && o->verify_disks)
        json_object_set_new(parameters, "x-vmferry-verify-disks", json_true());
    if (parameters && o->pause)
        json_object_set_new(parameters, "x-vmferry-pause-before-switchover", json_true());
    return parameters;
}

static bool quits(const Options *o)
{
    return o->then && strcmp(o->then, "quit") == 0;
}

/* A machine that quit by itself could not be asked how it went: who stays to see the end tells it to. */
static const char *then_of(const Options *o)
{
    return quits(o) && !o->detach ? "stop" : o->then ? o->then : "cont";
}

static bool check(Save *save, GError **error)
{
    const Options *o = &save->options;

    save->uri = uri_of(save->common.operands[1], error);
    save->parent = save->uri && o->parent ? uri_of(o->parent, error) : NULL;
    return save->uri && (save->parent || !o->parent) && vmf_image_check_io("save", o->io, error) &&
           vmf_outgoing_check_disks("save", o->disks, o->verify_disks ? "--verify-disks" : NULL, error) &&
           vmf_outgoing_check("save", o->then, o->audit, o->progress_fd, error);
}

static json_t *save_arguments(Save *save, GError **error)
{
    const Options *o = &save->options;
    json_t *parameters = check(save, error) ? parameters_of(o, error) : NULL;

    if (!parameters)
        return NULL;
    json_t *arguments = json_pack("{s:s,s:b,s:s,s:b,s:b,s:b,s:b,s:b,s:b,s:o}", "uri", save->uri, "x-vmferry-image", true,
                                  "x-vmferry-then", then_of(o), "x-vmferry-stop-first", o->stop,
                                  "x-vmferry-point-in-time", o->point_in_time, "x-vmferry-ram-only",
                                  o->ram_only, "x-vmferry-buffered", o->buffered, "x-vmferry-insecure", o->insecure,
                                  "x-vmferry-force", o->force, "x-vmferry-parameters", parameters);
    if (save->parent)
        json_object_set_new(arguments, "x-vmferry-parent", json_string(save->parent));
    if (o->io)
        json_object_set_new(arguments, "x-vmferry-io", json_string(o->io));
    return arguments;
}

int vmf_verb_save(int argc, char **argv)
{
    g_auto(Save) save = {0};
    const Options *o = &save.options;
    g_autoptr(GError) error = NULL;
    json_t *arguments;
    int exit_code;

    if (!parse_options(&save, argc, argv, &exit_code))
        return exit_code;
    arguments = save_arguments(&save, &error);
    if (!arguments)
        return vmf_common_fail(&save.common, error);
    VmfOutgoing outgoing = {
        .common = &save.common,
        .name = save.name,
        .uri = save.uri,
        .doing = "is being saved to",
        .saves = true,
        .after_write = quits(o) ? "quit" : NULL,
        .detach = o->detach,
        .progress_fd = o->progress_fd,
    };
    return vmf_outgoing_run(&outgoing, arguments);
}
