/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Finds JSON objects in a byte stream that arrives in arbitrary pieces.
 *
 * Only brackets, strings and the nesting depth are looked at, each byte once, so a client that sends a byte at a time
 * costs no more than one that does not; whether the object is sound JSON is the parser's question. What cannot be the
 * start or the middle of an object is reported once and skipped up to the next newline or '{', so that a connection
 * survives it; what is nested too deeply is skipped to the newline, for the next '{' would only be one more level of
 * it.
 */
#ifndef VMFERRY_MACHINE_QMP_FRAMER_H
#define VMFERRY_MACHINE_QMP_FRAMER_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VMF_QMP_REQUEST_MAX (256u << 10) /* bytes of one request */
#define VMF_QMP_DEPTH_MAX 64u            /* brackets open at once: one bit each in VmfQmpFramer.brackets */

typedef enum {
    VMF_QMP_FRAME_MORE,     /* nothing complete: push more */
    VMF_QMP_FRAME_OBJECT,   /* *text is one object, valid until the next call */
    VMF_QMP_FRAME_GARBAGE,  /* something that is no object was skipped */
    VMF_QMP_FRAME_TOO_LONG, /* a request exceeds the bound; the stream cannot go on */
} VmfQmpFrame;

typedef struct {
    GByteArray *bytes;
    size_t start;      /* where the object at hand began */
    size_t scanned;    /* bytes looked at */
    unsigned depth;    /* 0: between objects */
    uint64_t brackets; /* bit n: level n was opened by '[' */
    bool in_string;
    bool escaped;
    bool skipping;
    bool to_newline; /* while skipping: a '{' does not end it */
} VmfQmpFramer;

void vmf_qmp_framer_init(VmfQmpFramer *framer);
void vmf_qmp_framer_clear(VmfQmpFramer *framer);
void vmf_qmp_framer_push(VmfQmpFramer *framer, const void *data, size_t length);
VmfQmpFrame vmf_qmp_framer_next(VmfQmpFramer *framer, const char **text, size_t *length);

#endif
