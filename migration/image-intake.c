/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. Who reads a stream reads into memory that the sink reserves and then pushes a batch that lives
 * no longer than the push. The lane writes later. So each push makes a batch of its own, which keeps the memory until
 * the lane releases it; some chunks of memory go round.
 */
#include "migration/image-intake.h"

#include <pthread.h>
#include <stdlib.h>
#include <vmferry/error.h>

#include "stream/io-memory.h"

#define BUFFERS 8u

typedef struct Intake Intake;

typedef struct {
    VmfPageBatch batch; /* first */
    uint64_t digests[VMF_CHUNK_PAGES];
    uint8_t *memory;
    Intake *intake;
} Load;

struct Intake {
    VmfPageSink lane;
    const VmfPageScan *scan;
    uint8_t *memory; /* of all loads */
    Load loads[BUFFERS];
    pthread_mutex_t lock; /* of the idle loads: a batch may be released by any thread */
    Load *idle[BUFFERS];
    unsigned n_idle;
    Load *reserved; /* handed out, not pushed yet */
};

static void release(VmfPageBatch *batch)
{
    Load *load = (Load *)batch;
    Intake *intake = load->intake;

    pthread_mutex_lock(&intake->lock);
    intake->idle[intake->n_idle++] = load;
    pthread_mutex_unlock(&intake->lock);
}

static Load *take_idle(Intake *intake)
{
    pthread_mutex_lock(&intake->lock);
    Load *load = intake->n_idle > 0 ? intake->idle[--intake->n_idle] : NULL;
    pthread_mutex_unlock(&intake->lock);
    return load;
}

/* A flush that fails is told by the push that follows. */
static void *intake_reserve(void *opaque, unsigned block_index, uint64_t chunk)
{
    Intake *intake = opaque;

    if (!intake->reserved)
        intake->reserved = take_idle(intake);
    if (!intake->reserved) {
        vmf_page_sink_flush(&intake->lane, NULL);
        intake->reserved = take_idle(intake);
    }
    return intake->reserved ? intake->reserved->memory : NULL;
}

static bool intake_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    Intake *intake = opaque;
    Load *load = g_steal_pointer(&intake->reserved);
    VmfPageSet zeros;

    if (!load || batch->payload != load->memory) {
        if (load)
            release(&load->batch);
        vmf_page_batch_release(batch);
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "image: what was written before has failed");
        return false;
    }
    load->batch = *batch;
    load->batch.release = release;
    load->batch.digests = load->digests;
    vmf_page_batch_release(batch);
    vmf_page_scan(intake->scan, load->memory, VMF_PAGE_SIZE, load->batch.n_pages, load->batch.data.words,
                  load->batch.data.words, zeros.words, load->digests);
    for (unsigned w = 0; w * 64 < load->batch.n_pages; w++)
        load->batch.zero.words[w] |= zeros.words[w];
    return vmf_page_sink_push(&intake->lane, &load->batch, error);
}

static bool intake_flush(void *opaque, GError **error)
{
    return vmf_page_sink_flush(&((Intake *)opaque)->lane, error);
}

static void intake_free(void *opaque)
{
    Intake *intake = opaque;

    vmf_page_sink_flush(&intake->lane, NULL);
    pthread_mutex_destroy(&intake->lock);
    free(intake->memory);
    g_free(intake);
}

static const VmfPageSinkOps ops = {
    .size = sizeof(VmfPageSinkOps),
    .reserve = intake_reserve,
    .push = intake_push,
    .flush = intake_flush,
    .free = intake_free,
};

bool vmf_image_intake_new(const VmfPageSink *lane, VmfPageSink *sink, GError **error)
{
    uint8_t *memory = vmf_io_memory_new(BUFFERS * (size_t)VMF_CHUNK_SIZE);

    if (!memory) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image: no memory for chunks");
        return false;
    }
    Intake *intake = g_new0(Intake, 1);
    intake->lane = *lane;
    intake->scan = vmf_page_scan_select();
    intake->memory = memory;
    pthread_mutex_init(&intake->lock, NULL);
    for (unsigned i = 0; i < BUFFERS; i++) {
        intake->loads[i].memory = memory + i * (size_t)VMF_CHUNK_SIZE;
        intake->loads[i].intake = intake;
        intake->idle[intake->n_idle++] = &intake->loads[i];
    }
    *sink = (VmfPageSink){&ops, intake};
    return true;
}
