/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory that storage reads into and writes from.
 *
 * A device is given a descriptor for each stretch of physical memory. Of pages that lie apart it takes one each, at most half a MiB of
 * them in a request, and is half as fast for that on a virtio disk, however many requests are under way; of a huge page it takes one.
 */
#ifndef STREAM_IO_MEMORY_H
#define STREAM_IO_MEMORY_H

#include <stddef.h>

/*
 * @size octets, touched already and aligned to 4096, for free(); NULL: there is no memory. From 2 MiB on huge pages, where the host has
 * them at hand.
 */
void *vmf_io_memory_new(size_t size);

#endif
