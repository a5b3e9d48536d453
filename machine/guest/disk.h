/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest program's work on its disks, and what that needs of the rest of the program. */
#ifndef MACHINE_GUEST_DISK_H
#define MACHINE_GUEST_DISK_H

#include "machine/guest/arch.h"

/* Bytes of memory, from a page on, that the disks need for their tables and buffers. */
uint32_t disks_room(const struct guest_parameters *p);
/* @memory: so much, zero, page aligned. */
void disks_set_up(const struct guest_parameters *p, uint8_t *memory, uint32_t seed);
/* Each guest millisecond, on the first CPU. */
void disks_tick(void);
/* For the console. */
uint32_t disks_blocks_written(void);
uint32_t disks_failures(void);

/* guest.c */
uint32_t guest_mix(uint32_t x);
/* The self-check found something on a disk. */
void guest_disk_error(uint32_t block);
void guest_say(const char *what, uint32_t number);

#endif
