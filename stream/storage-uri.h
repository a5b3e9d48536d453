/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where seekable storage is, as people and QEMU write it:
 *
 *   file:PATH
 *   nbd://HOST[:PORT][/EXPORT]            nbd:HOST:PORT[:exportname=EXPORT]
 *   nbd+unix:///[EXPORT]?socket=PATH      nbd:unix:PATH[:exportname=EXPORT]
 *
 * In the forms with "//" EXPORT and PATH may be percent-encoded. Parsing is strict: what is not understood is refused,
 * never ignored.
 */
#ifndef STREAM_STORAGE_URI_H
#define STREAM_STORAGE_URI_H

#include "stream/uri.h"

#define VMF_NBD_PORT 10809
#define VMF_NBD_EXPORT_MAX 4096 /* bytes of its name, by the protocol */

typedef enum { VMF_STORAGE_URI_FILE, VMF_STORAGE_URI_NBD } VmfStorageUriKind;

typedef struct {
    VmfStorageUriKind kind;
    char *path;      /* file */
    VmfUri *address; /* nbd: tcp or unix; its text is the whole URI */
    char *export;    /* nbd: "" is the default export */
    char *context;   /* nbd: a meta context that is asked for beside base:allocation; no URI says it. NULL: none */
} VmfStorageUri;

/* VMF_ERROR_URI. */
VmfStorageUri *vmf_storage_uri_parse(const char *text, GError **error);
void vmf_storage_uri_free(VmfStorageUri *uri);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfStorageUri, vmf_storage_uri_free)

#endif
