/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the VMM and the guest program agree on: the memory map, the device registers and the boot parameter block.
 * Included by both.
 */
#ifndef MACHINE_GUEST_BOOT_H
#define MACHINE_GUEST_BOOT_H

#include <stdint.h>

/* Guest physical addresses and sizes in bytes. The program starts at the beginning of the ROM; main memory may reach to
 * the end. */
#define GUEST_MMIO_BASE 0x10000000u
#define GUEST_ROM_BASE 0x20000000u
#define GUEST_ROM_SIZE 0x00010000u
#define GUEST_VRAM_BASE 0x40000000u
#define GUEST_VRAM_SIZE 0x00040000u
#define GUEST_RAM_BASE 0x80000000u
#define GUEST_RAM_SIZE_MAX 0x80000000u
#define GUEST_RAM_SIZE_MIN 0x00040000u

/* A guest millisecond, in counted instructions: 100 million are a second. */
#define GUEST_TICK 100000u

/* Device registers, 32 bits each, offsets from GUEST_MMIO_BASE. */
#define GUEST_REG_BEAT                                                                                                 \
    0x00 /* write: a sign of life each millisecond; the value counts the pages written, modulo 2^32 */
#define GUEST_REG_ERROR 0x04      /* write: the self-check failed; the value is the address */
#define GUEST_REG_CONSOLE 0x08    /* write: one character */
#define GUEST_REG_TIME_LOW 0x10   /* read: the instruction count */
#define GUEST_REG_TIME_HIGH 0x14  /* read */
#define GUEST_REG_TIMER_LOW 0x18  /* read and write: the timer interrupt is pending from this count on */
#define GUEST_REG_TIMER_HIGH 0x1c /* read and write */
#define GUEST_MMIO_SIZE 0x20

/* On x86-64 the devices are at ports instead, the timer is the local APIC's, and the program's image may have 32 KiB: what
 * follows it are the page tables, made by the VMM. */
#define GUEST_PORT_SERIAL 0x3f8u /* a 16550's first port; 8 bits */
#define GUEST_PORT_BEAT 0x600u   /* 32 bits */
#define GUEST_PORT_ERROR 0x604u  /* 32 bits */
#define GUEST_PORT_END 0x608u
#define GUEST_PAGE_TABLES_OFFSET 0x8000u

/* At the start of the ROM's last page; little-endian. */
#define GUEST_PARAMETERS_OFFSET (GUEST_ROM_SIZE - 4096u)
#define GUEST_PARAMETERS_MAGIC 0x31504756u /* "VGP1" */
struct guest_parameters {
    uint32_t magic;
    uint32_t ram_base, ram_size;
    uint32_t vram_base, vram_size;
    uint32_t rom_base, rom_size;
    uint32_t pages_per_second; /* page writes; at most GUEST_PAGES_PER_SECOND_MAX */
    uint32_t set_pages;        /* working set; fewer where memory has no room for them */
    uint32_t seed;
    uint32_t n_cpus; /* 1 to GUEST_CPUS_MAX */
};
#define GUEST_CPUS_MAX 8u
#define GUEST_PAGES_PER_SECOND_MAX 10000000u

#endif
