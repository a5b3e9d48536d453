/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A chain of images as what memory is filled from while the guest runs. */
#ifndef RAM_IMAGE_PAGES_H
#define RAM_IMAGE_PAGES_H

#include "ram/image-reader.h"
#include "ram/page-reader.h"

/* The source is the VmfImageChain. */
extern const VmfPageReaderOps vmf_image_pages_ops;

#endif
