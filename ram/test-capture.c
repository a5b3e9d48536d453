/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/block.h"
#include "ram/capture.h"
#include "tests/huge-pages.h"

#define BLOCKS 2
#define RAM_CHUNKS 10
#define VRAM_CHUNKS 2
#define RAM_PAGES (RAM_CHUNKS * VMF_CHUNK_PAGES + 3) /* small pages only: a short chunk at the end */
#define RAM_WORDS (RAM_PAGES / 64 + 1)
#define WRITERS 2u
#define READERS 2u
#define LATE_PAGE 3000u /* from here on nobody has touched anything when the capture begins */

#define GUEST_MEMORY __attribute__((no_sanitize("thread"), noinline)) /* as a guest's, without anybody's locks */

typedef struct {
    VmfRamBackend backend;
    VmfRamBlock *blocks[BLOCKS];
    uint8_t *reference[BLOCKS]; /* what memory was at the instant */
    VmfCapture *capture;
    _Atomic bool cancelled;

    /* The guest. */
    pthread_t writers[WRITERS];
    bool running;
    pthread_rwlock_t run; /* a writer holds it for a write; who has it alone has stopped the guest */
    _Atomic bool quit;
    _Atomic uint64_t log[RAM_WORDS]; /* block 0: written since the log was started */
    _Atomic uint64_t n_writes;

    /* What the sources pushed. */
    pthread_mutex_t lock;
    uint64_t *seen[BLOCKS]; /* a bit a page */
    unsigned n_wrong, n_twice, n_changed;
    bool hold; /* batches are released only at the next push */
} World;

static bool has_huge_pages;

/* ---- the guest ----------------------------------------------------------------------------------------------------
 */

static uint64_t n_pages_of(const World *world, unsigned block)
{
    return vmf_ram_block_n_pages(world->blocks[block]);
}

GUEST_MEMORY static void write_page(World *world, unsigned block, uint64_t page, uint64_t value)
{
    volatile uint64_t *words = vmf_ram_block_page(world->blocks[block], page);

    for (unsigned i = 0; i < VMF_PAGE_SIZE / sizeof(*words); i += 16)
        words[i] = value ? value + page + i : 0;
    if (block == 0)
        atomic_fetch_or(&world->log[page / 64], UINT64_C(1) << (page % 64));
}

static void *write_at_random(void *opaque)
{
    World *world = opaque;
    unsigned seed = (unsigned)(uintptr_t)&seed;

    while (!atomic_load(&world->quit)) {
        uint64_t page = (uint64_t)rand_r(&seed) % n_pages_of(world, 0), value = (uint64_t)rand_r(&seed) % 50;
        pthread_rwlock_rdlock(&world->run);
        write_page(world, 0, page, value);
        pthread_rwlock_unlock(&world->run);
        atomic_fetch_add(&world->n_writes, 1);
    }
    return NULL;
}

static void start_guest(World *world)
{
    for (unsigned i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&world->writers[i], NULL, write_at_random, world), 0);
    world->running = true;
}

static void quit_guest(World *world)
{
    atomic_store(&world->quit, true);
    for (unsigned i = 0; world->running && i < WRITERS; i++)
        pthread_join(world->writers[i], NULL);
    world->running = false;
}

static void await_writes(World *world, uint64_t n)
{
    uint64_t from = atomic_load(&world->n_writes);

    while (atomic_load(&world->n_writes) - from < n)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

/* ---- the world ----------------------------------------------------------------------------------------------------
 */

static int set_up(void **state, VmfRamBackend backend)
{
    World *world = g_new0(World, 1);
    uint64_t odd = backend == VMF_RAM_HUGETLB ? 0 : RAM_PAGES % VMF_CHUNK_PAGES;

    *state = world;
    world->backend = backend;
    pthread_rwlock_init(&world->run, NULL);
    pthread_mutex_init(&world->lock, NULL);
    if (backend == VMF_RAM_HUGETLB && !has_huge_pages)
        return 0;
    world->blocks[0] = vmf_ram_block_new("ram", RAM_CHUNKS * VMF_CHUNK_SIZE + odd * VMF_PAGE_SIZE, backend,
                                         VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    world->blocks[1] = vmf_ram_block_new("vram", VRAM_CHUNKS * VMF_CHUNK_SIZE, backend, 0, 1u << 30, NULL);
    for (unsigned b = 0; b < BLOCKS; b++) {
        assert_non_null(world->blocks[b]);
        world->reference[b] = g_malloc0(vmf_ram_block_size(world->blocks[b]));
        world->seen[b] = g_new0(uint64_t, n_pages_of(world, b) / 64 + 1);
    }
    for (uint64_t page = 0; page < LATE_PAGE; page += 1 + page / 600)
        write_page(world, 0, page, 7);
    for (uint64_t page = 0; page < 700; page += 3)
        write_page(world, 1, page, 9);
    memset((void *)world->log, 0, sizeof(world->log));
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

    vmf_capture_free(world->capture);
    quit_guest(world);
    for (unsigned b = 0; b < BLOCKS; b++) {
        vmf_ram_block_free(world->blocks[b]);
        g_free(world->reference[b]);
        g_free(world->seen[b]);
    }
    pthread_rwlock_destroy(&world->run);
    pthread_mutex_destroy(&world->lock);
    g_free(world);
    return 0;
}

static void begin(World *world, uint64_t buffer_bytes)
{
    const VmfCaptureConfig config = {
        .blocks = world->blocks, .n_blocks = BLOCKS, .buffer_bytes = buffer_bytes, .cancelled = &world->cancelled};

    if (!world->blocks[0])
        skip();
    world->capture = vmf_capture_new(&config, NULL);
    assert_non_null(world->capture);
}

GUEST_MEMORY static void take_reference(World *world)
{
    for (unsigned b = 0; b < BLOCKS; b++) {
        const volatile uint64_t *from = vmf_ram_block_host(world->blocks[b]);
        uint64_t *to = (uint64_t *)world->reference[b];

        for (uint64_t i = 0; i < vmf_ram_block_size(world->blocks[b]) / sizeof(*to); i++)
            to[i] = from[i];
    }
}

/* The stop, the instant, the start. (Taking the reference touches every page, as a reader; that makes no page ours.) */
static void take_instant(World *world)
{
    uint64_t words[RAM_WORDS];

    pthread_rwlock_wrlock(&world->run);
    for (unsigned i = 0; i < RAM_WORDS; i++)
        words[i] = atomic_load(&world->log[i]);
    vmf_capture_touched(world->capture, 0, 0, words, RAM_WORDS);
    assert_true(vmf_capture_freeze(world->capture, NULL));
    take_reference(world);
    pthread_rwlock_unlock(&world->run);
}

static VmfCaptureStatistics statistics(World *world)
{
    VmfCaptureStatistics s;

    vmf_capture_statistics(world->capture, &s);
    return s;
}

/* ---- a sink that compares -----------------------------------------------------------------------------------------
 */

typedef struct {
    World *world;
    const VmfPageScan *scan;
    VmfPageBatch *held;
} Judge;

GUEST_MEMORY static bool equal(const void *a, const void *b)
{
    const volatile uint64_t *x = a, *y = b;

    for (unsigned i = 0; i < VMF_PAGE_SIZE / sizeof(*x); i++)
        if (x[i] != y[i])
            return false;
    return true;
}

static unsigned count_wrong(const World *world, const VmfPageBatch *batch)
{
    unsigned n = 0;

    for (unsigned page = 0; page < batch->n_pages; page++) {
        const uint8_t *was = world->reference[batch->block_index] + (batch->first_page + page) * VMF_PAGE_SIZE;
        static const uint8_t zeros[VMF_PAGE_SIZE];

        if (vmf_page_set_test(&batch->data, page))
            n += !equal(batch->payload + (size_t)page * VMF_PAGE_SIZE, was);
        if (vmf_page_set_test(&batch->zero, page))
            n += !equal(zeros, was);
    }
    return n;
}

static bool digests_are_right(const Judge *judge, const VmfPageBatch *batch)
{
    uint64_t digests[VMF_CHUNK_PAGES];

    memcpy(digests, batch->digests, sizeof(digests));
    vmf_page_scan_digests(judge->scan, judge->world->reference[batch->block_index] + batch->first_page * VMF_PAGE_SIZE,
                          VMF_PAGE_SIZE, batch->n_pages, batch->data.words, digests);
    return memcmp(digests, batch->digests, sizeof(digests)) == 0;
}

static void note_seen(World *world, const VmfPageBatch *batch)
{
    for (unsigned page = 0; page < batch->n_pages; page++) {
        uint64_t n = batch->first_page + page, bit = UINT64_C(1) << (n % 64);

        if (!vmf_page_set_test(&batch->data, page) && !vmf_page_set_test(&batch->zero, page))
            continue;
        world->n_twice += (world->seen[batch->block_index][n / 64] & bit) != 0;
        world->seen[batch->block_index][n / 64] |= bit;
    }
}

static void let_go(Judge *judge)
{
    if (!judge->held)
        return;
    unsigned n_changed = count_wrong(judge->world, judge->held);
    pthread_mutex_lock(&judge->world->lock);
    judge->world->n_changed += n_changed;
    pthread_mutex_unlock(&judge->world->lock);
    vmf_page_batch_release(judge->held);
    judge->held = NULL;
}

static bool judge_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    Judge *judge = opaque;
    unsigned n_wrong = count_wrong(judge->world, batch) + !digests_are_right(judge, batch);

    let_go(judge);
    pthread_mutex_lock(&judge->world->lock);
    judge->world->n_wrong += n_wrong;
    note_seen(judge->world, batch);
    pthread_mutex_unlock(&judge->world->lock);
    judge->held = batch;
    if (!judge->world->hold)
        let_go(judge);
    return true;
}

static bool judge_flush(void *opaque, GError **error)
{
    let_go(opaque);
    return true;
}

static void *read_out(void *opaque)
{
    static const VmfPageSinkOps ops = {.size = sizeof(VmfPageSinkOps), .push = judge_push, .flush = judge_flush};
    Judge judge = {.world = opaque, .scan = vmf_page_scan_select()};
    const VmfPageSink sink = {&ops, &judge};
    g_auto(VmfPageSource) source = {NULL, NULL};

    vmf_capture_source(judge.world->capture, judge.scan, &source);
    return GINT_TO_POINTER(vmf_page_copy(&source, &sink, NULL, NULL));
}

static void read_all(World *world)
{
    pthread_t readers[READERS];
    void *whole;

    for (unsigned i = 0; i < READERS; i++)
        assert_int_equal(pthread_create(&readers[i], NULL, read_out, world), 0);
    for (unsigned i = 0; i < READERS; i++) {
        pthread_join(readers[i], &whole);
        assert_true(GPOINTER_TO_INT(whole));
    }
}

/* Every page that was not zeros was pushed, once, as it was; and it has not changed until it was released. */
static void assert_captured(World *world)
{
    static const uint8_t zeros[VMF_PAGE_SIZE];

    assert_int_equal(world->n_wrong, 0);
    assert_int_equal(world->n_changed, 0);
    assert_int_equal(world->n_twice, 0);
    for (unsigned b = 0; b < BLOCKS; b++) {
        for (uint64_t page = 0; page < n_pages_of(world, b); page++) {
            bool seen = world->seen[b][page / 64] >> (page % 64) & 1;
            assert_true(seen || memcmp(world->reference[b] + page * VMF_PAGE_SIZE, zeros, sizeof(zeros)) == 0);
        }
    }
}

/* ---- tests --------------------------------------------------------------------------------------------------------
 */

static void a_guest_that_stands_is_captured(void **state)
{
    World *world = *state;

    begin(world, 0);
    assert_true(vmf_capture_arm(world->capture, NULL));
    take_instant(world);
    read_all(world);
    assert_captured(world);
    VmfCaptureStatistics s = statistics(world);
    assert_int_equal(s.n_copied, 0);
    assert_int_equal(s.n_noted, 0);
    assert_true(s.n_pages > 1000);
}

static void a_guest_that_writes_is_captured_as_it_was(void **state)
{
    World *world = *state;

    begin(world, UINT64_C(1) << 30);
    world->hold = true;
    start_guest(world);
    await_writes(world, 200);
    assert_true(vmf_capture_arm(world->capture, NULL));
    await_writes(world, 500);
    take_instant(world);
    await_writes(world, 500);
    read_all(world);
    assert_captured(world);
    VmfCaptureStatistics s = statistics(world);
    assert_true(s.n_noted > 0 && s.n_rearmed > 0 && s.n_copied > 0);
    assert_true(s.write_p50_ns > 0 && s.write_p50_ns <= s.write_max_ns);
    assert_in_range(s.n_places, 1, 2 * READERS); /* each reader holds one, and has one under way */
    assert_true(s.n_assembled > s.n_places);
    await_writes(world, 500); /* nobody is left waiting */
}

static void a_full_buffer_makes_writers_wait(void **state)
{
    World *world = *state;

    begin(world, 0);
    start_guest(world);
    assert_true(vmf_capture_arm(world->capture, NULL));
    take_instant(world);
    while (statistics(world).n_full == 0)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    read_all(world);
    assert_captured(world);
    assert_in_range(statistics(world).buffer_peak_bytes, VMF_CHUNK_SIZE, 4u << 20);
    await_writes(world, 500);
}

static void room_is_given_back(void **state)
{
    World *world = *state;
    const unsigned room = 1024, window = 16; /* pages: of the buffer; copied at once at most */
    bool done;

    if (world->backend == VMF_RAM_HUGETLB)
        skip();
    begin(world, 0);
    assert_true(vmf_capture_arm(world->capture, NULL));
    take_instant(world);
    uint64_t page = 0;
    while (statistics(world).n_copied + window <= room)
        write_page(world, 0, page++, 5);
    static const VmfPageSinkOps ops = {.size = sizeof(VmfPageSinkOps), .push = judge_push, .flush = judge_flush};
    Judge judge = {.world = world, .scan = vmf_page_scan_select()};
    const VmfPageSink sink = {&ops, &judge};
    g_auto(VmfPageSource) source = {NULL, NULL};
    vmf_capture_source(world->capture, judge.scan, &source);
    assert_true(source.ops->step(source.opaque, &sink, &done, NULL) && !done);
    assert_true(source.ops->step(source.opaque, &sink, &done, NULL) && !done);
    /* In chunks that were not read yet: copied again. */
    while (statistics(world).n_copied < room + 100)
        write_page(world, 0, page++, 5);
    assert_true(vmf_page_copy(&source, &sink, NULL, NULL));
    assert_captured(world);
}

static void pages_that_came_late_are_captured(void **state)
{
    World *world = *state;

    begin(world, 0);
    if (world->backend == VMF_RAM_HUGETLB)
        skip();
    assert_true(vmf_capture_arm(world->capture, NULL));
    write_page(world, 0, LATE_PAGE + 100, 3);
    write_page(world, 0, RAM_PAGES - 1, 4);
    write_page(world, 0, 5, 0); /* zeros by now */
    take_instant(world);
    write_page(world, 0, LATE_PAGE + 100, 5);
    write_page(world, 0, LATE_PAGE + 200, 6); /* after the instant: not ours */
    write_page(world, 0, RAM_PAGES - 1, 7);
    assert_true(vmf_dirty_bitmap_test(vmf_capture_pages(world->capture, 0), LATE_PAGE + 100));
    assert_false(vmf_dirty_bitmap_test(vmf_capture_pages(world->capture, 0), LATE_PAGE + 200));
    read_all(world);
    assert_captured(world);
    assert_int_equal(statistics(world).n_copied, 2);
}

static void every_page_can_be_written_ahead_of_the_instant(void **state)
{
    World *world = *state;

    begin(world, 0);
    assert_true(vmf_capture_arm(world->capture, NULL));
    for (uint64_t page = 0; page < n_pages_of(world, 0); page++)
        write_page(world, 0, page, 11);
    take_instant(world);
    read_all(world);
    assert_captured(world);
    assert_int_equal(statistics(world).n_copied, 0);
    assert_true(statistics(world).n_noted < LATE_PAGE / 2); /* a window at once */
}

static void writes_by_the_kernel_wait_too(void **state)
{
    World *world = *state;
    int ends[2];

    begin(world, 0);
    assert_int_equal(pipe(ends), 0);
    assert_true(vmf_capture_arm(world->capture, NULL));
    take_instant(world);
    assert_int_equal(write(ends[1], "abcdefgh", 8), 8);
    /* By hand, for a sanitizer that saw the read would take it to race with the copy that went before it. */
    if (syscall(SYS_read, ends[0], vmf_ram_block_page(world->blocks[1], 3), 8) == 8) {
        assert_memory_equal(vmf_ram_block_page(world->blocks[1], 3), "abcdefgh", 8);
        assert_true(statistics(world).n_copied > 0);
    }
    close(ends[0]);
    close(ends[1]);
    read_all(world);
    assert_captured(world);
}

static void an_early_end_lets_all_writers_go(void **state)
{
    World *world = *state;

    begin(world, 0);
    start_guest(world);
    assert_true(vmf_capture_arm(world->capture, NULL));
    take_instant(world);
    while (statistics(world).n_full == 0)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    g_clear_pointer(&world->capture, vmf_capture_free);
    await_writes(world, 2000);
    /* And memory can be captured again. */
    begin(world, UINT64_C(1) << 30);
    assert_true(vmf_capture_arm(world->capture, NULL));
    take_instant(world);
    read_all(world);
    assert_captured(world);
}

/* Where nobody reads, the writers come to stand once the buffer is full. */
static void arming_can_be_cancelled(void **state)
{
    World *world = *state;
    g_autoptr(GError) error = NULL, again = NULL;

    begin(world, 0);
    start_guest(world);
    await_writes(world, 100);
    atomic_store(&world->cancelled, true);
    assert_false(vmf_capture_arm(world->capture, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
    atomic_store(&world->cancelled, false);
    assert_true(vmf_capture_arm(world->capture, NULL));
    vmf_capture_hurry(world->capture);
    await_writes(world, 100);
    pthread_rwlock_wrlock(&world->run);
    atomic_store(&world->cancelled, true);
    uint64_t many[RAM_WORDS];
    memset(many, 0xff, sizeof(many));
    vmf_capture_touched(world->capture, 0, 0, many, RAM_CHUNKS * VMF_CHUNK_WORDS);
    assert_false(vmf_capture_arm_again(world->capture, &again));
    assert_true(g_error_matches(again, VMF_ERROR, VMF_ERROR_CANCELLED));
    pthread_rwlock_unlock(&world->run);
    await_writes(world, 100);
}

static void await_writes_or_full(World *world, uint64_t n)
{
    uint64_t from = atomic_load(&world->n_writes);

    while (atomic_load(&world->n_writes) - from < n && statistics(world).n_full == 0)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

static void an_end_at_any_moment(void **state)
{
    World *world = *state;

    for (unsigned i = 0; i < 12; i++) {
        begin(world, 0);
        if (i == 0)
            start_guest(world);
        await_writes(world, 10 * i);
        assert_true(i % 4 == 0 || vmf_capture_arm(world->capture, NULL));
        if (i % 4 > 1)
            take_instant(world);
        await_writes_or_full(world, i % 3);
        if (i % 4 == 3)
            read_all(world);
        g_clear_pointer(&world->capture, vmf_capture_free);
    }
    assert_int_equal(world->n_wrong + world->n_changed, 0);
}

static void memory_that_is_watched_is_refused(void **state)
{
    World *world = *state;
    const VmfCaptureConfig config = {.blocks = world->blocks, .n_blocks = BLOCKS};

    begin(world, 0);
    g_autoptr(GError) error = NULL;
    assert_null(vmf_capture_new(&config, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
    assert_true(vmf_capture_arm(world->capture, NULL)); /* the first goes on */
    take_instant(world);
    read_all(world);
    assert_captured(world);
}

#define FOR_ALL(test)                                                                                                  \
    cmocka_unit_test_setup_teardown(test, set_up_anon, tear_down),                                                     \
        cmocka_unit_test_setup_teardown(test, set_up_memfd, tear_down),                                                \
        cmocka_unit_test_setup_teardown(test, set_up_hugetlb, tear_down)

static bool works_here(VmfRamBackend backend)
{
    g_autoptr(VmfRamBlock) block = vmf_ram_block_new("probe", VMF_CHUNK_SIZE, backend, 0, 0, NULL);
    const VmfCaptureConfig config = {.blocks = &block, .n_blocks = 1};
    g_autoptr(VmfCapture) capture = block ? vmf_capture_new(&config, NULL) : NULL;

    return capture != NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FOR_ALL(a_guest_that_stands_is_captured),
        FOR_ALL(a_guest_that_writes_is_captured_as_it_was),
        FOR_ALL(a_full_buffer_makes_writers_wait),
        FOR_ALL(room_is_given_back),
        FOR_ALL(pages_that_came_late_are_captured),
        FOR_ALL(every_page_can_be_written_ahead_of_the_instant),
        FOR_ALL(writes_by_the_kernel_wait_too),
        FOR_ALL(arming_can_be_cancelled),
        FOR_ALL(an_early_end_lets_all_writers_go),
        FOR_ALL(an_end_at_any_moment),
        FOR_ALL(memory_that_is_watched_is_refused),
    };

    if (!works_here(VMF_RAM_ANON) || !works_here(VMF_RAM_MEMFD))
        return 77; /* no write protection here */
    has_huge_pages = vmf_test_huge_pages(RAM_CHUNKS + VRAM_CHUNKS);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (has_huge_pages)
        vmf_test_huge_pages_end();
    return failed;
}
