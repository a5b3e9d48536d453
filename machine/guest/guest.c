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
 * With several CPUs the working set has a part for each, which only that CPU visits. The first CPU keeps the beat,
 * speaks on the console, also for the others, and has the video memory and the ROM.
 *
 * Disks are disk.c's, on the first CPU.
 *
 * A page found damaged counts as one error, and is given its right content: later errors are new ones.
 *
 * No floating point, no division of 64 bits, no memory but what boot.h describes.
 */
#include "machine/guest/arch.h"
#include "machine/guest/disk.h"

#define PAGE_SIZE 4096u
#define LINE_WORDS 16u
#define LINES (PAGE_SIZE / 4 / LINE_WORDS)
#define WORD_STEP 0x9e3779b9u

#define SWEEP_PAGES_PER_TICK 8u
#define ROM_WORDS_PER_TICK 64u
#define VRAM_TICKS 16u
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

/* Belongs to one CPU; the first one also reads those of the others. */
struct worker {
    struct region set;
    volatile uint32_t ticks;
    volatile uint32_t pages_written;
    volatile uint32_t n_errors;
    volatile uint32_t error_address; /* of the latest one */
    uint32_t n_told;                 /* errors of which the console knows */
    uint32_t cpu;
};

static struct worker workers[GUEST_CPUS_MAX];
static struct region vram;
static uint32_t n_workers;
static volatile uint32_t ready; /* the first CPU has set up what the others need */
static uint32_t seed;
static uint32_t n_lines, line_ticks;
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

static uint32_t all_errors(void)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < n_workers; i++)
        sum += workers[i].n_errors;
    return sum;
}

static uint32_t all_pages_written(void)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < n_workers; i++)
        sum += workers[i].pages_written;
    return sum;
}

static void say_status(void)
{
    begin_line();
    put_decimal(workers[0].ticks);
    put(" ms, ");
    put_decimal(all_pages_written());
    put(" pages written, ");
    if (disks_blocks_written()) {
        put_decimal(disks_blocks_written());
        put(" disk blocks written, ");
        put_decimal(disks_failures());
        put(" disk failures, ");
    }
    put_decimal(all_errors());
    put(" errors\n");
}

static void say_error(const char *what, uint32_t address)
{
    begin_line();
    put("error: ");
    put(what);
    put(" at ");
    put_hex(address);
    put("\n");
}

static void report_error(struct worker *w, const char *what, uint32_t address)
{
    arch_error(address);
    w->error_address = address;
    w->n_errors++;
    if (w->cpu > 0 || w->n_told++ >= ERROR_LINES_MAX)
        return;
    say_error(what, address);
}

void guest_disk_error(uint32_t block)
{
    report_error(&workers[0], "disk block", block);
}

void guest_say(const char *what, uint32_t number)
{
    begin_line();
    put(what);
    put_decimal(number);
    put("\n");
}

static void say_errors_of_others(void)
{
    for (uint32_t i = 1; i < n_workers; i++) {
        struct worker *w = &workers[i];

        if (w->n_told == w->n_errors || w->n_told >= ERROR_LINES_MAX)
            continue;
        w->n_told++;
        say_error("another CPU's page", w->error_address);
    }
}

_Noreturn void guest_exception(unsigned cpu, uint32_t cause, uint32_t address)
{
    report_error(&workers[cpu], "exception", address);
    if (cpu == 0) {
        begin_line();
        put("halted by exception ");
        put_decimal(cause);
        put("\n");
    }
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

uint32_t guest_mix(uint32_t x)
{
    return mix(x);
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

static void write_next(struct worker *w, struct region *r)
{
    uint32_t page = next_page(r);
    uint32_t generation = next_generation(r->pass);

    if (r->generations[page] != r->pass)
        report_error(w, "generation", (uint32_t)(uintptr_t)&r->generations[page]);
    if (exchange_page(r, page, r->pass, generation))
        report_error(w, "page", (uint32_t)(uintptr_t)page_words(r, page));
    r->generations[page] = generation;
    w->pages_written++;
}

static int is_filled(const struct region *r)
{
    return r->n_pages == 0 || r->pass > 0 || r->index == 1u << r->bits;
}

/* A table entry that is neither of the two possible generations is an error of its own; the page's is then guessed. */
static void sweep_next(struct worker *w, struct region *r)
{
    uint32_t page = r->sweep;
    uint32_t generation;

    if (r->n_pages == 0)
        return;
    r->sweep = page + 1 < r->n_pages ? page + 1 : 0;
    generation = r->generations[page];
    if (generation != r->pass && generation != next_generation(r->pass)) {
        report_error(w, "generation", (uint32_t)(uintptr_t)&r->generations[page]);
        generation = compare_page(r, page, r->pass) ? next_generation(r->pass) : r->pass;
        r->generations[page] = generation;
    }
    if (compare_page(r, page, generation)) {
        report_error(w, "page", (uint32_t)(uintptr_t)page_words(r, page));
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

/* Main memory after the program's own data: what the disks need, the tables of generations, then the working set. */
static void init_regions(const struct guest_parameters *p)
{
    uint8_t *memory = arch_free_memory() + disks_room(p);
    uint32_t n_vram = p->vram_size / PAGE_SIZE;
    uint32_t room = p->ram_size - ((uint32_t)(uintptr_t)memory - p->ram_base) - n_vram * 4 - PAGE_SIZE;
    uint32_t n_set = room / (PAGE_SIZE + 4);
    uint32_t *tables = (uint32_t *)memory;
    uintptr_t pages;

    if (n_set > p->set_pages)
        n_set = p->set_pages;
    pages = ((uintptr_t)(tables + n_vram + n_set) + PAGE_SIZE - 1) & ~(uintptr_t)(PAGE_SIZE - 1);
    init_region(&vram, 1, (uint8_t *)(uintptr_t)p->vram_base, n_vram, tables);
    tables += n_vram;
    for (uint32_t i = 0; i < n_workers; i++) {
        uint32_t n_pages = n_set / n_workers + (i < n_set % n_workers);

        init_region(&workers[i].set, 2 + i, (uint8_t *)pages, n_pages, tables);
        workers[i].cpu = i;
        tables += n_pages;
        pages += (uintptr_t)n_pages * PAGE_SIZE;
    }
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
            report_error(&workers[0], "rom", p->rom_base);
        rom_index = 0;
        rom_sum = 0;
    }
}

/* ---- the day of a guest ------------------------------------------------------------------------------------------ */

void guest_tick(unsigned cpu)
{
    workers[cpu].ticks++;
    if (cpu == 0)
        arch_beat(all_pages_written());
}

/* What the first CPU does once each millisecond, however busy it is. */
static void each_tick(const struct guest_parameters *p, uint32_t tick)
{
    sum_rom(p, ROM_WORDS_PER_TICK);
    disks_tick();
    if (tick % VRAM_TICKS == 0 && vram.n_pages)
        write_next(&workers[0], &vram);
    if (tick % line_ticks == 0) {
        say_errors_of_others();
        say_status();
    }
}

static void say_hello(const struct guest_parameters *p)
{
    uint32_t n_pages = 0;

    for (uint32_t i = 0; i < n_workers; i++)
        n_pages += workers[i].set.n_pages;
    begin_line();
    put("memory ");
    put_decimal(p->ram_size / 1024);
    put(" KiB, set ");
    put_decimal(n_pages);
    put(" pages, rate ");
    put_decimal(p->pages_per_second);
    put(" pages a second\n");
}

/* A page written costs 1000 for each CPU: together they have the set rate. */
static void work(const struct guest_parameters *p, struct worker *w)
{
    const uint32_t credit_max = p->pages_per_second * CREDIT_TICKS;
    const uint32_t price = 1000 * n_workers;
    struct region *set = &w->set;
    uint32_t seen = w->ticks, credit = 0, sweeps = 0;

    for (;;) {
        for (; seen != w->ticks; sweeps = SWEEP_PAGES_PER_TICK) {
            seen++;
            if (w->cpu == 0)
                each_tick(p, seen);
            credit += p->pages_per_second;
            if (credit > credit_max)
                credit = credit_max;
        }
        if (!is_filled(set)) {
            write_next(w, set);
        } else if (credit >= price && set->n_pages) {
            credit -= price;
            write_next(w, set);
        } else if (sweeps) {
            sweeps--;
            sweep_next(w, sweeps || w->cpu > 0 ? set : &vram);
        } else {
            arch_wait(&w->ticks, seen);
        }
    }
}

static void set_up_all(const struct guest_parameters *p)
{
    if (p->magic != GUEST_PARAMETERS_MAGIC || p->n_cpus < 1 || p->n_cpus > GUEST_CPUS_MAX)
        guest_exception(0, 0, (uint32_t)(uintptr_t)p);
    seed = p->seed;
    n_workers = p->n_cpus;
    line_ticks = p->line_ticks ? p->line_ticks : GUEST_LINE_TICKS;
    disks_set_up(p, arch_free_memory(), seed);
    init_regions(p);
    sum_rom(p, p->rom_size / 4);
    say_hello(p);
    ready = 1;
}

_Noreturn void guest_main(unsigned cpu)
{
    const struct guest_parameters *p = arch_parameters();

    if (cpu == 0)
        set_up_all(p);
    while (!ready)
        continue;
    arch_start_timer();
    work(p, &workers[cpu]);
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
