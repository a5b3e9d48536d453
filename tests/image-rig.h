/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What tests of images share: a folder for them, and reading all of one. */
#ifndef TESTS_IMAGE_RIG_H
#define TESTS_IMAGE_RIG_H

#include "ram/image-reader.h"
#include "tests/forge-image.h"

typedef struct {
    char *folder;
} ImageRoom;

/* Set-up and tear-down of a test, whose state is then an ImageRoom. */
int image_enter(void **state);
int image_leave(void **state);

char *image_path(const ImageRoom *room, const char *name); /* new */
char *image_uri(const ImageRoom *room, const char *name);  /* new */
void image_write(const ImageRoom *room, const ForgeImage *image, const char *name);

void image_no_error(const GError *error);
void image_assert_id(const GError *error, const char *id, const char *what);

extern const VmfStorageOptions image_options; /* for reading what was written a moment ago */
extern const VmfPageSet image_every_page;

/* Compares what was read of a chunk with the guest's; where @zero has a page, memory is as it was: 0xee. */
void image_assert_chunk(const ForgeImageBlock *block, uint64_t chunk, const uint8_t *memory, const VmfPageSet *zero);
/* Reads every page; the first error ends it. What is read has to be right, whatever was planted. */
bool image_read_chain(VmfImageChain *chain, const ForgeImage *expected, GError **error);
bool image_read_all(const char *uri, const ForgeImage *expected, GError **error);

#endif
