/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/image-make.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <vmferry/error.h>

#include "tools/interrupts.h"
#include "tools/numbers.h"
#include "tools/report.h"

#define THREADS_MAX 8

static bool tick(void *opaque, uint64_t done_bytes, uint64_t total_bytes)
{
    vmf_image_ticker_tick(opaque, done_bytes, total_bytes);
    return !vmf_interrupts_cancel();
}

bool vmf_image_make_parse(VmfImageMake *make, int argc, char **argv, const char *synopsis, const char *description,
                          const GOptionEntry *own, unsigned n_operands, int *exit_code)
{
    g_autoptr(GArray) all = g_array_new(true, true, sizeof(GOptionEntry));
    const GOptionEntry threads = {
        "threads", 0, 0, G_OPTION_ARG_STRING, &make->threads, "How many threads; default: one a CPU, at most 8", "N"};
    const GOptionEntry force = {"force", 0, 0, G_OPTION_ARG_NONE, &make->force, "Overwrite a device whatever it holds", NULL};
    g_autoptr(GError) error = NULL;
    const char *verb = argv[0]; /* the parser moves the others */
    uint64_t n_threads = 0;

    for (; own && own->long_name; own++)
        g_array_append_val(all, *own);
    g_array_append_val(all, threads);
    g_array_append_val(all, force);
    g_autofree GOptionEntry *entries = vmf_image_entries(&make->arguments, (const GOptionEntry *)all->data);
    if (!vmf_common_parse(&make->common, argc, argv, synopsis, description, entries, n_operands, exit_code))
        return false;
    if (make->threads && !vmf_parse_number(make->threads, 1, THREADS_MAX, &n_threads, &error)) {
        g_prefix_error(&error, "%s: --threads: ", verb);
        *exit_code = vmf_common_fail(&make->common, error);
        return false;
    }
    if (!vmf_image_check_io(verb, make->arguments.io, &error)) {
        *exit_code = vmf_common_fail(&make->common, error);
        return false;
    }
    make->options = (VmfImageMakeOptions){
        .size = sizeof(VmfImageMakeOptions),
        .flags = make->arguments.insecure ? VMF_CONNECT_INSECURE : 0,
        .buffered = make->arguments.buffered,
        .backend = make->arguments.io,
        .n_threads = (unsigned)n_threads,
        .progress = tick,
        .opaque = &make->ticker,
        .force = make->force,
    };
    vmf_image_ticker_begin(&make->ticker, NULL, verb);
    make->start_us = g_get_monotonic_time();
    return true;
}

void vmf_image_make_clear(VmfImageMake *make)
{
    vmf_common_clear(&make->common);
    vmf_image_arguments_clear(&make->arguments);
    g_free(make->threads);
}

/* What the new image is. */
static void describe(VmfImageMake *make, const char *uri, json_t *summary)
{
    VmfImageOptions options = vmf_image_options(&make->arguments);
    VmfImageInfo info;

    options.alone = true;
    g_autoptr(VmfImage) image = vmf_image_open(uri, &options, NULL);
    if (!image)
        return;
    vmf_image_info(image, 0, &info);
    g_autofree char *id = vmf_image_hex(info.id), *root = vmf_image_hex(info.root_digest);
    json_object_set_new(summary, "id", json_string(id));
    json_object_set_new(summary, "root_digest", json_string(root));
    json_object_set_new(summary, "file_size_bytes", json_integer((json_int_t)info.file_size));
}

/* A stream that does not go to a file may be what stands on stdout. */
static bool may_be_stdout(const char *to, bool is_image)
{
    const char *path = g_str_has_prefix(to, "file:") ? to + strlen("file:") : NULL;
    struct stat status;

    return !is_image && (!path || stat(path, &status) < 0 || !(S_ISREG(status.st_mode) || S_ISBLK(status.st_mode)));
}

int vmf_image_make_report(VmfImageMake *make, bool done, const char *from, const char *to, bool is_image,
                          const GError *error)
{
    uint64_t ns = (uint64_t)(g_get_monotonic_time() - make->start_us) * 1000;
    g_autofree char *time = vmf_format_ns(ns);

    vmf_image_ticker_end(&make->ticker);
    if (!done)
        return vmf_common_fail(&make->common, error);
    json_t *summary = json_pack("{s:s,s:s,s:s,s:s,s:I}", "type", "summary", "uri", to, "from", from, "format",
                                is_image ? "image" : "stream", "total_ns", (json_int_t)ns);
    if (is_image)
        describe(make, to, summary);
    FILE *out = may_be_stdout(to, is_image) ? stderr : stdout;
    if (make->common.json) {
        vmf_report_json(out, summary);
    } else {
        fprintf(out, "%s: made of %s, and whole (%s)\n", to, from, time);
        json_decref(summary);
    }
    return VMF_EXIT_OK;
}
