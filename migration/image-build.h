/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An image that is written without a guest: of other images, or of a stream. Header and tail keep the byte order of
 * what they are made of, since device state is in it.
 */
#ifndef MIGRATION_IMAGE_BUILD_H
#define MIGRATION_IMAGE_BUILD_H

#include <vmferry/image.h>

#include "ram/image-reader.h"
#include "ram/image-writer.h"

typedef struct {
    const VmfStaticData *static_data; /* borrowed */
    bool swap;
    const VmfImageParent *parent; /* borrowed; NULL: no layer */
    const VmfImageChain *reads[2]; /* of what it is made, as VmfImageWriterConfig has them */
} VmfImageOrigin;

typedef struct {
    const char *uri;                    /* borrowed, as the options */
    const VmfImageMakeOptions *options; /* may be NULL */
    int claim;                          /* of what stands there; -1: nothing does, or an export */
    VmfStorage *storage;
    VmfImageWriter *writer;
    VmfStreamFormat format;
    VmfImageLayout layout;
    uint8_t id[VMF_IMAGE_ID_SIZE];
    uint64_t static_sum;
    GByteArray *header;
    VmfRamBlock *blocks[VMF_RAM_BLOCKS_MAX]; /* those of RAM, for batches to name; their memory is never touched */
} VmfImageBuild;

/* NULL with @error. @uri and @options outlive it. */
VmfImageBuild *vmf_image_build_new(const char *uri, const VmfImageMakeOptions *options, const VmfImageOrigin *origin,
                                   GError **error);
/* Without finish nothing is left of it. Lanes have been freed. */
void vmf_image_build_free(VmfImageBuild *build);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfImageBuild, vmf_image_build_free)

/* What the tail says. */
typedef struct {
    const GArray *disks; /* VmfImageDisk; NULL: none */
    bool ram_only;
    const GArray *sections; /* VmfSection, in order */
    bool runs;
    const VmfBlockSummary *blocks; /* data and sum count */
} VmfImageTail;

/* All lanes were flushed: the image is whole, durable, and has its name. */
bool vmf_image_build_finish(VmfImageBuild *build, const VmfImageTail *tail, GError **error);

/* VMF_ERROR_USAGE where @uri, or the name that it has while it is written, is one of the images of @chain, as far as names tell. */
bool vmf_image_build_check_target(const char *uri, const VmfImageChain *chain, GError **error);
/*
 * What stands where something is to be written is nobody's, and is kept so (block/claim.h): first ahead of all that is
 * written, and again ahead of its taking the name. *@claim: -1 at first; vmf_claim_drop().
 */
bool vmf_image_build_claim(const char *uri, const VmfImageMakeOptions *options, int *claim, GError **error);

#endif
