/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/summary.h"

#include <string.h>

#include "tools/common.h"
#include "tools/numbers.h"
#include "tools/report.h"

static const char *string(const json_t *object, const char *member)
{
    const char *value = json_string_value(json_object_get(object, member));

    return value ? value : "";
}

static uint64_t number(const json_t *object, const char *member)
{
    return json_integer_value(json_object_get(object, member));
}

static bool has_outcome(const VmfSummary *summary, const char *outcome)
{
    return strcmp(string(summary->detail, "outcome"), outcome) == 0;
}

static bool is_one_way(const VmfSummary *summary)
{
    return json_is_true(json_object_get(summary->detail, "one_way"));
}

/* The guest moved (or the file is whole), but damage was seen on the way or afterwards. */
static bool has_warning(const VmfSummary *summary)
{
    return strcmp(string(summary->detail, "verified"), "failed") == 0 || number(summary->detail, "chunks_mended") > 0 ||
           number(summary->detail, "audit_pages_different") > 0;
}

static int failure_exit_code(const VmfSummary *summary)
{
    const char *id = string(json_object_get(summary->detail, "error"), "id");

    if (strcmp(id, "unsupported") == 0)
        return VMF_EXIT_UNSUPPORTED;
    return strcmp(id, "usage") == 0 || strcmp(id, "uri") == 0 || strcmp(id, "channel.insecure") == 0 ? VMF_EXIT_USAGE
                                                                                                     : VMF_EXIT_FAILED;
}

int vmf_summary_exit_code(const VmfSummary *summary)
{
    if (has_outcome(summary, "completed"))
        return has_warning(summary) ? VMF_EXIT_WARNING : VMF_EXIT_OK;
    if (has_outcome(summary, "preflight-ok"))
        return VMF_EXIT_OK;
    if (has_outcome(summary, "held"))
        return VMF_EXIT_HELD;
    return has_outcome(summary, "failed") ? failure_exit_code(summary) : VMF_EXIT_FAILED;
}

/* Where the guest went, as people know the place: the host's own name if the peer told it, else the address. */
static const char *target_name(const VmfSummary *summary)
{
    const char *peer = string(summary->detail, "peer_host_name");

    return *peer ? peer : string(summary->detail, "uri");
}

static json_t *hold_word(const VmfSummary *summary)
{
    static const char *const words[] = {
        [VMF_HOLD_HANDOVER] = "handover",
        [VMF_HOLD_DIED_WITH_SOURCE] = "died-with-source",
        [VMF_HOLD_SOURCE_GONE] = "source-gone",
        [VMF_HOLD_UNWATCHED] = "unwatched",
    };

    return has_outcome(summary, "held") ? json_string(words[summary->hold]) : json_null();
}

json_t *vmf_summary_json(const VmfSummary *summary)
{
    json_t *line = json_pack("{s:s,s:s,s:s,s:s,s:b}", "type", "summary", "name", summary->name, "source",
                             summary->host_name, "target", target_name(summary), "was_running", summary->was_running);

    json_object_update(line, (json_t *)summary->detail);
    json_object_del(line, "ended");
    json_object_set(line, "rounds", json_object_get(line, "round"));
    json_object_del(line, "round");
    json_object_set(line, "guest_errors", json_object_get(summary->machine, "guest_errors"));
    json_object_set(line, "guest_gap_max_ns", json_object_get(summary->machine, "guest_gap_max_ns"));
    json_object_set(line, "backend", json_object_get(summary->machine, "backend"));
    json_object_set_new(line, "hold", hold_word(summary));
    json_object_set_new(line, "exit_code", json_integer(vmf_summary_exit_code(summary)));
    return line;
}

static bool is_save(const VmfSummary *summary)
{
    return json_is_true(json_object_get(summary->detail, "image"));
}

/* "3 rounds, 312.4 MB sent in 1.2 s, verified: full" */
static char *cost(const VmfSummary *summary)
{
    const json_t *detail = summary->detail;
    g_autofree char *sent = vmf_format_bytes(number(detail, "bytes_sent"));
    g_autofree char *total = vmf_format_ns(number(detail, "total_ns"));
    uint64_t rounds = number(detail, "round");

    return g_strdup_printf("%u round%s, %s %s%s in %s, verified: %s", (unsigned)rounds, rounds == 1 ? "" : "s", sent,
                           is_save(summary) ? "written" : "sent", number(detail, "disk_total_bytes") ? " with disks" : "", total,
                           string(detail, "verified"));
}

static char *moved_text(const VmfSummary *summary)
{
    g_autofree char *costs = cost(summary);
    g_autofree char *downtime = vmf_format_ns(number(summary->detail, "downtime_ns"));
    g_autofree char *gap_time = vmf_format_ns(number(summary->detail, "guest_gap_ns"));
    bool gap_known = json_is_integer(json_object_get(summary->detail, "guest_gap_ns"));
    g_autofree char *gap = gap_known ? g_strdup_printf(" (%s for the guest)", gap_time) : g_strdup("");

    return g_strdup_printf("%s %s at %s: downtime %s%s, %s", summary->name,
                           summary->was_running ? "now runs" : "is now paused", target_name(summary), downtime, gap,
                           costs);
}

static char *written_text(const VmfSummary *summary)
{
    g_autofree char *costs = cost(summary);

    return g_strdup_printf("%s is written to %s and %s at %s: %s", summary->name, string(summary->detail, "uri"),
                           summary->runs_here ? "runs on" : "stopped", summary->host_name, costs);
}

static char *saved_text(const VmfSummary *summary)
{
    g_autofree char *costs = cost(summary);
    g_autofree char *downtime = vmf_format_ns(number(summary->detail, "downtime_ns"));
    const char *uri = string(summary->detail, "uri");

    if (!json_is_true(json_object_get(summary->detail, "resumes"))) /* what it is told to do since is another matter */
        return g_strdup_printf("%s is saved to %s and stopped at %s: %s", summary->name, uri, summary->host_name, costs);
    return g_strdup_printf("%s is saved to %s and runs on at %s: downtime %s, %s", summary->name, uri,
                           summary->host_name, downtime, costs);
}

/* Why the target would not, all of it. */
static char *refusal(const VmfSummary *summary)
{
    const json_t *list = json_object_get(summary->detail, "incompatibilities"), *item;
    GString *text = g_string_new("the target would not take it");
    size_t i;

    json_array_foreach(list, i, item) g_string_append_printf(text, "%s%s", i ? "; " : ": ", json_string_value(item));
    return g_string_free(text, FALSE);
}

static char *stayed_text(const VmfSummary *summary, const char *why)
{
    if (summary->machine_gone)
        return g_strdup_printf("%s ended at %s, and its guest with it: %s", summary->name, summary->host_name, why);
    return g_strdup_printf("%s %s at %s: %s", summary->name,
                           summary->runs_here ? "still runs" : "is still here, paused,", summary->host_name, why);
}

static char *held_text(const VmfSummary *summary)
{
    const char *name = summary->name, *here = summary->host_name, *there = target_name(summary);

    if (is_save(summary))
        return g_strdup_printf("%s is at %s, and its save to %s goes on: nobody watches it here any more; 'vmferry status "
                               "--follow %s' does",
                               name, here, there, name);
    switch (summary->hold) {
    case VMF_HOLD_DIED_WITH_SOURCE:
        return g_strdup_printf("%s ended at %s, and its guest with it: the machine's process is gone and no switchover "
                               "was seen; before it is started again, see that it does not run at %s",
                               name, here, there);
    case VMF_HOLD_SOURCE_GONE:
        return g_strdup_printf("%s is gone from %s and may run at %s: the machine's process ended during the "
                               "switchover; do not start it again before that is known",
                               name, here, there);
    case VMF_HOLD_UNWATCHED:
        return g_strdup_printf("%s runs at %s until the migration has moved it to %s: nobody watches it here any more; "
                               "'vmferry status --follow %s' does",
                               name, here, there, name);
    case VMF_HOLD_HANDOVER:
        break;
    }
    return g_strdup_printf("%s stands still at %s: %s; 'vmferry resolve %s' says more, and settles it", name, here,
                           string(summary->detail, "hold_reason"), name);
}

char *vmf_summary_text(const VmfSummary *summary)
{
    g_autofree char *failure = NULL;

    if (has_outcome(summary, "completed"))
        return is_save(summary)      ? saved_text(summary)
               : is_one_way(summary) ? written_text(summary)
                                     : moved_text(summary);
    if (has_outcome(summary, "preflight-ok"))
        return stayed_text(summary, "the target would take it");
    if (has_outcome(summary, "preflight-refused")) {
        failure = refusal(summary);
        return stayed_text(summary, failure);
    }
    if (has_outcome(summary, "cancelled"))
        return stayed_text(summary, is_save(summary) ? "the save was cancelled" : "the migration was cancelled");
    if (has_outcome(summary, "held"))
        return held_text(summary);
    failure = g_strdup_printf("the %s failed: %s", is_save(summary) ? "save" : "migration",
                              string(json_object_get(summary->detail, "error"), "cause"));
    return stayed_text(summary, failure);
}

void vmf_summary_complain(const VmfSummary *summary, bool json)
{
    const json_t *error = json_object_get(summary->detail, "error");
    const json_t *list = json_object_get(summary->detail, "incompatibilities"), *item;
    size_t i;

    json_array_foreach(list, i, item) vmf_report_event(
        json, json_pack("{s:s,s:s,s:s}", "type", "event", "id", "incompatible", "text", json_string_value(item)),
        "vmferry: %s: incompatible: %s", summary->name, json_string_value(item));
    if (json_is_object(error))
        vmf_report_error_object(json, error);
}
