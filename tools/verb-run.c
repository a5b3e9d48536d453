/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/vmferry.h>

#include "machine/control.h"
#include "tools/common.h"
#include "tools/daemon.h"
#include "tools/dirs.h"
#include "tools/event-log.h"
#include "tools/numbers.h"
#include "tools/report.h"
#include "tools/workload.h"

static const char description[] =
    "Runs machine NAME in the foreground until it is told to quit. The first line on stdout says where it listens: "
    "{\"type\":\"listening\",\"name\":...,\"uri\":...,\"control\":...}. With --incoming it waits for a guest instead "
    "of starting one; "
    "its memory and backend must be those of the guest that comes.";

typedef struct {
    int vcpus;
    char *dirty_log, *memory, *backend, *guest, *ram, *incoming, *console, *state_dir, *host_name, *uuid;
    gboolean paused, daemon, unpaced, small_pages, insecure;
} Options;

typedef struct {
    VmfCommon common;
    Options options;
    const char *name;
    VmfMachineConfig config;
    char *socket_path, *console_path;
    int name_fd;  /* holds the claim on the name; -1 */
    int ready_fd; /* of a daemon that its parent waits for; -1 */
    VmfMachine *machine;
    VmfControl *control;
    VmfEventLog *log; /* NULL: none is asked for */
} Run;

static void clear(Run *run)
{
    Options *o = &run->options;
    char *strings[] = {o->dirty_log, o->memory,    o->backend,   o->guest, o->ram,           o->incoming,      o->console,
                       o->state_dir, o->host_name, o->uuid,  run->socket_path, run->console_path};

    vmf_control_free(run->control);
    vmf_event_log_free(run->log);
    vmf_machine_free(run->machine);
    if (run->name_fd >= 0)
        vmf_release_name(run->common.runtime_dir, run->name, run->name_fd);
    if (run->ready_fd >= 0)
        close(run->ready_fd);
    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++)
        g_free(strings[i]);
    vmf_common_clear(&run->common);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Run, clear)

/* ---- the command line -------------------------------------------------------------------------------------------- */

static bool parse_options(Run *run, int argc, char **argv, int *exit_code)
{
    Options *o = &run->options;
    const GOptionEntry entries[] = {
        {"memory", 0, 0, G_OPTION_ARG_STRING, &o->memory, "The guest's memory (256M)", "SIZE"},
        {"backend", 0, 0, G_OPTION_ARG_STRING, &o->backend,
         "What executes the guest: rv32, kvm, or auto, which is kvm where it works (rv32)", "NAME"},
        {"vcpus", 0, 0, G_OPTION_ARG_INT, &o->vcpus, "How many vCPUs it has: 1 to 8 on kvm (1)", "N"},
        {"dirty-log", 0, 0, G_OPTION_ARG_STRING, &o->dirty_log,
         "How its writes are recorded: auto, rv32, kvm-bitmap, kvm-ring or uffd-wp (auto)", "NAME"},
        {"guest", 0, 0, G_OPTION_ARG_STRING, &o->guest,
         "What the guest does: dirty=SIZE,set=SIZE,seed=N (nothing but beat)", "WORK"},
        {"ram", 0, 0, G_OPTION_ARG_STRING, &o->ram, "What its memory is made of: anon or memfd (anon)", "KIND"},
        {"small-pages", 0, 0, G_OPTION_ARG_NONE, &o->small_pages, "No transparent huge pages", NULL},
        {"incoming", 0, 0, G_OPTION_ARG_STRING, &o->incoming, "Wait for a guest here; defer: until migrate-incoming",
         "URI"},
        {"paused", 0, 0, G_OPTION_ARG_NONE, &o->paused, "Do not run the guest before cont", NULL},
        {"daemon", 0, 0, G_OPTION_ARG_NONE, &o->daemon, "Go on in the background once the control socket answers",
         NULL},
        {"console", 0, 0, G_OPTION_ARG_FILENAME, &o->console,
         "Append the guest's console to FILE (beside the control socket)", "FILE"},
        {"unpaced", 0, 0, G_OPTION_ARG_NONE, &o->unpaced, "Let the guest run as fast as it can", NULL},
        {"state-dir", 0, 0, G_OPTION_ARG_FILENAME, &o->state_dir, "What survives a reboot is kept there", "DIR"},
        {"host-name", 0, 0, G_OPTION_ARG_STRING, &o->host_name, "What messages call this host (its host name)", "NAME"},
        {"uuid", 0, 0, G_OPTION_ARG_STRING, &o->uuid, "The machine's UUID (made from its name, or the incoming guest's)",
         "UUID"},
        {"insecure", 0, 0, G_OPTION_ARG_NONE, &o->insecure, "Allow plaintext off the loopback", NULL},
        G_OPTION_ENTRY_NULL};

    if (!vmf_common_parse(&run->common, argc, argv, "NAME", description, entries, 1, exit_code))
        return false;
    run->name = run->common.operands[0];
    return true;
}

static bool parse_backend(const char *name, GError **error)
{
    if (!name || strcmp(name, "auto") == 0 || strcmp(name, "rv32") == 0 || strcmp(name, "kvm") == 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'%s': expected auto, rv32 or kvm", name);
    return false;
}

static bool parse_vcpus(int n, unsigned *vcpus, GError **error)
{
    *vcpus = (unsigned)n;
    if (n >= 0 && n <= 8)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%d: expected 1 to 8", n);
    return false;
}

/* Version 5: the same name gives the same UUID on every host, so that both ends of a migration agree. */
static void uuid_from_name(const char *name, uint8_t uuid[16])
{
    static const uint8_t name_space[16] = {0x5a, 0x1c, 0x9e, 0x04, 0x6b, 0x7d, 0x4f, 0x12,
                                           0x93, 0x0e, 0x2f, 0x88, 0xd1, 0x35, 0xc6, 0x7a};
    g_autoptr(GChecksum) sha1 = g_checksum_new(G_CHECKSUM_SHA1);
    uint8_t digest[20];
    gsize length = sizeof(digest);

    g_checksum_update(sha1, name_space, sizeof(name_space));
    g_checksum_update(sha1, (const guchar *)name, strlen(name));
    g_checksum_get_digest(sha1, digest, &length);
    memcpy(uuid, digest, 16);
    uuid[6] = (uuid[6] & 0x0f) | 0x50;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
}

/* A machine that waits for a guest has none: it takes the guest's. */
static bool parse_uuid(const char *text, const Run *run, uint8_t uuid[16], GError **error)
{
    unsigned n = 0;

    if (!text) {
        if (!run->options.incoming)
            uuid_from_name(run->name, uuid);
        return true;
    }
    if (!g_uuid_string_is_valid(text)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'%s': not a UUID", text);
        return false;
    }
    for (const char *c = text; n < 16; c++)
        if (*c != '-') {
            uuid[n++] = g_ascii_xdigit_value(c[0]) << 4 | g_ascii_xdigit_value(c[1]);
            c++;
        }
    return true;
}

static bool named(bool parsed, const char *option, GError **error)
{
    if (!parsed)
        g_prefix_error(error, "run: %s: ", option);
    return parsed;
}

static bool configure(Run *run, GError **error)
{
    const Options *o = &run->options;
    VmfMachineConfig *config = &run->config;

    config->memory_bytes = 256u << 20;
    config->huge_pages = !o->small_pages;
    config->unpaced = o->unpaced;
    config->name = run->name;
    config->backend = o->backend;
    config->dirty_log = o->dirty_log;
    return vmf_check_machine_name(run->name, error) &&
           named(!o->memory || vmf_parse_size(o->memory, &config->memory_bytes, error), "--memory", error) &&
           named(parse_backend(o->backend, error), "--backend", error) &&
           named(parse_vcpus(o->vcpus, &config->vcpus, error), "--vcpus", error) &&
           named(!o->guest || vmf_parse_workload(o->guest, config, error), "--guest", error) &&
           named(!o->ram || vmf_ram_backend_parse(o->ram, &config->ram_backend, error), "--ram", error) &&
           named(parse_uuid(o->uuid, run, config->uuid, error), "--uuid", error);
}

/* ---- the machine ------------------------------------------------------------------------------------------------- */

static bool prepare_directories(Run *run, GError **error)
{
    g_autofree char *state_dir = vmf_state_dir(run->options.state_dir);

    if (!vmf_make_private_dir(run->common.runtime_dir, error) || !vmf_make_private_dir(state_dir, error))
        return false;
    run->name_fd = vmf_claim_name(run->common.runtime_dir, run->name, error);
    run->socket_path = vmf_machine_path(run->common.runtime_dir, run->name, "sock");
    run->console_path = run->options.console ? g_strdup(run->options.console)
                                             : vmf_machine_path(run->common.runtime_dir, run->name, "console");
    run->config.console_path = run->console_path;
    return run->name_fd >= 0;
}

static void on_event(void *opaque, const json_t *event)
{
    const Run *run = opaque;
    json_t *line;

    if (!run->common.json)
        return;
    line = json_pack("{s:s,s:s,s:O}", "type", "event", "name", run->name, "event", json_object_get(event, "event"));
    json_object_set(line, "data", json_object_get(event, "data"));
    vmf_report_json(stdout, line);
}

static void on_log(void *opaque, const char *side, const char *id, const char *text)
{
    const Run *run = opaque;

    vmf_event_log_write(run->log, run->name, side, id, text);
}

static bool make_control(Run *run, GError **error)
{
    const Options *o = &run->options;
    VmfControlConfig config = {
        .machine = run->machine,
        .name = run->name,
        .host_name = o->host_name ? o->host_name : g_get_host_name(),
        .socket_path = run->socket_path,
        .incoming = o->incoming != NULL,
        .paused = o->paused,
        .insecure = o->insecure,
        .event = on_event,
        .log = on_log,
        .opaque = run,
    };

    run->control = vmf_control_new(&config, error);
    if (!run->control)
        return false;
    return !o->incoming || strcmp(o->incoming, "defer") == 0 || vmf_control_incoming(run->control, o->incoming, error);
}

static void say_listening(const Run *run)
{
    vmf_report_json(stdout, json_pack("{s:s,s:s,s:s?,s:s}", "type", "listening", "name", run->name, "uri",
                                      vmf_control_incoming_uri(run->control), "control", run->socket_path));
}

/* Up to where the machine can be talked to, and, as a daemon, is left alone. */
static bool set_up(Run *run, GError **error)
{
    g_autofree char *log_path = NULL;

    if (!vmf_event_log_open(&run->log, g_getenv("VMFERRY_LOG"), error) || !prepare_directories(run, error))
        return false;
    run->machine = vmf_machine_new(&run->config, error);
    if (!run->machine || !make_control(run, error))
        return false;
    say_listening(run);
    if (run->ready_fd >= 0) {
        log_path = vmf_machine_path(run->common.runtime_dir, run->name, "log");
        if (!vmf_daemon_ready(run->ready_fd, log_path, error))
            return false;
        run->ready_fd = -1;
    }
    return true;
}

static gboolean on_signal(void *opaque)
{
    vmf_control_quit(opaque, "host-signal");
    /* A migration past the point of no return is waited for; who cannot wait sends a second signal, which has its
     * default effect. */
    return G_SOURCE_REMOVE;
}

static bool serve(Run *run, GError **error)
{
    bool starts = !run->options.incoming && !run->options.paused;

    g_unix_signal_add(SIGTERM, on_signal, run->control);
    g_unix_signal_add(SIGINT, on_signal, run->control);
    signal(SIGPIPE, SIG_IGN); /* a peer or reader that goes away is an error of its channel, not our end */
    return (!starts || vmf_control_cont_guest(run->control, error)) && vmf_control_run(run->control, error);
}

int vmf_verb_run(int argc, char **argv)
{
    g_auto(Run) run = {.name_fd = -1, .ready_fd = -1};
    g_autoptr(GError) error = NULL;
    int exit_code;

    if (!parse_options(&run, argc, argv, &exit_code))
        return exit_code;
    if (!configure(&run, &error))
        return vmf_common_fail(&run.common, error);
    if (run.options.daemon && (run.ready_fd = vmf_daemon_fork(&error)) < 0)
        return vmf_common_fail(&run.common, error);
    if (!set_up(&run, &error) || !serve(&run, &error))
        return vmf_common_fail(&run.common, error);
    return VMF_EXIT_OK;
}
