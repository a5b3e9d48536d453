/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>
#include <vmferry/error.h>

#include "machine/qmp-error.h"
#include "tools/image-common.h"
#include "tools/numbers.h"
#include "tools/report.h"

#define LISTED_MAX 1000
#define THREADS_MAX 8

static const char description[] =
    "Compares all that an image has with its digests, by several threads, and names each page that is damaged. "
    "--parents does the same to the images that a layer stands on. Exits with 0 if all is whole, with 1 if it is not.";

typedef struct {
    bool json;
    VmfImageTicker ticker;
} Verify;

static void tell_damage(void *opaque, const VmfDamage *damage)
{
    Verify *verify = opaque;
    json_t *event = json_pack("{s:s,s:s,s:s,s:s,s:s}", "type", "event", "event", "damage", "uri", damage->uri, "id",
                              damage->id, "message", damage->text);

    vmf_image_ticker_end(&verify->ticker);
    if (damage->block)
        json_object_set_new(event, "block", json_string(damage->block));
    if (damage->page >= 0)
        json_object_set_new(event, "page", json_integer(damage->page));
    vmf_report_line(verify->json, event, "damaged: %s", damage->text);
}

static void tick(void *opaque, uint64_t done_bytes, uint64_t total_bytes)
{
    vmf_image_ticker_tick(&((Verify *)opaque)->ticker, done_bytes, total_bytes);
}

static int report(const Verify *verify, VmfImage *image, bool parents, const VmfVerifyResult *result, uint64_t ns)
{
    unsigned n_layers = parents ? vmf_image_n_layers(image) : 1;
    VmfImageInfo info;

    vmf_image_info(image, 0, &info);
    g_autofree char *size = vmf_format_bytes(result->pages_checked * info.page_size), *time = vmf_format_ns(ns);
    g_autofree char *verdict =
        result->n_damaged == 0
            ? g_strdup("whole")
            : g_strdup_printf("DAMAGED: %" G_GUINT64_FORMAT " pages, and %" G_GUINT64_FORMAT " other places",
                              result->pages_damaged, result->n_damaged - result->pages_damaged);
    json_t *summary =
        json_pack("{s:s,s:s,s:b,s:i,s:I,s:I,s:I,s:b,s:I}", "type", "summary", "uri", info.uri, "whole",
                  result->n_damaged == 0, "images", (int)n_layers, "pages_checked", (json_int_t)result->pages_checked,
                  "pages_damaged", (json_int_t)result->pages_damaged, "damaged", (json_int_t)result->n_damaged,
                  "sums_checked", result->sums_checked, "total_ns", (json_int_t)ns);

    vmf_report_line(verify->json, summary, "%s: %s (%s of pages in %u image%s, %s%s)", info.uri, verdict, size,
                    n_layers, n_layers == 1 ? "" : "s", time,
                    result->sums_checked ? "" : "; the sums of all memory need the parents, which are not here");
    return result->n_damaged == 0 ? VMF_EXIT_OK : VMF_EXIT_FAILED;
}

/* Errors of images hint at this verb, which has nothing more to say. */
static int fail(const VmfCommon *common, const GError *error)
{
    json_t *object = vmf_qmp_error_object(error, NULL);
    int exit_code = vmf_common_exit_code(error);

    if (strstr(json_string_value(json_object_get(object, "hint")), "'vmferry verify'"))
        json_object_set_new(object, "hint", json_string(""));
    vmf_report_error_object(common->json, object);
    json_decref(object);
    return exit_code;
}

/* Parents give the sums of all memory; an image whose parents are elsewhere is verified without. */
static VmfImage *open_image(const VmfImageArguments *arguments, const char *operand, bool parents, GError **error)
{
    g_autoptr(GError) missing = NULL;
    VmfImage *image = vmf_image_open_operand(arguments, operand, false, parents ? error : &missing);

    if (image || parents)
        return image;
    return vmf_image_open_operand(arguments, operand, true, error);
}

static int run(const VmfCommon *common, const VmfImageArguments *arguments, VmfVerifyOptions *options)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfImage) image = open_image(arguments, common->operands[0], options->parents, &error);
    gint64 start_us = g_get_monotonic_time();
    Verify verify = {.json = common->json};
    VmfVerifyResult result;

    if (!image)
        return fail(common, error);
    vmf_image_ticker_begin(&verify.ticker, image, "verify");
    options->progress = tick;
    options->damage = tell_damage;
    options->opaque = &verify;
    bool done = vmf_image_verify(image, options, &result, &error);
    vmf_image_ticker_end(&verify.ticker);
    if (!done)
        return fail(common, error);
    return report(&verify, image, options->parents, &result, (uint64_t)(g_get_monotonic_time() - start_us) * 1000);
}

int vmf_verb_verify(int argc, char **argv)
{
    g_auto(VmfCommon) common = {0};
    g_auto(VmfImageArguments) arguments = {0};
    g_autoptr(GError) error = NULL;
    g_autofree char *threads = NULL;
    gboolean parents = FALSE;
    const GOptionEntry own[] = {
        {"parents", 0, 0, G_OPTION_ARG_NONE, &parents, "The images that it stands on as well", NULL},
        {"threads", 0, 0, G_OPTION_ARG_STRING, &threads, "How many threads; default: one a CPU, at most 8", "N"},
        G_OPTION_ENTRY_NULL};
    g_autofree GOptionEntry *entries = vmf_image_entries(&arguments, own);
    VmfVerifyOptions options = {.size = sizeof(options), .max_listed = LISTED_MAX};
    uint64_t n_threads = 0;
    int exit_code;

    if (!vmf_common_parse(&common, argc, argv, "FILE", description, entries, 1, &exit_code))
        return exit_code;
    if (!vmf_image_check_io("verify", arguments.io, &error))
        return vmf_common_fail(&common, error);
    if (threads && !vmf_parse_number(threads, 1, THREADS_MAX, &n_threads, &error)) {
        g_prefix_error(&error, "verify: --threads: ");
        return vmf_common_fail(&common, error);
    }
    options.parents = parents;
    options.n_threads = (unsigned)n_threads;
    return run(&common, &arguments, &options);
}
