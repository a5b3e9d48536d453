/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One thread's way into an image.
 *
 * Theory of operation
 *
 * A batch whose pages are on their way occupies a slot until the last of its requests has ended; then it is released.
 * Requests are one for each run of adjacent pages: such a run is contiguous in memory and in the file. Slots, requests
 * and copy buffers are made with the lane; pushing a batch allocates nothing.
 *
 * How much is under way is bounded in bytes: whole chunks keep the storage busy when there are four of them, scattered
 * pages only when there are many. Before it submits, a push waits until there is room: a free slot, free requests,
 * bytes; and until no other batch of the chunk is under way, for two writes of a page that are under way together end
 * in no defined order.
 *
 * What the image says of a page changes when the page is pushed, not when it has arrived: nobody reads it before a
 * flush, and a write that fails fails the image.
 */
#include <vmferry/error.h>

#include <sys/mman.h>

#include "ram/image-writer-private.h"

#define SLOTS_MAX 32       /* batches under way */
#define COPIED_SLOTS_MAX 8 /* likewise where each needs memory for a copy */
#define REQUESTS_MAX 512   /* a chunk has at most 256 runs */

typedef struct Lane Lane;

typedef struct {
    Lane *lane;
    VmfPageBatch *batch; /* NULL: the slot is free */
    uint64_t bytes;
    unsigned n_under_way; /* requests */
    uint8_t *copy;        /* VMF_CHUNK_SIZE octets, or NULL */
} Slot;

typedef struct Request Request;
struct Request {
    VmfStorageRequest request;
    struct iovec iov;
    Slot *slot;
    Request *next_free;
};

struct Lane {
    VmfImageWriter *writer;
    VmfStorageQueue *queue;
    unsigned n_slots;
    Slot slots[SLOTS_MAX];
    Request *requests; /* REQUESTS_MAX of them */
    Request *free_requests;
    unsigned n_free_requests;
    uint64_t bytes_under_way;
    uint8_t *copies; /* memory of the slots' copies; NULL: writes go from where the pages are */
    GError *error;   /* the first */
    uint64_t digests[VMF_CHUNK_PAGES];
};

/* ---- completion --------------------------------------------------------------------------------------------- */

static void keep_first_error(Lane *lane, GError *error)
{
    if (!error)
        return;
    if (lane->error)
        g_error_free(error);
    else
        lane->error = error;
}

static void slot_ended(Slot *slot)
{
    VmfPageBatch *batch = g_steal_pointer(&slot->batch);

    slot->lane->bytes_under_way -= slot->bytes;
    atomic_fetch_add_explicit(&slot->lane->writer->bytes_written, slot->bytes, memory_order_relaxed);
    vmf_page_batch_release(batch);
}

static void request_done(VmfStorageRequest *base, GError *error)
{
    Request *request = base->opaque;
    Slot *slot = request->slot;
    Lane *lane = slot->lane;

    keep_first_error(lane, error);
    request->next_free = lane->free_requests;
    lane->free_requests = request;
    lane->n_free_requests++;
    if (--slot->n_under_way == 0)
        slot_ended(slot);
}

static void wait_for_one(Lane *lane)
{
    vmf_storage_wait(lane->queue, vmf_storage_under_way(lane->queue) - 1);
}

/* ---- pushing ------------------------------------------------------------------------------------------------ */

static bool chunk_is_under_way(const Lane *lane, const VmfPageBatch *batch)
{
    for (unsigned i = 0; i < lane->n_slots; i++) {
        const VmfPageBatch *other = lane->slots[i].batch;
        if (other && other->chunk == batch->chunk && other->block_index == batch->block_index)
            return true;
    }
    return false;
}

/* The lowest: copies then touch no more memory than they need. */
static Slot *free_slot(Lane *lane)
{
    for (unsigned i = 0; i < lane->n_slots; i++)
        if (!lane->slots[i].batch)
            return &lane->slots[i];
    return NULL;
}

static unsigned count_runs(const VmfPageSet *set)
{
    unsigned n = 0, first, n_pages;

    for (unsigned from = 0; vmf_page_set_next_run(set, from, &first, &n_pages); from = first + n_pages)
        n++;
    return n;
}

static Slot *wait_for_room(Lane *lane, const VmfPageBatch *batch)
{
    uint64_t bytes = (uint64_t)vmf_page_set_count(&batch->data) * VMF_PAGE_SIZE;
    uint64_t bytes_max = (uint64_t)lane->writer->depth * VMF_CHUNK_SIZE;
    unsigned n_runs = count_runs(&batch->data);

    vmf_storage_poll(lane->queue);
    while (chunk_is_under_way(lane, batch) || !free_slot(lane) || lane->n_free_requests < n_runs ||
           lane->bytes_under_way + bytes > bytes_max)
        wait_for_one(lane);
    return free_slot(lane);
}

/* Copies what the guest may be writing, and looks at the copies: they are what the image will have. */
static const uint64_t *copy_pages(Lane *lane, Slot *slot, const VmfPageBatch *batch, VmfPageSet *data, VmfPageSet *zero)
{
    VmfPageSet turned_zero = {{0}}; /* of a short chunk the scan leaves the words behind its end alone */
    unsigned first, n_pages;

    for (unsigned from = 0; vmf_page_set_next_run(&batch->data, from, &first, &n_pages); from = first + n_pages)
        memcpy(slot->copy + first * VMF_PAGE_SIZE, batch->payload + first * VMF_PAGE_SIZE, n_pages * VMF_PAGE_SIZE);
    vmf_page_scan(lane->writer->scan, slot->copy, VMF_PAGE_SIZE, batch->n_pages, batch->data.words, data->words,
                  turned_zero.words, lane->digests);
    *zero = vmf_page_set_or(zero, &turned_zero);
    return lane->digests;
}

static void submit_run(Lane *lane, Slot *slot, uint64_t offset, const uint8_t *memory, size_t length)
{
    Request *request = lane->free_requests;

    lane->free_requests = request->next_free;
    lane->n_free_requests--;
    slot->n_under_way++;
    request->slot = slot;
    request->iov = (struct iovec){(void *)memory, length};
    request->request = (VmfStorageRequest){.kind = VMF_REQUEST_WRITE,
                                           .offset = offset,
                                           .length = length,
                                           .iov = &request->iov,
                                           .n_iov = 1,
                                           .done = request_done,
                                           .opaque = request};
    vmf_storage_submit(lane->queue, &request->request);
}

/* One more than there are is under way until all are: a run that ends at once does not end the batch. */
static void submit(Lane *lane, Slot *slot, VmfPageBatch *batch, const VmfPageSet *data, const uint8_t *payload)
{
    uint64_t base = vmf_image_chunk_offset(&lane->writer->layout.blocks[batch->block_index], batch->chunk);
    unsigned first, n_pages;

    slot->batch = batch;
    slot->bytes = (uint64_t)vmf_page_set_count(data) * VMF_PAGE_SIZE;
    slot->n_under_way = 1;
    lane->bytes_under_way += slot->bytes;
    for (unsigned from = 0; vmf_page_set_next_run(data, from, &first, &n_pages); from = first + n_pages) {
        size_t at = (size_t)first * VMF_PAGE_SIZE;
        submit_run(lane, slot, base + at, payload + at, (size_t)n_pages * VMF_PAGE_SIZE);
    }
    if (--slot->n_under_way == 0)
        slot_ended(slot);
}

static void write_pages(Lane *lane, VmfPageBatch *batch)
{
    VmfImageTables *tables = lane->writer->tables;
    Slot *slot = wait_for_room(lane, batch);
    VmfPageSet data = batch->data, zero = batch->zero;
    const uint64_t *digests = batch->digests;
    const uint8_t *payload = batch->payload;

    if (lane->copies && batch->live && !atomic_load_explicit(&lane->writer->stable, memory_order_relaxed)) {
        digests = copy_pages(lane, slot, batch, &data, &zero);
        payload = slot->copy;
    }
    vmf_image_tables_put_data(tables, batch->block_index, batch->chunk, &data, digests);
    vmf_image_tables_put_zero(tables, batch->block_index, batch->chunk, &zero);
    submit(lane, slot, batch, &data, payload);
}

static bool check_batch(const VmfImageWriter *writer, const VmfPageBatch *batch, GError **error)
{
    VmfPageSet both = vmf_page_set_and(&batch->data, &batch->zero);
    bool has_data = !vmf_page_set_is_empty(&batch->data);

    if (batch->block_index < writer->layout.n_blocks &&
        batch->chunk < vmf_image_block_n_chunks(&writer->layout.blocks[batch->block_index]) &&
        vmf_page_set_is_empty(&both) && (!has_data || (batch->payload && batch->digests)))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_INTERNAL,
                "writing pages: block %u, chunk %" G_GUINT64_FORMAT ": no such chunk, or a batch without payload or "
                "digests",
                batch->block_index, batch->chunk);
    return false;
}

static bool told_error(const Lane *lane, GError **error)
{
    if (lane->error)
        g_propagate_error(error, g_error_copy(lane->error));
    return lane->error != NULL;
}

static bool lane_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    Lane *lane = opaque;

    if (told_error(lane, error) || !check_batch(lane->writer, batch, error)) {
        vmf_page_batch_release(batch);
        return false;
    }
    if (vmf_page_set_is_empty(&batch->data)) {
        vmf_image_tables_put_zero(lane->writer->tables, batch->block_index, batch->chunk, &batch->zero);
        vmf_page_batch_release(batch);
        return true;
    }
    write_pages(lane, batch);
    return !told_error(lane, error);
}

static bool lane_flush(void *opaque, GError **error)
{
    Lane *lane = opaque;

    vmf_storage_wait(lane->queue, 0);
    return !told_error(lane, error);
}

/* ---- making ------------------------------------------------------------------------------------------------- */

static void lane_free(void *opaque)
{
    Lane *lane = opaque;

    if (!lane)
        return;
    vmf_storage_queue_free(lane->queue);
    if (lane->copies)
        munmap(lane->copies, (size_t)lane->n_slots * VMF_CHUNK_SIZE);
    g_clear_error(&lane->error);
    g_free(lane->requests);
    atomic_fetch_sub(&lane->writer->n_lanes, 1);
    g_free(lane);
}

static bool make_copies(Lane *lane, GError **error)
{
    size_t length = (size_t)lane->n_slots * VMF_CHUNK_SIZE;
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "writing pages: %zu bytes for copies of them: no memory",
                    length);
        return false;
    }
    lane->copies = memory;
    for (unsigned i = 0; i < lane->n_slots; i++)
        lane->slots[i].copy = lane->copies + (size_t)i * VMF_CHUNK_SIZE;
    return true;
}

static const VmfPageSinkOps lane_ops = {
    .size = sizeof(VmfPageSinkOps),
    .push = lane_push,
    .flush = lane_flush,
    .free = lane_free,
};

bool vmf_image_writer_lane(VmfImageWriter *writer, VmfPageSink *sink, GError **error)
{
    bool copies = vmf_storage_wants_stable_writes(writer->storage);
    Lane *lane = g_new0(Lane, 1);

    lane->writer = writer;
    atomic_fetch_add(&writer->n_lanes, 1);
    lane->n_slots = copies ? COPIED_SLOTS_MAX : SLOTS_MAX;
    for (unsigned i = 0; i < lane->n_slots; i++)
        lane->slots[i].lane = lane;
    lane->requests = g_new0(Request, REQUESTS_MAX);
    for (unsigned i = 0; i < REQUESTS_MAX; i++)
        lane->requests[i].next_free = i + 1 < REQUESTS_MAX ? &lane->requests[i + 1] : NULL;
    lane->free_requests = lane->requests;
    lane->n_free_requests = REQUESTS_MAX;
    lane->queue = vmf_storage_queue_new(writer->storage, SLOTS_MAX, error);
    if (!lane->queue || (copies && !make_copies(lane, error))) {
        lane_free(lane);
        return false;
    }
    *sink = (VmfPageSink){&lane_ops, lane};
    return true;
}
