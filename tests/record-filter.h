/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A filter for tests that writes what goes through a channel into files, one for each direction. */
#ifndef TESTS_RECORD_FILTER_H
#define TESTS_RECORD_FILTER_H

#include <vmferry/channel.h>

/*
 * @written, @read: where to put the bytes; NULL: nowhere. The files are whole once the filter is freed. Memory that
 * changes while it is sent is sent and recorded alike. Asserts that the files can be opened.
 */
VmfChannel *vmf_filter_record(VmfChannel *below, const char *written, const char *read);

#endif
