/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For tests of images that are written: a guest's memory whose pages are written and pushed, and a look at the octets.
 */
#ifndef RAM_TEST_IMAGE_RIG_H
#define RAM_TEST_IMAGE_RIG_H

#include "ram/image-writer.h"

#define RIG_IMAGE_BLOCKS 2
#define RIG_IMAGE_HEADER_LENGTH 5000
#define RIG_IMAGE_TAIL_LENGTH 4100

typedef struct {
    uint64_t n_pages;
    uint8_t *memory; /* page aligned */
    bool *dirty;     /* by page: to be pushed */
    bool *pushed;    /* by page: once or more */
} ImageGuestBlock;

typedef struct {
    ImageGuestBlock blocks[RIG_IMAGE_BLOCKS];
    VmfImageLayout layout;
    const VmfPageScan *scan;
    uint8_t id[VMF_IMAGE_ID_SIZE];
    uint8_t header[RIG_IMAGE_HEADER_LENGTH], tail[RIG_IMAGE_TAIL_LENGTH];
    bool layer;
    unsigned n_held; /* batches that were not released yet */
} ImageGuest;

/* Memory of zeros, nothing dirty. */
ImageGuest *image_guest_new(bool layer);
void image_guest_free(ImageGuest *guest);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ImageGuest, image_guest_free)

/* A page of words made from @value, or of zeros for 0; it is dirty. */
void image_guest_write(ImageGuest *guest, unsigned block, uint64_t page, uint64_t value);
void image_guest_write_range(ImageGuest *guest, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t value);

/* Pushes the dirty pages of a chunk (none: nothing happens), which then are clean. */
bool image_guest_push(ImageGuest *guest, const VmfPageSink *sink, unsigned block, uint64_t chunk, bool live,
                      GError **error);
/* All of them, chunk by chunk. */
bool image_guest_push_all(ImageGuest *guest, const VmfPageSink *sink, bool live, GError **error);

VmfImageWriter *image_guest_writer(const ImageGuest *guest, VmfStorage *storage, GError **error);
bool image_guest_finish(const ImageGuest *guest, VmfImageWriter *writer, GError **error);

/* Whether @octets begin with a commit block that claims to be of an image. */
bool image_is_claimed(const uint8_t *octets, uint64_t size);
/* What about @octets is not the image of the guest as it is; NULL if nothing. Pages that were never pushed are
 * expected to be absent. Newly allocated. */
char *image_difference(const ImageGuest *guest, const uint8_t *octets, uint64_t size);

#endif
