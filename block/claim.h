/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What stands where a backup or an image is to be written: it is claimed first, so that nothing is lost that others use. */
#ifndef BLOCK_CLAIM_H
#define BLOCK_CLAIM_H

#include <glib.h>
#include <stdbool.h>

typedef enum {
    VMF_CLAIM_CHANGE,  /* it is a base, which is written in place */
    VMF_CLAIM_REPLACE, /* a file is replaced, a device overwritten: one that holds nothing that is known (signature.h) */
    VMF_CLAIM_FORCE,   /* as REPLACE, whatever a device holds */
} VmfClaimKind;

/*
 * Locks the file or device at @path as a writer (lock.h), until vmf_claim_drop(); nothing of it is changed. *@fd: -1 where
 * there is no such thing, and with @error. A file that is to be replaced and must not be written is locked as a reader:
 * then no writer has it; where there are no locks nobody has one of it.
 *
 * @name: for messages. VMF_ERROR_LOCKED: another uses it; VMF_ERROR_DISK_PLACE: of what a device holds;
 * VMF_ERROR_UNSUPPORTED: no such locks there; VMF_ERROR_IO. That a device is not mounted is for who writes it to see to: VmfStorage does
 * with CREATE, and with exclusive.
 */
bool vmf_claim_take(const char *path, VmfClaimKind kind, const char *name, int *fd, GError **error);
/*
 * Ahead of the rename that replaces it: what has come to @path since is claimed in the stead of what was there. Otherwise as
 * vmf_claim_take(); false: *@fd is as it was.
 */
bool vmf_claim_renew(const char *path, VmfClaimKind kind, const char *name, int *fd, GError **error);
/* The same of what a URI says, which is the name for messages. What is no "file:" cannot be claimed, and is fine. */
bool vmf_claim_renew_uri(const char *uri, VmfClaimKind kind, int *fd, GError **error);
/* Whether @fd, which may be -1, is open on what is at @path. */
bool vmf_claim_is_at(int fd, const char *path);
/* *@fd may be -1, and is afterwards. */
void vmf_claim_drop(int *fd);

#endif
