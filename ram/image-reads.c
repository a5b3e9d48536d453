/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading pages of a chain.
 *
 * Theory of operation. A read is one chunk: its pages are looked up in the layers, sorted by layer, and asked for in as
 * few requests as can be: neighbours in one, and also pages with a short gap between them, which is read into a place
 * where nobody looks. Each layer has a queue, made when it is first needed.
 *
 * A read has a slot while it is under way. When the last of its requests has ended it waits in a list; from there,
 * never from within a call of the storage, it is checked and told. Its slot is free by then, so that done() can start
 * another read without waiting for one.
 */
#include "ram/image-chain.h"

#include <inttypes.h>
#include <stdlib.h>
#include <vmferry/error.h>

#define DEPTH_DEFAULT 4
#define DEPTH_MAX 64
#define QUEUE_DEPTH 64 /* requests on one layer */
#define GAP_PAGES 4u   /* up to this, one longer request costs less than a second one */

typedef struct Slot Slot;

struct Slot {
    bool busy;
    uint64_t sequence; /* counts starts: the oldest is waited for first */
    VmfImageRead read;
    VmfImageChunk content;
    uint8_t layers[VMF_CHUNK_PAGES];
    VmfImageReadDone done;
    void *opaque;
    GError *error;

    unsigned pending;                       /* requests */
    uint16_t on_layer[VMF_IMAGE_CHAIN_MAX]; /* of them */
    unsigned n_requests, n_iov, failed; /* failed: the first request that did */
    uint8_t request_layer[VMF_CHUNK_PAGES];
    VmfStorageRequest requests[VMF_CHUNK_PAGES];
    struct iovec iov[2 * VMF_CHUNK_PAGES]; /* pages and gaps */
    uint8_t *gap;
    VmfImageReader *reader;
    Slot *next; /* in the list of those that have ended */
};

struct VmfImageReader {
    VmfImageChain *chain;
    const VmfPageScan *scan;
    VmfStorageQueue *queues[VMF_IMAGE_CHAIN_MAX];
    unsigned depth, under_way;
    uint64_t n_started;
    Slot **slots; /* depth of them, made at need */
    Slot *ended, **ended_tail;
};

VmfImageReader *vmf_image_reader_new(VmfImageChain *chain, unsigned depth, GError **error)
{
    if (depth > DEPTH_MAX) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "image reader: a depth of %u is more than %u", depth, DEPTH_MAX);
        return NULL;
    }
    VmfImageReader *reader = g_new0(VmfImageReader, 1);
    reader->chain = chain;
    reader->scan = vmf_page_scan_select();
    reader->depth = depth ? depth : DEPTH_DEFAULT;
    reader->slots = g_new0(Slot *, reader->depth);
    reader->ended_tail = &reader->ended;
    return reader;
}

void vmf_image_reader_free(VmfImageReader *reader)
{
    if (!reader)
        return;
    vmf_image_reader_wait(reader, 0);
    for (unsigned i = 0; i < VMF_IMAGE_CHAIN_MAX; i++)
        vmf_storage_queue_free(reader->queues[i]);
    for (unsigned i = 0; i < reader->depth; i++)
        if (reader->slots[i]) {
            free(reader->slots[i]->gap);
            g_free(reader->slots[i]);
        }
    g_free(reader->slots);
    g_free(reader);
}

unsigned vmf_image_reader_under_way(const VmfImageReader *reader)
{
    return reader->under_way;
}

/* ---- the end of a read ------------------------------------------------------------------------------------------- */

static void append_ended(Slot *slot)
{
    slot->next = NULL;
    *slot->reader->ended_tail = slot;
    slot->reader->ended_tail = &slot->next;
}

static void request_done(VmfStorageRequest *request, GError *error)
{
    Slot *slot = request->opaque;

    slot->on_layer[slot->request_layer[request - slot->requests]]--;
    if (!slot->error && error)
        slot->failed = (unsigned)(request - slot->requests);
    if (!slot->error)
        slot->error = error;
    else
        g_clear_error(&error);
    if (--slot->pending == 0)
        append_ended(slot);
}

/* The pages whose content is not what their digests say. */
static VmfPageSet find_damage(const VmfImageReader *reader, const VmfImageRead *read)
{
    VmfPageSet damaged = {{0}};

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        for (uint64_t left = read->data.words[w]; left; left &= left - 1) {
            unsigned page = w * 64 + (unsigned)__builtin_ctzll(left);
            const uint8_t *at = (const uint8_t *)read->memory + (size_t)page * VMF_PAGE_SIZE;
            if (reader->scan->digest(at, VMF_PAGE_SIZE) != read->digests[page])
                vmf_page_set_add(&damaged, page);
        }
    return damaged;
}

static GError *damage_error(const VmfImageReader *reader, const Slot *slot)
{
    unsigned first, n_pages, n = vmf_page_set_count(&slot->read.damaged);

    vmf_page_set_next_run(&slot->read.damaged, 0, &first, &n_pages);
    g_autofree char *place = vmf_image_chain_place(reader->chain, slot->layers[first], slot->read.block);
    g_autofree char *others = n > 1 ? g_strdup_printf(", and %u more of its chunk", n - 1) : g_strdup("");
    return g_error_new(VMF_ERROR, VMF_ERROR_IMAGE_PAGE, "%s, page %" PRIu64 "%s: does not match its digest", place,
                       slot->read.chunk * VMF_CHUNK_PAGES + first, others);
}

/* Which page it was about, the first of them: the storage knows only offsets. */
static void name_page(const VmfImageReader *reader, Slot *slot)
{
    const VmfImageFile *file = reader->chain->layers[slot->request_layer[slot->failed]];
    g_autofree char *title = vmf_image_file_block_title(file, slot->read.block);
    uint64_t start = vmf_image_chunk_offset(&file->layout.blocks[slot->read.block], slot->read.chunk);
    uint64_t page = (slot->requests[slot->failed].offset - start) / VMF_PAGE_SIZE;

    g_prefix_error(&slot->error, "%s, page %" PRIu64 ": ", title, slot->read.chunk * VMF_CHUNK_PAGES + page);
}

static void check(const VmfImageReader *reader, Slot *slot)
{
    VmfImageRead *read = &slot->read;

    if (slot->error) {
        name_page(reader, slot);
        read->damaged = read->data;
        return;
    }
    read->damaged = find_damage(reader, read);
    if (!vmf_page_set_is_empty(&read->damaged))
        slot->error = damage_error(reader, slot);
}

/* Tells of a read that has ended. */
static void tell(VmfImageReader *reader, Slot *slot)
{
    uint64_t digests[VMF_CHUNK_PAGES];

    check(reader, slot);
    VmfImageRead read = slot->read;
    memcpy(digests, slot->content.digests, sizeof(digests));
    read.digests = digests;
    VmfImageReadDone done = slot->done;
    void *opaque = slot->opaque;
    GError *error = g_steal_pointer(&slot->error);
    slot->busy = false;
    reader->under_way--;
    done(opaque, &read, error);
}

static bool tell_one(VmfImageReader *reader)
{
    Slot *slot = reader->ended;

    if (!slot)
        return false;
    reader->ended = slot->next;
    if (!reader->ended)
        reader->ended_tail = &reader->ended;
    tell(reader, slot);
    return true;
}

static Slot *oldest(const VmfImageReader *reader)
{
    Slot *found = NULL;

    for (unsigned i = 0; i < reader->depth; i++) {
        Slot *slot = reader->slots[i];
        if (slot && slot->busy && (!found || slot->sequence < found->sequence))
            found = slot;
    }
    return found;
}

/* Tells of a read that has ended; where none has, waits for one request of the oldest. Some are under way. */
static void progress(VmfImageReader *reader)
{
    if (tell_one(reader))
        return;
    const Slot *slot = oldest(reader);
    for (unsigned i = 0; i < reader->chain->n_layers; i++)
        if (slot->on_layer[i] > 0) {
            vmf_storage_wait(reader->queues[i], vmf_storage_under_way(reader->queues[i]) - 1);
            return;
        }
}

void vmf_image_reader_wait(VmfImageReader *reader, unsigned n_under_way)
{
    while (reader->under_way > n_under_way)
        progress(reader);
}

void vmf_image_reader_poll(VmfImageReader *reader)
{
    for (unsigned i = 0; i < reader->chain->n_layers; i++)
        if (reader->queues[i])
            vmf_storage_poll(reader->queues[i]);
    while (tell_one(reader))
        ;
}

/* ---- the requests of a read -------------------------------------------------------------------------------------- */

static void add_piece(Slot *slot, VmfStorageRequest *request, void *memory, unsigned n_pages)
{
    slot->iov[slot->n_iov++] = (struct iovec){memory, (size_t)n_pages * VMF_PAGE_SIZE};
    request->n_iov++;
    request->length += (uint64_t)n_pages * VMF_PAGE_SIZE;
}

static VmfStorageRequest *new_request(Slot *slot, unsigned layer, unsigned page)
{
    const VmfImageBlock *block = &slot->reader->chain->layers[layer]->layout.blocks[slot->read.block];
    VmfStorageRequest *request = &slot->requests[slot->n_requests];

    slot->request_layer[slot->n_requests++] = (uint8_t)layer;
    *request = (VmfStorageRequest){
        .kind = VMF_REQUEST_READ,
        .offset = vmf_image_chunk_offset(block, slot->read.chunk) + (uint64_t)page * VMF_PAGE_SIZE,
        .iov = &slot->iov[slot->n_iov],
        .done = request_done,
        .opaque = slot,
    };
    return request;
}

static void add_requests(Slot *slot, unsigned layer, const VmfPageSet *pages)
{
    VmfStorageRequest *request = NULL;
    unsigned first, n_pages, end = 0;

    for (unsigned from = 0; vmf_page_set_next_run(pages, from, &first, &n_pages); from = end) {
        uint8_t *memory = (uint8_t *)slot->read.memory + (size_t)first * VMF_PAGE_SIZE;
        if (request && first - end <= GAP_PAGES && request->n_iov + 2 <= VMF_REQUEST_IOV_MAX)
            add_piece(slot, request, slot->gap, first - end);
        else
            request = new_request(slot, layer, first);
        add_piece(slot, request, memory, n_pages);
        end = first + n_pages;
    }
}

static void sort_by_layer(const Slot *slot, VmfPageSet *by_layer)
{
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        for (uint64_t left = slot->read.data.words[w]; left; left &= left - 1) {
            unsigned page = w * 64 + (unsigned)__builtin_ctzll(left);
            vmf_page_set_add(&by_layer[slot->layers[page]], page);
        }
}

static bool have_queue(VmfImageReader *reader, unsigned layer, GError **error)
{
    if (!reader->queues[layer])
        reader->queues[layer] = vmf_storage_queue_new(reader->chain->layers[layer]->storage, QUEUE_DEPTH, error);
    return reader->queues[layer] != NULL;
}

static bool make_requests(VmfImageReader *reader, Slot *slot, GError **error)
{
    VmfPageSet by_layer[VMF_IMAGE_CHAIN_MAX];
    unsigned n_layers = reader->chain->n_layers;

    memset(by_layer, 0, n_layers * sizeof(*by_layer));
    sort_by_layer(slot, by_layer);
    slot->n_requests = slot->n_iov = slot->failed = 0;
    for (unsigned i = 0; i < n_layers; i++) {
        if (vmf_page_set_is_empty(&by_layer[i]))
            continue;
        if (!have_queue(reader, i, error))
            return false;
        add_requests(slot, i, &by_layer[i]);
    }
    return true;
}

static void submit(VmfImageReader *reader, Slot *slot)
{
    memset(slot->on_layer, 0, sizeof(slot->on_layer));
    slot->pending = slot->n_requests;
    for (unsigned i = 0; i < slot->n_requests; i++)
        slot->on_layer[slot->request_layer[i]]++;
    if (slot->n_requests == 0) {
        append_ended(slot);
        return;
    }
    for (unsigned i = 0, n = slot->n_requests; i < n; i++)
        vmf_storage_submit(reader->queues[slot->request_layer[i]], &slot->requests[i]);
    for (unsigned i = 0; i < reader->chain->n_layers; i++)
        if (slot->on_layer[i] > 0)
            vmf_storage_poll(reader->queues[i]); /* what was kept back begins */
}

/* True: its only request was one piece, and has ended. */
static bool read_here(VmfImageReader *reader, Slot *slot)
{
    const VmfStorageRequest *request = slot->requests;

    if (slot->n_requests != 1 || request->n_iov != 1)
        return false;
    vmf_storage_read(reader->chain->layers[slot->request_layer[0]]->storage, request->offset, request->iov->iov_base,
                     request->length, &slot->error);
    memset(slot->on_layer, 0, sizeof(slot->on_layer));
    append_ended(slot);
    return true;
}

/* ---- starting ---------------------------------------------------------------------------------------------------- */

static Slot *slot_new(VmfImageReader *reader, GError **error)
{
    Slot *slot = g_new0(Slot, 1);

    slot->reader = reader;
    slot->gap = aligned_alloc(VMF_IMAGE_BLOCK, GAP_PAGES * VMF_PAGE_SIZE);
    if (slot->gap)
        return slot;
    g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image reader: no memory");
    g_free(slot);
    return NULL;
}

/* One that is free, of which there is one. */
static Slot *free_slot(VmfImageReader *reader, GError **error)
{
    unsigned i = 0;

    while (reader->slots[i] && reader->slots[i]->busy)
        i++;
    if (!reader->slots[i])
        reader->slots[i] = slot_new(reader, error);
    return reader->slots[i];
}

static bool look_up(VmfImageReader *reader, Slot *slot, const VmfPageSet *wanted, GError **error)
{
    VmfImageRead *read = &slot->read;
    const VmfImageBlock *block = &reader->chain->layers[0]->layout.blocks[read->block];
    unsigned n_pages = (unsigned)MIN(block->n_pages - read->chunk * VMF_CHUNK_PAGES, VMF_CHUNK_PAGES);

    if (!vmf_image_chain_chunk(reader->chain, read->block, read->chunk, &slot->content, slot->layers, error))
        return false;
    read->data = vmf_page_set_and(&slot->content.data, wanted);
    VmfPageSet rest = vmf_page_set_and_not(wanted, &read->data);
    read->zero = vmf_page_set_slice(&rest, 0, n_pages);
    return true;
}

/* A read that is ready to be submitted; NULL with @error. */
static Slot *prepare(VmfImageReader *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted, void *memory,
                     VmfImageReadDone done, void *opaque, GError **error)
{
    vmf_image_reader_wait(reader, reader->depth - 1);
    Slot *slot = free_slot(reader, error);
    if (!slot)
        return NULL;
    slot->read = (VmfImageRead){.block = block, .chunk = chunk, .memory = memory, .digests = slot->content.digests};
    slot->done = done;
    slot->opaque = opaque;
    if (!look_up(reader, slot, wanted, error) || !make_requests(reader, slot, error))
        return NULL;
    slot->busy = true;
    slot->sequence = reader->n_started++;
    reader->under_way++;
    return slot;
}

bool vmf_image_reader_start(VmfImageReader *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted,
                            void *memory, VmfImageReadDone done, void *opaque, GError **error)
{
    Slot *slot = prepare(reader, block, chunk, wanted, memory, done, opaque, error);

    if (slot)
        submit(reader, slot);
    return slot != NULL;
}

bool vmf_image_reader_read_now(VmfImageReader *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted,
                               void *memory, VmfImageReadDone done, void *opaque, GError **error)
{
    Slot *slot = prepare(reader, block, chunk, wanted, memory, done, opaque, error);

    if (!slot)
        return false;
    if (!read_here(reader, slot))
        submit(reader, slot);
    vmf_image_reader_wait(reader, 0);
    return true;
}

/* ---- and waiting ------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfPageSet *zero;
    bool ended;
    GError *error;
} Waiting;

static void wait_done(void *opaque, const VmfImageRead *read, GError *error)
{
    Waiting *waiting = opaque;

    *waiting->zero = read->zero;
    waiting->error = error;
    waiting->ended = true;
}

bool vmf_image_reader_read(VmfImageReader *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted,
                           void *memory, VmfPageSet *zero, GError **error)
{
    Waiting waiting = {.zero = zero};

    memset(zero, 0, sizeof(*zero));
    if (!vmf_image_reader_start(reader, block, chunk, wanted, memory, wait_done, &waiting, error))
        return false;
    while (!waiting.ended)
        progress(reader);
    if (waiting.error)
        g_propagate_error(error, waiting.error);
    return !waiting.error;
}
