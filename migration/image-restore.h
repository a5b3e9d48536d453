/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest being restored from an image: what the steps of it share. */
#ifndef MIGRATION_IMAGE_RESTORE_H
#define MIGRATION_IMAGE_RESTORE_H

#include <vmferry/restore.h>

#include "migration/image-disk-load.h"
#include "migration/section-load.h"
#include "migration/session.h"
#include "ram/fault-server.h"
#include "ram/image-load.h"
#include "ram/presence.h"

typedef struct {
    VmfRestoreOptions options; /* strings owned */
    GError *options_error;     /* what is wrong with them; NULL: nothing */
    VmfSession *session;
    int64_t begun_ns;

    VmfImageChain *chain;
    VmfImageFile *image; /* the chain's first */
    uint64_t data_bytes; /* of the pages that are not zeros */
    GArray *owners;
    VmfStaticData *ours;
    VmfSectionLoad sections;
    VmfImageDiskLoad *disks; /* NULL: not begun */
    VmfImageLoad *load;
    bool storage_taken;
    bool started; /* the guest runs, as far as it is up to this session */

    /* restore-lazy.c */
    VmfFaultServer *server; /* NULL: not lazy */
    int64_t server_began_ns;
    VmfPresence *presence;
    VmfTouchOrder *order, *record; /* NULL: none */
    _Atomic bool asked_for; /* another session had memory brought */
    bool complete; /* all memory is there; under the session's lock */
    bool filled;   /* all disks are; likewise */
    bool disk_lost;
    GError *lost; /* why a page, or a part of a disk, cannot be had; likewise */
} VmfRestore;

/* Copies what the caller's struct has. False with @error: it cannot be used. */
bool vmf_restore_options_copy(VmfRestoreOptions *own, const VmfRestoreOptions *theirs, GError **error);
void vmf_restore_options_clear(VmfRestoreOptions *own);
/* How the image's storage is to be opened. */
VmfStorageOptions vmf_restore_storage_options(const VmfRestoreOptions *options);

#endif
