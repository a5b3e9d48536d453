/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/serve.h"

#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/vmferry.h>

#include "tools/daemon.h"
#include "tools/dirs.h"
#include "tools/report.h"

#define JOURNAL_KEEP 64 /* entries that nobody can ask for any more, for people who wonder what happened */

void vmf_serve_init(VmfServe *serve, const char *verb)
{
    *serve = (VmfServe){.verb = verb, .name_fd = -1, .ready_fd = -1};
}

void vmf_serve_clear(VmfServe *serve)
{
    VmfServeOptions *o = &serve->options;
    char *strings[] = {o->dirty_log, o->backend,   o->ram,          o->console,          o->lock,
                       o->state_dir, o->host_name, serve->socket_path, serve->console_path, serve->state_path};

    vmf_control_free(serve->control);
    vmf_event_log_free(serve->log);
    vmf_machine_free(serve->machine);
    vmf_journal_free(serve->journal);
    vmf_faults_free(serve->faults);
    g_strfreev(o->faults);
    g_strfreev(o->disks);
    vmf_disk_arguments_clear(&serve->disks);
    if (serve->name_fd >= 0)
        vmf_release_name(serve->common.runtime_dir, serve->name, serve->name_fd);
    if (serve->ready_fd >= 0)
        close(serve->ready_fd);
    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++)
        g_free(strings[i]);
    vmf_common_clear(&serve->common);
}

/* ---- the command line -------------------------------------------------------------------------------------------- */

bool vmf_serve_named(const VmfServe *serve, bool parsed, const char *option, GError **error)
{
    if (!parsed)
        g_prefix_error(error, "%s: %s: ", serve->verb, option);
    return parsed;
}

static bool parse_backend(const char *name, GError **error)
{
    if (!name || strcmp(name, "auto") == 0 || strcmp(name, "rv32") == 0 || strcmp(name, "kvm") == 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'%s': expected auto, rv32 or kvm", name);
    return false;
}

/* Faults of the dirty log are the machine's; the others happen at points of a handover. */
static bool parse_faults(VmfServe *serve, GError **error)
{
    static const char lose_one[] = "log.lose-one:";
    g_autoptr(GPtrArray) points = g_ptr_array_new();

    for (char **fault = serve->options.faults; fault && *fault; fault++) {
        const char *seed = *fault + strlen(lose_one);
        if (!g_str_has_prefix(*fault, lose_one)) {
            g_ptr_array_add(points, *fault);
        } else if (!g_ascii_string_to_unsigned(seed, 10, 1, G_MAXUINT64, &serve->config.lose_write_seed, NULL)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'%s': expected log.lose-one:SEED, a number from 1", *fault);
            return false;
        }
    }
    if (points->len == 0)
        return true;
    g_ptr_array_add(points, NULL);
    serve->faults = vmf_faults_new((const char *const *)points->pdata, error);
    return serve->faults != NULL;
}

/* Pages of 2 MiB and none of them: one of the two is a mistake. */
static bool parse_ram(const VmfServeOptions *o, VmfRamBackend *backend, GError **error)
{
    if (!o->ram)
        return true;
    if (!vmf_ram_backend_parse(o->ram, backend, error))
        return false;
    if (*backend != VMF_RAM_HUGETLB || !o->small_pages)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "hugetlb has no small pages: leave out --small-pages");
    return false;
}

static bool parse_disks(VmfServe *serve, GError **error)
{
    bool parsed = vmf_disk_arguments_parse(&serve->disks, serve->options.disks, serve->options.insecure, error);

    serve->config.n_disks = serve->disks.n_disks;
    return parsed;
}

bool vmf_serve_configure(VmfServe *serve, GError **error)
{
    const VmfServeOptions *o = &serve->options;
    VmfMachineConfig *config = &serve->config;

    config->name = serve->name;
    config->huge_pages = !o->small_pages;
    config->unpaced = o->unpaced;
    config->lock_path = o->lock;
    config->dirty_log = o->dirty_log;
    config->backend = o->backend ? o->backend : "auto";
    config->disks = serve->disks.disks;
    return vmf_check_machine_name(serve->name, error) &&
           vmf_serve_named(serve, parse_backend(o->backend, error), "--backend", error) &&
           vmf_serve_named(serve, parse_ram(o, &config->ram_backend, error), "--ram", error) &&
           vmf_serve_named(serve, parse_faults(serve, error), "--fault", error) &&
           vmf_serve_named(serve, parse_disks(serve, error), "--disk", error);
}

bool vmf_serve_fork(VmfServe *serve, GError **error)
{
    if (!serve->options.daemon)
        return true;
    serve->ready_fd = vmf_daemon_fork(error);
    return serve->ready_fd >= 0;
}

/* ---- the machine ------------------------------------------------------------------------------------------------- */

static bool prepare_directories(VmfServe *serve, GError **error)
{
    serve->state_path = vmf_state_dir(serve->options.state_dir);
    if (!vmf_make_private_dir(serve->common.runtime_dir, error) || !vmf_make_private_dir(serve->state_path, error))
        return false;
    serve->name_fd = vmf_claim_name(serve->common.runtime_dir, serve->name, error);
    serve->socket_path = vmf_machine_path(serve->common.runtime_dir, serve->name, "sock");
    serve->console_path = serve->options.console ? g_strdup(serve->options.console)
                                                 : vmf_machine_path(serve->common.runtime_dir, serve->name, "console");
    serve->config.console_path = serve->console_path;
    return serve->name_fd >= 0;
}

/* A guest that was offered to another host and of which nobody has said what became of it is not started anew beside its copy there. */
static bool has_no_offer(const VmfServe *serve, GError **error)
{
    VmfJournalEntry entry;

    if (!vmf_journal_find_offer(serve->journal, serve->name, &entry, error))
        return false;
    if (entry.state != VMF_JOURNAL_OFFERED)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_OFFERED, "machine %s: %s: its guest was offered to %s and may be running there",
                serve->name, serve->verb, *entry.peer_host ? entry.peer_host : entry.peer);
    return false;
}

/* A machine without a journal could not be asked after a crash, so there is none. */
static bool open_journal(VmfServe *serve, GError **error)
{
    serve->journal = vmf_journal_open(serve->state_path, error);
    if (!serve->journal)
        return false;
    vmf_journal_prune(serve->journal, JOURNAL_KEEP);
    return serve->incoming || has_no_offer(serve, error);
}

static bool on_fault(void *opaque, const char *point)
{
    const VmfServe *serve = opaque;

    vmf_faults_pass(serve->faults, point);
    return false;
}

static void on_event(void *opaque, const json_t *event)
{
    const VmfServe *serve = opaque;
    json_t *line;

    if (serve->common.json) {
        line = json_pack("{s:s,s:s,s:O}", "type", "event", "name", serve->name, "event", json_object_get(event, "event"));
        json_object_set(line, "data", json_object_get(event, "data"));
        vmf_report_json(stdout, line);
    }
    if (serve->event)
        serve->event(serve->opaque, event);
}

static void on_log(void *opaque, const char *side, const char *id, const char *text)
{
    const VmfServe *serve = opaque;

    vmf_event_log_write(serve->log, serve->name, side, id, text);
}

static bool make_control(VmfServe *serve, GError **error)
{
    const VmfServeOptions *o = &serve->options;
    VmfControlConfig config = {
        .machine = serve->machine,
        .name = serve->name,
        .host_name = o->host_name ? o->host_name : g_get_host_name(),
        .socket_path = serve->socket_path,
        .incoming = serve->incoming,
        .paused = o->paused,
        .insecure = o->insecure,
        .journal = serve->journal,
        .state_dir = serve->state_path,
        .link = serve->faults ? vmf_faults_link(serve->faults) : NULL,
        .fault = serve->faults ? on_fault : NULL,
        .event = on_event,
        .log = on_log,
        .opaque = serve,
    };

    serve->control = vmf_control_new(&config, error);
    return serve->control != NULL;
}

bool vmf_serve_open(VmfServe *serve, GError **error)
{
    if (!vmf_event_log_open(&serve->log, g_getenv("VMFERRY_LOG"), error) || !prepare_directories(serve, error) ||
        !open_journal(serve, error))
        return false;
    serve->machine = vmf_machine_new(&serve->config, error);
    return serve->machine && (serve->incoming || vmf_machine_hold_storage(serve->machine, error)) && make_control(serve, error);
}

/* The interpreter in place of the processor makes a difference that people should know of. */
static void say_backend(const VmfServe *serve)
{
    VmfMachineInfo info;

    vmf_machine_get_info(serve->machine, &info);
    if (info.backend_why)
        fprintf(stderr, "vmferry: %s: backend %s, not kvm: %s\n", serve->name, info.backend, info.backend_why);
}

void vmf_serve_announce(const VmfServe *serve)
{
    say_backend(serve);
    vmf_report_json(stdout, json_pack("{s:s,s:s,s:s?,s:s}", "type", "listening", "name", serve->name, "uri",
                                      vmf_control_incoming_uri(serve->control), "control", serve->socket_path));
}

bool vmf_serve_ready(VmfServe *serve, GError **error)
{
    g_autofree char *log_path = NULL;

    if (serve->ready_fd < 0)
        return true;
    log_path = vmf_machine_path(serve->common.runtime_dir, serve->name, "log");
    if (!vmf_daemon_ready(serve->ready_fd, log_path, error))
        return false;
    serve->ready_fd = -1;
    return true;
}

static gboolean on_signal(void *opaque)
{
    VmfServe *serve = opaque;

    vmf_machine_give_up_disks(serve->machine);
    vmf_control_quit(serve->control, "host-signal");
    /* A migration past the point of no return is waited for; who cannot wait sends a second signal, which has its
     * default effect. */
    return G_SOURCE_REMOVE;
}

bool vmf_serve_until_end(VmfServe *serve, bool start, GError **error)
{
    g_unix_signal_add(SIGTERM, on_signal, serve);
    g_unix_signal_add(SIGINT, on_signal, serve);
    signal(SIGPIPE, SIG_IGN); /* a peer or reader that goes away is an error of its channel, not our end */
    signal(SIGXFSZ, SIG_IGN); /* likewise a file that may not grow */
    return (!start || vmf_control_cont_guest(serve->control, error)) && vmf_control_run(serve->control, error);
}
