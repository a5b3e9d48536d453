/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Would this guest fit there? Static data of a stream against a guest, and the answer in words. */
#ifndef MIGRATION_COMPATIBILITY_H
#define MIGRATION_COMPATIBILITY_H

#include "migration/owners.h"
#include "stream/static-data.h"

/* Adds the disks that @guest can write. @is_copied (NULL: none is): whether one is copied. */
void vmf_static_data_add_disks(VmfStaticData *data, VmfGuest *guest, bool (*is_copied)(void *opaque, const char *name), void *opaque);
/* What @guest says of itself, with the sections of @owners. */
VmfStaticData *vmf_static_data_of(VmfGuest *guest, GArray *owners);

/*
 * Named incompatibilities of the stream @theirs with a guest that is @ours, at most VMF_VERDICT_TEXTS_MAX of them, "id: what: here X,
 * there Y"; empty: none. @owners: of @guest; as by vmf_compatibility_note(). It may wait for the storage that a disk is to arrive in.
 */
char **vmf_compatibility_check(const VmfStaticData *theirs, const VmfStaticData *ours, GArray *owners, VmfGuest *guest);
/* @owners learn the stream's version of their section, and which of them it leaves out. */
void vmf_compatibility_note(const VmfStaticData *theirs, GArray *owners);

#endif
