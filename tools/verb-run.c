/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>
#include <vmferry/vmferry.h>

#include "machine/bitmap-map.h"
#include "tools/numbers.h"
#include "tools/serve.h"
#include "tools/workload.h"

static const char description[] =
    "Runs machine NAME in the foreground until it is told to quit. The first line on stdout says where it listens: "
    "{\"type\":\"listening\",\"name\":...,\"uri\":...,\"control\":...}. With --incoming it waits for a guest instead "
    "of starting one; "
    "its memory and backend must be those of the guest that comes.";

typedef struct {
    int vcpus;
    char *memory, *guest, *incoming, *uuid, *bitmaps;
    gboolean force, skip_unknown_bitmaps;
} Options;

typedef struct {
    VmfServe serve;
    Options options;
} Run;

static void clear(Run *run)
{
    Options *o = &run->options;
    char *strings[] = {o->memory, o->guest, o->incoming, o->uuid, o->bitmaps};

    vmf_serve_clear(&run->serve);
    for (size_t i = 0; i < G_N_ELEMENTS(strings); i++)
        g_free(strings[i]);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Run, clear)

/* ---- the command line -------------------------------------------------------------------------------------------- */

static bool parse_options(Run *run, int argc, char **argv, int *exit_code)
{
    Options *o = &run->options;
    const GOptionEntry entries[] = {
        {"memory", 0, 0, G_OPTION_ARG_STRING, &o->memory, "The guest's memory (256M)", "SIZE"},
        {"vcpus", 0, 0, G_OPTION_ARG_INT, &o->vcpus, "How many vCPUs it has: 1 to 8 on kvm (1)", "N"},
        {"guest", 0, 0, G_OPTION_ARG_STRING, &o->guest,
         "What the guest does: dirty=SIZE,set=SIZE,disk=SIZE,disk-set=SIZE,seed=N,line=MS (nothing but beat)", "WORK"},
        {"incoming", 0, 0, G_OPTION_ARG_STRING, &o->incoming, "Wait for a guest here; defer: until migrate-incoming",
         "URI"},
        {"force", 0, 0, G_OPTION_ARG_NONE, &o->force,
         "A disk that is copied here may replace a filesystem or a partition table", NULL},
        {"bitmaps", 0, 0, G_OPTION_ARG_STRING, &o->bitmaps,
         "With --incoming: what aliases of dirty bitmaps mean here: all (their names), or a mapping in JSON (all)", "MAP"},
        {"skip-unknown-bitmaps", 0, 0, G_OPTION_ARG_NONE, &o->skip_unknown_bitmaps,
         "With --incoming: a bitmap that has no place here is left out, instead of failing the migration", NULL},
        {"uuid", 0, 0, G_OPTION_ARG_STRING, &o->uuid, "The machine's UUID (made from its name, or the incoming guest's)",
         "UUID"},
        VMF_SERVE_ENTRIES(&run->serve.options),
        G_OPTION_ENTRY_NULL};

    if (!vmf_common_parse(&run->serve.common, argc, argv, "NAME", description, entries, 1, exit_code))
        return false;
    run->serve.name = run->serve.common.operands[0];
    run->serve.incoming = o->incoming != NULL;
    return true;
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
static bool parse_uuid(const Run *run, uint8_t uuid[16], GError **error)
{
    const char *text = run->options.uuid;
    unsigned n = 0;

    if (!text) {
        if (!run->serve.incoming)
            uuid_from_name(run->serve.name, uuid);
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

/* Copies of the guest's disks arrive in those that are given here. */
static bool take_copies(Run *run, GError **error)
{
    VmfServe *serve = &run->serve;

    for (unsigned i = 0; i < serve->disks.n_disks; i++) {
        serve->disks.disks[i].incoming = serve->incoming;
        serve->disks.disks[i].overwrite = run->options.force;
    }
    if (!run->options.force || serve->incoming)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "run: --force: it is about disks that arrive: it needs --incoming");
    return false;
}

static bool configure(Run *run, GError **error)
{
    const Options *o = &run->options;
    VmfServe *serve = &run->serve;
    VmfMachineConfig *config = &serve->config;

    config->memory_bytes = 256u << 20;
    return vmf_serve_configure(serve, error) && take_copies(run, error) &&
           vmf_serve_named(serve, !o->memory || vmf_parse_size(o->memory, &config->memory_bytes, error), "--memory", error) &&
           vmf_serve_named(serve, parse_vcpus(o->vcpus, &config->vcpus, error), "--vcpus", error) &&
           vmf_serve_named(serve, !o->guest || vmf_parse_workload(o->guest, config, error), "--guest", error) &&
           vmf_serve_named(serve, parse_uuid(run, config->uuid, error), "--uuid", error);
}

/* ---- the machine ------------------------------------------------------------------------------------------------- */

static bool await_guest(Run *run, GError **error)
{
    const Options *o = &run->options;
    const char *uri = o->incoming;

    if ((o->bitmaps || o->skip_unknown_bitmaps) &&
        !vmf_serve_named(&run->serve,
                         vmf_bitmap_map_apply_text(run->serve.machine, o->bitmaps ? o->bitmaps : "all", o->skip_unknown_bitmaps, error),
                         "--bitmaps", error))
        return false;
    return !uri || strcmp(uri, "defer") == 0 || vmf_control_incoming(run->serve.control, uri, VMF_RESTORE_EAGER, error);
}

/* Up to where the machine can be talked to, and, as a daemon, is left alone. */
static bool set_up(Run *run, GError **error)
{
    if (!vmf_serve_open(&run->serve, error) || !await_guest(run, error))
        return false;
    vmf_serve_announce(&run->serve);
    return vmf_serve_ready(&run->serve, error);
}

int vmf_verb_run(int argc, char **argv)
{
    g_auto(Run) run = {0};
    g_autoptr(GError) error = NULL;
    int exit_code;

    vmf_serve_init(&run.serve, "run");
    if (!parse_options(&run, argc, argv, &exit_code))
        return exit_code;
    if (!configure(&run, &error) || !vmf_serve_fork(&run.serve, &error) || !set_up(&run, &error) ||
        !vmf_serve_until_end(&run.serve, !run.serve.incoming && !run.serve.options.paused, &error))
        return vmf_common_fail(&run.serve.common, error);
    return VMF_EXIT_OK;
}
