/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One page channel at the target, fed by hand: when it acknowledges, what it places, and what it does not take. Then
 * whole memories on their way through lanes and receivers while a guest writes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "ram/occupancy.h"
#include "ram/test-rig.h"

#define EPOCH 3
#define CHANNEL 5
#define MANY_CHUNKS 600

static const VmfStreamFormat format = {.version = 3};

typedef struct {
    VmfRamBlock *blocks[2]; /* "ram": 600 chunks, "tail": one chunk of 7 pages */
    VmfRamLoad *load;
    VmfChannel *here, *there;
    VmfRecordWriter *writer, *answers;
    VmfRecordReader *reader, *return_path;
    VmfReceiver receiver;
    pthread_t thread;
    bool running;
    bool result;
    GError *error;
    uint64_t sequence;
    uint8_t (*payload)[VMF_PAGE_SIZE];
} World;

static void *receiver_main(void *opaque)
{
    World *world = opaque;

    world->result = vmf_receiver_run(&world->receiver, &world->error);
    vmf_channel_shutdown(world->there);
    return NULL;
}

static int set_up(void **state)
{
    World *world = g_new0(World, 1);

    world->blocks[0] =
        vmf_ram_block_new("ram", (uint64_t)MANY_CHUNKS * VMF_CHUNK_SIZE, VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    world->blocks[1] = vmf_ram_block_new("tail", 7 * VMF_PAGE_SIZE, VMF_RAM_ANON, 0, UINT64_C(1) << 32, NULL);
    world->load = vmf_ram_load_new(world->blocks, 2, true, NULL);
    world->load->n_cpus = 2; /* of which one receiver leaves one to populate ahead */
    vmf_channel_memory_pair(0, &world->here, &world->there);
    world->writer = vmf_record_writer_new(world->here, format);
    world->return_path = vmf_record_reader_new(world->here, format);
    world->answers = vmf_record_writer_new(world->there, format);
    world->reader = vmf_record_reader_new(world->there, format);
    vmf_receiver_init(&world->receiver, world->load, world->reader, world->answers, CHANNEL, EPOCH);
    world->payload = g_malloc0(VMF_PAGES_DATA_MAX * VMF_PAGE_SIZE);
    for (unsigned i = 0; i < VMF_PAGES_DATA_MAX * VMF_PAGE_SIZE; i++)
        ((uint8_t *)world->payload)[i] = (uint8_t)(i / 5 + 1) | 1;
    *state = world;
    return 0;
}

static void stop(World *world)
{
    vmf_channel_shutdown(world->here);
    if (world->running)
        pthread_join(world->thread, NULL);
    world->running = false;
}

static int tear_down(void **state)
{
    World *world = *state;

    stop(world);
    vmf_receiver_clear(&world->receiver);
    vmf_record_writer_free(world->writer);
    vmf_record_writer_free(world->answers);
    vmf_record_reader_free(world->reader);
    vmf_record_reader_free(world->return_path);
    vmf_channel_free(world->here);
    vmf_channel_free(world->there);
    vmf_ram_load_free(world->load);
    vmf_ram_block_free(world->blocks[0]);
    vmf_ram_block_free(world->blocks[1]);
    g_clear_error(&world->error);
    g_free(world->payload);
    g_free(world);
    return 0;
}

static void start(World *world)
{
    world->running = true;
    assert_int_equal(pthread_create(&world->thread, NULL, receiver_main, world), 0);
}

/* The next acknowledgement; @entries is newly allocated, NULL: not of interest. */
static VmfAck next_ack(World *world, GArray **entries)
{
    g_autoptr(GArray) own = NULL;
    VmfRecord record;
    VmfAck ack;

    assert_true(vmf_record_read(world->return_path, &record, NULL));
    assert_int_equal(record.type, VMF_RECORD_ACK);
    assert_true(vmf_ack_decode(&record, false, &ack, &own, NULL));
    assert_int_equal(ack.epoch, EPOCH);
    assert_int_equal(ack.channel, CHANNEL);
    if (entries)
        *entries = g_steal_pointer(&own);
    return ack;
}

static void joined(World *world)
{
    start(world);
    VmfAck ack = next_ack(world, NULL);
    assert_int_equal(ack.sequence, 0);
    assert_int_equal(ack.n_entries, 0);
}

static VmfWirePages meta_of(World *world, uint32_t block, uint64_t chunk, unsigned n_data)
{
    VmfWirePages meta = {.block = block, .chunk = chunk, .epoch = EPOCH, .sequence = world->sequence, .n_data = n_data};

    for (unsigned page = 0; page < n_data; page++)
        meta.data[page / 64] |= UINT64_C(1) << (page % 64);
    return meta;
}

static void send_meta(World *world, const VmfWirePages *meta)
{
    struct iovec iov = {world->payload, (size_t)meta->n_data * VMF_PAGE_SIZE};

    assert_true(vmf_record_write_pages(world->writer, meta, &iov, meta->n_data > 0, iov.iov_len, NULL));
    assert_true(vmf_record_flush(world->writer, NULL));
    world->sequence++;
}

/* Pages 0 to @n_data - 1 of a chunk, with content. */
static void send_data(World *world, uint32_t block, uint64_t chunk, unsigned n_data)
{
    VmfWirePages meta = meta_of(world, block, chunk, n_data);

    meta.flags = VMF_PAGES_FIRST_PASS;
    send_meta(world, &meta);
}

static void send_zeros(World *world, uint32_t block, uint64_t chunk, uint64_t first_word)
{
    VmfWirePages meta = meta_of(world, block, chunk, 0);

    meta.zero[0] = first_word;
    send_meta(world, &meta);
}

static void end(World *world)
{
    assert_true(vmf_u64_send(world->writer, VMF_RECORD_END_MARK, world->sequence, NULL));
    pthread_join(world->thread, NULL);
    world->running = false;
    assert_true(world->result);
}

static uint64_t chunk_sum(World *world, const uint8_t *pages, uint64_t first_page, unsigned n)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < n; i++)
        sum += vmf_page_digest_mix(first_page + i,
                                   world->load->scan->digest(pages + (size_t)i * VMF_PAGE_SIZE, VMF_PAGE_SIZE));
    return sum;
}

/* ---- acknowledgements ------------------------------------------------------------------------------------------ */

static void half_a_mebibyte_is_acknowledged(void **state)
{
    World *world = *state;
    g_autoptr(GArray) entries = NULL;

    joined(world);
    send_data(world, 0, 9, 128);
    VmfAck ack = next_ack(world, &entries);
    assert_int_equal(ack.sequence, 1);
    assert_int_equal(entries->len, 1);
    const VmfAckEntry *entry = &g_array_index(entries, VmfAckEntry, 0);
    assert_int_equal(entry->block, 0);
    assert_int_equal(entry->chunk, 9);
    assert_int_equal(entry->sum, chunk_sum(world, world->payload[0], 9 * VMF_CHUNK_PAGES, 128));
    end(world);
    assert_memory_equal(vmf_ram_block_page(world->blocks[0], 9 * VMF_CHUNK_PAGES), world->payload, 128 * VMF_PAGE_SIZE);
}

/* Nothing more comes, and still it is acknowledged: the wait for the next record ends for it. */
static void a_quiet_channel_is_acknowledged(void **state)
{
    World *world = *state;

    joined(world);
    send_data(world, 0, 1, 1);
    assert_int_equal(next_ack(world, NULL).sequence, 1);
    send_zeros(world, 0, 2, 7);
    assert_int_equal(next_ack(world, NULL).sequence, 2);
    end(world);
    assert_int_equal(next_ack(world, NULL).sequence, 2);
}

static void the_end_is_acknowledged_at_once(void **state)
{
    World *world = *state;
    VmfAck ack;

    joined(world);
    for (unsigned i = 0; i < 20; i++)
        send_data(world, 0, i, 2);
    end(world);
    do
        ack = next_ack(world, NULL);
    while (ack.sequence < 20);
    assert_int_equal(ack.sequence, 20);
}

static void an_acknowledgement_names_each_chunk_of_its_records(void **state)
{
    World *world = *state;
    g_autoptr(GHashTable) named = g_hash_table_new(NULL, NULL);
    uint64_t landed = 0;

    joined(world);
    for (unsigned c = 0; c < MANY_CHUNKS; c++) {
        VmfWirePages meta = meta_of(world, 0, c, 0);
        meta.zero[0] = 1;
        assert_true(vmf_record_write_pages(world->writer, &meta, NULL, 0, 0, NULL));
        world->sequence++;
    }
    end(world);
    while (landed < MANY_CHUNKS) {
        g_autoptr(GArray) entries = NULL;
        VmfAck ack = next_ack(world, &entries);
        assert_in_range(entries->len, 1, VMF_ACK_CHUNKS);
        for (guint i = 0; i < entries->len; i++) {
            const VmfAckEntry *entry = &g_array_index(entries, VmfAckEntry, i);
            assert_in_range(entry->chunk, landed, ack.sequence - 1);
            assert_true(g_hash_table_add(named, GUINT_TO_POINTER(entry->chunk + 1)));
        }
        landed = ack.sequence;
    }
    assert_int_equal(g_hash_table_size(named), MANY_CHUNKS);
}

static void without_a_way_back_nothing_is_acknowledged(void **state)
{
    World *world = *state;

    vmf_receiver_clear(&world->receiver);
    vmf_receiver_init(&world->receiver, world->load, world->reader, NULL, CHANNEL, EPOCH);
    start(world);
    send_data(world, 0, 0, 128);
    send_zeros(world, 0, 3, 1);
    end(world);
    assert_int_equal(world->load->pages_data, 128);
    assert_int_equal(world->receiver.touched->len, 0); /* nor remembered, however long the stream */
    VmfRecord record;
    assert_false(vmf_record_read(world->return_path, &record, NULL));
}

/* ---- placing --------------------------------------------------------------------------------------------------- */

static void pages_are_counted_and_digested(void **state)
{
    World *world = *state;
    VmfWirePages again;

    joined(world);
    send_data(world, 1, 0, 5);
    again = meta_of(world, 1, 0, 2);
    again.zero[0] = 0x10;
    send_meta(world, &again);
    end(world);
    assert_int_equal(world->load->blocks[1].data, 5);
    assert_int_equal(world->load->blocks[1].zero, 0);
    assert_int_equal(world->load->pages_data, 7);
    assert_int_equal(world->load->pages_zero, 1);
    assert_int_equal(vmf_digest_table_n_data(world->load->blocks[1].digests), 4);
    assert_int_equal(vmf_digest_table_total(world->load->blocks[1].digests), chunk_sum(world, world->payload[0], 0, 4));
    assert_int_equal(world->receiver.bytes, 2 * (VMF_RECORD_HEADER_SIZE + sizeof(VmfWirePages)) + 7 * VMF_PAGE_SIZE);
}

static void zeros_after_data_clear_the_page(void **state)
{
    World *world = *state;
    static const uint8_t zeros[VMF_PAGE_SIZE];

    joined(world);
    send_data(world, 0, 0, 3);
    send_zeros(world, 0, 0, 2);
    end(world);
    assert_memory_equal(vmf_ram_block_page(world->blocks[0], 0), world->payload[0], VMF_PAGE_SIZE);
    assert_memory_equal(vmf_ram_block_page(world->blocks[0], 1), zeros, VMF_PAGE_SIZE);
    assert_memory_equal(vmf_ram_block_page(world->blocks[0], 2), world->payload[2], VMF_PAGE_SIZE);
}

static void zeros_of_an_empty_page_touch_nothing(void **state)
{
    World *world = *state;
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(vmf_ram_block_n_pages(world->blocks[0]), NULL);

    joined(world);
    send_data(world, 0, 4, 1);
    send_zeros(world, 0, 5, UINT64_MAX);
    end(world);
    assert_true(vmf_occupancy_scan(world->blocks[0], touched, NULL));
    assert_true(vmf_dirty_bitmap_test(touched, 4 * VMF_CHUNK_PAGES));
    assert_int_equal(vmf_dirty_bitmap_count(touched), 1);
}

/* Pages 3 n are in place, and rewritten; those between them are fresh. */
static void pages_in_place_and_fresh_ones_share_a_record(void **state)
{
    World *world = *state;
    VmfWirePages thirds = meta_of(world, 0, 11, 0), all = meta_of(world, 0, 11, 128);
    static const uint8_t zeros[VMF_PAGE_SIZE];

    for (unsigned page = 0; page < 128; page += 3, thirds.n_data++)
        thirds.data[page / 64] |= UINT64_C(1) << (page % 64);
    joined(world);
    send_meta(world, &thirds);
    all.sequence = world->sequence;
    all.data[0] &= ~UINT64_C(6);
    all.zero[0] = 6;
    all.n_data = 126;
    send_meta(world, &all);
    end(world);
    uint8_t *chunk = vmf_ram_block_page(world->blocks[0], 11 * VMF_CHUNK_PAGES);
    uint64_t sum = chunk_sum(world, world->payload[0], 11 * VMF_CHUNK_PAGES, 1) +
                   chunk_sum(world, world->payload[1], 11 * VMF_CHUNK_PAGES + 3, 125);
    assert_memory_equal(chunk, world->payload[0], VMF_PAGE_SIZE);
    assert_memory_equal(chunk + VMF_PAGE_SIZE, zeros, VMF_PAGE_SIZE);
    assert_memory_equal(chunk + 3 * VMF_PAGE_SIZE, world->payload[1], 125 * VMF_PAGE_SIZE);
    assert_int_equal(vmf_digest_table_chunk_sum(world->load->blocks[0].digests, 11), sum);
}

static void a_hint_populates_what_it_names(void **state)
{
    World *world = *state;
    VmfHint hint = {.block = 0, .chunk = 7, .data = {0, 0xf0}};
    VmfPageSet found;

    joined(world);
    assert_true(vmf_hint_queue(world->writer, &hint, NULL));
    end(world);
    /* It is only a hint: whether it came about is told by the populator, that it went nowhere else by memory. */
    for (unsigned i = 0; i < 2000 && vmf_populate_n_pages(world->load->populate) < 4; i++)
        g_usleep(1000);
    g_autoptr(VmfDirtyBitmap) touched = vmf_dirty_bitmap_new(vmf_ram_block_n_pages(world->blocks[0]), NULL);
    assert_true(vmf_occupancy_scan(world->blocks[0], touched, NULL));
    vmf_dirty_bitmap_peek_chunk(touched, 7, &found);
    assert_int_equal(vmf_page_set_count(&found), vmf_dirty_bitmap_count(touched));
    assert_int_equal(found.words[1] & ~UINT64_C(0xf0), 0);
    assert_int_equal(world->load->pages_data, 0);
}

/* ---- what is not taken ----------------------------------------------------------------------------------------- */

static void refused(World *world, VmfErrorCode code)
{
    assert_true(vmf_record_flush(world->writer, NULL)); /* small payloads wait for company */
    pthread_join(world->thread, NULL);
    world->running = false;
    assert_false(world->result);
    if (!g_error_matches(world->error, VMF_ERROR, (int)code))
        fail_msg("expected error %d, got: %s", (int)code, world->error->message);
    assert_int_equal(world->load->pages_data, 0);
}

/* One story of a record that is wrong in one field. */
typedef struct {
    const char *what;
    VmfErrorCode code;
    void (*spoil)(VmfWirePages *meta);
} Spoiler;

static void other_epoch(VmfWirePages *meta)
{
    meta->epoch++;
}

static void sequence_ahead(VmfWirePages *meta)
{
    meta->sequence++;
}

static void sequence_behind(VmfWirePages *meta)
{
    meta->sequence--;
}

static void no_such_block(VmfWirePages *meta)
{
    meta->block = 2;
}

static void no_such_chunk(VmfWirePages *meta)
{
    meta->chunk = MANY_CHUNKS;
}

static void chunk_that_overflows(VmfWirePages *meta)
{
    meta->chunk = UINT64_MAX / VMF_CHUNK_PAGES + 1;
}

static void beyond_the_block(VmfWirePages *meta)
{
    meta->block = 1;
    meta->zero[0] = 0x80;
}

static void beyond_the_block_far(VmfWirePages *meta)
{
    meta->block = 1;
    meta->zero[7] = UINT64_C(1) << 63;
}

static void fewer_pages_than_bits(VmfWirePages *meta)
{
    meta->data[3] = 1;
}

static void data_and_zero(VmfWirePages *meta)
{
    meta->zero[0] = 1;
}

static void unknown_flag(VmfWirePages *meta)
{
    meta->flags = 2;
}

static void neither_data_nor_zero(VmfWirePages *meta)
{
    meta->data[0] = 0;
    meta->n_data = 0;
}

static const Spoiler spoilers[] = {
    {"another epoch", VMF_ERROR_RECORD_ORDER, other_epoch},
    {"a sequence left out", VMF_ERROR_RECORD_ORDER, sequence_ahead},
    {"a sequence before the first", VMF_ERROR_RECORD_ORDER, sequence_behind},
    {"a block that is not there", VMF_ERROR_RAM_RANGE, no_such_block},
    {"a chunk that is not there", VMF_ERROR_RAM_RANGE, no_such_chunk},
    {"a chunk whose first page wraps", VMF_ERROR_RAM_RANGE, chunk_that_overflows},
    {"a page beyond the block", VMF_ERROR_RAM_RANGE, beyond_the_block},
    {"the last bit", VMF_ERROR_RAM_RANGE, beyond_the_block_far},
    {"more bits than pages", VMF_ERROR_RECORD_BODY, fewer_pages_than_bits},
    {"a page both ways", VMF_ERROR_RAM_RANGE, data_and_zero},
    {"a flag without a meaning", VMF_ERROR_RECORD_BODY, unknown_flag},
    {"nothing at all", VMF_ERROR_RAM_RANGE, neither_data_nor_zero},
};

static void a_record_that_does_not_fit_is_refused(void **state)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(spoilers); i++) {
        void *fresh;
        set_up(&fresh);
        World *world = fresh;
        joined(world);
        VmfWirePages meta = meta_of(world, 0, 0, 1);
        spoilers[i].spoil(&meta);
        print_message("%s\n", spoilers[i].what);
        send_meta(world, &meta);
        refused(world, spoilers[i].code);
        tear_down(&fresh);
    }
}

/* More data pages than a record may carry, each with its payload. */
static void a_record_of_129_pages_is_refused(void **state)
{
    World *world = *state;
    VmfWirePages meta = meta_of(world, 0, 0, 129);
    struct iovec iov[2] = {{world->payload, 128 * VMF_PAGE_SIZE}, {world->payload, VMF_PAGE_SIZE}};

    joined(world);
    vmf_record_write_pages(world->writer, &meta, iov, 2, 129 * VMF_PAGE_SIZE, NULL);
    refused(world, VMF_ERROR_RECORD_BODY);
}

static void a_payload_of_another_length_is_refused(void **state)
{
    World *world = *state;
    VmfWirePages meta = meta_of(world, 0, 0, 1);
    struct iovec iov = {world->payload, 2 * VMF_PAGE_SIZE};

    joined(world);
    vmf_record_write_pages(world->writer, &meta, &iov, 1, 2 * VMF_PAGE_SIZE, NULL);
    refused(world, VMF_ERROR_RECORD_BODY);
}

static void a_hint_outside_is_refused(void **state)
{
    World *world = *state;
    VmfHint hint = {.block = 1, .chunk = 0, .data = {0xff}};

    joined(world);
    assert_true(vmf_hint_queue(world->writer, &hint, NULL));
    assert_true(vmf_record_flush(world->writer, NULL));
    refused(world, VMF_ERROR_RAM_RANGE);
}

static void an_end_that_counts_otherwise_is_refused(void **state)
{
    World *world = *state;

    joined(world);
    send_zeros(world, 0, 0, 1);
    assert_true(vmf_u64_send(world->writer, VMF_RECORD_END_MARK, 2, NULL));
    refused(world, VMF_ERROR_RAM_COUNTS);
}

static void records_of_the_main_channel_are_refused(void **state)
{
    World *world = *state;

    joined(world);
    assert_true(vmf_u64_send(world->writer, VMF_RECORD_PING, 1, NULL));
    refused(world, VMF_ERROR_RECORD_ORDER);
}

static void an_unknown_record_is_refused(void **state)
{
    World *world = *state;

    joined(world);
    assert_true(vmf_record_write(world->writer, 0x77, "12345678", 8, NULL));
    refused(world, VMF_ERROR_RECORD_UNKNOWN);
}

static void an_unknown_optional_record_is_passed_over(void **state)
{
    World *world = *state;

    joined(world);
    assert_true(vmf_record_write(world->writer, 0x80000077u, "12345", 5, NULL));
    send_data(world, 0, 0, 1);
    end(world);
    assert_int_equal(world->load->pages_data, 1);
}

static void a_channel_that_ends_early_is_cut(void **state)
{
    World *world = *state;

    joined(world);
    vmf_channel_shutdown(world->here);
    refused(world, VMF_ERROR_CUT);
}

/* On the main channel other records follow END_MARK; pages are not among them, nor is a second END_MARK. */
static void after_the_end_there_are_no_pages(void **state)
{
    World *world = *state;
    VmfWirePages meta = meta_of(world, 0, 0, 0);
    uint64_t count = 0;
    VmfRecord pages = {VMF_RECORD_PAGES, sizeof(meta), (const uint8_t *)&meta, sizeof(meta)};
    VmfRecord mark = {VMF_RECORD_END_MARK, sizeof(count), (const uint8_t *)&count, sizeof(count)};

    meta.zero[0] = 1;
    joined(world);
    end(world);
    for (unsigned i = 0; i < 2; i++) {
        g_autoptr(GError) error = NULL;
        assert_false(vmf_receiver_take(&world->receiver, i ? &mark : &pages, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_RECORD_ORDER));
    }
}

/* ---- the whole way --------------------------------------------------------------------------------------------- */

typedef struct {
    VmfRig *rig;
    _Atomic bool stop;
    unsigned seed;
    pthread_t thread;
} Guest;

/* Writes anywhere, every eighth time zeros, as fast as it can. */
static void *guest_main(void *opaque)
{
    Guest *guest = opaque;
    g_autoptr(GRand) rand = g_rand_new_with_seed(guest->seed);

    for (uint32_t n = 1; !guest->stop; n++) {
        uint64_t page = (uint64_t)g_rand_int_range(rand, 0, RIG_RAM_PAGES);
        vmf_rig_write(guest->rig, 0, page, n % 8 ? n : 0);
        if (n % 64 == 0)
            g_usleep(200);
    }
    return NULL;
}

static void check_arrival(VmfRig *rig)
{
    VmfSwitchover summary = vmf_rig_summary(rig);
    g_autoptr(GError) error = NULL;
    g_autofree char *difference = vmf_rig_difference(rig);

    if (difference)
        fail_msg("%s differs", difference);
    if (!vmf_ram_load_check(rig->load, &summary, &error))
        fail_msg("%s", error->message);
    for (unsigned b = 0; b < RIG_BLOCKS; b++) {
        assert_int_equal(rig->load->blocks[b].data, rig->save->blocks[b].data);
        assert_int_equal(rig->load->blocks[b].zero, rig->save->blocks[b].zero);
        assert_int_equal(vmf_digest_table_total(rig->load->blocks[b].digests),
                         vmf_digest_table_total(rig->save->blocks[b].digests));
    }
    assert_string_equal(rig->mended->str, "");
    assert_true(rig->log.good_clears);
    vmf_switchover_clear(&summary);
}

static void check_acks(VmfRig *rig)
{
    for (unsigned i = 0; i < rig->n_lanes; i++) {
        const GArray *acks = rig->lanes[i].acks;
        for (guint a = 1; a < acks->len; a++)
            assert_true(g_array_index(acks, VmfAck, a).sequence >= g_array_index(acks, VmfAck, a - 1).sequence);
        assert_int_equal(g_array_index(acks, VmfAck, acks->len - 1).sequence,
                         vmf_flight_sequence(rig->save->flight, i));
    }
}

static void move(unsigned n_lanes, unsigned seed)
{
    g_autoptr(VmfRig) rig = vmf_rig_new();
    g_autoptr(GError) error = NULL;
    Guest guest = {.rig = rig, .seed = seed};

    vmf_rig_write_range(rig, 0, 100, 2000, seed);
    vmf_rig_write_range(rig, 1, 0, 20, seed);
    vmf_rig_connect(rig, n_lanes);
    assert_int_equal(pthread_create(&guest.thread, NULL, guest_main, &guest), 0);
    /* At least five rounds, and until the guest has had its turn. */
    for (unsigned round = 0; round < 5 || rig->save->pages_resent == 0; round++)
        if (!vmf_rig_round(rig, &error))
            fail_msg("%s", error->message);
    guest.stop = true;
    pthread_join(guest.thread, NULL);
    assert_true(vmf_ram_save_harvest(rig->save, NULL));
    if (!vmf_rig_end(rig, &error))
        fail_msg("%s", error->message);
    check_arrival(rig);
    check_acks(rig);
    assert_int_equal(rig->log.n_starts, 1);
}

static void memory_moves_over_one_lane(void **state)
{
    move(1, 1);
}

static void memory_moves_over_two_lanes(void **state)
{
    move(2, 2);
}

static void memory_moves_over_four_lanes(void **state)
{
    for (unsigned seed = 10; seed < 13; seed++)
        move(4, seed);
}

static void counts_that_do_not_add_up_are_refused(void **state)
{
    g_autoptr(VmfRig) rig = vmf_rig_new();

    vmf_rig_write_range(rig, 0, 0, 10, 1);
    vmf_rig_connect(rig, 1);
    assert_true(vmf_rig_end(rig, NULL));
    check_arrival(rig);
    for (unsigned field = 0; field < 5; field++) {
        VmfSwitchover summary = vmf_rig_summary(rig);
        g_autoptr(GError) error = NULL;
        VmfBlockSummary *block = &summary.blocks[0];
        uint64_t *fields[] = {&block->data, &block->zero, &block->hole, &block->sum, &block->hole};
        *fields[field] += field == 4 ? UINT64_MAX : 1;
        assert_false(vmf_ram_load_check(rig->load, &summary, &error));
        assert_true(g_error_matches(error, VMF_ERROR, field == 3 ? VMF_ERROR_RAM_SUM : VMF_ERROR_RAM_COUNTS));
        assert_non_null(strstr(error->message, "RAM block ram"));
        vmf_switchover_clear(&summary);
    }
}

static void a_load_empties_memory_before_and_after(void **state)
{
    g_autoptr(VmfRig) rig = vmf_rig_new();
    static const uint8_t zeros[VMF_PAGE_SIZE];

    memset(vmf_ram_block_page(rig->to[1], 3), 7, VMF_PAGE_SIZE);
    vmf_rig_write(rig, 0, 3, 9);
    vmf_rig_connect(rig, 1);
    assert_memory_equal(vmf_ram_block_page(rig->to[1], 3), zeros, VMF_PAGE_SIZE);
    assert_true(vmf_rig_end(rig, NULL));
    check_arrival(rig);
    vmf_ram_load_discard(rig->load);
    assert_memory_equal(vmf_ram_block_page(rig->to[0], 3), zeros, VMF_PAGE_SIZE);
}

int main(void)
{
#define IN_A_WORLD(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_A_WORLD(half_a_mebibyte_is_acknowledged),
        IN_A_WORLD(a_quiet_channel_is_acknowledged),
        IN_A_WORLD(the_end_is_acknowledged_at_once),
        IN_A_WORLD(an_acknowledgement_names_each_chunk_of_its_records),
        IN_A_WORLD(without_a_way_back_nothing_is_acknowledged),
        IN_A_WORLD(pages_are_counted_and_digested),
        IN_A_WORLD(zeros_after_data_clear_the_page),
        IN_A_WORLD(zeros_of_an_empty_page_touch_nothing),
        IN_A_WORLD(pages_in_place_and_fresh_ones_share_a_record),
        IN_A_WORLD(a_hint_populates_what_it_names),
        cmocka_unit_test(a_record_that_does_not_fit_is_refused),
        IN_A_WORLD(a_record_of_129_pages_is_refused),
        IN_A_WORLD(a_payload_of_another_length_is_refused),
        IN_A_WORLD(a_hint_outside_is_refused),
        IN_A_WORLD(an_end_that_counts_otherwise_is_refused),
        IN_A_WORLD(records_of_the_main_channel_are_refused),
        IN_A_WORLD(an_unknown_record_is_refused),
        IN_A_WORLD(an_unknown_optional_record_is_passed_over),
        IN_A_WORLD(a_channel_that_ends_early_is_cut),
        IN_A_WORLD(after_the_end_there_are_no_pages),
        cmocka_unit_test(memory_moves_over_one_lane),
        cmocka_unit_test(memory_moves_over_two_lanes),
        cmocka_unit_test(memory_moves_over_four_lanes),
        cmocka_unit_test(counts_that_do_not_add_up_are_refused),
        cmocka_unit_test(a_load_empties_memory_before_and_after),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
