/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pages of a stream on their way into an image. */
#ifndef MIGRATION_IMAGE_INTAKE_H
#define MIGRATION_IMAGE_INTAKE_H

#include "ram/page-scan.h"
#include "ram/page-sink.h"

/*
 * A sink for what is read from a stream: it reserves memory that the storage can write from, looks which pages are
 * zeros, takes digests, and pushes into @lane, which is the caller's still and outlives the result. False with @error:
 * no memory.
 */
bool vmf_image_intake_new(const VmfPageSink *lane, VmfPageSink *sink, GError **error);

#endif
