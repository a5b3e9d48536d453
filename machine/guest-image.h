/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest program as it stands at the start of the ROM, for each backend; made from guest/ by guest/embed. */
#ifndef MACHINE_GUEST_IMAGE_H
#define MACHINE_GUEST_IMAGE_H

#include <stddef.h>
#include <stdint.h>

extern const uint8_t vmf_guest_image_rv32[];
extern const size_t vmf_guest_image_rv32_size;
extern const uint8_t vmf_guest_image_x86_64[];
extern const size_t vmf_guest_image_x86_64_size;

#endif
