/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the verbs that work on images have in common. */
#ifndef VMFERRY_TOOLS_IMAGE_COMMON_H
#define VMFERRY_TOOLS_IMAGE_COMMON_H

#include <vmferry/image.h>

#include "tools/common.h"

/* Options that each of them takes beside its own. */
typedef struct {
    char **parents;
    gboolean insecure, buffered;
    char *io;
} VmfImageArguments;

/* Their entries, and then @own (NULL: none): g_free(). */
GOptionEntry *vmf_image_entries(VmfImageArguments *arguments, const GOptionEntry *own);
void vmf_image_arguments_clear(VmfImageArguments *arguments);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(VmfImageArguments, vmf_image_arguments_clear)

/*
 * What @operand names: what begins with no scheme is the path of a file. New. NULL with VMF_ERROR_USAGE: it is empty, or of a scheme under
 * which no image can be.
 */
char *vmf_image_uri(const char *operand, GError **error);
/* The value of --io; NULL: not given. */
bool vmf_image_check_io(const char *verb, const char *io, GError **error);
VmfImageOptions vmf_image_options(const VmfImageArguments *arguments);
VmfImage *vmf_image_open_operand(const VmfImageArguments *arguments, const char *operand, bool alone, GError **error);

/*
 * Progress on a terminal, at most ten times a second, and Ctrl-C: it cancels @image (may be NULL). For callbacks that
 * are called while the work is done; vmf_image_ticker_end() leaves the terminal as it was.
 */
typedef struct {
    VmfImage *image;
    const char *verb;
    bool terminal, shown;
    gint64 last_us;
} VmfImageTicker;
void vmf_image_ticker_begin(VmfImageTicker *ticker, VmfImage *image, const char *verb);
void vmf_image_ticker_tick(void *ticker, uint64_t done_bytes, uint64_t total_bytes);
void vmf_image_ticker_end(VmfImageTicker *ticker);

/* "0123abcd…", 32 digits. New. */
char *vmf_image_hex(const uint8_t octets[16]);

#endif
