/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. One layer is verified after the other, each by itself: also its pages that a younger layer
 * hides, since another chain may show them. Its chunks are divided into units, which threads take one by one; each
 * reads with a reader of its own, some chunks ahead. The caller's thread waits, tells of progress, and looks whether to
 * stop.
 *
 * Counts and sums of memory are of the whole chain. They follow from bits and digests, so comparing them reads no page.
 */
#include "ram/image-verify.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/image-chain.h"
#include "ram/image-gaps.h"
#include "ram/image-index.h"
#include "stream/channel-wait.h"
#include "stream/clock.h"
#include "stream/io-memory.h"

#define UNIT_CHUNKS 16u
#define DEPTH 4u /* chunks a thread reads at once */
#define THREADS_MAX 8u
#define PROGRESS_NS (200 * VMF_NS_PER_MS)

G_STATIC_ASSERT(VMF_IMAGE_INDEX_UNIT % UNIT_CHUNKS == 0);

typedef struct {
    const VmfImageVerifyOptions *options;
    VmfImageVerifyResult *result;
    VmfImageFile *file; /* that is verified now */
    unsigned layer;
    _Atomic uint64_t next_unit;
    uint64_t n_units;
    _Atomic bool stop;
    _Atomic uint64_t done_chunks; /* of all layers, as far as they have anything */
    uint64_t total_chunks;
    pthread_mutex_t lock; /* of the result and of all below */
    pthread_cond_t changed;
    unsigned n_running;
    GError *error;
} Verify;

static void clear_damage(void *damage)
{
    g_free(((VmfImageDamage *)damage)->text);
}

void vmf_image_verify_result_clear(VmfImageVerifyResult *result)
{
    g_clear_pointer(&result->damage, g_array_unref);
}

/* Takes @error. */
static void add_damage(Verify *verify, int block, int64_t page, GError *error)
{
    VmfImageVerifyResult *result = verify->result;

    pthread_mutex_lock(&verify->lock);
    result->n_damaged++;
    if (result->damage->len < verify->options->max_listed) {
        VmfImageDamage damage = {verify->layer, block, page, g_strdup(error->message), error->code};
        g_array_append_val(result->damage, damage);
    }
    pthread_mutex_unlock(&verify->lock);
    g_error_free(error);
}

static bool is_cancelled(const Verify *verify)
{
    return verify->options->cancel && atomic_load(verify->options->cancel);
}

/* ---- one thread -------------------------------------------------------------------------------------------------- */

typedef struct {
    Verify *verify;
    VmfImageChain *chain;
    VmfImageReader *reader;
    uint8_t *memory; /* DEPTH + 1 chunks */
    void *idle[DEPTH + 1];
    unsigned n_idle;
    uint64_t pages, pages_damaged;
} Worker;

static void tell_page(Worker *worker, const VmfImageRead *read, unsigned page)
{
    const VmfImageFile *file = worker->verify->file;
    uint64_t in_block = read->chunk * VMF_CHUNK_PAGES + page;
    g_autofree char *title = vmf_image_file_block_title(file, read->block);
    GError *error =
        g_error_new(VMF_ERROR, VMF_ERROR_IMAGE_PAGE, "%s: %s, page %" PRIu64 ": does not match its digest",
                    vmf_storage_name(file->storage), title, in_block);

    add_damage(worker->verify, (int)read->block, (int64_t)in_block, error);
}

static void chunk_done(void *opaque, const VmfImageRead *read, GError *error)
{
    Worker *worker = opaque;
    bool is_page = g_error_matches(error, VMF_ERROR, VMF_ERROR_IMAGE_PAGE);

    worker->idle[worker->n_idle++] = read->memory;
    worker->pages += vmf_page_set_count(&read->data);
    worker->pages_damaged += is_page ? vmf_page_set_count(&read->damaged) : 0; /* otherwise nobody has seen them */
    for (unsigned page = 0; is_page && page < VMF_CHUNK_PAGES; page++)
        if (vmf_page_set_test(&read->damaged, page))
            tell_page(worker, read, page);
    if (error && !is_page)
        add_damage(worker->verify, (int)read->block, -1, g_steal_pointer(&error));
    g_clear_error(&error);
    atomic_fetch_add(&worker->verify->done_chunks, 1);
}

static void verify_chunk(Worker *worker, unsigned block, uint64_t chunk)
{
    static const VmfPageSet all = {{~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull}};
    GError *error = NULL;

    vmf_image_reader_wait(worker->reader, DEPTH - 1);
    void *memory = worker->idle[--worker->n_idle];
    if (vmf_image_reader_start(worker->reader, block, chunk, &all, memory, chunk_done, worker, &error))
        return;
    worker->idle[worker->n_idle++] = memory;
    add_damage(worker->verify, (int)block, -1, error);
    atomic_fetch_add(&worker->verify->done_chunks, 1);
}

static void verify_unit(Worker *worker, unsigned block, uint64_t first)
{
    Verify *verify = worker->verify;
    const VmfImageBlock *of = &verify->file->layout.blocks[block];
    uint64_t end = MIN(first + UNIT_CHUNKS, vmf_image_block_n_chunks(of));
    GError *error = NULL;

    if (first % VMF_IMAGE_INDEX_UNIT == 0 && !vmf_image_index_verify(verify->file, block, first, &error))
        add_damage(verify, (int)block, -1, error);
    for (uint64_t chunk = first; chunk < end && !is_cancelled(verify) && !atomic_load(&verify->stop); chunk++)
        if (verify->file->table[of->first_chunk + chunk] != 0)
            verify_chunk(worker, block, chunk);
}

static uint64_t units_of(const VmfImageBlock *block)
{
    return (vmf_image_block_n_chunks(block) + UNIT_CHUNKS - 1) / UNIT_CHUNKS;
}

static void verify_units(Worker *worker)
{
    Verify *verify = worker->verify;
    uint64_t unit;

    while (!is_cancelled(verify) && (unit = atomic_fetch_add(&verify->next_unit, 1)) < verify->n_units) {
        unsigned block = 0;
        while (unit >= units_of(&verify->file->layout.blocks[block]))
            unit -= units_of(&verify->file->layout.blocks[block++]);
        verify_unit(worker, block, unit * UNIT_CHUNKS);
    }
    vmf_image_reader_wait(worker->reader, 0);
}

static bool equip(Worker *worker, GError **error)
{
    worker->chain = vmf_image_chain_of_file(worker->verify->file);
    worker->reader = vmf_image_reader_new(worker->chain, DEPTH, error);
    if (!worker->reader)
        return false;
    worker->memory = vmf_io_memory_new((DEPTH + 1) * (size_t)VMF_CHUNK_SIZE);
    if (!worker->memory) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image: no memory for chunks");
        return false;
    }
    for (unsigned i = 0; i <= DEPTH; i++)
        worker->idle[worker->n_idle++] = worker->memory + (size_t)i * VMF_CHUNK_SIZE;
    return true;
}

static void *worker_main(void *opaque)
{
    Verify *verify = opaque;
    Worker worker = {.verify = verify};
    GError *error = NULL;

    if (equip(&worker, &error))
        verify_units(&worker);
    vmf_image_reader_free(worker.reader);
    vmf_image_chain_free(worker.chain);
    free(worker.memory);

    pthread_mutex_lock(&verify->lock);
    verify->result->pages_checked += worker.pages;
    verify->result->pages_damaged += worker.pages_damaged;
    if (error && !verify->error)
        verify->error = g_steal_pointer(&error);
    g_clear_error(&error);
    verify->n_running--;
    pthread_cond_signal(&verify->changed);
    pthread_mutex_unlock(&verify->lock);
    return NULL;
}

/* ---- one layer --------------------------------------------------------------------------------------------------- */

static void tell_progress(const Verify *verify)
{
    if (verify->options->progress)
        verify->options->progress(verify->options->opaque, atomic_load(&verify->done_chunks) * VMF_CHUNK_SIZE,
                                  verify->total_chunks * VMF_CHUNK_SIZE);
}

static void await(Verify *verify)
{
    pthread_mutex_lock(&verify->lock);
    while (verify->n_running > 0) {
        vmf_cond_wait_until(&verify->changed, &verify->lock, vmf_deadline_after(PROGRESS_NS));
        pthread_mutex_unlock(&verify->lock);
        tell_progress(verify);
        pthread_mutex_lock(&verify->lock);
    }
    pthread_mutex_unlock(&verify->lock);
}

static unsigned choose_threads(const Verify *verify)
{
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned wanted = verify->options->n_threads ? verify->options->n_threads : n_cpus > 0 ? (unsigned)n_cpus : 1;

    return (unsigned)MIN(MIN(wanted, THREADS_MAX), MAX(verify->n_units, 1));
}

static bool run_threads(Verify *verify, GError **error)
{
    pthread_t threads[THREADS_MAX];
    unsigned n = choose_threads(verify), started = 0;
    int err = 0;

    while (started < n && err == 0) {
        pthread_mutex_lock(&verify->lock);
        verify->n_running++;
        pthread_mutex_unlock(&verify->lock);
        err = pthread_create(&threads[started], NULL, worker_main, verify);
        if (err == 0)
            started++;
    }
    if (err != 0) {
        pthread_mutex_lock(&verify->lock);
        verify->n_running--;
        pthread_mutex_unlock(&verify->lock);
    }
    await(verify);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    if (started == 0)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image: no thread to verify it: %s", g_strerror(err));
    else if (verify->error)
        g_propagate_error(error, g_steal_pointer(&verify->error));
    else
        return true;
    return false;
}

static bool verify_layer(Verify *verify, VmfImageChain *chain, unsigned layer, GError **error)
{
    GError *gap = NULL;

    verify->file = chain->layers[layer];
    verify->layer = layer;
    verify->n_units = 0;
    for (unsigned b = 0; b < verify->file->layout.n_blocks; b++)
        verify->n_units += units_of(&verify->file->layout.blocks[b]);
    atomic_store(&verify->next_unit, 0);
    if (!vmf_image_gaps_check(verify->file, &gap))
        add_damage(verify, -1, -1, gap);
    return run_threads(verify, error);
}

/* ---- what follows from bits and digests -------------------------------------------------------------------------- */

/* False: some chunk cannot be used, which was told of when it was verified, or cannot be told since it is a parent's.
 */
static bool sum_block(VmfImageChain *chain, unsigned block, VmfBlockSummary *summary)
{
    uint64_t n_chunks = vmf_image_block_n_chunks(&chain->layers[0]->layout.blocks[block]);
    VmfImageChunk chunk;

    *summary = (VmfBlockSummary){0};
    for (uint64_t c = 0; c < n_chunks; c++) {
        if (!vmf_image_chain_chunk(chain, block, c, &chunk, NULL, NULL))
            return false;
        if (vmf_page_set_is_empty(&chunk.data))
            continue;
        summary->data += vmf_page_set_count(&chunk.data);
        for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
            summary->sum += vmf_page_digest_mix(c * VMF_CHUNK_PAGES + page, chunk.digests[page]);
    }
    return true;
}

static void check_sums(Verify *verify, VmfImageChain *chain, unsigned layer)
{
    VmfImageChain from = {.n_layers = chain->n_layers - layer, .borrowed = true};
    const VmfImageFile *file = chain->layers[layer];
    VmfBlockSummary found;

    memcpy(from.layers, &chain->layers[layer], from.n_layers * sizeof(*from.layers));
    verify->layer = layer;
    for (unsigned b = 0; b < file->layout.n_blocks && !is_cancelled(verify); b++) {
        const VmfBlockSummary *said = &file->summary.blocks[b];
        if (!sum_block(&from, b, &found) || (found.data == said->data && found.sum == said->sum))
            continue;
        bool counts = found.data != said->data;
        g_autofree char *title = vmf_image_file_block_title(file, b);
        add_damage(verify, (int)b, -1,
                   g_error_new(VMF_ERROR, counts ? VMF_ERROR_RAM_COUNTS : VMF_ERROR_RAM_SUM,
                               "%s: %s: %s is not what the image says", vmf_storage_name(file->storage), title,
                               counts ? "the number of its pages" : "the sum of its pages"));
    }
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static uint64_t count_chunks(const VmfImageFile *file)
{
    uint64_t n = 0;

    for (uint64_t c = 0; c < file->layout.n_chunks; c++)
        n += file->table[c] != 0;
    return n;
}

static bool verify_layers(Verify *verify, VmfImageChain *chain, GError **error)
{
    unsigned n = MIN(verify->options->n_layers, chain->n_layers);
    bool good = true;

    for (unsigned i = 0; i < n; i++)
        verify->total_chunks += count_chunks(chain->layers[i]);
    for (unsigned i = 0; good && i < n && !is_cancelled(verify); i++)
        good = verify_layer(verify, chain, i, error);
    verify->result->sums_checked = good && !chain->layers[chain->n_layers - 1]->parent.name;
    for (unsigned i = 0; verify->result->sums_checked && i < n; i++)
        check_sums(verify, chain, i);
    if (good && is_cancelled(verify)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "image: verify: cancelled");
        return false;
    }
    return good;
}

bool vmf_image_chain_verify(VmfImageChain *chain, const VmfImageVerifyOptions *options, VmfImageVerifyResult *result,
                            GError **error)
{
    Verify verify = {.options = options, .result = result};

    *result = (VmfImageVerifyResult){.damage = g_array_new(false, false, sizeof(VmfImageDamage))};
    g_array_set_clear_func(result->damage, clear_damage);
    pthread_mutex_init(&verify.lock, NULL);
    vmf_cond_init(&verify.changed);
    bool good = verify_layers(&verify, chain, error);
    tell_progress(&verify);
    pthread_cond_destroy(&verify.changed);
    pthread_mutex_destroy(&verify.lock);
    return good;
}
