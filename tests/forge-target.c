/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/forge-target.h"

#include <string.h>

#include "ram/block.h"
#include "stream/channel.h"

FakeTarget *fake_target_new(size_t capacity, FakePoint point, bool instead, void (*plant)(FakeTarget *target))
{
    FakeTarget *target = g_new0(FakeTarget, 1);

    target->point = point;
    target->instead = instead;
    target->plant = plant;
    target->data = vmf_static_data_new();
    target->blocks = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_ram_block_free);
    target->device_sum = XXH3_createState();
    XXH3_64bits_reset(target->device_sum);
    vmf_memory_link_new(capacity, &target->connector, &target->listener);
    return target;
}

/* False: go no further, or not with the good answer. */
static bool come_to(FakeTarget *target, FakePoint point)
{
    if (point != target->point || target->planted)
        return true;
    target->planted = true;
    target->plant(target);
    return !target->instead;
}

void fake_target_drain(FakeTarget *target)
{
    uint8_t octets[4096];
    bool ended = false;

    while (!ended && vmf_channel_read_all_or_end(target->main, octets, 1, &ended, NULL))
        ;
    target->over = true;
}

/* A write fails once the source has closed; nothing tells a reader's end but reading. */
void fake_target_go_deaf(FakeTarget *target)
{
    static const uint8_t pong[8];

    while (target->writer && vmf_record_write(target->writer, VMF_RECORD_PONG, pong, sizeof(pong), NULL))
        g_usleep(5000);
    target->over = true;
}

/* ---- static data ----------------------------------------------------------------------------------------------------------- */

static bool read_headers(FakeTarget *target)
{
    uint8_t image[VMF_IMAGE_HEADER_SIZE], machine[VMF_MACHINE_HEADER_SIZE];
    VmfStreamFormat format;

    if (!vmf_channel_read_all(target->main, image, sizeof(image), NULL) || !vmf_image_header_decode(image, &format, NULL) ||
        !vmf_channel_read_all(target->main, machine, sizeof(machine), NULL) ||
        !vmf_machine_header_decode(machine, format.swap, &target->data->machine, NULL))
        return false;
    target->reader = vmf_record_reader_new(target->main, format);
    target->writer = vmf_record_writer_new(target->main, format);
    vmf_record_reader_sum_begin(target->reader);
    XXH3_64bits_update(target->reader->sum, image, sizeof(image));
    XXH3_64bits_update(target->reader->sum, machine, sizeof(machine));
    return true;
}

static bool read_static(FakeTarget *target)
{
    VmfRecord record;

    do {
        if (!vmf_record_read(target->reader, &record, NULL))
            return false;
    } while (record.type != VMF_RECORD_STATIC_DATA_END &&
             vmf_static_data_take(target->data, &record, target->reader->format.swap, NULL));
    target->ready.static_sum = vmf_record_reader_sum_end(target->reader, false);
    return record.type == VMF_RECORD_STATIC_DATA_END;
}

static void make_memory(FakeTarget *target)
{
    for (guint b = 0; b < target->data->blocks->len; b++) {
        const VmfStaticBlock *block = &g_array_index(target->data->blocks, VmfStaticBlock, b);
        g_ptr_array_add(target->blocks, vmf_ram_block_new(block->name, block->size, VMF_RAM_ANON, 0, block->guest_address, NULL));
    }
    target->load = vmf_ram_load_new((VmfRamBlock *const *)target->blocks->pdata, target->blocks->len, false, NULL);
    vmf_receiver_init(&target->receiver, target->load, target->reader, target->writer, 0, 1);
}

static void answer_static(FakeTarget *target)
{
    VmfVerdict verdict = {.accepted = true, .features = target->data->features_offered & ~target->features_withheld};

    if (!come_to(target, FAKE_VERDICT) || target->over)
        return;
    verdict.features &= ~target->features_withheld;
    verdict.page_channels = target->page_channels;
    vmf_verdict_send(target->writer, &verdict, NULL);
}

/* ---- records --------------------------------------------------------------------------------------------------------------- */

static void join_page_channel(FakeTarget *target)
{
    VmfAck ack = {.epoch = 1};
    uint8_t preamble[VMF_PREAMBLE_SIZE];

    target->page = vmf_listener_accept(target->listener, -1, NULL);
    if (!target->page || !vmf_channel_read_all(target->page, preamble, sizeof(preamble), NULL))
        return;
    target->page_writer = vmf_record_writer_new(target->page, target->reader->format);
    if (come_to(target, FAKE_JOIN))
        vmf_ack_send(target->page_writer, &ack, NULL, NULL);
}

static void take_pages(FakeTarget *target, const VmfRecord *record)
{
    if (!vmf_receiver_take(&target->receiver, record, NULL))
        target->over = true;
    if (record->type == VMF_RECORD_PAGES)
        come_to(target, FAKE_PAGES);
    /* A digest that does not belong to the page: acknowledgements are wrong from here on, for this chunk. */
    if (record->type == VMF_RECORD_PAGES && target->damage) {
        const uint64_t digest[VMF_CHUNK_PAGES] = {1};
        VmfPageSet first = {{1}};
        vmf_digest_table_update(target->load->blocks[0].digests, 0, &first, digest);
    }
}

static void answer_switchover(FakeTarget *target, const VmfRecord *record)
{
    bool swap = target->reader->format.swap;
    VmfSwitchover message;

    if (!vmf_switchover_decode(record, swap, target->load->n_blocks, &message, NULL))
        return;
    memcpy(target->token, message.token, sizeof(target->token));
    memcpy(target->ready.token, message.token, sizeof(target->token));
    target->ready.flags = message.flags & VMF_SWITCHOVER_AUDIT ? VMF_READY_AUDITED : 0;
    target->ready.device_sum = XXH3_64bits_digest(target->device_sum);
    target->ready.n_blocks = target->load->n_blocks;
    target->ready.sums = g_new0(uint64_t, target->load->n_blocks + 1);
    for (unsigned b = 0; b < target->load->n_blocks; b++)
        target->ready.sums[b] = vmf_digest_table_total(target->load->blocks[b].digests);
    vmf_switchover_clear(&message);
    if (come_to(target, FAKE_SWITCHOVER) && !target->over)
        vmf_ready_send(target->writer, &target->ready, NULL);
}

static void answer_run(FakeTarget *target)
{
    VmfReport report = {.gap_known = true, .guest_gap_ns = 12345};

    if (!come_to(target, FAKE_RUN) || target->over)
        return;
    vmf_token_send(target->writer, VMF_RECORD_RUNNING, target->token, NULL);
    memcpy(report.token, target->token, sizeof(report.token));
    if (come_to(target, FAKE_RAN) && !target->over)
        vmf_report_send(target->writer, &report, NULL);
}

static void take(FakeTarget *target, const VmfRecord *record)
{
    uint64_t cookie;

    if (target->stands && target->stands(target->opaque) && !come_to(target, FAKE_STANDS))
        target->over = true;
    if (target->over)
        return;
    switch (record->type) {
    case VMF_RECORD_PAGE_CHANNELS:
        come_to(target, FAKE_PAGE_CHANNELS);
        if (target->page_channels > 0 && !target->over)
            join_page_channel(target);
        break;
    case VMF_RECORD_PAGES:
    case VMF_RECORD_HINT:
    case VMF_RECORD_END_MARK:
        take_pages(target, record);
        break;
    case VMF_RECORD_SECTION:
        XXH3_64bits_update(target->device_sum, record->body, record->checked);
        break;
    case VMF_RECORD_PING:
        if (vmf_u64_decode(record, target->reader->format.swap, &cookie, NULL))
            vmf_u64_send(target->writer, VMF_RECORD_PONG, cookie, NULL);
        break;
    case VMF_RECORD_SWITCHOVER:
        answer_switchover(target, record);
        break;
    case VMF_RECORD_RUN:
        answer_run(target);
        break;
    case VMF_RECORD_ABORT:
        target->aborted = true;
        break;
    }
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------- */

static void serve(FakeTarget *target)
{
    VmfRecord record;

    if (!come_to(target, FAKE_CONNECTED) || !read_headers(target) || !read_static(target))
        return;
    make_memory(target);
    answer_static(target);
    while (!target->over && vmf_receiver_wait(&target->receiver, NULL) && vmf_record_read(target->reader, &record, NULL) &&
           record.type != VMF_RECORD_END)
        take(target, &record);
}

static void *fake_main(void *opaque)
{
    FakeTarget *target = opaque;

    target->main = vmf_listener_accept(target->listener, -1, NULL);
    if (!target->main)
        return NULL;
    serve(target);
    fake_target_drain(target);
    vmf_channel_shutdown(target->main);
    return NULL;
}

void fake_target_start(FakeTarget *target)
{
    if (pthread_create(&target->thread, NULL, fake_main, target) != 0)
        g_error("no thread");
}

bool fake_target_finish(FakeTarget *target)
{
    pthread_join(target->thread, NULL);
    return target->planted || target->point == FAKE_NOWHERE;
}

void fake_target_free(FakeTarget *target)
{
    if (target->load)
        vmf_receiver_clear(&target->receiver);
    vmf_ram_load_free(target->load);
    g_ptr_array_unref(target->blocks);
    vmf_record_reader_free(target->reader);
    vmf_record_writer_free(target->writer);
    vmf_record_writer_free(target->page_writer);
    vmf_channel_free(target->page);
    vmf_channel_free(target->main);
    vmf_static_data_free(target->data);
    vmf_ready_clear(&target->ready);
    XXH3_freeState(target->device_sum);
    vmf_connector_free(target->connector);
    vmf_listener_free(target->listener);
    g_free(target);
}
