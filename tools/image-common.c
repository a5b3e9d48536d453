/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/image-common.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "tools/interrupts.h"

#define TICK_US 100000

GOptionEntry *vmf_image_entries(VmfImageArguments *arguments, const GOptionEntry *own)
{
    const GOptionEntry shared[] = {
        {"parent", 0, 0, G_OPTION_ARG_STRING_ARRAY, &arguments->parents,
         "An image that may be a layer's parent; any number", "FILE"},
        {"insecure", 0, 0, G_OPTION_ARG_NONE, &arguments->insecure, "NBD in plaintext off the loopback", NULL},
        {"buffered", 0, 0, G_OPTION_ARG_NONE, &arguments->buffered, "Through the page cache", NULL},
        {"io", 0, 0, G_OPTION_ARG_STRING, &arguments->io, "io_uring, libaio, threads or auto", "BACKEND"},
    };
    unsigned n = 0;

    while (own && own[n].long_name)
        n++;
    GOptionEntry *all = g_new0(GOptionEntry, n + G_N_ELEMENTS(shared) + 1);
    for (unsigned i = 0; i < n; i++)
        all[i] = own[i];
    memcpy(all + n, shared, sizeof(shared));
    return all;
}

void vmf_image_arguments_clear(VmfImageArguments *arguments)
{
    g_strfreev(arguments->parents);
    g_free(arguments->io);
}

static bool has_scheme(const char *text)
{
    const char *c = text;

    if (!g_ascii_isalpha(*c))
        return false;
    while (g_ascii_isalnum(*c) || *c == '+' || *c == '-' || *c == '.')
        c++;
    return *c == ':';
}

char *vmf_image_uri(const char *operand, GError **error)
{
    static const char *const schemes[] = {"file:", "nbd:", "nbds:", "nbd+unix:", "nbds+unix:"};

    for (size_t i = 0; i < G_N_ELEMENTS(schemes); i++)
        if (g_str_has_prefix(operand, schemes[i]))
            return g_strdup(operand);
    if (*operand && !has_scheme(operand))
        return g_strconcat("file:", operand, NULL);
    if (*operand)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                    "%s: parse: it begins with none of file: nbd: nbd:// nbd+unix://; a file of that name is ./%s", operand, operand);
    else
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "the name of an image is empty");
    return NULL;
}

bool vmf_image_check_io(const char *verb, const char *io, GError **error)
{
    static const char *const names[] = {"auto", "io_uring", "libaio", "threads", NULL};

    if (!io || g_strv_contains(names, io))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "%s: --io: '%s': expected auto, io_uring, libaio or threads", verb, io);
    return false;
}

VmfImageOptions vmf_image_options(const VmfImageArguments *arguments)
{
    return (VmfImageOptions){
        .size = sizeof(VmfImageOptions),
        .flags = arguments->insecure ? VMF_CONNECT_INSECURE : 0,
        .buffered = arguments->buffered,
        .backend = arguments->io,
    };
}

VmfImage *vmf_image_open_operand(const VmfImageArguments *arguments, const char *operand, bool alone, GError **error)
{
    g_autofree char *uri = vmf_image_uri(operand, error);
    g_autoptr(GPtrArray) parents = g_ptr_array_new_with_free_func(g_free);
    VmfImageOptions options = vmf_image_options(arguments);

    if (!uri)
        return NULL;
    for (unsigned i = 0; arguments->parents && arguments->parents[i]; i++) {
        char *parent = vmf_image_uri(arguments->parents[i], error);
        if (!parent)
            return NULL;
        g_ptr_array_add(parents, parent);
    }
    g_ptr_array_add(parents, NULL);
    options.parents = (const char *const *)parents->pdata;
    options.alone = alone;
    return vmf_image_open(uri, &options, error);
}

void vmf_image_ticker_begin(VmfImageTicker *ticker, VmfImage *image, const char *verb)
{
    *ticker = (VmfImageTicker){.image = image, .verb = verb, .terminal = isatty(STDERR_FILENO)};
    vmf_interrupts_catch();
}

void vmf_image_ticker_tick(void *opaque, uint64_t done_bytes, uint64_t total_bytes)
{
    VmfImageTicker *ticker = opaque;
    gint64 now_us = g_get_monotonic_time();

    if (vmf_interrupts_cancel() && ticker->image)
        vmf_image_cancel(ticker->image);
    if (!ticker->terminal || total_bytes == 0 || now_us - ticker->last_us < TICK_US)
        return;
    ticker->last_us = now_us;
    ticker->shown = true;
    fprintf(stderr, "\r\033[Kvmferry: %s: %u %% of %" G_GUINT64_FORMAT " MiB", ticker->verb,
            (unsigned)(done_bytes * 100.0 / total_bytes), total_bytes >> 20);
}

void vmf_image_ticker_end(VmfImageTicker *ticker)
{
    if (ticker->shown)
        fprintf(stderr, "\r\033[K");
    ticker->shown = false;
}

char *vmf_image_hex(const uint8_t octets[16])
{
    GString *text = g_string_sized_new(32);

    for (unsigned i = 0; i < 16; i++)
        g_string_append_printf(text, "%02x", octets[i]);
    return g_string_free(text, FALSE);
}
