/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/test-rig.h"

#include <inttypes.h>

#include <vmferry/error.h>

#include "stream/clock.h"

static const VmfStreamFormat format = {.version = 3};

/* ---- the dirty log --------------------------------------------------------------------------------------------- */

static bool log_start(void *opaque, GError **error)
{
    ((VmfRig *)opaque)->log.n_starts++;
    return true;
}

static void log_stop(void *opaque)
{
    ((VmfRig *)opaque)->log.n_stops++;
}

static bool log_harvest(void *opaque, unsigned block,
                        void (*report)(void *report_opaque, uint64_t first_word, const uint64_t *words, size_t n_words),
                        void *report_opaque, GError **error)
{
    VmfRigLog *log = &((VmfRig *)opaque)->log;
    uint64_t words[RIG_WORDS];

    pthread_mutex_lock(&log->lock);
    memcpy(words, log->words[block], sizeof(words));
    pthread_mutex_unlock(&log->lock);
    report(report_opaque, 0, words, RIG_WORDS);
    return true;
}

static void log_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    VmfRigLog *log = &((VmfRig *)opaque)->log;
    uint64_t last_page = first_page + n_pages - 1;

    pthread_mutex_lock(&log->lock);
    log->n_clears++;
    log->good_clears &=
        first_page % 64 == 0 && n_pages > 0 && first_page / VMF_CHUNK_PAGES == last_page / VMF_CHUNK_PAGES;
    for (uint64_t w = first_page / 64; w <= last_page / 64; w++) {
        words[w - first_page / 64] |= log->words[block][w];
        log->words[block][w] = 0;
    }
    pthread_mutex_unlock(&log->lock);
}

static const VmfDirtyLogOps log_ops = {
    .size = sizeof(VmfDirtyLogOps),
    .name = "rig",
    .start = log_start,
    .stop = log_stop,
    .harvest = log_harvest,
    .clear = log_clear,
};

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static void make_blocks(VmfRamBlock **blocks)
{
    blocks[0] =
        vmf_ram_block_new("ram", (uint64_t)RIG_RAM_PAGES * VMF_PAGE_SIZE, VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES, 0, NULL);
    blocks[1] =
        vmf_ram_block_new("rom", (uint64_t)RIG_ROM_PAGES * VMF_PAGE_SIZE, VMF_RAM_MEMFD, VMF_RAM_ROM, 1u << 30, NULL);
    g_assert(blocks[0] && blocks[1]);
}

VmfRig *vmf_rig_new(void)
{
    VmfRig *rig = g_new0(VmfRig, 1);

    make_blocks(rig->from);
    make_blocks(rig->to);
    pthread_mutex_init(&rig->log.lock, NULL);
    rig->log.good_clears = true;
    rig->mended = g_string_new(NULL);
    return rig;
}

uint8_t *vmf_rig_page(VmfRig *rig, unsigned block, uint64_t page)
{
    return vmf_ram_block_page(rig->from[block], page);
}

/* The engine reads memory that its guest writes: that is no race to report, so the thread sanitizer does not watch this
 * side of it. */
__attribute__((no_sanitize("thread"))) void vmf_rig_write_unseen(VmfRig *rig, unsigned block, uint64_t page,
                                                                 uint32_t value)
{
    volatile uint32_t *words = (uint32_t *)(void *)vmf_rig_page(rig, block, page);

    for (unsigned i = 0; i < VMF_PAGE_SIZE / sizeof(*words); i++)
        words[i] = value ? value * 2654435761u + i : 0;
}

void vmf_rig_write(VmfRig *rig, unsigned block, uint64_t page, uint32_t value)
{
    /* What is visible when a harvest begins is in it: no write stands between its store and its bit then. */
    pthread_mutex_lock(&rig->log.lock);
    vmf_rig_write_unseen(rig, block, page, value);
    rig->log.words[block][page / 64] |= UINT64_C(1) << (page % 64);
    pthread_mutex_unlock(&rig->log.lock);
}

void vmf_rig_write_range(VmfRig *rig, unsigned block, uint64_t first_page, uint64_t n_pages, uint32_t value)
{
    for (uint64_t page = first_page; page < first_page + n_pages; page++)
        vmf_rig_write(rig, block, page, value + (uint32_t)page);
}

bool vmf_rig_log_has(VmfRig *rig, unsigned block, uint64_t page)
{
    pthread_mutex_lock(&rig->log.lock);
    bool has = rig->log.words[block][page / 64] >> (page % 64) & 1;
    pthread_mutex_unlock(&rig->log.lock);
    return has;
}

char *vmf_rig_difference(VmfRig *rig)
{
    for (unsigned b = 0; b < RIG_BLOCKS; b++)
        for (uint64_t page = 0; page < vmf_ram_block_n_pages(rig->from[b]); page++)
            if (memcmp(vmf_ram_block_page(rig->from[b], page), vmf_ram_block_page(rig->to[b], page), VMF_PAGE_SIZE) !=
                0)
                return g_strdup_printf("%s page %" PRIu64, vmf_ram_block_name(rig->from[b]), page);
    return NULL;
}

/* ---- the way --------------------------------------------------------------------------------------------------- */

static void note_mended(void *opaque, const char *text)
{
    g_string_append_printf(((VmfRig *)opaque)->mended, "%s\n", text);
}

void vmf_rig_begin(VmfRig *rig, unsigned n_lanes, bool acknowledged)
{
    VmfRamSaveConfig config = {
        .n_lanes = n_lanes,
        .acknowledged = acknowledged,
        .log = &log_ops,
        .log_opaque = rig,
        .mended = note_mended,
        .opaque = rig,
    };

    rig->save = vmf_ram_save_new(rig->from, RIG_BLOCKS, &config, NULL);
    g_assert(rig->save && vmf_ram_save_begin(rig->save, NULL));
}

static bool take_ack(VmfRigLane *lane, const VmfRecord *record)
{
    g_autoptr(GArray) entries = NULL;
    VmfAck ack;

    if (record->type != VMF_RECORD_ACK || !vmf_ack_decode(record, false, &ack, &entries, NULL))
        return false;
    g_array_append_val(lane->acks, ack);
    g_autofree VmfChunkId *ids = g_new0(VmfChunkId, entries->len + 1);
    g_autofree uint64_t *sums = g_new0(uint64_t, entries->len + 1);
    for (guint i = 0; i < entries->len; i++) {
        const VmfAckEntry *entry = &g_array_index(entries, VmfAckEntry, i);
        ids[i] = (VmfChunkId){entry->block, entry->chunk};
        sums[i] = entry->sum;
    }
    return vmf_flight_land(lane->rig->save->flight, lane->index, ack.sequence, entries->len, ids, sums,
                           vmf_ram_save_compare, lane->rig->save);
}

/* Ends with the channel; whoever waits for an acknowledgement then is told. */
static void *return_main(void *opaque)
{
    VmfRigLane *lane = opaque;
    VmfRecord record;

    while (vmf_record_read(lane->return_path, &record, NULL) && take_ack(lane, &record))
        ;
    vmf_flight_close(lane->rig->save->flight);
    return NULL;
}

static void *receiver_main(void *opaque)
{
    VmfRigLane *lane = opaque;

    if (!vmf_receiver_run(&lane->receiver, &lane->receiver_error))
        vmf_channel_shutdown(lane->there);
    return NULL;
}

static void connect_lane(VmfRig *rig, unsigned index)
{
    VmfRigLane *lane = &rig->lanes[index];

    *lane = (VmfRigLane){.rig = rig, .index = index, .acks = g_array_new(false, false, sizeof(VmfAck))};
    vmf_channel_memory_pair(0, &lane->here, &lane->there);
    if (rig->wrap)
        lane->here = rig->wrap(lane->here, index, rig->wrap_opaque);
    lane->writer = vmf_record_writer_new(lane->here, format);
    lane->return_path = vmf_record_reader_new(lane->here, format);
    lane->answers = vmf_record_writer_new(lane->there, format);
    lane->reader = vmf_record_reader_new(lane->there, format);
    vmf_receiver_init(&lane->receiver, rig->load, lane->reader, lane->answers, index, 1);
    g_assert(pthread_create(&lane->return_thread, NULL, return_main, lane) == 0);
    g_assert(pthread_create(&lane->receiver_thread, NULL, receiver_main, lane) == 0);
}

void vmf_rig_connect(VmfRig *rig, unsigned n_lanes)
{
    VmfLaneConfig lanes[RIG_LANES_MAX];

    vmf_rig_begin(rig, n_lanes, true);
    rig->load = vmf_ram_load_new(rig->to, RIG_BLOCKS, true, NULL);
    g_assert(rig->load && n_lanes <= RIG_LANES_MAX);
    rig->n_lanes = n_lanes;
    for (unsigned i = 0; i < n_lanes; i++) {
        connect_lane(rig, i);
        rig->lanes[i].sink =
            (VmfStreamSink){.save = rig->save, .writer = rig->lanes[i].writer, .lane = i, .epoch = 1};
        lanes[i] = vmf_stream_sink_lane(&rig->lanes[i].sink, true);
    }
    rig->fanout = vmf_fanout_new(rig->save, lanes, n_lanes, rig->n_threads, NULL);
    g_assert(rig->fanout);
}

bool vmf_rig_round(VmfRig *rig, GError **error)
{
    if (!vmf_fanout_round(rig->fanout, error))
        return false;
    if (vmf_flight_drain(rig->save->flight, 60 * VMF_NS_PER_S))
        return vmf_ram_save_harvest(rig->save, error);
    g_set_error(error, VMF_ERROR, VMF_ERROR_TIMEOUT, "rig: not acknowledged");
    return false;
}

static void join(VmfRig *rig)
{
    g_clear_pointer(&rig->fanout, vmf_fanout_free);
    for (unsigned i = 0; i < rig->n_lanes; i++) {
        pthread_join(rig->lanes[i].receiver_thread, NULL);
        vmf_channel_shutdown(rig->lanes[i].here);
        pthread_join(rig->lanes[i].return_thread, NULL);
    }
}

static void disconnect(VmfRig *rig)
{
    for (unsigned i = 0; i < rig->n_lanes; i++) {
        VmfRigLane *lane = &rig->lanes[i];
        vmf_receiver_clear(&lane->receiver);
        vmf_record_writer_free(lane->writer);
        vmf_record_writer_free(lane->answers);
        vmf_record_reader_free(lane->reader);
        vmf_record_reader_free(lane->return_path);
        vmf_channel_free(lane->here);
        vmf_channel_free(lane->there);
        g_clear_error(&lane->receiver_error);
        g_array_unref(lane->acks);
    }
    rig->n_lanes = 0;
}

bool vmf_rig_end_marks(VmfRig *rig, GError **error)
{
    for (unsigned i = 0; i < rig->n_lanes; i++)
        if (!vmf_stream_sink_end_mark(&rig->lanes[i].sink, error))
            return false;
    return true;
}

bool vmf_rig_end(VmfRig *rig, GError **error)
{
    bool done = vmf_rig_round(rig, error) && vmf_rig_end_marks(rig, error);

    for (unsigned i = 0; !done && i < rig->n_lanes; i++)
        vmf_channel_shutdown(rig->lanes[i].here);
    join(rig);
    for (unsigned i = 0; done && i < rig->n_lanes; i++)
        if (rig->lanes[i].receiver_error) {
            done = false;
            g_propagate_error(error, g_error_copy(rig->lanes[i].receiver_error));
        }
    return done;
}

void vmf_rig_free(VmfRig *rig)
{
    if (rig->fanout) {
        vmf_flight_close(rig->save->flight);
        for (unsigned i = 0; i < rig->n_lanes; i++)
            vmf_channel_shutdown(rig->lanes[i].here);
        join(rig);
    }
    disconnect(rig);
    vmf_ram_save_free(rig->save);
    vmf_ram_load_free(rig->load);
    for (unsigned b = 0; b < RIG_BLOCKS; b++) {
        vmf_ram_block_free(rig->from[b]);
        vmf_ram_block_free(rig->to[b]);
    }
    g_string_free(rig->mended, true);
    pthread_mutex_destroy(&rig->log.lock);
    g_free(rig);
}

VmfSwitchover vmf_rig_summary(VmfRig *rig)
{
    VmfSwitchover message = {.n_blocks = RIG_BLOCKS, .blocks = g_new0(VmfBlockSummary, RIG_BLOCKS)};

    for (unsigned b = 0; b < RIG_BLOCKS; b++) {
        const VmfRamSaveBlock *own = &rig->save->blocks[b];
        message.blocks[b] = (VmfBlockSummary){own->data, own->zero, own->hole, vmf_digest_table_total(own->digests)};
    }
    return message;
}
