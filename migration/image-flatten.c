/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Images of images.
 *
 * Theory of operation. Threads take chunks one by one; each reads with a reader of its own, some chunks ahead, and
 * pushes what it read into a lane of its own, which writes it from the same memory: buffers go round. A chunk is one
 * thread's from its beginning to its end, as the writer wants it.
 *
 * A layer over another parent has what differs from it. A page of which both say the same digest is compared octet by
 * octet, unless it is the very same page of the very same image: a digest of 64 bits finds damage, and is too weak to
 * leave a page out.
 */
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "migration/image-build.h"
#include "migration/image-parent.h"
#include "migration/image-offline.h"
#include "stream/channel-wait.h"
#include "stream/clock.h"
#include "stream/io-memory.h"

#define DEPTH 3u   /* chunks that are read ahead */
#define BUFFERS 8u /* of a thread: read, or being written */
#define THREADS_MAX 8u
#define PROGRESS_NS (100 * VMF_NS_PER_MS)

typedef struct {
    VmfImage *image;
    VmfImageChain *parent; /* NULL: flatten */
    VmfImageBuild *build;
    const VmfImageMakeOptions *options;
    uint64_t n_chunks;
    _Atomic uint64_t next_chunk, done_chunks;
    _Atomic bool stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned n_running;
    GError *error;
} Copy;

/* ---- one thread ----------------------------------------------------------------------------------------------------
 */

typedef struct Worker Worker;

/* A chunk on its way to the storage. */
typedef struct {
    VmfPageBatch batch; /* first */
    uint64_t digests[VMF_CHUNK_PAGES];
    uint8_t *memory;
    VmfPageSet zeros; /* what the layer has to say is zero */
    Worker *worker;
} Load;

struct Worker {
    Copy *copy;
    VmfImageReader *reader, *below; /* below: of the parent */
    VmfPageSink lane;
    pthread_mutex_t lock; /* of the idle loads: a batch may be released by any thread */
    Load *idle[BUFFERS];
    unsigned n_idle;
    Load loads[BUFFERS];
    uint8_t *memory, *other; /* other: a chunk of the parent */
    GError *error;
};

static void release(VmfPageBatch *batch)
{
    Load *load = (Load *)batch;
    Worker *worker = load->worker;

    pthread_mutex_lock(&worker->lock);
    worker->idle[worker->n_idle++] = load;
    pthread_mutex_unlock(&worker->lock);
}

static Load *take_idle(Worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    Load *load = worker->n_idle > 0 ? worker->idle[--worker->n_idle] : NULL;
    pthread_mutex_unlock(&worker->lock);
    return load;
}

/* Waits for one where all are under way. NULL: something failed, which worker->error has. */
static Load *need_load(Worker *worker)
{
    Load *load = take_idle(worker);

    if (!load && !worker->error) {
        vmf_image_reader_wait(worker->reader, 0);
        if (!worker->error && !vmf_page_sink_flush(&worker->lane, &worker->error))
            return NULL;
        load = take_idle(worker);
    }
    return worker->error ? NULL : load;
}

static void push(Worker *worker, Load *load)
{
    VmfPageBatch *batch = &load->batch;

    if (vmf_page_set_is_empty(&batch->data) && vmf_page_set_is_empty(&batch->zero))
        release(batch);
    else
        vmf_page_sink_push(&worker->lane, batch, worker->error ? NULL : &worker->error);
}

static void chunk_read(void *opaque, const VmfImageRead *read, GError *error)
{
    Load *load = opaque;
    Worker *worker = load->worker;

    load->batch.data = read->data;
    memcpy(load->digests, read->digests, sizeof(load->digests));
    if (!error && !worker->error) {
        push(worker, load);
        return;
    }
    release(&load->batch);
    if (error && !worker->error)
        worker->error = g_steal_pointer(&error);
    g_clear_error(&error);
}

static Load *load_of(Worker *worker, unsigned block, uint64_t chunk)
{
    Load *load = need_load(worker);

    if (!load)
        return NULL;
    uint64_t first = chunk * VMF_CHUNK_PAGES, n_pages = worker->copy->build->layout.blocks[block].n_pages;
    load->batch = (VmfPageBatch){
        .block_index = block,
        .chunk = chunk,
        .first_page = first,
        .n_pages = (unsigned)MIN(n_pages - first, VMF_CHUNK_PAGES),
        .payload = load->memory,
        .digests = load->digests,
        .release = release,
    };
    return load;
}

/* ---- against a parent ----------------------------------------------------------------------------------------------
 */

/* Pages of @candidates that are the same octet by octet; both have been read. */
static VmfPageSet find_same(const uint8_t *a, const uint8_t *b, const VmfPageSet *candidates)
{
    VmfPageSet same = {{0}};

    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        size_t at = (size_t)page * VMF_PAGE_SIZE;
        if (vmf_page_set_test(candidates, page) && memcmp(a + at, b + at, VMF_PAGE_SIZE) == 0)
            vmf_page_set_add(&same, page);
    }
    return same;
}

static bool same_image(const Copy *copy, unsigned ours, unsigned theirs)
{
    const VmfImageCommit *a = &vmf_image_chain_layer(copy->image->chain, ours)->commit;
    const VmfImageCommit *b = &vmf_image_chain_layer(copy->parent, theirs)->commit;

    return memcmp(a->id, b->id, sizeof(a->id)) == 0 && vmf_image_digest_equal(&a->root, &b->root);
}

typedef struct {
    VmfPageSet wanted;     /* of ours: pages that are to be read */
    VmfPageSet candidates; /* of them those that may be the same as the parent's */
    VmfPageSet zeros;      /* data there, zeros here */
} Difference;

static bool compare_bits(Copy *copy, unsigned block, uint64_t chunk, Difference *out, GError **error)
{
    VmfImageChunk ours, theirs;
    uint8_t our_layers[VMF_CHUNK_PAGES], their_layers[VMF_CHUNK_PAGES];

    *out = (Difference){0};
    if (!vmf_image_chain_chunk(copy->image->chain, block, chunk, &ours, our_layers, error) ||
        !vmf_image_chain_chunk(copy->parent, block, chunk, &theirs, their_layers, error))
        return false;
    out->zeros = vmf_page_set_and_not(&theirs.data, &ours.data);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        if (!vmf_page_set_test(&ours.data, page))
            continue;
        bool may_be_same = vmf_page_set_test(&theirs.data, page) && ours.digests[page] == theirs.digests[page];
        if (may_be_same && same_image(copy, our_layers[page], their_layers[page]))
            continue;
        vmf_page_set_add(&out->wanted, page);
        if (may_be_same)
            vmf_page_set_add(&out->candidates, page);
    }
    return true;
}

static void keep_read(void *opaque, const VmfImageRead *read, GError *error)
{
    Load *load = opaque;

    load->batch.data = read->data;
    memcpy(load->digests, read->digests, sizeof(load->digests));
    load->worker->error = error;
}

static bool read_both(Worker *worker, Load *load, const Difference *difference)
{
    VmfPageBatch *batch = &load->batch;
    VmfPageSet zero;

    if (!vmf_image_reader_start(worker->reader, batch->block_index, batch->chunk, &difference->wanted, load->memory,
                                keep_read, load, &worker->error))
        return false;
    vmf_image_reader_wait(worker->reader, 0);
    if (worker->error || vmf_page_set_is_empty(&difference->candidates))
        return !worker->error;
    return vmf_image_reader_read(worker->below, batch->block_index, batch->chunk, &difference->candidates,
                                 worker->other, &zero, &worker->error);
}

static bool copy_difference(Worker *worker, unsigned block, uint64_t chunk)
{
    Difference difference;

    if (!compare_bits(worker->copy, block, chunk, &difference, &worker->error))
        return false;
    if (vmf_page_set_is_empty(&difference.wanted) && vmf_page_set_is_empty(&difference.zeros))
        return true;
    Load *load = load_of(worker, block, chunk);
    if (!load)
        return false;
    if (!read_both(worker, load, &difference)) {
        release(&load->batch);
        return false;
    }
    VmfPageSet same = find_same(load->memory, worker->other, &difference.candidates);
    load->batch.data = vmf_page_set_and_not(&load->batch.data, &same);
    load->batch.zero = difference.zeros;
    push(worker, load);
    return !worker->error;
}

/* ---- without one ---------------------------------------------------------------------------------------------------
 */

static bool copy_chunk(Worker *worker, unsigned block, uint64_t chunk)
{
    VmfImageChunk bits;

    if (!vmf_image_chain_chunk(worker->copy->image->chain, block, chunk, &bits, NULL, &worker->error))
        return false;
    if (vmf_page_set_is_empty(&bits.data))
        return true;
    Load *load = load_of(worker, block, chunk);
    if (!load)
        return false;
    if (!vmf_image_reader_start(worker->reader, block, chunk, &bits.data, load->memory, chunk_read, load,
                                &worker->error)) {
        release(&load->batch);
        return false;
    }
    return !worker->error;
}

/* ---- all of a thread -----------------------------------------------------------------------------------------------
 */

static bool equip(Worker *worker)
{
    Copy *copy = worker->copy;

    worker->memory = vmf_io_memory_new((BUFFERS + 1) * (size_t)VMF_CHUNK_SIZE);
    if (!worker->memory) {
        g_set_error(&worker->error, VMF_ERROR, VMF_ERROR_MEMORY, "image: no memory for chunks");
        return false;
    }
    worker->other = worker->memory + BUFFERS * (size_t)VMF_CHUNK_SIZE;
    for (unsigned i = 0; i < BUFFERS; i++) {
        worker->loads[i].worker = worker;
        worker->loads[i].memory = worker->memory + i * (size_t)VMF_CHUNK_SIZE;
        worker->idle[worker->n_idle++] = &worker->loads[i];
    }
    worker->reader = vmf_image_reader_new(copy->image->chain, DEPTH, &worker->error);
    if (copy->parent && worker->reader)
        worker->below = vmf_image_reader_new(copy->parent, 1, &worker->error);
    return !worker->error && vmf_image_writer_lane(copy->build->writer, &worker->lane, &worker->error);
}

static void copy_chunks(Worker *worker)
{
    Copy *copy = worker->copy;
    uint64_t chunk;

    while (!worker->error && !atomic_load(&copy->stop) &&
           (chunk = atomic_fetch_add(&copy->next_chunk, 1)) < copy->n_chunks) {
        const VmfImageLayout *layout = &copy->build->layout;
        unsigned block = 0;
        while (chunk >= vmf_image_block_n_chunks(&layout->blocks[block]))
            chunk -= vmf_image_block_n_chunks(&layout->blocks[block++]);
        if (!(copy->parent ? copy_difference(worker, block, chunk) : copy_chunk(worker, block, chunk)))
            break;
        atomic_fetch_add(&copy->done_chunks, 1);
    }
    vmf_image_reader_wait(worker->reader, 0);
    vmf_page_sink_flush(&worker->lane, worker->error ? NULL : &worker->error);
}

static void *worker_main(void *opaque)
{
    Copy *copy = opaque;
    Worker *worker = g_new0(Worker, 1);

    worker->copy = copy;
    pthread_mutex_init(&worker->lock, NULL);
    if (equip(worker))
        copy_chunks(worker);
    vmf_image_reader_free(worker->reader);
    vmf_image_reader_free(worker->below);
    vmf_page_sink_free(&worker->lane);
    free(worker->memory);
    pthread_mutex_lock(&copy->lock);
    if (worker->error && !copy->error)
        copy->error = g_steal_pointer(&worker->error);
    if (copy->error)
        atomic_store(&copy->stop, true);
    copy->n_running--;
    pthread_cond_signal(&copy->changed);
    pthread_mutex_unlock(&copy->lock);
    pthread_mutex_destroy(&worker->lock);
    g_clear_error(&worker->error);
    g_free(worker);
    return NULL;
}

/* ---- the threads ---------------------------------------------------------------------------------------------------
 */

static void tell_progress(Copy *copy)
{
    const VmfImageMakeOptions *options = copy->options;
    bool go_on = !options || !options->progress ||
                 options->progress(options->opaque, atomic_load(&copy->done_chunks) * VMF_CHUNK_SIZE,
                                   copy->n_chunks * VMF_CHUNK_SIZE);

    if (!go_on)
        vmf_image_cancel(copy->image);
    if (atomic_load(&copy->image->cancelled))
        atomic_store(&copy->stop, true);
}

static void await(Copy *copy)
{
    pthread_mutex_lock(&copy->lock);
    while (copy->n_running > 0) {
        vmf_cond_wait_until(&copy->changed, &copy->lock, vmf_deadline_after(PROGRESS_NS));
        pthread_mutex_unlock(&copy->lock);
        tell_progress(copy);
        pthread_mutex_lock(&copy->lock);
    }
    pthread_mutex_unlock(&copy->lock);
}

static unsigned choose_threads(const Copy *copy)
{
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned wanted = copy->options ? copy->options->n_threads : 0;

    if (wanted == 0)
        wanted = n_cpus > 0 ? (unsigned)n_cpus : 1;
    return (unsigned)MIN(MIN(wanted, THREADS_MAX), MAX(copy->n_chunks, 1));
}

static bool run_threads(Copy *copy, GError **error)
{
    pthread_t threads[THREADS_MAX];
    unsigned n = choose_threads(copy), started = 0;

    copy->n_running = n;
    while (started < n && pthread_create(&threads[started], NULL, worker_main, copy) == 0)
        started++;
    pthread_mutex_lock(&copy->lock);
    copy->n_running -= n - started;
    pthread_mutex_unlock(&copy->lock);
    await(copy);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    if (copy->error) {
        g_propagate_error(error, g_steal_pointer(&copy->error));
        return false;
    }
    if (started == 0)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "image: no thread to copy it");
    return started > 0 && !vmf_image_check_cancelled(copy->image, error);
}

static bool copy_image(VmfImage *image, VmfImageChain *below, const VmfImageParent *parent, const char *uri,
                       const VmfImageMakeOptions *options, GError **error)
{
    const VmfImageFile *file = vmf_image_layer_of(image, 0);
    VmfImageOrigin origin = {.static_data = file->static_data,
                             .swap = file->format.swap,
                             .parent = parent,
                             .reads = {image->chain, below}};
    g_autoptr(VmfImageBuild) build = vmf_image_build_new(uri, options, &origin, error);
    Copy copy = {.image = image, .parent = below, .build = build, .options = options};
    VmfImageTail tail = {
        .disks = file->disks,
        .ram_only = file->ram_only,
        .sections = file->sections,
        .runs = file->summary.flags & VMF_SWITCHOVER_RUN,
        .blocks = file->summary.blocks,
    };

    if (!build)
        return false;
    copy.n_chunks = build->layout.n_chunks;
    pthread_mutex_init(&copy.lock, NULL);
    vmf_cond_init(&copy.changed);
    bool good = run_threads(&copy, error);
    pthread_cond_destroy(&copy.changed);
    pthread_mutex_destroy(&copy.lock);
    return good && vmf_image_build_finish(build, &tail, error);
}

/* ---- what is asked for ---------------------------------------------------------------------------------------------
 */

static bool is_complete(const VmfImage *image, GError **error)
{
    const VmfImageFile *last = vmf_image_layer_of(image, vmf_image_n_layers(image) - 1);

    if (!last->parent.name)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_PARENT, "%s: was opened without its parents",
                vmf_storage_name(last->storage));
    return false;
}

bool vmf_image_flatten(VmfImage *image, const char *uri, const VmfImageMakeOptions *options, GError **error)
{
    return is_complete(image, error) && vmf_image_build_check_target(uri, image->chain, error) &&
           copy_image(image, NULL, NULL, uri, options, error);
}

bool vmf_image_rebase(VmfImage *image, VmfImage *parent, const char *uri, const VmfImageMakeOptions *options,
                      GError **error)
{
    VmfImageParent record = {0};

    bool made = is_complete(image, error) && is_complete(parent, error) &&
                vmf_image_build_check_target(uri, image->chain, error) &&
                vmf_image_parent_of_layer(parent->chain, uri, vmf_image_layer_of(image, 0)->static_data, &record, error) &&
                copy_image(image, parent->chain, &record, uri, options, error);
    vmf_image_parent_clear(&record);
    return made;
}
