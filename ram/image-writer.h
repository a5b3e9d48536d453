/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A fixed-ram image being written, as page sinks.
 *
 * Theory of operation
 *
 * The writer knows, for each chunk, which pages the image holds and their digests; pages go to their places as they are
 * pushed. A lane is one thread's sink, with a storage queue of its own. Two versions of a page must never be on their
 * way at once, so a chunk has at most one batch under way: a lane that is given a chunk of which it has a batch under
 * way waits for that, and the caller sees to it that two lanes never have one chunk (a chunk changes lanes only after
 * the old one was flushed: rounds end with a flush).
 *
 * Nothing but pages is written before vmf_image_writer_finish(), which does all the rest in the order of the format.
 */
#ifndef RAM_IMAGE_WRITER_H
#define RAM_IMAGE_WRITER_H

#include "ram/bitmap.h"
#include "ram/image-chain.h"
#include "ram/image-format.h"
#include "ram/page-scan.h"
#include "ram/page-sink.h"
#include "stream/storage.h"

typedef struct VmfImageWriter VmfImageWriter;

typedef struct {
    VmfStorage *storage;          /* opened with VMF_STORAGE_CREATE; borrowed, outlives the writer */
    const VmfImageLayout *layout; /* copied */
    const uint8_t *id;            /* VMF_IMAGE_ID_SIZE octets; copied */
    bool layer;
    const VmfPageScan *scan;
    unsigned depth; /* requests under way on each lane; 0: the default, 4 of up to 2 MiB */
    bool stable;    /* memory does not change under a write (the guest is stopped): never copy */
    const VmfImageChain *reads[2]; /* images that are needed: one of them that stands in @storage is not written over. Or NULL */
} VmfImageWriterConfig;

/*
 * Sets the size, and voids what stands in place. NULL with @error: VMF_ERROR_USAGE: it is one of @reads.
 */
VmfImageWriter *vmf_image_writer_new(const VmfImageWriterConfig *config, GError **error);
/* Without finish the image is not one: the storage removes the file. Every lane's sink was freed. */
void vmf_image_writer_free(VmfImageWriter *writer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfImageWriter, vmf_image_writer_free)

/*
 * Before the first batch: has the storage allocate the places of pages that are @expected to hold data, as far as that
 * speeds writing them up. What turns out not to hold any is punched at the end. Cannot fail.
 */
void vmf_image_writer_preallocate(VmfImageWriter *writer, unsigned block, const VmfDirtyBitmap *expected);

/*
 * A sink for one thread. Batches need digests (where the storage wants stable writes and the batch is live, the pages
 * are copied and digested again, and those digests count). Zero pages lose their bit (a layer: get their zero bit);
 * their places are punched at the end. Writes of adjacent data pages are merged into one request. A batch may be
 * released only when its write has ended. Errors of asynchronous writes come with the next push or flush.
 */
bool vmf_image_writer_lane(VmfImageWriter *writer, VmfPageSink *sink, GError **error);

/* From now on memory stands still: no copies (the last pass). */
void vmf_image_writer_set_stable(VmfImageWriter *writer, bool stable);

/* What the image holds of a chunk, as of the last flush. */
void vmf_image_writer_chunk(const VmfImageWriter *writer, unsigned block, uint64_t chunk, VmfImageChunk *out);

/*
 * After every lane was flushed: punches, bitmaps, digest blocks, tables, @header, @tail, flush, commit block, flush,
 * commit of the storage. @commit (may be NULL) gets what was written. Fault points for tests are the storage's.
 */
bool vmf_image_writer_finish(VmfImageWriter *writer, const void *header, size_t header_length, const void *tail,
                             size_t tail_length, VmfImageCommit *commit, GError **error);

uint64_t vmf_image_writer_bytes_written(const VmfImageWriter *writer); /* any thread */

#endif
