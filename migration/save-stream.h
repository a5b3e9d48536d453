/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The writer of one section, as its handler sees it. */
#ifndef MIGRATION_SAVE_STREAM_H
#define MIGRATION_SAVE_STREAM_H

#include <vmferry/handlers.h>

#include "migration/session.h"
#include "stream/message.h"

struct VmfSaveStream {
    VmfSession *session;
    VmfRecordWriter *writer;
    XXH3_state_t *device_sum; /* of all sections */
    uint32_t id;
    uint32_t part;
    GByteArray *pending; /* less than a record's content */
};

void vmf_save_stream_init(VmfSaveStream *stream, VmfSession *session, VmfRecordWriter *writer, XXH3_state_t *device_sum, uint32_t id);
/* Writes the section's last record. */
bool vmf_save_stream_finish(VmfSaveStream *stream, GError **error);
void vmf_save_stream_clear(VmfSaveStream *stream);

#endif
