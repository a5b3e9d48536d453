/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Work on disks.
 *
 * Theory of Operation
 *
 * A block of 4 KiB has a generation, the number of the request that wrote it last; each of its 64-byte lines begins
 * with a word that follows from disk, block, generation and line, so a block that is stale, torn or lost does not
 * match. A block that was zeroed last has a generation too, with ZEROED in it, and only zeros. Of a block with
 * generation 0 nothing is known, and nothing is checked: at first, and after a request on it has failed.
 *
 * The first pass goes in order and fills the set; from then on blocks are taken at random: a write of one to four of
 * them at the set rate, between two writes a read that is checked, now and then zeros, a discard, a flush. No two
 * requests that are under way touch one block.
 */
#include "machine/guest/disk.h"

#define LINES (GUEST_DISK_BLOCK / 64)
#define LINE_WORDS 16u
#define WORD_STEP 0x9e3779b9u
#define ZEROED 0x80000000u
#define CREDIT_TICKS 50u
#define FAILURE_LINES_MAX 16u

#define ZERO_EVERY 29u
#define DISCARD_EVERY 37u
#define FLUSH_EVERY 41u
#define FUA_EVERY 11u

struct request {
    uint32_t command; /* 0: none */
    uint32_t block, n_blocks;
    uint32_t generation;
};

struct disk {
    uint32_t number;
    uint32_t n_blocks;
    uint32_t *generations;
    uint8_t *buffers;
    uint32_t filled; /* blocks of the first pass */
    uint32_t n_requests;
    uint32_t credit;
    uint32_t blocks_written;
    uint32_t n_failures;
    struct request requests[GUEST_DISK_SLOTS];
};

static struct disk disks[GUEST_DISKS_MAX];
static uint32_t n_disks, rate, disk_seed;

/* ---- what a block holds ------------------------------------------------------------------------------------------ */

static uint32_t first_word(const struct disk *d, uint32_t block, uint32_t generation)
{
    return generation & ZEROED
               ? 0
               : guest_mix(block + guest_mix(generation + guest_mix(disk_seed ^ (d->number + 0x6469736bu))));
}

static void fill_block(const struct disk *d, volatile uint32_t *line, uint32_t block, uint32_t generation)
{
    uint32_t word = first_word(d, block, generation);

    for (uint32_t i = 0; i < LINES; i++, line += LINE_WORDS, word += WORD_STEP)
        *line = word;
}

static uint32_t compare_block(const struct disk *d, const volatile uint32_t *line, uint32_t block, uint32_t generation)
{
    uint32_t word = first_word(d, block, generation), step = generation & ZEROED ? 0 : WORD_STEP, difference = 0;

    for (uint32_t i = 0; i < LINES; i++, line += LINE_WORDS, word += step)
        difference |= *line ^ word;
    return difference;
}

static volatile uint32_t *buffer_of(const struct disk *d, uint32_t slot, uint32_t index)
{
    return (volatile uint32_t *)(d->buffers + (slot * GUEST_DISK_REQUEST_BLOCKS + index) * GUEST_DISK_BLOCK);
}

/* ---- the end of a request ---------------------------------------------------------------------------------------- */

static void check_read(struct disk *d, uint32_t slot, const struct request *r)
{
    for (uint32_t i = 0; i < r->n_blocks; i++) {
        uint32_t block = r->block + i, generation = d->generations[block];

        if (!generation || !compare_block(d, buffer_of(d, slot, i), block, generation))
            continue;
        guest_disk_error(block);
        d->generations[block] = 0;
    }
}

static void set_generations(struct disk *d, const struct request *r, uint32_t generation)
{
    for (uint32_t i = 0; i < r->n_blocks; i++)
        d->generations[r->block + i] = generation;
}

static int changes(uint32_t command)
{
    return command != GUEST_DISK_READ && command != GUEST_DISK_FLUSH;
}

static void fail(struct disk *d, const struct request *r)
{
    if (changes(r->command))
        set_generations(d, r, 0);
    if (d->n_failures++ < FAILURE_LINES_MAX)
        guest_say("a request failed on disk block ", r->block);
}

static void finish(struct disk *d, uint32_t slot)
{
    struct request *r = &d->requests[slot];
    uint32_t status = arch_disk_read(d->number, slot, GUEST_DISK_STATUS);

    if (status == GUEST_DISK_BUSY)
        return;
    if (status != GUEST_DISK_DONE)
        fail(d, r);
    else if (r->command == GUEST_DISK_READ)
        check_read(d, slot, r);
    else if (changes(r->command))
        set_generations(d, r, r->generation);
    if (changes(r->command) && status == GUEST_DISK_DONE)
        d->blocks_written += r->n_blocks;
    r->command = 0;
}

/* ---- its beginning ----------------------------------------------------------------------------------------------- */

static int is_under_way(const struct disk *d, uint32_t block, uint32_t n_blocks)
{
    for (uint32_t i = 0; i < GUEST_DISK_SLOTS; i++) {
        const struct request *r = &d->requests[i];

        if (r->command && block < r->block + r->n_blocks && r->block < block + n_blocks)
            return 1;
    }
    return 0;
}

static void submit(struct disk *d, uint32_t slot, const struct request *r)
{
    uint32_t sectors = GUEST_DISK_BLOCK / 512;

    d->requests[slot] = *r;
    if (r->command == GUEST_DISK_WRITE || r->command == GUEST_DISK_WRITE_FUA)
        for (uint32_t i = 0; i < r->n_blocks; i++)
            fill_block(d, buffer_of(d, slot, i), r->block + i, r->generation);
    arch_disk_write(d->number, slot, GUEST_DISK_ADDRESS, (uint32_t)(uintptr_t)buffer_of(d, slot, 0));
    arch_disk_write(d->number, slot, GUEST_DISK_LENGTH, r->n_blocks * GUEST_DISK_BLOCK);
    arch_disk_write(d->number, slot, GUEST_DISK_SECTOR_LOW, r->block * sectors);
    arch_disk_write(d->number, slot, GUEST_DISK_SECTOR_HIGH, r->block >> 29);
    arch_disk_write(d->number, slot, GUEST_DISK_COMMAND, r->command);
}
_Static_assert(GUEST_DISK_BLOCK == 8 * 512, "the upper half of a sector's number is the block's upper 3 bits");

static uint32_t command_of(uint32_t number)
{
    if (number % FLUSH_EVERY == 0)
        return GUEST_DISK_FLUSH;
    if (number % 2)
        return GUEST_DISK_READ;
    if (number % ZERO_EVERY == 0)
        return GUEST_DISK_ZERO;
    if (number % DISCARD_EVERY == 0)
        return GUEST_DISK_DISCARD;
    return number % FUA_EVERY ? GUEST_DISK_WRITE : GUEST_DISK_WRITE_FUA;
}

/* Returns its price in credit; 0: it could not begin now. */
static uint32_t begin_one(struct disk *d, uint32_t slot)
{
    uint32_t number = ++d->n_requests, random = guest_mix(number ^ disk_seed);
    struct request r = {.command = command_of(number), .n_blocks = 1 + (random >> 28) % GUEST_DISK_REQUEST_BLOCKS};

    r.generation = (number & ~ZEROED) | (r.command == GUEST_DISK_ZERO || r.command == GUEST_DISK_DISCARD ? ZEROED : 0);
    r.block = random % d->n_blocks;
    if (d->filled < d->n_blocks && r.command != GUEST_DISK_FLUSH) {
        r = (struct request){GUEST_DISK_WRITE, d->filled, GUEST_DISK_REQUEST_BLOCKS, number & ~ZEROED};
    }
    if (r.n_blocks > d->n_blocks - r.block)
        r.n_blocks = d->n_blocks - r.block;
    if (r.command == GUEST_DISK_FLUSH)
        r.n_blocks = 0;
    if (is_under_way(d, r.block, r.n_blocks))
        return 0;
    submit(d, slot, &r);
    if (r.command == GUEST_DISK_FLUSH)
        return 1;
    if (d->filled < d->n_blocks) {
        d->filled += r.n_blocks;
        return 1;
    }
    return changes(r.command) ? r.n_blocks * 1000 : 1;
}

static void work_on(struct disk *d)
{
    uint32_t price = 1;

    d->credit += rate;
    if (d->credit > rate * CREDIT_TICKS + 1000 * GUEST_DISK_REQUEST_BLOCKS)
        d->credit = rate * CREDIT_TICKS + 1000 * GUEST_DISK_REQUEST_BLOCKS;
    for (uint32_t slot = 0; slot < GUEST_DISK_SLOTS; slot++) {
        if (d->requests[slot].command)
            finish(d, slot);
        if (d->requests[slot].command || !price ||
            (d->filled >= d->n_blocks && d->credit < 1000 * GUEST_DISK_REQUEST_BLOCKS))
            continue;
        price = begin_one(d, slot);
        d->credit -= price < d->credit ? price : d->credit;
    }
}

/* ---- for the rest of the program --------------------------------------------------------------------------------- */

static uint32_t table_bytes(uint32_t n_blocks)
{
    return (n_blocks * 4 + GUEST_DISK_BLOCK - 1) / GUEST_DISK_BLOCK * GUEST_DISK_BLOCK;
}

uint32_t disks_room(const struct guest_parameters *p)
{
    uint32_t room = 0;

    for (uint32_t i = 0; i < p->n_disks; i++)
        if (p->disk_set_blocks[i])
            room += GUEST_DISK_BUFFERS + table_bytes(p->disk_set_blocks[i]);
    return room;
}

void disks_set_up(const struct guest_parameters *p, uint8_t *memory, uint32_t seed)
{
    n_disks = p->n_disks;
    rate = p->disk_blocks_per_second;
    disk_seed = seed;
    for (uint32_t i = 0; i < n_disks; i++) {
        disks[i].number = i;
        disks[i].n_blocks = p->disk_set_blocks[i];
        if (!disks[i].n_blocks)
            continue;
        disks[i].buffers = memory;
        disks[i].generations = (uint32_t *)(memory + GUEST_DISK_BUFFERS);
        memory += GUEST_DISK_BUFFERS + table_bytes(disks[i].n_blocks);
    }
}

void disks_tick(void)
{
    for (uint32_t i = 0; i < n_disks; i++)
        if (disks[i].n_blocks)
            work_on(&disks[i]);
}

uint32_t disks_blocks_written(void)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < n_disks; i++)
        sum += disks[i].blocks_written;
    return sum;
}

uint32_t disks_failures(void)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < n_disks; i++)
        sum += disks[i].n_failures;
    return sum;
}
