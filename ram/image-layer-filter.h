/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What makes an image a layer over a parent: sinks between the lanes of a save and those of the image writer, which
 * leave out pages that the parent has already.
 *
 * Theory of operation
 *
 * A page is left out when it equals the parent's, octet by octet; 64-bit digests only say which pages are worth reading
 * from there. Afterwards the guest may write the page again: then it is dirty and comes again, and the rule decides
 * anew. What must never be left out is a page of which the image already has a version: the guest wrote A, as the
 * parent has it, then B, which went into the image, then A again; so a page that has a bit in the image is always
 * written. That is asked of the writer when the batch goes on to it, not before, for an earlier batch of the same chunk
 * may be waiting for its pages of the parent.
 *
 * Reading from the parent takes time, so some batches wait for their reads at once, and go on in the order in which
 * they came.
 *
 * Pages that the parent has and that were never pushed are holes of the guest: at the end they get their zero bit.
 */
#ifndef RAM_IMAGE_LAYER_FILTER_H
#define RAM_IMAGE_LAYER_FILTER_H

#include "ram/image-reader.h"
#include "ram/image-writer.h"

/* The parent's pages. Calls of a reader come from one thread, those of chunk from any. */
typedef struct {
    size_t size; /* sizeof(VmfImageParentOps) */
    /* As vmf_image_chain_chunk() without layers. */
    bool (*chunk)(void *parent, unsigned block, uint64_t chunk, VmfImageChunk *out, GError **error);
    /* As vmf_image_reader_new() and what belongs to it. */
    void *(*reader_new)(void *parent, unsigned depth, GError **error);
    bool (*start)(void *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted, void *memory,
                  VmfImageReadDone done, void *opaque, GError **error);
    void (*wait)(void *reader, unsigned n_under_way);
    void (*reader_free)(void *reader);
} VmfImageParentOps;

typedef struct {
    const VmfImageParentOps *ops;
    void *opaque;
} VmfImageParentPages;

/* Those of a chain, which is borrowed. */
VmfImageParentPages vmf_image_parent_pages(VmfImageChain *chain);

typedef struct VmfImageLayer VmfImageLayer;

/* @writer was made with @layer set, for the RAM layout of the parent; borrowed, as is the parent. */
VmfImageLayer *vmf_image_layer_new(VmfImageWriter *writer, const VmfImageParentPages *parent, GError **error);
/* Every filter has been freed. */
void vmf_image_layer_free(VmfImageLayer *layer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfImageLayer, vmf_image_layer_free)

/*
 * Puts a filter before @sink, a lane of the writer, which it then owns. Batches need digests; what is in them may be
 * fewer pages when they go on. A page of the parent that cannot be read or is damaged counts as different; bits or
 * digests that cannot be had are the error of the push or flush.
 */
bool vmf_image_layer_filter(VmfImageLayer *layer, VmfPageSink *sink, GError **error);

/* Once the last pass was flushed on every lane, before vmf_image_writer_finish(): zero bits for the holes. */
bool vmf_image_layer_close(VmfImageLayer *layer, GError **error);

uint64_t vmf_image_layer_pages_left_out(const VmfImageLayer *layer); /* any thread; pages with data */

#endif
