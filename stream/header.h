/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What stands ahead of the records: image header, machine header, the preambles of page channels and of questions. */
#ifndef VMF_STREAM_HEADER_H
#define VMF_STREAM_HEADER_H

#include "stream/record.h"

typedef struct {
    char architecture[VMF_ARCHITECTURE_SIZE]; /* NUL terminated */
    uint32_t page_size;
    uint32_t engine_version;
    uint8_t uuid[16];
} VmfMachineHeader;

typedef struct {
    unsigned channel;
    uint8_t session[16];
    uint32_t epoch;
} VmfPreamble;

/* Opens a channel of its own, to ask what became of a token. */
typedef struct {
    uint8_t token[VMF_TOKEN_SIZE];
} VmfTokenPreamble;

/* This engine's version as the machine header has it. */
uint32_t vmf_engine_version(void);

void vmf_image_header_encode(const VmfStreamFormat *format, uint8_t out[VMF_IMAGE_HEADER_SIZE]);
bool vmf_image_header_decode(const uint8_t in[VMF_IMAGE_HEADER_SIZE], VmfStreamFormat *format, GError **error);

void vmf_machine_header_encode(const VmfMachineHeader *header, bool swap, uint8_t out[VMF_MACHINE_HEADER_SIZE]);
bool vmf_machine_header_decode(const uint8_t in[VMF_MACHINE_HEADER_SIZE], bool swap, VmfMachineHeader *header, GError **error);

void vmf_preamble_encode(const VmfPreamble *preamble, const VmfStreamFormat *format, uint8_t out[VMF_PREAMBLE_SIZE]);
/* Whether @in (8 octets) begins a preamble, an image header, or neither. */
typedef enum { VMF_OPENING_STRANGER, VMF_OPENING_MAIN, VMF_OPENING_PAGES, VMF_OPENING_TOKEN } VmfOpening;
VmfOpening vmf_opening_classify(const uint8_t in[8]);
bool vmf_preamble_decode(const uint8_t in[VMF_PREAMBLE_SIZE], VmfPreamble *preamble, VmfStreamFormat *format, GError **error);

void vmf_token_preamble_encode(const VmfTokenPreamble *preamble, const VmfStreamFormat *format, uint8_t out[VMF_PREAMBLE_SIZE]);
bool vmf_token_preamble_decode(const uint8_t in[VMF_PREAMBLE_SIZE], VmfTokenPreamble *preamble, VmfStreamFormat *format,
                               GError **error);

#endif
