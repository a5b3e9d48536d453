/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Device state on its way in: the sections of a stream or of an image, given to the owners of a guest, and their sum. What is common to
 * every way in which a guest arrives.
 */
#ifndef MIGRATION_SECTION_LOAD_H
#define MIGRATION_SECTION_LOAD_H

#include "migration/owners.h"
#include "stream/message.h"
#include "stream/static-data.h"

typedef struct {
    GArray *owners;              /* VmfOwner; borrowed, outlives this */
    const VmfStaticData *theirs; /* what comes; borrowed; from begin on */
    bool swap;                   /* its octet order is not this host's */
    XXH3_state_t *sum;
} VmfSectionLoad;

void vmf_section_load_init(VmfSectionLoad *load, GArray *owners);

/*
 * The owners get ready: load_setup, then static_data_done of each. @theirs was found compatible with the guest. False: one of them refuses;
 * vmf_section_load_clear() is due all the same.
 */
bool vmf_section_load_begin(VmfSectionLoad *load, const VmfStaticData *theirs, bool swap, VmfMissing missing, GError **error);

/* A part of a section: which owner, in which order, is checked. */
bool vmf_section_load_give(VmfSectionLoad *load, const VmfSection *section, GError **error);
/* The same of a SECTION record, which is added to the sum. */
bool vmf_section_load_take(VmfSectionLoad *load, const VmfRecord *record, GError **error);

/* All is there: VMF_ERROR_SECTION names the first section that is not whole. */
bool vmf_section_load_check_complete(const VmfSectionLoad *load, GError **error);
/* VMF_ERROR_DEVICE_SUM unless @sum is that of all records taken. */
bool vmf_section_load_check_sum(const VmfSectionLoad *load, uint64_t sum, GError **error);
uint64_t vmf_section_load_sum(const VmfSectionLoad *load);

/* load_cleanup of the owners that got ready. Once, whatever happened. */
void vmf_section_load_clear(VmfSectionLoad *load);

#endif
