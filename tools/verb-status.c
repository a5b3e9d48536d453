/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "tools/common.h"
#include "tools/machine-status.h"
#include "tools/numbers.h"
#include "tools/progress.h"
#include "tools/report.h"
#include "tools/summary.h"

#define FOLLOW_MS 100

static const char description[] = "Says what the machine does, what its guest has counted and how its latest migration "
                                  "went. --follow stays until a migration that "
                                  "runs (or a guest that is awaited) has come to its end, or is held, and exits as migrate does.";

static uint64_t number(const json_t *object, const char *member)
{
    return json_integer_value(json_object_get(object, member));
}

static const char *string(const json_t *object, const char *member)
{
    const char *value = json_string_value(json_object_get(object, member));

    return value ? value : "";
}

static VmfSummary summary_of(const json_t *status)
{
    bool runs = json_is_true(json_object_get(status, "running"));
    const json_t *migration = json_object_get(status, "migration");

    return (VmfSummary){
        .name = string(status, "name"),
        .host_name = string(status, "host_name"),
        .detail = migration,
        .machine = status,
        .was_running = json_is_true(json_object_get(migration, "was_running")),
        .runs_here = runs,
    };
}

static bool is_outgoing(const json_t *status)
{
    return strcmp(string(json_object_get(status, "migration"), "side"), "source") == 0;
}

static bool has_ended(const json_t *status)
{
    return json_is_true(json_object_get(json_object_get(status, "migration"), "ended"));
}

static bool is_held(const json_t *status)
{
    return strcmp(string(json_object_get(status, "migration"), "outcome"), "held") == 0;
}

/* How it goes, and what is in its way. */
static void print_convergence(const json_t *migration)
{
    uint64_t expected_ns = number(migration, "expected_downtime_ns"), throttle = number(migration, "throttle_percent");
    g_autofree char *expected = expected_ns ? vmf_format_ns(expected_ns) : g_strdup("-");
    const char *reason = string(migration, "converge_reason");
    size_t i;
    json_t *step;

    printf("  round %u, expected downtime %s, guest throttled by %u %%\n", (unsigned)number(migration, "round"), expected,
           (unsigned)throttle);
    if (*reason)
        printf("  %s\n", reason);
    json_array_foreach(json_object_get(migration, "throttle_steps"), i, step)
    {
        g_autofree char *before = vmf_format_bytes(number(step, "dirty_before_bytes_per_second"));
        g_autofree char *after = vmf_format_bytes(number(step, "dirty_after_bytes_per_second"));

        printf("  throttled by %u %%: the guest wrote %s/s, then %s/s\n", (unsigned)number(step, "percent"), before, after);
    }
}

/* What stands ahead of the reason of a hold; "" where there is none. */
static const char *hold_words(const json_t *status)
{
    const json_t *migration = json_object_get(status, "migration");

    if (!is_held(status))
        return "";
    if (strcmp(string(migration, "hold_id"), "restore.held") == 0)
        return ": the guest stands still: ";
    return ": the guest is here, whole, stands still and may run at the source: ";
}

static void print_migration(const json_t *status)
{
    const json_t *migration = json_object_get(status, "migration");
    VmfSummary summary = summary_of(status);
    g_autofree char *text = NULL;

    if (!json_is_object(migration))
        return;
    if (is_outgoing(status) && (has_ended(status) || is_held(status))) {
        text = vmf_summary_text(&summary);
        printf("  migration: %s\n", text);
    } else {
        printf("  migration: %s, %s (%s)%s%s\n", is_outgoing(status) ? "out" : "in", string(migration, "status"),
               string(migration, "uri"), hold_words(status), string(migration, "hold_reason"));
        if (is_outgoing(status))
            print_convergence(migration);
    }
}

static void print_disks(const json_t *disks)
{
    const json_t *disk;
    size_t i;

    json_array_foreach(disks, i, disk)
    {
        g_autofree char *size = vmf_format_bytes(number(disk, "size_bytes"));
        bool acquired = json_is_true(json_object_get(disk, "acquired")), locked = json_is_true(json_object_get(disk, "locked"));

        printf("  disk %s: %s, %s, %s, %" G_GUINT64_FORMAT " failures\n", string(disk, "name"), string(disk, "uri"), size,
               locked     ? "held"
               : acquired ? "in use, not locked"
                          : "not held",
               number(disk, "failures"));
    }
}

static void print_text(const json_t *status)
{
    g_autofree char *gap = vmf_format_ns(number(status, "guest_gap_max_ns"));
    const char *incoming = string(status, "incoming_uri"), *lock = string(status, "lock");

    printf("%s: %s at %s\n", string(status, "name"), string(status, "status"), string(status, "host_name"));
    printf("  machine: %s, %" G_GUINT64_FORMAT " MiB, pid %d\n", string(status, "backend"),
           number(status, "memory_bytes") >> 20, (int)number(status, "pid"));
    printf("  guest: %" G_GUINT64_FORMAT " beats, %" G_GUINT64_FORMAT " errors, longest gap %s\n",
           number(status, "beats"), number(status, "guest_errors"), gap);
    if (json_object_get(status, "failure"))
        printf("  it cannot go on: %s\n", string(status, "failure"));
    if (*incoming)
        printf("  incoming: %s\n", incoming);
    if (*lock)
        printf("  storage: %s, %s\n", lock, json_is_true(json_object_get(status, "lock_held")) ? "held" : "not held");
    print_disks(json_object_get(status, "disks"));
    print_migration(status);
}

static int report_once(const VmfCommon *common, json_t *status)
{
    if (common->json) {
        vmf_report_json(stdout, status);
        return VMF_EXIT_OK;
    }
    print_text(status);
    json_decref(status);
    return VMF_EXIT_OK;
}

/* The end of what was followed, in the words of migrate. */
static int conclude(const VmfCommon *common, json_t *status)
{
    VmfSummary summary = summary_of(status);
    g_autofree char *text = NULL;
    int exit_code;

    if (!is_outgoing(status) || (!has_ended(status) && !is_held(status))) {
        exit_code = is_held(status) ? VMF_EXIT_HELD : VMF_EXIT_OK;
        report_once(common, status);
        return exit_code;
    }
    text = vmf_summary_text(&summary);
    exit_code = vmf_summary_exit_code(&summary);
    vmf_summary_complain(&summary, common->json);
    vmf_report_line(common->json, vmf_summary_json(&summary), "vmferry: %s", text);
    json_decref(status);
    return exit_code;
}

static bool goes_on(const json_t *status)
{
    const json_t *migration = json_object_get(status, "migration");

    if (is_held(status))
        return false;
    return strcmp(string(status, "status"), "inmigrate") == 0 || (json_is_object(migration) && !has_ended(status));
}

static int follow(const VmfCommon *common, VmfClient *client)
{
    VmfProgress progress = {.json = common->json, .terminal = !common->json && isatty(STDERR_FILENO)};
    g_autoptr(GError) error = NULL;
    bool moves = false;
    int exit_code;
    json_t *status;

    while ((status = vmf_machine_status(client, &error)) && goes_on(status)) {
        moves |= is_outgoing(status);
        if (json_is_object(json_object_get(status, "migration")))
            vmf_progress_show(&progress, common->operands[0], json_object_get(status, "migration"));
        json_decref(status);
        g_usleep(FOLLOW_MS * 1000);
    }
    vmf_progress_clear(&progress);
    if (status)
        return conclude(common, status);
    exit_code = vmf_common_fail(common, error);
    return moves ? VMF_EXIT_HELD : exit_code; /* who runs the guest now was not seen */
}

int vmf_verb_status(int argc, char **argv)
{
    g_auto(VmfCommon) common = {0};
    g_autoptr(VmfClient) client = NULL;
    g_autoptr(GError) error = NULL;
    gboolean follows = FALSE;
    const GOptionEntry entries[] = {
        {"follow", 0, 0, G_OPTION_ARG_NONE, &follows, "Go on until the migration has ended", NULL},
        G_OPTION_ENTRY_NULL};
    int exit_code;
    json_t *status;

    if (!vmf_common_parse(&common, argc, argv, "NAME", description, entries, 1, &exit_code))
        return exit_code;
    client = vmf_common_connect(&common, &exit_code);
    if (!client)
        return exit_code;
    if (follows)
        return follow(&common, client);
    status = vmf_machine_status(client, &error);
    return status ? report_once(&common, status) : vmf_common_fail(&common, error);
}
