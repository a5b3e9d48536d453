/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Octets in memory as a channel: records that stand in a file are read and written as in a stream. */
#ifndef VMF_STREAM_CHANNEL_BYTES_H
#define VMF_STREAM_CHANNEL_BYTES_H

#include "stream/channel.h"

/* Reads @data, which outlives the channel, and then comes the end of the stream. */
VmfChannel *vmf_channel_of_bytes(const void *data, size_t length, const char *name);
/* How many of them have been read. */
size_t vmf_channel_bytes_position(const VmfChannel *channel);

/* Appends what is written to @bytes, which outlives the channel. */
VmfChannel *vmf_channel_into_bytes(GByteArray *bytes, const char *name);

#endif
