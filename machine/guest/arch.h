/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the guest program needs of the processor it runs on, and what that part calls. One arch-*.c for each. */
#ifndef MACHINE_GUEST_ARCH_H
#define MACHINE_GUEST_ARCH_H

#include "machine/guest/boot.h"

const struct guest_parameters *arch_parameters(void);
/* First byte of main memory that program, data and stack do not use; page aligned. */
uint8_t *arch_free_memory(void);

/* Starts this CPU's timer: guest_tick() is called each guest millisecond from now on, as an interrupt. */
void arch_start_timer(void);
/* Sleeps until *ticks, which guest_tick() changes, is other than @seen. */
void arch_wait(const volatile uint32_t *ticks, uint32_t seen);

void arch_beat(uint32_t pages_written);
void arch_error(uint32_t address);
void arch_console(char c);
/* A register of boot.h, GUEST_DISK_…; the device sees memory as it is at this point of the program, and the program what it wrote. */
void arch_disk_write(uint32_t disk, uint32_t slot, uint32_t reg, uint32_t value);
uint32_t arch_disk_read(uint32_t disk, uint32_t slot, uint32_t reg);
/* No interrupt, no instruction that matters, for ever. */
_Noreturn void arch_halt(void);

/* guest.c; on each CPU once, those but the first in any order. No tick before arch_start_timer() */
_Noreturn void guest_main(unsigned cpu);
/* guest.c; from the timer interrupt of that CPU */
void guest_tick(unsigned cpu);
/* guest.c; an exception that the program never causes by itself */
_Noreturn void guest_exception(unsigned cpu, uint32_t cause, uint32_t address);

#endif
