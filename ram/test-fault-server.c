/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/block.h"
#include "ram/fault-server.h"
#include "ram/lazy-ram.h"
#include "ram/test-fake-pages.h"
#include "tests/huge-pages.h"

#define BLOCKS 2
#define RAM_CHUNKS 12
#define VRAM_CHUNKS 3

typedef struct {
    VmfRamBackend backend;
    VmfRamBlock *blocks[BLOCKS];
    FakePages fake;
    VmfFaultServer *server;
    VmfFaultServerConfig config;
    bool release; /* what lost() answers */
    _Atomic unsigned n_lost, n_touched;
    _Atomic uint64_t lost_place; /* the last one */
    _Atomic int lost_code;
    _Atomic bool complete;
} World;

static bool has_huge_pages;

/* ---- memory that ends an access -----------------------------------------------------------------------------------
 */

static __thread sigjmp_buf *volatile way_out;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    if (!way_out)
        abort();
    siglongjmp(*way_out, 1);
}

/* Reads a byte: true and *value, or false: it was not to be had. */
__attribute__((noinline)) static bool try_read(const volatile uint8_t *at, uint8_t *value)
{
    sigjmp_buf here;
    volatile bool had = false;

    if (sigsetjmp(here, 1) == 0) {
        way_out = &here;
        *value = *at;
        had = true;
    }
    way_out = NULL;
    return had;
}

/* ---- the world ----------------------------------------------------------------------------------------------------
 */

static bool on_lost(void *opaque, unsigned block, uint64_t page, bool touched, const GError *error)
{
    World *world = opaque;

    atomic_store(&world->lost_place, fake_place(block, page));
    atomic_store(&world->lost_code, error->code);
    if (touched)
        atomic_fetch_add(&world->n_touched, 1);
    atomic_fetch_add(&world->n_lost, 1);
    return world->release;
}

static void on_complete(void *opaque)
{
    World *world = opaque;

    atomic_store(&world->complete, true);
}

static const VmfFaultServerOps server_ops = {
    .size = sizeof(VmfFaultServerOps), .lost = on_lost, .complete = on_complete};

static int set_up(void **state, VmfRamBackend backend)
{
    World *world = g_new0(World, 1);
    uint64_t odd = backend == VMF_RAM_HUGETLB ? 0 : 3 * VMF_PAGE_SIZE;

    *state = world;
    world->backend = backend;
    if (backend == VMF_RAM_HUGETLB && !has_huge_pages)
        return 0;
    world->blocks[0] = vmf_ram_block_new("ram", RAM_CHUNKS * VMF_CHUNK_SIZE + odd, backend, 0, 0, NULL);
    world->blocks[1] = vmf_ram_block_new("vram", VRAM_CHUNKS * VMF_CHUNK_SIZE, backend, 0, 1u << 30, NULL);
    assert_non_null(world->blocks[0]);
    assert_non_null(world->blocks[1]);
    world->release = true;
    world->config = (VmfFaultServerConfig){
        .blocks = world->blocks,
        .n_blocks = BLOCKS,
        .reader = &fake_reader_ops,
        .source = &world->fake,
        .ops = &server_ops,
        .opaque = world,
    };
    return 0;
}

static int set_up_anon(void **state)
{
    return set_up(state, VMF_RAM_ANON);
}

static int set_up_memfd(void **state)
{
    return set_up(state, VMF_RAM_MEMFD);
}

static int set_up_hugetlb(void **state)
{
    return set_up(state, VMF_RAM_HUGETLB);
}

static int tear_down(void **state)
{
    World *world = *state;

    vmf_fault_server_free(world->server);
    for (unsigned b = 0; b < BLOCKS; b++)
        vmf_ram_block_free(world->blocks[b]);
    g_free(world);
    return 0;
}

/* Ends the test where there is no memory of the kind; nothing is allocated by then, as a skip is a jump. */
static void require(World *world, bool condition)
{
    if (!world->blocks[0] || !condition)
        skip();
}

static void begin(World *world)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

    require(world, true);
    sigaction(SIGSEGV, &action, NULL); /* here, as cmocka sets its own ahead of each test */
    world->server = vmf_fault_server_new(&world->config, NULL);
    assert_non_null(world->server);
}

static void fill(World *world)
{
    assert_true(vmf_fault_server_fill(world->server, NULL));
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
}

static void await_complete(World *world)
{
    while (!atomic_load(&world->complete))
        nap();
}

static void await_lost(World *world)
{
    while (!atomic_load(&world->n_lost))
        nap();
}

static uint8_t *page_of(World *world, unsigned block, uint64_t page)
{
    return vmf_ram_block_page(world->blocks[block], page);
}

static bool is_right(World *world, unsigned block, uint64_t page)
{
    return fake_is_right(&world->fake, block, page, page_of(world, block, page));
}

static VmfFaultStatistics statistics(World *world)
{
    VmfFaultStatistics s;

    vmf_fault_server_statistics(world->server, &s);
    return s;
}

/* The server counts a fault just after it has let the thread go. */
static void await_faults(World *world, unsigned n)
{
    while (statistics(world).n_faults < n)
        nap();
}

/* ---- all is well --------------------------------------------------------------------------------------------------
 */

static void what_is_touched_is_there(void **state)
{
    World *world = *state;
    static const uint64_t pages[] = {700, 0, 5, 511, 512, 513, 1030, 64, 384, 2000};

    begin(world);
    for (unsigned i = 0; i < G_N_ELEMENTS(pages); i++)
        assert_true(is_right(world, 0, pages[i]));
    assert_true(is_right(world, 1, 3));
    await_faults(world, world->backend == VMF_RAM_HUGETLB ? 5 : 9);
    VmfFaultStatistics s = statistics(world);
    assert_false(s.complete);
    assert_true(s.n_faults > 0 && s.n_faults <= G_N_ELEMENTS(pages) + 1);
    assert_true(s.fault_p50_ns > 0 && s.fault_p50_ns <= s.fault_p99_ns && s.fault_p99_ns <= s.fault_max_ns);
    assert_true(s.first_fault_ns > 0);
    assert_true(s.fault_bytes > 0 && s.prefetch_bytes == 0);
}

static void all_of_it_arrives(void **state)
{
    World *world = *state;

    begin(world);
    fill(world);
    await_complete(world);
    assert_true(world->fake.n_tables_first >= 8); /* all of them, so that no fault has to wait for one */
    for (unsigned block = 0; block < BLOCKS; block++) {
        for (uint64_t page = 0; page < vmf_ram_block_n_pages(world->blocks[block]); page++)
            assert_true(is_right(world, block, page));
    }
    VmfFaultStatistics s = statistics(world);
    assert_true(s.complete);
    assert_int_equal(s.n_faults, 0); /* it was ordinary memory by then */
    assert_int_equal(world->n_lost, 0);
}

typedef struct {
    World *world;
    unsigned seed;
    unsigned index;
    unsigned n_wrong;
    pthread_t thread;
} Toucher;

#define TOUCHERS 3u
#define MARK UINT64_C(0x1122334455667788)

/* Each thread looks at all pages, and writes, in its own share, over the first word of what it looked at. */
static void *touch_at_random(void *opaque)
{
    Toucher *t = opaque;
    World *world = t->world;
    uint64_t n_pages = vmf_ram_block_n_pages(world->blocks[0]);

    for (unsigned i = 0; i < 4000; i++) {
        uint64_t page = (uint64_t)rand_r(&t->seed) % n_pages / TOUCHERS * TOUCHERS + t->index;
        if (page >= n_pages)
            continue;
        uint64_t *words = (uint64_t *)page_of(world, 0, page);
        if (words[1] != 0 && words[0] == MARK + page)
            continue; /* was here before */
        if (!is_right(world, 0, page) && words[0] != MARK + page)
            t->n_wrong++;
        words[0] = MARK + page;
    }
    return NULL;
}

static void assert_right_or_written(World *world, uint64_t page)
{
    const uint64_t *words = (const uint64_t *)page_of(world, 0, page);
    g_autofree uint64_t *copy = aligned_alloc(64, VMF_PAGE_SIZE);

    if (fake_is_right(&world->fake, 0, page, words))
        return;
    assert_int_equal(words[0], MARK + page);
    /* All but the first word is as it was brought: compare by way of a page that was not written. */
    memcpy(copy, words, VMF_PAGE_SIZE);
    copy[0] = copy[1] - (copy[2] - copy[1]);
    assert_true(fake_is_right(&world->fake, 0, page, copy));
}

static void a_running_guest_meets_the_right_bytes_and_keeps_its_own(void **state)
{
    World *world = *state;
    Toucher touchers[TOUCHERS];
    unsigned n_wrong = 0;

    begin(world);
    for (unsigned i = 0; i < TOUCHERS; i++) {
        touchers[i] = (Toucher){.world = world, .seed = 17 * i + 1, .index = i};
        assert_int_equal(pthread_create(&touchers[i].thread, NULL, touch_at_random, &touchers[i]), 0);
    }
    fill(world);
    for (unsigned i = 0; i < TOUCHERS; i++) {
        pthread_join(touchers[i].thread, NULL);
        n_wrong += touchers[i].n_wrong;
    }
    await_complete(world);
    assert_int_equal(n_wrong, 0);
    for (uint64_t page = 0; page < vmf_ram_block_n_pages(world->blocks[0]); page++)
        assert_right_or_written(world, page);
}

static void system_calls_meet_it_too(void **state)
{
    World *world = *state;
    int ends[2];

    begin(world);
    require(world, vmf_fault_server_sees_kernel(world->server));
    g_autofree uint8_t *copy = aligned_alloc(64, 4 * VMF_PAGE_SIZE);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], page_of(world, 0, 100), 4 * VMF_PAGE_SIZE), 4 * VMF_PAGE_SIZE);
    assert_int_equal(read(ends[0], copy, 4 * VMF_PAGE_SIZE), 4 * VMF_PAGE_SIZE);
    for (unsigned i = 0; i < 4; i++)
        assert_true(fake_is_right(&world->fake, 0, 100 + i, copy + i * VMF_PAGE_SIZE));
    /* And the other way: part of a page that is not there. */
    assert_int_equal(write(ends[1], "abcdefgh", 8), 8);
    assert_int_equal(read(ends[0], page_of(world, 0, 640), 8), 8);
    assert_memory_equal(page_of(world, 0, 640), "abcdefgh", 8);
    assert_true(page_of(world, 0, 640)[8] != 0);
    close(ends[0]);
    close(ends[1]);
}

static void touching_neighbours_takes_few_reads(void **state)
{
    World *world = *state;

    begin(world);
    for (uint64_t page = 64; page < 128; page++)
        assert_true(is_right(world, 0, page));
    await_faults(world, 1);
    assert_in_range(statistics(world).n_faults, 1, 64 / 4);
    assert_in_range(world->fake.n_reads, 1, 64 / 4);
}

static void touching_far_apart_reads_no_more(void **state)
{
    World *world = *state;
    unsigned n = 0;

    require(world, world->backend != VMF_RAM_HUGETLB);
    begin(world);
    for (uint64_t page = 0; page < 1024; page += 64, n++)
        assert_true(is_right(world, 0, page));
    await_faults(world, n);
    assert_int_equal(statistics(world).n_faults, n);
    assert_true(statistics(world).fault_bytes <= n * VMF_PAGE_SIZE);
}

static bool at_both_ends(unsigned block, uint64_t page)
{
    return page < 100 || page >= (UINT64_C(64) << 30) / VMF_PAGE_SIZE - 100;
}

static void long_holes_are_ordinary_memory(void **state)
{
    World *world = *state;

    require(world, world->backend != VMF_RAM_HUGETLB);
    vmf_ram_block_free(world->blocks[0]);
    world->blocks[0] = vmf_ram_block_new("ram", UINT64_C(64) << 30, world->backend, 0, 0, NULL);
    world->fake.has_data = at_both_ends;
    begin(world);
    uint64_t n_pages = vmf_ram_block_n_pages(world->blocks[0]);
    for (uint64_t page = 1024; page < n_pages - 1024; page += n_pages / 64)
        page_of(world, 0, page)[0] = 1;
    assert_int_equal(statistics(world).n_faults, 0);
    assert_true(is_right(world, 0, n_pages - 50));
    assert_true(is_right(world, 0, n_pages - 150));
    assert_true(is_right(world, 0, 99));
    await_faults(world, 3);
    assert_int_equal(statistics(world).n_faults, 3);
    fill(world);
    await_complete(world);
    assert_true(is_right(world, 0, 98));
    assert_true(is_right(world, 0, n_pages - 1));
    assert_true(is_right(world, 0, 102400));
}

static void a_chunk_can_be_asked_for(void **state)
{
    World *world = *state;

    begin(world);
    for (uint64_t chunk = 0; chunk < 3; chunk++)
        assert_true(vmf_fault_server_ensure(world->server, 0, chunk, NULL));
    for (uint64_t page = 0; page < 1536; page++) {
        if (fake_usual(0, page))
            assert_true(is_right(world, 0, page));
    }
    assert_int_equal(statistics(world).n_faults, 0);
    world->fake.bad[0] = fake_place(1, 40) + 1;
    g_autoptr(GError) error = NULL;
    assert_false(vmf_fault_server_ensure(world->server, 1, 0, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IMAGE_PAGE));
}

typedef struct {
    World *world;
    uint64_t chunk;
    pthread_t thread;
} Asking;

static void *ask(void *opaque)
{
    const Asking *asking = opaque;

    return vmf_fault_server_ensure(asking->world->server, 0, asking->chunk, NULL) ? opaque : NULL;
}

static void chunks_are_read_side_by_side(void **state)
{
    World *world = *state;
    Asking asking[] = {{world, 0}, {world, 1}, {world, 3}, {world, 1}, {world, 3}};
    void *there;

    begin(world);
    atomic_store(&world->fake.shut, true);
    for (unsigned i = 0; i < G_N_ELEMENTS(asking); i++)
        assert_int_equal(pthread_create(&asking[i].thread, NULL, ask, &asking[i]), 0);
    while (atomic_load(&world->fake.n_reads) < 3)
        nap();
    atomic_store(&world->fake.shut, false);
    for (unsigned i = 0; i < G_N_ELEMENTS(asking); i++) {
        assert_int_equal(pthread_join(asking[i].thread, &there), 0);
        assert_non_null(there);
    }
    assert_int_equal(world->fake.n_reads, 3); /* of each chunk once */
}

/* ---- the order of touches -----------------------------------------------------------------------------------------
 */

static void first_touches_are_recorded(void **state)
{
    World *world = *state;
    static const uint64_t pages[] = {700, 0, 1, 2, 513, 701, 5 /* zeros */, 3};
    static const uint64_t expected[] = {700, 0, 1, 2, 513, 701, 3};
    unsigned block;
    uint64_t page;

    require(world, world->backend != VMF_RAM_HUGETLB);
    g_autoptr(VmfTouchOrder) record = vmf_touch_order_new();
    world->config.record = record;
    world->config.record_ns = UINT64_C(1) << 50;
    begin(world);
    fill(world);
    for (unsigned i = 0; i < G_N_ELEMENTS(pages); i++)
        assert_true(is_right(world, 0, pages[i]));
    assert_true(is_right(world, 1, 7));
    assert_true(is_right(world, 0, 0));
    g_clear_pointer(&world->server, vmf_fault_server_free);
    assert_int_equal(vmf_touch_order_length(record), G_N_ELEMENTS(expected) + 1);
    for (unsigned i = 0; i < G_N_ELEMENTS(expected); i++) {
        vmf_touch_order_get(record, i, &block, &page);
        assert_int_equal(block, 0);
        assert_int_equal(page, expected[i]);
    }
    vmf_touch_order_get(record, G_N_ELEMENTS(expected), &block, &page);
    assert_int_equal(block, 1);
    assert_int_equal(page, 7);
}

static void a_recorded_order_is_read_first(void **state)
{
    World *world = *state;
    require(world, true);
    g_autoptr(VmfTouchOrder) order = vmf_touch_order_new();
    vmf_touch_order_add(order, 1, 700);
    vmf_touch_order_add(order, 7, 7);                 /* no such block */
    vmf_touch_order_add(order, 0, UINT64_C(1) << 40); /* no such page */
    vmf_touch_order_add(order, 0, 4700);
    vmf_touch_order_add(order, 0, 4701);
    vmf_touch_order_add(order, 0, 4700);
    world->config.order = order;
    begin(world);
    fill(world);
    await_complete(world);
    bool huge = world->backend == VMF_RAM_HUGETLB;
    assert_int_equal(world->fake.log[0], fake_place(0, huge ? 4608 : 4700) + 1);
    assert_int_equal(world->fake.log[1], fake_place(1, huge ? 512 : 700) + 1);
    assert_int_equal(world->fake.log[2], fake_place(0, 0) + 1);
    assert_true(is_right(world, 0, 4701));
    VmfFaultStatistics s = statistics(world);
    assert_true(s.order_90_ns > 0 && s.order_90_ns <= s.complete_ns);
}

static void an_order_can_serve_as_a_measure_only(void **state)
{
    World *world = *state;
    require(world, true);
    g_autoptr(VmfTouchOrder) order = vmf_touch_order_new();
    vmf_touch_order_add(order, 0, 4700);
    world->config.order = order;
    world->config.ignore_order = true;
    begin(world);
    assert_int_equal(statistics(world).order_90_ns, 0);
    fill(world);
    await_complete(world);
    assert_int_equal(world->fake.log[0], fake_place(0, 0) + 1);
    assert_true(statistics(world).order_90_ns > 0);
}

/* ---- trouble ------------------------------------------------------------------------------------------------------
 */

static void a_page_that_cannot_be_had_is_not_given(void **state)
{
    World *world = *state;
    uint64_t bad = 650;
    uint8_t value;

    world->fake.bad[0] = fake_place(0, bad) + 1;
    begin(world);
    assert_true(is_right(world, 0, 4));
    assert_false(try_read(page_of(world, 0, bad), &value));
    assert_int_equal(world->n_lost, 1);
    assert_int_equal(world->n_touched, 1);
    assert_int_equal(world->lost_place, fake_place(0, bad));
    assert_int_equal(world->lost_code, VMF_ERROR_IMAGE_PAGE);
    assert_false(try_read(page_of(world, 0, bad) + 99, &value));
    assert_int_equal(world->n_lost, 1); /* nobody waits there any more */
    assert_int_equal(write(STDERR_FILENO, page_of(world, 0, bad), 1), -1);
    assert_int_equal(errno, EFAULT);
    assert_true(is_right(world, 0, 1100));
    if (world->backend != VMF_RAM_HUGETLB)
        assert_true(is_right(world, 0, bad + 1));
}

/* It could be read later, with its neighbours; too late for those who were let go. */
static void what_was_lost_stays_lost(void **state)
{
    World *world = *state;
    uint8_t value;

    require(world, world->backend != VMF_RAM_HUGETLB);
    world->fake.bad[0] = fake_place(0, 650) + 1;
    begin(world);
    assert_false(try_read(page_of(world, 0, 650), &value));
    world->fake.bad[0] = 0;
    for (uint64_t chunk = 0; chunk < RAM_CHUNKS; chunk++)
        assert_true(vmf_fault_server_ensure(world->server, 0, chunk, NULL));
    for (uint64_t page = 0; page < vmf_ram_block_n_pages(world->blocks[0]); page++)
        assert_true(page == 650 || is_right(world, 0, page));
    fill(world);
    assert_false(try_read(page_of(world, 0, 650), &value));
    assert_false(world->complete);
}

static void a_bad_neighbour_does_no_harm(void **state)
{
    World *world = *state;

    world->fake.bad[0] = fake_place(0, 67) + 1;
    require(world, world->backend != VMF_RAM_HUGETLB);
    begin(world);
    for (uint64_t page = 64; page < 80; page++) {
        if (page != 67)
            assert_true(is_right(world, 0, page));
    }
    assert_int_equal(world->n_lost, 0);
}

static void a_bad_page_found_ahead_is_told(void **state)
{
    World *world = *state;
    uint8_t value;

    world->fake.bad[0] = fake_place(1, 600) + 1;
    begin(world);
    fill(world);
    await_lost(world);
    assert_int_equal(world->n_lost, 1);
    assert_int_equal(world->n_touched, 0);
    assert_int_equal(world->lost_place, fake_place(1, 600));
    /* The guest still runs until it is stopped: its other pages are brought. */
    assert_true(is_right(world, 1, 1));
    assert_true(is_right(world, 0, 3));
    while (try_read(page_of(world, 1, 600), &value))
        fail(); /* forbidden by now or soon, never readable */
    assert_false(world->complete);
}

static void a_damaged_table_loses_what_it_is_about(void **state)
{
    World *world = *state;
    uint8_t value;

    world->fake.bad_tables = 1 + 1;
    begin(world);
    assert_false(try_read(page_of(world, 0, 600), &value));
    assert_int_equal(world->lost_code, VMF_ERROR_IMAGE_DIGEST);
    assert_true(is_right(world, 0, 100));
    fill(world);
    while (world->n_lost < 2)
        nap();
    assert_false(world->complete);
}

static void passing_trouble_is_passed_over(void **state)
{
    World *world = *state;

    begin(world);
    atomic_store(&world->fake.n_failures, 6);
    fill(world);
    await_complete(world);
    assert_int_equal(world->n_lost, 0);
    assert_int_equal(world->fake.n_failures, 0);
    for (uint64_t page = 0; page < vmf_ram_block_n_pages(world->blocks[0]); page++)
        assert_true(is_right(world, 0, page));
}

typedef struct {
    World *world;
    uint64_t page;
    bool had;
    uint8_t value;
    _Atomic bool began;
    pthread_t thread;
} Waiter;

static void *wait_for_a_page(void *opaque)
{
    Waiter *w = opaque;

    atomic_store(&w->began, true);
    w->had = try_read(page_of(w->world, 0, w->page), &w->value);
    return NULL;
}

static void begin_to_wait(Waiter *w)
{
    assert_int_equal(pthread_create(&w->thread, NULL, wait_for_a_page, w), 0);
    while (!atomic_load(&w->began))
        nap();
}

static void who_waits_can_be_kept_waiting(void **state)
{
    World *world = *state;
    Waiter w = {.world = world, .page = 650};

    world->release = false;
    world->fake.bad[0] = fake_place(0, 650) + 1;
    begin(world);
    begin_to_wait(&w);
    await_lost(world);
    assert_true(is_right(world, 0, 8)); /* the others go on */
    g_clear_pointer(&world->server, vmf_fault_server_free);
    pthread_join(w.thread, NULL);
    assert_false(w.had);
}

/* Held by an I/O error that has passed: the page is asked for again by whoever else touches it. */
static void a_page_can_be_had_later(void **state)
{
    World *world = *state;
    Waiter w = {.world = world, .page = 650};

    world->release = false;
    world->fake.bad[0] = fake_place(0, 650) + 1;
    begin(world);
    begin_to_wait(&w);
    await_lost(world);
    world->fake.bad[0] = 0;
    assert_true(is_right(world, 0, 650));
    pthread_join(w.thread, NULL);
    assert_true(w.had);
    assert_true(is_right(world, 0, 650));
}

#define WAITERS 20u

static void an_early_end_lets_all_go_and_gives_nobody_zeros(void **state)
{
    World *world = *state;
    Waiter waiters[WAITERS];
    uint8_t value;

    begin(world);
    assert_true(is_right(world, 0, 0));
    fill(world);
    atomic_store(&world->fake.shut, true);
    for (unsigned i = 0; i < WAITERS; i++) {
        waiters[i] = (Waiter){.world = world, .page = RAM_CHUNKS * VMF_CHUNK_PAGES - 700 - 7 * i};
        begin_to_wait(&waiters[i]);
    }
    nap();
    atomic_store(&world->fake.shut, false);
    bool complete = world->complete;
    g_clear_pointer(&world->server, vmf_fault_server_free);
    complete |= world->complete;
    for (unsigned i = 0; i < WAITERS; i++) {
        pthread_join(waiters[i].thread, NULL);
        if (waiters[i].had && fake_usual(0, waiters[i].page))
            assert_int_not_equal(waiters[i].value, 0);
    }
    if (complete)
        return;
    assert_false(try_read(page_of(world, 0, 0), &value));
    /* The block can be used for something else. */
    assert_true(vmf_ram_block_empty(world->blocks[0], NULL));
    assert_true(try_read(page_of(world, 0, 0), &value));
    assert_int_equal(value, 0);
}

static void an_end_at_any_moment(void **state)
{
    World *world = *state;
    unsigned seed = 3, times = world->backend == VMF_RAM_HUGETLB ? 6 : 30; /* clearing huge pages takes long */

    for (unsigned i = 0; i < times; i++) {
        Waiter w = {.world = world, .page = (uint64_t)rand_r(&seed) % (RAM_CHUNKS * VMF_CHUNK_PAGES)};

        world->complete = false;
        begin(world);
        begin_to_wait(&w);
        fill(world);
        nanosleep(&(struct timespec){.tv_nsec = rand_r(&seed) % 3000000}, NULL);
        g_clear_pointer(&world->server, vmf_fault_server_free);
        pthread_join(w.thread, NULL);
        for (unsigned b = 0; b < BLOCKS; b++) {
            uint8_t value;
            assert_int_equal(try_read(page_of(world, b, 1), &value), world->complete);
            assert_true(vmf_ram_block_empty(world->blocks[b], NULL));
        }
    }
}

#define FOR_ALL(test)                                                                                                  \
    cmocka_unit_test_setup_teardown(test, set_up_anon, tear_down),                                                     \
        cmocka_unit_test_setup_teardown(test, set_up_memfd, tear_down),                                                \
        cmocka_unit_test_setup_teardown(test, set_up_hugetlb, tear_down)

static bool works_here(void)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("probe", VMF_CHUNK_SIZE, VMF_RAM_ANON, 0, 0, NULL);
    g_autofree FakePages *fake = g_new0(FakePages, 1);
    g_autoptr(VmfLazyRam) ram = vmf_lazy_ram_new(&block, 1, &fake_reader_ops, fake, NULL);

    return ram != NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FOR_ALL(what_is_touched_is_there),
        FOR_ALL(all_of_it_arrives),
        FOR_ALL(a_running_guest_meets_the_right_bytes_and_keeps_its_own),
        FOR_ALL(system_calls_meet_it_too),
        FOR_ALL(touching_neighbours_takes_few_reads),
        FOR_ALL(touching_far_apart_reads_no_more),
        FOR_ALL(long_holes_are_ordinary_memory),
        FOR_ALL(a_chunk_can_be_asked_for),
        FOR_ALL(chunks_are_read_side_by_side),
        FOR_ALL(first_touches_are_recorded),
        FOR_ALL(a_recorded_order_is_read_first),
        FOR_ALL(an_order_can_serve_as_a_measure_only),
        FOR_ALL(a_page_that_cannot_be_had_is_not_given),
        FOR_ALL(what_was_lost_stays_lost),
        FOR_ALL(a_bad_neighbour_does_no_harm),
        FOR_ALL(a_bad_page_found_ahead_is_told),
        FOR_ALL(a_damaged_table_loses_what_it_is_about),
        FOR_ALL(passing_trouble_is_passed_over),
        FOR_ALL(who_waits_can_be_kept_waiting),
        FOR_ALL(a_page_can_be_had_later),
        FOR_ALL(an_early_end_lets_all_go_and_gives_nobody_zeros),
        FOR_ALL(an_end_at_any_moment),
    };

    if (!works_here())
        return 77; /* no userfaultfd here */
    has_huge_pages = vmf_test_huge_pages(RAM_CHUNKS + VRAM_CHUNKS);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (has_huge_pages)
        vmf_test_huge_pages_end();
    return failed;
}
