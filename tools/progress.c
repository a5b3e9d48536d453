/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/progress.h"

#include "tools/numbers.h"
#include "tools/report.h"

static uint64_t number(const json_t *detail, const char *member)
{
    return json_integer_value(json_object_get(detail, member));
}

/* Of memory and of disks that are copied. */
static uint64_t remaining_bytes(const json_t *detail)
{
    return number(detail, "ram_remaining_bytes") + number(detail, "disk_remaining_bytes");
}

static char *eta(const json_t *detail)
{
    uint64_t rate = number(detail, "rate_bytes_per_second"), dirty = number(detail, "dirty_bytes_per_second");

    /* In the first round nothing is sent twice yet; later only what the guest does not undo counts. */
    if (number(detail, "round") > 1)
        rate = rate > dirty ? rate - dirty : 0;
    if (rate == 0)
        return g_strdup("-");
    return vmf_format_ns((double)remaining_bytes(detail) / rate * 1e9);
}

static unsigned percent(const json_t *detail)
{
    uint64_t total = number(detail, "ram_total_bytes") + number(detail, "disk_total_bytes"), remaining = remaining_bytes(detail);

    return total ? (total - MIN(remaining, total)) * 100.0 / total : 0;
}

static void show_line(const json_t *detail)
{
    g_autofree char *rate = vmf_format_bytes(number(detail, "rate_bytes_per_second"));
    g_autofree char *dirty = vmf_format_bytes(number(detail, "dirty_bytes_per_second"));
    uint64_t expected_ns = number(detail, "expected_downtime_ns");
    g_autofree char *expected = expected_ns ? vmf_format_ns(expected_ns) : g_strdup("-");
    g_autofree char *left = eta(detail);

    fprintf(stderr, "\r%s: round %u  %u %%  %s/s  dirty %s/s  ETA %s  expected downtime %s\033[K",
            json_string_value(json_object_get(detail, "status")), (unsigned)number(detail, "round"), percent(detail),
            rate, dirty, left, expected);
}

static json_t *status_line(const char *name, const json_t *detail)
{
    json_t *line = json_pack("{s:s,s:s}", "type", "status", "name", name);

    json_object_update(line, (json_t *)detail);
    return line;
}

void vmf_progress_show(VmfProgress *progress, const char *name, const json_t *detail)
{
    if (progress->json)
        vmf_report_json(stdout, status_line(name, detail));
    if (progress->programs)
        vmf_report_json(progress->programs, status_line(name, detail));
    if (!progress->terminal)
        return;
    show_line(detail);
    progress->line_shown = true;
}

void vmf_progress_clear(VmfProgress *progress)
{
    if (progress->line_shown)
        fputs("\r\033[K", stderr);
    progress->line_shown = false;
}
