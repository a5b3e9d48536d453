/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/qmp-framer.h"

G_STATIC_ASSERT(VMF_QMP_DEPTH_MAX <= 64);

typedef enum { SCAN_ON, SCAN_DONE, SCAN_BAD, SCAN_TOO_DEEP } Scan;

void vmf_qmp_framer_init(VmfQmpFramer *framer)
{
    *framer = (VmfQmpFramer){.bytes = g_byte_array_new()};
}

void vmf_qmp_framer_clear(VmfQmpFramer *framer)
{
    g_clear_pointer(&framer->bytes, g_byte_array_unref);
}

/* What was handed out is dropped here and not in next(), because the caller still reads it then. */
void vmf_qmp_framer_push(VmfQmpFramer *framer, const void *data, size_t length)
{
    if (framer->start > 0) {
        g_byte_array_remove_range(framer->bytes, 0, framer->start);
        framer->scanned -= framer->start;
        framer->start = 0;
    }
    g_byte_array_append(framer->bytes, data, length);
}

static Scan scan_string_byte(VmfQmpFramer *framer, uint8_t byte)
{
    if (byte < 0x20)
        return SCAN_BAD; /* JSON escapes them; a quote was forgotten */
    if (framer->escaped)
        framer->escaped = false;
    else if (byte == '\\')
        framer->escaped = true;
    else if (byte == '"')
        framer->in_string = false;
    return SCAN_ON;
}

static Scan open_bracket(VmfQmpFramer *framer, bool square)
{
    if (framer->depth == VMF_QMP_DEPTH_MAX)
        return SCAN_TOO_DEEP;
    framer->brackets &= ~(UINT64_C(1) << framer->depth);
    framer->brackets |= (uint64_t)square << framer->depth;
    framer->depth++;
    return SCAN_ON;
}

static Scan close_bracket(VmfQmpFramer *framer, bool square)
{
    framer->depth--;
    if ((framer->brackets >> framer->depth & 1) != square)
        return SCAN_BAD;
    return framer->depth == 0 ? SCAN_DONE : SCAN_ON;
}

static Scan scan_byte(VmfQmpFramer *framer, uint8_t byte)
{
    if (framer->in_string)
        return scan_string_byte(framer, byte);
    switch (byte) {
    case '"':
        framer->in_string = true;
        return SCAN_ON;
    case '{':
    case '[':
        return open_bracket(framer, byte == '[');
    case '}':
    case ']':
        return close_bracket(framer, byte == ']');
    default:
        return SCAN_ON;
    }
}

static VmfQmpFrame scan_object(VmfQmpFramer *framer, const char **text, size_t *length)
{
    while (framer->scanned < framer->bytes->len) {
        Scan scan = scan_byte(framer, framer->bytes->data[framer->scanned++]);

        if (scan == SCAN_ON && framer->scanned - framer->start <= VMF_QMP_REQUEST_MAX)
            continue;
        if (scan == SCAN_ON)
            return VMF_QMP_FRAME_TOO_LONG;
        *text = (const char *)framer->bytes->data + framer->start;
        *length = framer->scanned - framer->start;
        framer->start = framer->scanned;
        framer->depth = 0;
        framer->in_string = framer->escaped = false;
        framer->skipping = scan != SCAN_DONE;
        framer->to_newline = scan == SCAN_TOO_DEEP;
        return scan == SCAN_DONE ? VMF_QMP_FRAME_OBJECT : VMF_QMP_FRAME_GARBAGE;
    }
    return VMF_QMP_FRAME_MORE;
}

/* Between objects: true when an object starts at `scanned`. *garbage is set once for a run of what is none. */
static bool find_start(VmfQmpFramer *framer, bool *garbage)
{
    *garbage = false;
    for (; framer->scanned < framer->bytes->len; framer->scanned++) {
        uint8_t byte = framer->bytes->data[framer->scanned];

        framer->start = framer->scanned;
        if (byte == '\n')
            framer->skipping = framer->to_newline = false;
        else if (byte == '{' && !framer->to_newline) {
            framer->skipping = false;
            return true;
        } else if (!framer->skipping && byte != ' ' && byte != '\t' && byte != '\r') {
            framer->skipping = true;
            *garbage = true;
            return false;
        }
    }
    framer->start = framer->scanned;
    return false;
}

VmfQmpFrame vmf_qmp_framer_next(VmfQmpFramer *framer, const char **text, size_t *length)
{
    bool garbage;

    *text = NULL;
    *length = 0;
    if (framer->depth == 0 && !find_start(framer, &garbage))
        return garbage ? VMF_QMP_FRAME_GARBAGE : VMF_QMP_FRAME_MORE;
    return scan_object(framer, text, length);
}
