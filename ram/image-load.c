/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. Threads take chunks off one counter, in the order in which they lie in the image, and each has several reads
 * under way, so that the storage always has something to do and no thread waits for another.
 *
 * Where memory consists of small pages (ram/fresh.h watches it) the first touch of a page costs more than reading it. There a piece is read
 * into a buffer that stays in the cache, digested, and placed by the kernel with its content. Everywhere else the storage writes to the
 * guest's memory itself; huge pages are populated just before, by the thread that asks for the read, since a first touch from within a
 * direct read is taken to a thread of the kernel's.
 *
 * 513 MiB of small pages from a file system, two threads on two busy processors, ms:
 *
 *              into place    populated first   through a buffer
 *   anonymous  1400 to 2500  2300 to 3000      900 to 960
 *   memfd      2000 to 3000  2600 to 3200      800 to 1040
 *
 * With huge pages the difference drowns in whether the host has such pages at hand.
 *
 * A device reads faster the more of it is asked for at once: its buffers are large (stream/io-memory.h). 3 GiB from a virtio disk, one
 * thread and two about the same: 2.4 to 3.0 s with four buffers of 256 KiB a thread or eight of 1 MiB, of small pages; 1.3 to 1.6 s with
 * eight of 1 MiB of huge ones, which is what plain reads take. From the page cache pieces are copied by this processor, whose cache they
 * should not leave.
 */
#include "ram/image-load.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vmferry/error.h>

#include "ram/block.h"
#include "ram/fresh.h"
#include "stream/io-memory.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define THREADS_MAX 64u
#define DEPTH_MAX 8u

typedef struct Worker Worker;

/* How a storage is read. */
typedef struct {
    unsigned depth;       /* reads under way, a thread */
    unsigned piece_pages; /* of a read into a buffer */
} Way;

static const Way cached = {4, 64}, direct = {DEPTH_MAX, 256};

/* A read that is under way. */
typedef struct {
    Worker *worker;
    uint8_t *buffer; /* NULL: it goes into place */
    bool busy;
} Piece;

struct Worker {
    VmfImageLoad *load;
    pthread_t thread;
    VmfImageReader *reader;
    uint8_t *buffers; /* one for each piece; NULL until the first is needed */
    Piece pieces[DEPTH_MAX];
    GError *error; /* the first */
    _Atomic uint64_t bytes;
};

typedef struct {
    VmfRamBlock *block;
    bool huge; /* a first touch brings 2 MiB, if the host has them */
    uint64_t first_chunk; /* in the count over all blocks */
    _Atomic uint64_t data;
    _Atomic uint64_t sum;
} Loaded;

struct VmfImageLoad {
    VmfImageChain *chain;
    const Way *way;
    const _Atomic bool *cancel;
    unsigned n_blocks;
    Loaded *blocks;
    uint64_t n_chunks;
    VmfFresh *fresh;
    _Atomic uint64_t next_chunk;
    _Atomic bool failed;
    _Atomic unsigned n_threads;
    Worker workers[THREADS_MAX];
};

/* ---- beginning and end ----------------------------------------------------------------------------------------------------- */

VmfImageLoad *vmf_image_load_new(VmfImageChain *chain, VmfRamBlock *const *blocks, unsigned n_blocks, GError **error)
{
    g_autoptr(VmfImageLoad) load = g_new0(VmfImageLoad, 1);

    load->chain = chain;
    load->way = vmf_storage_alignment(vmf_image_chain_layer(chain, 0)->storage) > 1 ? &direct : &cached;
    load->n_blocks = n_blocks;
    load->blocks = g_new0(Loaded, n_blocks);
    for (unsigned b = 0; b < n_blocks; b++) {
        load->blocks[b].block = blocks[b];
        load->blocks[b].huge = !vmf_fresh_is_small(blocks[b]);
        load->blocks[b].first_chunk = load->n_chunks;
        load->n_chunks += vmf_ram_block_n_chunks(blocks[b]);
        if (!vmf_ram_block_empty(blocks[b], error))
            return NULL;
    }
    return g_steal_pointer(&load);
}

static void worker_clear(Worker *worker)
{
    g_clear_pointer(&worker->reader, vmf_image_reader_free);
    g_clear_pointer(&worker->buffers, free);
    g_clear_error(&worker->error);
}

void vmf_image_load_free(VmfImageLoad *load)
{
    if (!load)
        return;
    vmf_fresh_free(load->fresh);
    g_free(load->blocks);
    g_free(load);
}

/* ---- one read -------------------------------------------------------------------------------------------------------------- */

static void fail(Worker *worker, GError *error)
{
    if (!worker->error)
        worker->error = error;
    else
        g_error_free(error);
    atomic_store(&worker->load->failed, true);
}

static bool place(Worker *worker, const VmfImageRead *read, GError **error)
{
    unsigned first, n_pages;

    for (unsigned from = 0; vmf_page_set_next_run(&read->data, from, &first, &n_pages); from = first + n_pages)
        if (!vmf_fresh_place(worker->load->fresh, read->block, read->chunk * VMF_CHUNK_PAGES + first, n_pages,
                             (const uint8_t *)read->memory + (size_t)first * VMF_PAGE_SIZE, error))
            return false;
    return true;
}

/* The digests are right: they stand for what is in memory, or will be. */
static void count(Loaded *own, uint64_t chunk, const VmfPageSet *data, const uint64_t *digests)
{
    uint64_t sum = 0;

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        for (uint64_t left = data->words[w]; left; left &= left - 1) {
            unsigned page = w * 64 + (unsigned)__builtin_ctzll(left);
            sum += vmf_page_digest_mix(chunk * VMF_CHUNK_PAGES + page, digests[page]);
        }
    atomic_fetch_add(&own->sum, sum);
    atomic_fetch_add(&own->data, vmf_page_set_count(data));
}

static void loaded(Worker *worker, const VmfImageRead *read)
{
    count(&worker->load->blocks[read->block], read->chunk, &read->data, read->digests);
    atomic_fetch_add(&worker->bytes, (uint64_t)vmf_page_set_count(&read->data) * VMF_PAGE_SIZE);
}

static void read_done(void *opaque, const VmfImageRead *read, GError *error)
{
    Piece *piece = opaque;

    piece->busy = false;
    if (!error && piece->buffer)
        place(piece->worker, read, &error);
    if (error)
        fail(piece->worker, error);
    else
        loaded(piece->worker, read);
}

/* ---- one chunk ------------------------------------------------------------------------------------------------------------- */

static size_t piece_size(const VmfImageLoad *load)
{
    return (size_t)load->way->piece_pages * VMF_PAGE_SIZE;
}

/* As many can be under way as there are pieces: the reader waits for one to end. */
static Piece *free_piece(Worker *worker)
{
    unsigned i = 0;

    vmf_image_reader_wait(worker->reader, worker->load->way->depth - 1);
    while (worker->pieces[i].busy)
        i++;
    worker->pieces[i].busy = true;
    return &worker->pieces[i];
}

static bool start_read(Worker *worker, unsigned block, uint64_t chunk, const VmfPageSet *wanted, uint8_t *buffer, unsigned first,
                       GError **error)
{
    Piece *piece = free_piece(worker);
    /* Where page 0 of the chunk would be, if it were wanted. */
    void *memory = buffer ? (void *)((uintptr_t)worker->buffers + (uintptr_t)(piece - worker->pieces) * piece_size(worker->load) -
                                     (uintptr_t)first * VMF_PAGE_SIZE)
                          : vmf_ram_block_page(worker->load->blocks[block].block, chunk * VMF_CHUNK_PAGES);

    piece->buffer = buffer;
    if (vmf_image_reader_start(worker->reader, block, chunk, wanted, memory, read_done, piece, error))
        return true;
    piece->busy = false;
    return false;
}

static bool have_buffers(Worker *worker, GError **error)
{
    if (!worker->buffers)
        worker->buffers = vmf_io_memory_new(worker->load->way->depth * piece_size(worker->load));
    if (worker->buffers)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image: no memory for reading");
    return false;
}

static bool start_pieces(Worker *worker, unsigned block, uint64_t chunk, const VmfPageSet *data, GError **error)
{
    if (!have_buffers(worker, error))
        return false;
    for (unsigned first = 0; first < VMF_CHUNK_PAGES; first += worker->load->way->piece_pages) {
        VmfPageSet piece = vmf_page_set_slice(data, first, worker->load->way->piece_pages);
        if (!vmf_page_set_is_empty(&piece) && !start_read(worker, block, chunk, &piece, worker->buffers, first, error))
            return false;
    }
    return true;
}

/* A hint: where it fails, the first touch does it. */
static void populate(const Loaded *own, uint64_t chunk, const VmfPageSet *pages)
{
    uint8_t *memory = vmf_ram_block_page(own->block, chunk * VMF_CHUNK_PAGES);
    unsigned first, n_pages;

    for (unsigned from = 0; own->huge && vmf_page_set_next_run(pages, from, &first, &n_pages); from = first + n_pages)
        madvise(memory + (size_t)first * VMF_PAGE_SIZE, (size_t)n_pages * VMF_PAGE_SIZE, MADV_POPULATE_WRITE);
}

static bool start_chunk(Worker *worker, unsigned block, uint64_t chunk, GError **error)
{
    VmfImageChunk content;

    if (!vmf_image_chain_chunk(worker->load->chain, block, chunk, &content, NULL, error))
        return false;
    if (vmf_page_set_is_empty(&content.data))
        return true;
    if (vmf_fresh_has(worker->load->fresh, block))
        return start_pieces(worker, block, chunk, &content.data, error);
    populate(&worker->load->blocks[block], chunk, &content.data);
    return start_read(worker, block, chunk, &content.data, NULL, 0, error);
}

/* ---- threads --------------------------------------------------------------------------------------------------------------- */

static bool next_chunk(VmfImageLoad *load, unsigned *block, uint64_t *chunk)
{
    uint64_t index = atomic_fetch_add(&load->next_chunk, 1);

    if (index >= load->n_chunks || atomic_load(&load->failed) || atomic_load(load->cancel))
        return false;
    *block = load->n_blocks - 1;
    while (load->blocks[*block].first_chunk > index)
        --*block;
    *chunk = index - load->blocks[*block].first_chunk;
    return true;
}

static void *worker_main(void *opaque)
{
    Worker *worker = opaque;
    GError *error = NULL;
    uint64_t chunk;
    unsigned block;

    while (!error && next_chunk(worker->load, &block, &chunk))
        start_chunk(worker, block, chunk, &error);
    if (error)
        fail(worker, error);
    vmf_image_reader_wait(worker->reader, 0);
    return NULL;
}

/* False: it is not there, and not begun. */
static bool begin_worker(VmfImageLoad *load, Worker *worker, GError **error)
{
    worker->load = load;
    worker->reader = vmf_image_reader_new(load->chain, load->way->depth, error);
    for (unsigned i = 0; i < load->way->depth; i++)
        worker->pieces[i].worker = worker;
    if (worker->reader && pthread_create(&worker->thread, NULL, worker_main, worker) == 0)
        return true;
    if (worker->reader)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image: no thread can be started");
    worker_clear(worker);
    return false;
}

static bool begin(VmfImageLoad *load, unsigned n_threads, GError **error)
{
    g_autofree VmfRamBlock **blocks = g_new0(VmfRamBlock *, load->n_blocks + 1);
    g_autoptr(GError) why = NULL;

    for (unsigned b = 0; b < load->n_blocks; b++)
        blocks[b] = load->blocks[b].block;
    load->fresh = vmf_fresh_new(blocks, load->n_blocks);
    while (load->n_threads < n_threads && begin_worker(load, &load->workers[load->n_threads], &why))
        load->n_threads++;
    /* Fewer than there could be do the work as well. */
    if (load->n_threads > 0)
        return true;
    g_propagate_error(error, g_steal_pointer(&why));
    return false;
}

/* Waits for all threads, and keeps the error of the first that has one. */
static GError *end(VmfImageLoad *load)
{
    GError *error = NULL;

    for (unsigned i = 0; i < load->n_threads; i++) {
        Worker *worker = &load->workers[i];
        pthread_join(worker->thread, NULL);
        if (!error)
            error = g_steal_pointer(&worker->error);
        worker_clear(worker);
    }
    g_clear_pointer(&load->fresh, vmf_fresh_free);
    return error;
}

bool vmf_image_load_run(VmfImageLoad *load, unsigned n_threads, const _Atomic bool *cancel, GError **error)
{
    load->cancel = cancel;
    if (load->n_blocks == 0)
        return true;
    if (!begin(load, CLAMP(n_threads, 1, MIN(THREADS_MAX, g_get_num_processors())), error))
        return false;
    GError *why = end(load);
    if (!why && atomic_load(cancel))
        why = g_error_new(VMF_ERROR, VMF_ERROR_CANCELLED, "restore: cancelled");
    if (why)
        g_propagate_error(error, why);
    return !why;
}

bool vmf_image_load_survey(VmfImageLoad *load, const _Atomic bool *cancel, GError **error)
{
    VmfImageChunk content;

    for (unsigned b = 0; b < load->n_blocks; b++) {
        Loaded *own = &load->blocks[b];
        for (uint64_t chunk = 0; chunk < vmf_ram_block_n_chunks(own->block); chunk++) {
            if (atomic_load(cancel)) {
                g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "restore: cancelled");
                return false;
            }
            if (!vmf_image_chain_chunk(load->chain, b, chunk, &content, NULL, error))
                return false;
            count(own, chunk, &content.data, content.digests);
        }
    }
    return true;
}

/* ---- what came of it ------------------------------------------------------------------------------------------------------- */

bool vmf_image_load_check(const VmfImageLoad *load, const VmfSwitchover *summary, GError **error)
{
    for (unsigned b = 0; b < load->n_blocks; b++) {
        const Loaded *own = &load->blocks[b];
        const char *name = vmf_ram_block_name(own->block);
        uint64_t data = atomic_load(&own->data);
        if (summary->blocks[b].data != data) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_COUNTS, "RAM block %s: the image counts %" PRIu64 " pages, %" PRIu64 " came", name,
                        summary->blocks[b].data, data);
            return false;
        }
        if (summary->blocks[b].sum != atomic_load(&own->sum)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_SUM, "RAM block %s: sum differs from what the image says", name);
            return false;
        }
    }
    return true;
}

void vmf_image_load_progress(const VmfImageLoad *load, VmfImageLoadProgress *out)
{
    *out = (VmfImageLoadProgress){.n_threads = atomic_load(&load->n_threads)};
    for (unsigned b = 0; b < load->n_blocks; b++)
        out->pages += atomic_load(&load->blocks[b].data);
}

uint64_t vmf_image_load_thread_bytes(const VmfImageLoad *load, unsigned thread)
{
    return thread < THREADS_MAX ? atomic_load(&load->workers[thread].bytes) : 0;
}
