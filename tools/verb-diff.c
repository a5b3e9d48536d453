/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <vmferry/error.h>

#include "tools/image-common.h"
#include "tools/report.h"

static const char description[] =
    "Says where the guests of two images differ: pages of memory, device state, disks, properties. Each image is taken "
    "with all that it stands on. Exits with 0 if they are the same, with 3 if they are not.";

typedef struct {
    bool json;
    VmfImageTicker ticker;
} Diff;

static void tell_pages(void *opaque, const char *block, uint64_t first_page, uint64_t n_pages)
{
    Diff *diff = opaque;

    vmf_image_ticker_end(&diff->ticker);
    vmf_report_line(diff->json,
                    json_pack("{s:s,s:s,s:s,s:I,s:I}", "type", "event", "event", "pages", "block", block, "first_page",
                              (json_int_t)first_page, "pages", (json_int_t)n_pages),
                    n_pages == 1 ? "RAM block %s: page %" G_GUINT64_FORMAT
                                 : "RAM block %s: pages %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT,
                    block, first_page, first_page + n_pages - 1);
}

static void tell_other(void *opaque, const char *what)
{
    Diff *diff = opaque;

    vmf_image_ticker_end(&diff->ticker);
    vmf_report_line(diff->json, json_pack("{s:s,s:s,s:s}", "type", "event", "event", "other", "message", what), "%s",
                    what);
}

static void tick(void *opaque, uint64_t done_bytes, uint64_t total_bytes)
{
    vmf_image_ticker_tick(&((Diff *)opaque)->ticker, done_bytes, total_bytes);
}

static int report(const Diff *diff, const VmfDiffResult *result)
{
    bool same = result->pages_different == 0 && result->n_other == 0;

    vmf_report_line(diff->json,
                    json_pack("{s:s,s:b,s:I,s:I,s:i}", "type", "summary", "same", same, "used_pages",
                              (json_int_t)result->pages_used, "different_pages", (json_int_t)result->pages_different,
                              "other", (int)result->n_other),
                    "%s: %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT " used pages differ, and %u other things",
                    same ? "the same" : "different", result->pages_different, result->pages_used, result->n_other);
    return same ? VMF_EXIT_OK : VMF_EXIT_WARNING;
}

int vmf_verb_diff(int argc, char **argv)
{
    g_auto(VmfCommon) common = {0};
    g_auto(VmfImageArguments) arguments = {0};
    g_autoptr(GError) error = NULL;
    gboolean read = FALSE;
    const GOptionEntry own[] = {
        {"read", 0, 0, G_OPTION_ARG_NONE, &read, "Compare pages octet by octet; otherwise by their digests", NULL},
        G_OPTION_ENTRY_NULL};
    g_autofree GOptionEntry *entries = vmf_image_entries(&arguments, own);
    VmfDiffOptions options = {.size = sizeof(options), .progress = tick, .pages = tell_pages, .other = tell_other};
    VmfDiffResult result;
    Diff diff = {0};
    int exit_code;

    if (!vmf_common_parse(&common, argc, argv, "FILE FILE", description, entries, 2, &exit_code))
        return exit_code;
    if (!vmf_image_check_io("diff", arguments.io, &error))
        return vmf_common_fail(&common, error);
    g_autoptr(VmfImage) a = vmf_image_open_operand(&arguments, common.operands[0], false, &error);
    g_autoptr(VmfImage) b = a ? vmf_image_open_operand(&arguments, common.operands[1], false, &error) : NULL;
    if (!b)
        return vmf_common_fail(&common, error);
    diff.json = common.json;
    vmf_image_ticker_begin(&diff.ticker, a, "diff");
    options.read = read;
    options.opaque = &diff;
    bool done = vmf_image_diff(a, b, &options, &result, &error);
    vmf_image_ticker_end(&diff.ticker);
    return done ? report(&diff, &result) : vmf_common_fail(&common, error);
}
