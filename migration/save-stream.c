/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/save-stream.h"

void vmf_save_stream_init(VmfSaveStream *stream, VmfSession *session, VmfRecordWriter *writer, XXH3_state_t *device_sum, uint32_t id)
{
    *stream = (VmfSaveStream){.session = session, .writer = writer, .device_sum = device_sum, .id = id};
    stream->pending = g_byte_array_new();
}

void vmf_save_stream_clear(VmfSaveStream *stream)
{
    g_clear_pointer(&stream->pending, g_byte_array_unref);
}

static bool write_part(VmfSaveStream *stream, const uint8_t *content, size_t length, bool last, GError **error)
{
    VmfSection section = {
        .id = stream->id,
        .flags = (stream->part == 0 ? VMF_SECTION_FIRST : 0) | (last ? VMF_SECTION_LAST : 0),
        .part = stream->part,
        .content = content,
        .length = (uint32_t)length,
    };

    stream->part++;
    return vmf_section_queue(stream->writer, &section, stream->device_sum, error);
}

/* The last part has to say so, and only finish() knows: a full record stays pending until more comes. */
bool vmf_save_bytes(VmfSaveStream *stream, const void *data, size_t length, GError **error)
{
    const uint8_t *at = data;

    while (length > 0) {
        if (stream->pending->len == VMF_SECTION_CONTENT_MAX) {
            if (!write_part(stream, stream->pending->data, stream->pending->len, false, error))
                return false;
            g_byte_array_set_size(stream->pending, 0);
        }
        size_t n = MIN(length, VMF_SECTION_CONTENT_MAX - stream->pending->len);
        g_byte_array_append(stream->pending, at, (guint)n);
        at += n;
        length -= n;
    }
    return true;
}

bool vmf_save_stream_finish(VmfSaveStream *stream, GError **error)
{
    bool done = write_part(stream, stream->pending->data, stream->pending->len, true, error);

    g_byte_array_set_size(stream->pending, 0);
    return done;
}

bool vmf_save_is_cancelled(VmfSaveStream *stream)
{
    return vmf_session_is_cancelled(stream->session);
}
