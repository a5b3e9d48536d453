/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One lane at the source, read back record by record: what goes, in what order, and what the dirty log is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "ram/test-rig.h"

#define STREAM_MAX (64u << 20) /* all that a lane sends here waits in memory */

typedef struct {
    VmfRig *rig;
    VmfChannel *here, *there;
    VmfRecordWriter *writer;
    VmfRecordReader *reader;
    VmfStreamSink sink;
    VmfLane lane;
} World;

/* A record as it came. */
typedef struct {
    uint32_t type;
    VmfWirePages pages;
    VmfHint hint;
    uint64_t number; /* END_MARK */
    uint8_t payload[VMF_PAGES_DATA_MAX][VMF_PAGE_SIZE];
} Seen;

static int set_up(void **state)
{
    static const VmfStreamFormat format = {.version = 3};
    World *world = g_new0(World, 1);

    world->rig = vmf_rig_new();
    vmf_channel_memory_pair(STREAM_MAX, &world->here, &world->there);
    world->writer = vmf_record_writer_new(world->here, format);
    world->reader = vmf_record_reader_new(world->there, format);
    *state = world;
    return 0;
}

static int tear_down(void **state)
{
    World *world = *state;

    vmf_lane_clear(&world->lane);
    vmf_record_writer_free(world->writer);
    vmf_record_reader_free(world->reader);
    vmf_channel_free(world->here);
    vmf_channel_free(world->there);
    vmf_rig_free(world->rig);
    g_free(world);
    return 0;
}

static void begin(World *world, bool acknowledged, bool hints)
{
    vmf_rig_begin(world->rig, 1, acknowledged);
    world->sink = (VmfStreamSink){.save = world->rig->save, .writer = world->writer, .epoch = 7};
    VmfLaneConfig config = vmf_stream_sink_lane(&world->sink, hints);
    vmf_lane_init(&world->lane, world->rig->save, 0, &config);
}

static void take(World *world, uint64_t chunk)
{
    assert_true(vmf_lane_take(&world->lane, (VmfChunkId){0, chunk}, NULL));
}

static void flush(World *world)
{
    assert_true(vmf_lane_flush(&world->lane, NULL));
}

static Seen *next(World *world)
{
    Seen *seen = g_new0(Seen, 1);
    VmfRecord record;

    assert_true(vmf_record_read(world->reader, &record, NULL));
    seen->type = record.type;
    if (record.type == VMF_RECORD_HINT) {
        assert_true(vmf_hint_decode(&record, false, &seen->hint, NULL));
    } else if (record.type == VMF_RECORD_END_MARK) {
        assert_true(vmf_u64_decode(&record, false, &seen->number, NULL));
    } else {
        assert_int_equal(record.type, VMF_RECORD_PAGES);
        memcpy(&seen->pages, record.body, sizeof(seen->pages));
        assert_true(seen->pages.n_data <= VMF_PAGES_DATA_MAX);
        assert_int_equal(record.length, sizeof(VmfWirePages) + seen->pages.n_data * VMF_PAGE_SIZE);
        struct iovec iov = {seen->payload, seen->pages.n_data * VMF_PAGE_SIZE};
        assert_true(seen->pages.n_data == 0 || vmf_record_read_payload(world->reader, &iov, 1, iov.iov_len, NULL));
    }
    return seen;
}

static void nothing_more(World *world)
{
    assert_int_equal(vmf_channel_wait_readable(world->there, 0, NULL), 0);
}

static VmfPageSet set_of(const uint64_t *words)
{
    VmfPageSet set;

    memcpy(set.words, words, sizeof(set.words));
    return set;
}

static unsigned count(const uint64_t *words)
{
    VmfPageSet set = set_of(words);

    return vmf_page_set_count(&set);
}

static bool has(const uint64_t *words, unsigned page)
{
    return words[page / 64] >> (page % 64) & 1;
}

/* The payload is what memory holds at the places that the record names, and the digests are entered. */
static void check_payload(World *world, const Seen *seen)
{
    VmfRamSaveBlock *own = &world->rig->save->blocks[seen->pages.block];
    unsigned at = 0;

    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        uint64_t index = seen->pages.chunk * VMF_CHUNK_PAGES + page;
        if (has(seen->pages.zero, page))
            assert_int_equal(vmf_digest_table_get(own->digests, index), 0);
        if (!has(seen->pages.data, page))
            continue;
        assert_memory_equal(seen->payload[at], vmf_rig_page(world->rig, seen->pages.block, index), VMF_PAGE_SIZE);
        uint64_t digest = world->rig->save->scan->digest(seen->payload[at], VMF_PAGE_SIZE);
        assert_int_equal(vmf_digest_table_get(own->digests, index), digest);
        at++;
    }
    assert_int_equal(at, seen->pages.n_data);
}

static Seen *next_pages(World *world)
{
    Seen *seen = next(world);

    assert_int_equal(seen->type, VMF_RECORD_PAGES);
    check_payload(world, seen);
    return seen;
}

static Seen *next_hint(World *world)
{
    Seen *seen = next(world);

    assert_int_equal(seen->type, VMF_RECORD_HINT);
    return seen;
}

/* ---- records --------------------------------------------------------------------------------------------------- */

static void a_record_carries_at_most_128_pages(void **state)
{
    World *world = *state;
    const unsigned expected[] = {128, 128, 44};
    VmfPageSet all = {0};

    vmf_rig_write_range(world->rig, 0, VMF_CHUNK_PAGES + 100, 300, 1);
    begin(world, false, false);
    take(world, 1);
    flush(world);
    assert_true(vmf_stream_sink_end_mark(&world->sink, NULL));
    for (unsigned i = 0; i < G_N_ELEMENTS(expected); i++) {
        g_autofree Seen *seen = next_pages(world);
        VmfPageSet data = set_of(seen->pages.data), twice = vmf_page_set_and(&all, &data);
        assert_true(vmf_page_set_is_empty(&twice));
        all = vmf_page_set_or(&all, &data);
        assert_int_equal(seen->pages.block, 0);
        assert_int_equal(seen->pages.chunk, 1);
        assert_int_equal(seen->pages.epoch, 7);
        assert_int_equal(seen->pages.sequence, i);
        assert_int_equal(seen->pages.n_data, expected[i]);
        assert_int_equal(seen->pages.flags, VMF_PAGES_FIRST_PASS);
    }
    assert_int_equal(vmf_page_set_count(&all), 300);
    assert_true(vmf_page_set_test(&all, 100) && vmf_page_set_test(&all, 399));
    g_autofree Seen *end = next(world);
    assert_int_equal(end->type, VMF_RECORD_END_MARK);
    assert_int_equal(end->number, 3);
    nothing_more(world);
}

static void a_page_of_zeros_is_a_bit(void **state)
{
    World *world = *state;

    vmf_rig_write_range(world->rig, 0, 0, 10, 1);
    vmf_rig_write(world->rig, 0, 3, 0);
    vmf_rig_write(world->rig, 0, 4, 0);
    vmf_rig_write(world->rig, 0, 200, 0);
    begin(world, false, false);
    take(world, 0);
    flush(world);
    g_autofree Seen *seen = next_pages(world);
    assert_int_equal(seen->pages.n_data, 8);
    assert_int_equal(count(seen->pages.data), 8);
    assert_int_equal(count(seen->pages.zero), 3);
    assert_true(has(seen->pages.zero, 3) && has(seen->pages.zero, 4) && has(seen->pages.zero, 200));
    nothing_more(world);
}

static void a_chunk_of_zeros_is_one_record_without_payload(void **state)
{
    World *world = *state;

    for (unsigned page = 0; page < 400; page++)
        vmf_rig_write(world->rig, 0, page, 0);
    begin(world, false, true);
    take(world, 0);
    flush(world);
    g_autofree Seen *seen = next_pages(world);
    assert_int_equal(seen->pages.n_data, 0);
    assert_int_equal(count(seen->pages.zero), 400);
    nothing_more(world);
    assert_int_equal(world->rig->save->payload_bytes, 0);
}

static void the_last_chunk_may_be_short(void **state)
{
    World *world = *state;

    vmf_rig_write_range(world->rig, 0, RIG_CHUNKS * VMF_CHUNK_PAGES, RIG_TAIL, 5);
    begin(world, false, true);
    take(world, RIG_CHUNKS);
    flush(world);
    g_autofree Seen *hint = next_hint(world);
    assert_int_equal(hint->hint.chunk, RIG_CHUNKS);
    g_autofree Seen *seen = next_pages(world);
    assert_int_equal(seen->pages.n_data, RIG_TAIL);
    assert_int_equal(seen->pages.data[0], (1u << RIG_TAIL) - 1);
}

static void every_page_of_a_rom_is_sent(void **state)
{
    World *world = *state;

    vmf_rig_write(world->rig, 1, 2, 9);
    begin(world, false, true);
    assert_true(vmf_lane_take(&world->lane, (VmfChunkId){1, 0}, NULL));
    flush(world);
    g_autofree Seen *hint = next_hint(world);
    assert_int_equal(count(hint->hint.data), 1);
    g_autofree Seen *seen = next_pages(world);
    assert_int_equal(seen->pages.n_data, 1);
    assert_int_equal(count(seen->pages.zero), RIG_ROM_PAGES - 1);
    assert_int_equal(world->rig->save->blocks[1].hole, 0);
}

/* ---- hints ----------------------------------------------------------------------------------------------------- */

static void a_hint_names_no_page_of_zeros(void **state)
{
    World *world = *state;

    vmf_rig_write_range(world->rig, 0, 64, 4, 1);
    vmf_rig_write(world->rig, 0, 65, 0);
    begin(world, false, true);
    take(world, 0);
    flush(world);
    g_autofree Seen *seen = next_hint(world);
    assert_int_equal(seen->hint.block, 0);
    assert_int_equal(seen->hint.chunk, 0);
    assert_int_equal(count(seen->hint.data), 3);
    assert_int_equal(seen->hint.data[1], 0xd);
}

static void hints_are_for_the_first_pass(void **state)
{
    World *world = *state;

    vmf_rig_write(world->rig, 0, 1, 1);
    begin(world, false, true);
    world->rig->save->round = 2;
    take(world, 0);
    flush(world);
    g_autofree Seen *seen = next_pages(world);
    assert_int_equal(seen->pages.flags, 0);
    nothing_more(world);
}

static void chunks_are_announced_ahead_of_their_pages(void **state)
{
    World *world = *state;
    unsigned hinted = 0, sent = 0;

    for (unsigned c = 0; c < RIG_CHUNKS; c++)
        vmf_rig_write(world->rig, 0, c * VMF_CHUNK_PAGES, 1 + c);
    begin(world, false, true);
    for (unsigned c = 0; c < RIG_CHUNKS; c++)
        take(world, c);
    flush(world);
    while (sent < RIG_CHUNKS) {
        g_autofree Seen *seen = next(world);
        if (seen->type == VMF_RECORD_HINT) {
            assert_int_equal(seen->hint.chunk, hinted++);
        } else {
            assert_int_equal(seen->pages.chunk, sent++);
            assert_int_equal(hinted, MIN(sent - 1 + VMF_LANE_AHEAD, RIG_CHUNKS));
        }
    }
    nothing_more(world);
}

/* ---- the dirty log and the guest ------------------------------------------------------------------------------- */

static void what_the_log_cleared_is_sent_too(void **state)
{
    World *world = *state;

    vmf_rig_write(world->rig, 0, 600, 1);
    begin(world, false, false);
    /* Written after the scan of what was touched: only the log knows. */
    vmf_rig_write(world->rig, 0, 700, 2);
    take(world, 1);
    assert_false(vmf_rig_log_has(world->rig, 0, 600));
    assert_false(vmf_rig_log_has(world->rig, 0, 700));
    flush(world);
    g_autofree Seen *seen = next_pages(world);
    assert_int_equal(seen->pages.n_data, 2);
    assert_true(has(seen->pages.data, 600 - 512) && has(seen->pages.data, 700 - 512));
    assert_int_equal(world->rig->log.n_clears, 1);
    assert_true(world->rig->log.good_clears);
    assert_int_equal(vmf_ram_save_pending_bytes(world->rig->save), (uint64_t)RIG_ROM_PAGES * VMF_PAGE_SIZE);
}

static void a_page_that_became_zero_since_the_look_is_a_bit(void **state)
{
    World *world = *state;

    vmf_rig_write_range(world->rig, 0, 0, 3, 1);
    begin(world, false, false);
    take(world, 0);
    vmf_rig_write(world->rig, 0, 1, 0);
    flush(world);
    g_autofree Seen *seen = next_pages(world);
    assert_int_equal(seen->pages.n_data, 2);
    assert_int_equal(seen->pages.zero[0], 2);
}

static void a_page_written_since_the_look_comes_in_the_next_round(void **state)
{
    World *world = *state;

    vmf_rig_write(world->rig, 0, 0, 1);
    vmf_rig_write(world->rig, 0, 1, 0);
    begin(world, false, false);
    take(world, 0);
    vmf_rig_write_unseen(world->rig, 0, 1, 8);
    vmf_rig_write(world->rig, 0, 1, 8);
    flush(world);
    g_autofree Seen *first = next_pages(world);
    assert_int_equal(first->pages.zero[0], 2);
    assert_true(vmf_ram_save_harvest(world->rig->save, NULL));
    world->rig->save->round = 2;
    take(world, 0);
    flush(world);
    g_autofree Seen *second = next_pages(world);
    assert_int_equal(second->pages.data[0], 2);
    assert_int_equal(second->pages.flags, 0);
    assert_int_equal(second->pages.sequence, 1);
}

/* ---- counts ---------------------------------------------------------------------------------------------------- */

static void the_first_pass_counts_each_page_once(void **state)
{
    World *world = *state;

    vmf_rig_write_range(world->rig, 0, 0, 5, 1);
    vmf_rig_write(world->rig, 0, 9, 0);
    begin(world, false, false);
    take(world, 0);
    flush(world);
    const VmfRamSave *save = world->rig->save;
    assert_int_equal(save->blocks[0].data, 5);
    assert_int_equal(save->blocks[0].zero, 1);
    assert_int_equal(save->blocks[0].hole, VMF_CHUNK_PAGES - 6);
    assert_int_equal(save->blocks[0].passed, VMF_CHUNK_PAGES);
    assert_int_equal(save->pages_resent, 0);
    assert_int_equal(save->payload_bytes, 5 * VMF_PAGE_SIZE);
    vmf_rig_write(world->rig, 0, 100, 3);
    vmf_rig_write(world->rig, 0, 9, 3);
    assert_true(vmf_ram_save_harvest(world->rig->save, NULL));
    world->rig->save->round = 2;
    take(world, 0);
    flush(world);
    assert_int_equal(save->blocks[0].data, 5);
    assert_int_equal(save->blocks[0].hole, VMF_CHUNK_PAGES - 6);
    assert_int_equal(save->pages_resent, 2);
    assert_int_equal(save->pages_data, 7);
    assert_int_equal(save->pages_zero, 1);
}

/* ---- waiting --------------------------------------------------------------------------------------------------- */

/* Acknowledges what it reads, and so nothing that waits in the lane's writer. */
static void *acknowledger_main(void *opaque)
{
    World *world = opaque;
    VmfRecord record;

    for (uint64_t n = 1; vmf_record_read(world->reader, &record, NULL) && record.type == VMF_RECORD_PAGES; n++)
        if ((world->reader->payload_left > 0 && !vmf_record_skip_payload(world->reader, record.length, NULL)) ||
            !vmf_flight_land(world->rig->save->flight, 0, n, 0, NULL, NULL, NULL, NULL))
            break;
    return NULL;
}

static void a_lane_lets_go_before_it_waits(void **state)
{
    World *world = *state;
    const unsigned n_small = 5000; /* records of zeros, more than can be under way */
    pthread_t thread;

    vmf_rig_write_range(world->rig, 0, 0, 4 * VMF_CHUNK_PAGES, 1);
    begin(world, true, false);
    assert_int_equal(pthread_create(&thread, NULL, acknowledger_main, world), 0);
    for (unsigned c = 0; c < 4; c++)
        take(world, c);
    for (unsigned i = 0; i < n_small; i++) {
        vmf_rig_write(world->rig, 0, i % 1000, 0);
        assert_true(vmf_ram_save_harvest(world->rig->save, NULL));
        take(world, i % 1000 / VMF_CHUNK_PAGES);
    }
    flush(world);
    assert_true(vmf_flight_drain(world->rig->save->flight, INT64_C(60000000000)));
    assert_int_equal(vmf_flight_sequence(world->rig->save->flight, 0), 16 + n_small);
    assert_true(vmf_stream_sink_end_mark(&world->sink, NULL));
    pthread_join(thread, NULL);
}

static void a_closed_flight_ends_the_lane(void **state)
{
    World *world = *state;
    g_autoptr(GError) error = NULL;

    vmf_rig_write(world->rig, 0, 0, 1);
    begin(world, true, false);
    take(world, 0);
    vmf_flight_close(world->rig->save->flight);
    assert_false(vmf_lane_flush(&world->lane, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
    nothing_more(world);
}

static void a_broken_channel_ends_the_lane(void **state)
{
    World *world = *state;
    g_autoptr(GError) error = NULL;

    vmf_rig_write(world->rig, 0, 0, 1);
    begin(world, true, false);
    take(world, 0);
    vmf_channel_shutdown(world->there);
    assert_false(vmf_lane_flush(&world->lane, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
}

/* ---- other sinks ----------------------------------------------------------------------------------------------- */

/* Keeps what it is given until it is flushed, as one does that writes while the lane goes on. */
typedef struct {
    GPtrArray *kept; /* VmfPageBatch */
    unsigned n_flushes, n_frees;
} Keeper;

static bool keeper_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    g_ptr_array_add(((Keeper *)opaque)->kept, batch);
    return true;
}

static bool keeper_flush(void *opaque, GError **error)
{
    Keeper *keeper = opaque;

    keeper->n_flushes++;
    for (guint i = 0; i < keeper->kept->len; i++)
        vmf_page_batch_release(g_ptr_array_index(keeper->kept, i));
    g_ptr_array_set_size(keeper->kept, 0);
    return true;
}

static void keeper_free(void *opaque)
{
    Keeper *keeper = opaque;

    keeper_flush(keeper, NULL);
    g_ptr_array_unref(keeper->kept);
    keeper->n_frees++;
}

static void keep(World *world, Keeper *keeper)
{
    static const VmfPageSinkOps ops = {
        .size = sizeof(VmfPageSinkOps), .push = keeper_push, .flush = keeper_flush, .free = keeper_free};
    VmfLaneConfig config = {.sink = {&ops, keeper}, .batch_pages = VMF_CHUNK_PAGES};

    keeper->kept = g_ptr_array_new();
    vmf_rig_begin(world->rig, 1, false);
    vmf_lane_init(&world->lane, world->rig->save, 0, &config);
}

static void a_sink_may_take_whole_chunks_and_keep_them(void **state)
{
    World *world = *state;
    Keeper keeper = {0};

    vmf_rig_write_range(world->rig, 0, 0, 5 * VMF_CHUNK_PAGES, 1);
    vmf_rig_write(world->rig, 0, 3, 0);
    keep(world, &keeper);
    for (unsigned c = 0; c < 5; c++)
        take(world, c);
    take(world, RIG_CHUNKS); /* nothing of it is dirty: no batch */
    assert_int_equal(keeper.kept->len, 2);
    for (unsigned c = 0; c < 2; c++) {
        const VmfPageBatch *batch = g_ptr_array_index(keeper.kept, c);
        assert_int_equal(batch->chunk, c);
        assert_true(batch->live);
        assert_int_equal(vmf_page_set_count(&batch->data), VMF_CHUNK_PAGES - (c == 0));
        assert_int_equal(vmf_page_set_count(&batch->zero), c == 0);
        for (unsigned page = 4; page < VMF_CHUNK_PAGES; page++)
            assert_int_equal(batch->digests[page],
                             world->rig->save->scan->digest(batch->payload + page * VMF_PAGE_SIZE, VMF_PAGE_SIZE));
    }
    flush(world);
    assert_int_equal(keeper.n_flushes, 1);
    assert_int_equal(keeper.kept->len, 0);
    take(world, 0);
    flush(world);
    vmf_lane_clear(&world->lane);
    assert_int_equal(keeper.n_frees, 1);
    vmf_lane_init(&world->lane, world->rig->save, 0, &(VmfLaneConfig){.batch_pages = 1});
}

static void what_a_sink_kept_is_let_go_with_the_lane(void **state)
{
    World *world = *state;
    Keeper keeper = {0};

    vmf_rig_write_range(world->rig, 0, 0, 6 * VMF_CHUNK_PAGES, 1);
    keep(world, &keeper);
    for (unsigned c = 0; c < 6; c++)
        take(world, c);
    assert_int_equal(keeper.kept->len, 2);
    vmf_lane_clear(&world->lane); /* a leak, or a use after free, is the sanitizer's to find */
    assert_int_equal(keeper.n_frees, 1);
    vmf_lane_init(&world->lane, world->rig->save, 0, &(VmfLaneConfig){.batch_pages = 1});
}

int main(void)
{
#define IN_A_WORLD(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_A_WORLD(a_record_carries_at_most_128_pages),
        IN_A_WORLD(a_page_of_zeros_is_a_bit),
        IN_A_WORLD(a_chunk_of_zeros_is_one_record_without_payload),
        IN_A_WORLD(the_last_chunk_may_be_short),
        IN_A_WORLD(every_page_of_a_rom_is_sent),
        IN_A_WORLD(a_hint_names_no_page_of_zeros),
        IN_A_WORLD(hints_are_for_the_first_pass),
        IN_A_WORLD(chunks_are_announced_ahead_of_their_pages),
        IN_A_WORLD(what_the_log_cleared_is_sent_too),
        IN_A_WORLD(a_page_that_became_zero_since_the_look_is_a_bit),
        IN_A_WORLD(a_page_written_since_the_look_comes_in_the_next_round),
        IN_A_WORLD(the_first_pass_counts_each_page_once),
        IN_A_WORLD(a_lane_lets_go_before_it_waits),
        IN_A_WORLD(a_closed_flight_ends_the_lane),
        IN_A_WORLD(a_broken_channel_ends_the_lane),
        IN_A_WORLD(a_sink_may_take_whole_chunks_and_keep_them),
        IN_A_WORLD(what_a_sink_kept_is_let_go_with_the_lane),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
