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

/*
 * Disks: each has slots for requests, each slot these registers, at GUEST_DISK_BASE + disk * GUEST_DISK_STRIDE + slot *
 * GUEST_DISK_SLOT_STRIDE. Only the disks that the machine has are there. A request is set in the first four registers and begun by
 * writing the command; what is written while the slot is busy is lost. Data to be written is taken from memory at that instruction, data
 * that is read appears in memory together with the status that says so: on rv32 exactly GUEST_DISK_DELAY instructions after the command,
 * however long the host takes; on x86-64 when the status is read and the host is done. There is no interrupt.
 */
#define GUEST_DISK_BASE 0x100u
#define GUEST_DISKS_MAX 4u
#define GUEST_DISK_STRIDE 0x100u
#define GUEST_DISK_SLOTS 8u
#define GUEST_DISK_SLOT_STRIDE 0x20u
#define GUEST_DISK_ADDRESS 0x00u /* in memory */
#define GUEST_DISK_LENGTH 0x04u /* bytes; whole sectors of the disk, at most GUEST_DISK_LENGTH_MAX where there is data */
#define GUEST_DISK_SECTOR_LOW 0x08u /* on the disk; in units of 512 bytes, whatever its sectors are */
#define GUEST_DISK_SECTOR_HIGH 0x0cu
#define GUEST_DISK_COMMAND 0x10u
#define GUEST_DISK_STATUS 0x14u /* read only */
#define GUEST_DISK_LENGTH_MAX 65536u
#define GUEST_DISK_DELAY 20000u

#define GUEST_DISK_READ 1u
#define GUEST_DISK_WRITE 2u
#define GUEST_DISK_WRITE_FUA 3u /* durable when it is done */
#define GUEST_DISK_FLUSH 4u     /* what was done before is durable when it is done */
#define GUEST_DISK_ZERO 5u      /* reads as zeros */
#define GUEST_DISK_DISCARD 6u   /* reads as zeros, and need take no space */

#define GUEST_DISK_IDLE 0u
#define GUEST_DISK_BUSY 1u
#define GUEST_DISK_DONE 2u
#define GUEST_DISK_FAILED 3u /* what a failed write has left is not known; nothing was read */

/* On x86-64 the devices are at ports instead, the timer is the local APIC's, and the program's image may have 32 KiB: what
 * follows it are the page tables, made by the VMM. */
#define GUEST_PORT_SERIAL 0x3f8u /* a 16550's first port; 8 bits */
#define GUEST_PORT_BEAT 0x600u   /* 32 bits */
#define GUEST_PORT_ERROR 0x604u  /* 32 bits */
#define GUEST_PORT_DISK 0x800u   /* 32 bits; the registers of GUEST_DISK_BASE */
#define GUEST_PORT_END (GUEST_PORT_DISK + GUEST_DISKS_MAX * GUEST_DISK_STRIDE)
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
    uint32_t n_cpus;     /* 1 to GUEST_CPUS_MAX */
    uint32_t line_ticks; /* guest milliseconds between two lines on the console; 0: GUEST_LINE_TICKS */
    uint32_t n_disks;
    uint32_t disk_blocks_per_second; /* written to each disk; at most GUEST_PAGES_PER_SECOND_MAX */
    uint32_t disk_set_blocks[GUEST_DISKS_MAX]; /* of each the first so many blocks are worked on */
};
/* The program's unit of a disk, in bytes, and what it needs of memory for each disk: four bytes for a block, and buffers. */
#define GUEST_DISK_BLOCK 4096u
#define GUEST_DISK_REQUEST_BLOCKS 4u
#define GUEST_DISK_BUFFERS (GUEST_DISK_SLOTS * GUEST_DISK_REQUEST_BLOCKS * GUEST_DISK_BLOCK)
#define GUEST_LINE_TICKS 1000u
#define GUEST_CPUS_MAX 8u
#define GUEST_PAGES_PER_SECOND_MAX 10000000u

#endif
