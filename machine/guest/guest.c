/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guest program: shows that it lives, dirties memory at a set rate over a working set, and checks its own memory.
 *
 * Theory of Operation
 *
 * Memory that is checked comes in regions: the working set in main memory, and the video memory. A page of a region has
 * a generation, the number of times that it was written. Each of its 64-byte lines begins with a word that follows from
 * region, page, generation and line; generation 0 is all zero. So a page that is stale, torn or lost anywhere does not
 * match its generation.
 *
 * A region is written in passes. A pass visits each page once, in a pseudo-random order that differs from pass to pass,
 * checks it whole and writes the next generation. Before its visit a page has the generation of the pass, so the table
 * of generations is checked too. The first pass goes in order and as fast as it can: it fills the set. From then
 * on pages are written at the set rate. What is left of the time goes to a background sweep over all regions and the
 * ROM, at a few pages a millisecond, and to sleep.
 *
 * A page found damaged counts as one error, and is given its right content: later errors are new ones.
 *
 * No floating point, no division of 64 bits, no memory but what boot.h describes.
 */
#include "machine/guest/arch.h"

#define PAGE_SIZE 4096u
#define LINE_WORDS 16u
#define LINES (PAGE_SIZE / 4 / LINE_WORDS)
#define WORD_STEP 0x9e3779b9u

#define SWEEP_PAGES_PER_TICK 8u
#define ROM_WORDS_PER_TICK 64u
#define VRAM_TICKS 16u
#define LINE_TICKS 1000u
#define ERROR_LINES_MAX 32u
/* What a busy guest may be behind its rate before it forgets the rest. */
#define CREDIT_TICKS 50u

struct region {
    uint8_t *base;
    uint32_t n_pages;
    uint32_t *generations;
    uint32_t id;
    uint32_t bits;  /* the order of a pass is a permutation of 2^bits numbers, those from n_pages on are skipped */
    uint32_t pass;  /* the generation of the pages that this pass has yet to visit */
    uint32_t index; /* into the order */
    uint32_t sweep; /* the page that the background sweep looks at next */
};

static struct region set, vram;
static volatile uint32_t ticks;
static volatile uint32_t pages_written;
static uint32_t seed;
static uint32_t n_errors;
static uint32_t n_lines;
static uint32_t rom_index, rom_sum, rom_expected;

/* ---- console ----------------------------------------------------------------------------------------------------- */

static void put(const char *text)
{
    while (*text)
        arch_console(*text++);
}

static void put_decimal(uint32_t value)
{
    char digits[10];
    unsigned n = 0;

    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (n)
        arch_console(digits[--n]);
}

static void put_hex(uint32_t value)
{
    put("0x");
    for (int shift = 28; shift >= 0; shift -= 4)
        arch_console("0123456789abcdef"[value >> shift & 15]);
}

/* Every line has a running number, so that one that is lost is noticed. */
static void begin_line(void)
{
    put("guest: line ");
    put_decimal(n_lines++);
    put(": ");
}

static void say_status(void)
{
    begin_line();
    put_decimal(ticks);
    put(" ms, ");
    put_decimal(pages_written);
    put(" pages written, ");
    put_decimal(n_errors);
    put(" errors\n");
}

static void report_error(const char *what, uint32_t address)
{
    arch_error(address);
    if (n_errors++ >= ERROR_LINES_MAX)
        return;
    begin_line();
    put("error: ");
    put(what);
    put(" at ");
    put_hex(address);
    put("\n");
}

_Noreturn void guest_exception(uint32_t cause, uint32_t address)
{
    report_error("exception", address);
    begin_line();
    put("halted by exception ");
    put_decimal(cause);
    put("\n");
    arch_halt();
}

/* ---- what a page holds ------------------------------------------------------------------------------------------- */

static uint32_t mix(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

static uint32_t next_generation(uint32_t generation)
{
    return generation + 1 ? generation + 1 : 1;
}

/* The word of line 0; each further line adds word_step(). */
static uint32_t first_word(const struct region *r, uint32_t page, uint32_t generation)
{
    return generation ? mix(page + mix(generation + mix(seed + r->id))) : 0;
}

static uint32_t word_step(uint32_t generation)
{
    return generation ? WORD_STEP : 0;
}

static volatile uint32_t *page_words(const struct region *r, uint32_t page)
{
    return (volatile uint32_t *)(r->base + page * PAGE_SIZE);
}

/* Writes one generation over another; other than 0 when the old one was not there. */
static uint32_t exchange_page(const struct region *r, uint32_t page, uint32_t old_generation, uint32_t generation)
{
    volatile uint32_t *line = page_words(r, page);
    uint32_t old = first_word(r, page, old_generation), old_step = word_step(old_generation);
    uint32_t word = first_word(r, page, generation), step = word_step(generation);
    uint32_t difference = 0;

#pragma clang loop unroll_count(8)
    for (uint32_t i = 0; i < LINES; i++, line += LINE_WORDS) {
        difference |= *line ^ old;
        *line = word;
        old += old_step;
        word += step;
    }
    return difference;
}

static uint32_t compare_page(const struct region *r, uint32_t page, uint32_t generation)
{
    volatile uint32_t *line = page_words(r, page);
    uint32_t word = first_word(r, page, generation), step = word_step(generation);
    uint32_t difference = 0;

#pragma clang loop unroll_count(8)
    for (uint32_t i = 0; i < LINES; i++, line += LINE_WORDS) {
        difference |= *line ^ word;
        word += step;
    }
    return difference;
}

/* ---- passes ------------------------------------------------------------------------------------------------------ */

/*
 * The @x-th page of a pass. Multiplication by an odd number, addition, and xor with a right shift of itself are
 * permutations of 2^bits numbers. The first pass goes in order: a host that gives out memory in huge pages then clears
 * one at a time, and not all of them within the first guest millisecond.
 */
static uint32_t permute(const struct region *r, uint32_t x)
{
    uint32_t mask = (1u << r->bits) - 1;
    uint32_t shift = (r->bits + 1) / 2;

    if (r->pass == 0)
        return x;
    x = (x + mix(r->pass ^ seed)) & mask;
    x = (x * 0x2c1b3c6du) & mask;
    x ^= x >> shift;
    x = (x * 0x297a2d39u) & mask;
    return x ^ x >> shift;
}

static uint32_t next_page(struct region *r)
{
    uint32_t page;

    do {
        if (r->index == 1u << r->bits) {
            r->index = 0;
            r->pass = next_generation(r->pass);
        }
        page = permute(r, r->index++);
    } while (page >= r->n_pages);
    return page;
}

static void write_next(struct region *r)
{
    uint32_t page = next_page(r);
    uint32_t generation = next_generation(r->pass);

    if (r->generations[page] != r->pass)
        report_error("generation", (uint32_t)(uintptr_t)&r->generations[page]);
    if (exchange_page(r, page, r->pass, generation))
        report_error("page", (uint32_t)(uintptr_t)page_words(r, page));
    r->generations[page] = generation;
    pages_written++;
}

static int is_filled(const struct region *r)
{
    return r->n_pages == 0 || r->pass > 0 || r->index == 1u << r->bits;
}

/* A table entry that is neither of the two possible generations is an error of its own; the page's is then guessed. */
static void sweep_next(struct region *r)
{
    uint32_t page = r->sweep;
    uint32_t generation;

    if (r->n_pages == 0)
        return;
    r->sweep = page + 1 < r->n_pages ? page + 1 : 0;
    generation = r->generations[page];
    if (generation != r->pass && generation != next_generation(r->pass)) {
        report_error("generation", (uint32_t)(uintptr_t)&r->generations[page]);
        generation = compare_page(r, page, r->pass) ? next_generation(r->pass) : r->pass;
        r->generations[page] = generation;
    }
    if (compare_page(r, page, generation)) {
        report_error("page", (uint32_t)(uintptr_t)page_words(r, page));
        exchange_page(r, page, generation, generation);
    }
}

static void init_region(struct region *r, uint32_t id, uint8_t *base, uint32_t n_pages, uint32_t *generations)
{
    r->id = id;
    r->base = base;
    r->n_pages = n_pages;
    r->generations = generations;
    while (1u << r->bits < n_pages)
        r->bits++;
}

/* Main memory after the program's own data: the tables of generations, then the working set. */
static void init_regions(const struct guest_parameters *p)
{
    uint8_t *memory = arch_free_memory();
    uint32_t n_vram = p->vram_size / PAGE_SIZE;
    uint32_t room = p->ram_size - ((uint32_t)(uintptr_t)memory - p->ram_base) - n_vram * 4 - PAGE_SIZE;
    uint32_t n_set = room / (PAGE_SIZE + 4);
    uint32_t *tables = (uint32_t *)memory;
    uintptr_t pages;

    if (n_set > p->set_pages)
        n_set = p->set_pages;
    pages = ((uintptr_t)(tables + n_vram + n_set) + PAGE_SIZE - 1) & ~(uintptr_t)(PAGE_SIZE - 1);
    init_region(&vram, 1, (uint8_t *)(uintptr_t)p->vram_base, n_vram, tables);
    init_region(&set, 2, (uint8_t *)pages, n_set, tables + n_vram);
}

/* ---- the ROM ----------------------------------------------------------------------------------------------------- */

/* Adds @n words to the running sum and compares it at the end of the ROM with the first one, which is taken at boot. */
static void sum_rom(const struct guest_parameters *p, uint32_t n)
{
    const volatile uint32_t *rom = (const volatile uint32_t *)(uintptr_t)p->rom_base;

    while (n--) {
        rom_sum = (rom_sum << 1 | rom_sum >> 31) + rom[rom_index++];
        if (rom_index < p->rom_size / 4)
            continue;
        if (!rom_expected)
            rom_expected = rom_sum;
        if (rom_sum != rom_expected)
            report_error("rom", p->rom_base);
        rom_index = 0;
        rom_sum = 0;
    }
}

/* ---- the day of a guest ------------------------------------------------------------------------------------------ */

void guest_tick(void)
{
    ticks++;
    arch_beat(pages_written);
}

/* What is done once each millisecond, however busy the guest is. */
static void each_tick(const struct guest_parameters *p, uint32_t tick)
{
    sum_rom(p, ROM_WORDS_PER_TICK);
    if (tick % VRAM_TICKS == 0 && vram.n_pages)
        write_next(&vram);
    if (tick % LINE_TICKS == 0)
        say_status();
}

static void say_hello(const struct guest_parameters *p)
{
    begin_line();
    put("memory ");
    put_decimal(p->ram_size / 1024);
    put(" KiB, set ");
    put_decimal(set.n_pages);
    put(" pages, rate ");
    put_decimal(p->pages_per_second);
    put(" pages a second\n");
}

static void work(const struct guest_parameters *p)
{
    const uint32_t credit_max = p->pages_per_second * CREDIT_TICKS;
    uint32_t seen = ticks, credit = 0, sweeps = 0;

    for (;;) {
        for (; seen != ticks; sweeps = SWEEP_PAGES_PER_TICK) {
            each_tick(p, ++seen);
            credit += p->pages_per_second;
            if (credit > credit_max)
                credit = credit_max;
        }
        if (!is_filled(&set)) {
            write_next(&set);
        } else if (credit >= 1000 && set.n_pages) {
            credit -= 1000;
            write_next(&set);
        } else if (sweeps) {
            sweeps--;
            sweep_next(sweeps ? &set : &vram);
        } else {
            arch_wait(&ticks, seen);
        }
    }
}

_Noreturn void guest_main(void)
{
    const struct guest_parameters *p = arch_parameters();

    if (p->magic != GUEST_PARAMETERS_MAGIC)
        guest_exception(0, (uint32_t)(uintptr_t)p);
    seed = p->seed;
    init_regions(p);
    sum_rom(p, p->rom_size / 4);
    say_hello(p);
    arch_start_timer();
    work(p);
    arch_halt();
}

/* What the compiler may call by itself. */
void *memset(void *to, int value, __SIZE_TYPE__ n);
void *memset(void *to, int value, __SIZE_TYPE__ n)
{
    volatile uint8_t *byte = to;

    while (n--)
        *byte++ = (uint8_t)value;
    return to;
}

void *memcpy(void *to, const void *from, __SIZE_TYPE__ n);
void *memcpy(void *to, const void *from, __SIZE_TYPE__ n)
{
    volatile uint8_t *byte = to;
    const uint8_t *source = from;

    while (n--)
        *byte++ = *source++;
    return to;
}
