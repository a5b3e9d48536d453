/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One input as the connections of a hostile peer.
 *
 * Theory of operation. The input is cut into parts at each image header's marker and at each page channel's "VMFPAGES", so that recorded
 * channels laid end to end are an input. Each part is what one connection says; then it says nothing more. What the engine writes goes
 * nowhere. At the target the parts call one after the other; at the source they answer the channels in the order in which it opens them.
 *
 * Nothing here waits for a clock of the engine's. A session that waits for what will never come (a page channel that was announced, a
 * decision) is cancelled once nobody is connected any more, or once nothing has moved for QUIET_NS.
 */
#ifndef TESTS_FUZZ_LINK_H
#define TESTS_FUZZ_LINK_H

#include <vmferry/vmferry.h>

typedef struct VmfFuzzLink VmfFuzzLink;

/* @data outlives it. @answers: the parts are answers (to a source), which begin behind their separator "VMFPAGES". */
VmfFuzzLink *vmf_fuzz_link_new(const uint8_t *data, size_t size, bool answers);
void vmf_fuzz_link_free(VmfFuzzLink *link);
unsigned vmf_fuzz_link_n_parts(const VmfFuzzLink *link);

/* @single: as a file or a descriptor, it gives one channel. Freed with vmf_listener_free(), before the link. */
VmfListener *vmf_fuzz_link_listener(VmfFuzzLink *link, bool single);
VmfConnector *vmf_fuzz_link_connector(VmfFuzzLink *link, bool single);

/* Runs @session, whose ends are this link's, and sees to it that it ends. */
bool vmf_fuzz_link_run(VmfFuzzLink *link, VmfSession *session, GError **error);

/* One channel over @data, for what reads no more than that. */
VmfChannel *vmf_fuzz_channel_new(const uint8_t *data, size_t size);
/* What is written to it is appended to @bytes. */
VmfChannel *vmf_fuzz_channel_into(GByteArray *bytes);

#endif
