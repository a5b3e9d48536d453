/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What lies on storage that is about to be overwritten. */
#ifndef BLOCK_SIGNATURE_H
#define BLOCK_SIGNATURE_H

#include "stream/storage.h"

/*
 * In words ("an ext4 filesystem", "a gpt partition table"), newly allocated; NULL: nothing that is known, or it was
 * built without libblkid.
 */
char *vmf_signature_of_fd(int fd);
/* The same of storage that has no descriptor: its first two MiB are looked at. What cannot be read is said to be so, for it
 * may be anything. */
char *vmf_signature_of_storage(VmfStorage *storage);

#endif
