/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. The session's thread reads the disks' chunks one after the other, some ahead, into a few buffers.
 * What has been read was checked against its digests; each run of its pages is then a write, which is the disk's own
 * thread's. A buffer is free again once its last write has ended. Pages of zeros are not read, and not written where
 * the storage reads as zeros anyway.
 *
 * The first error of a write is kept, and ends it all.
 */
#include "migration/image-disk-load.h"

#include <inttypes.h>
#include <stdlib.h>
#include <vmferry/error.h>

#include "block/disk.h"

#define BUFFERS 8u /* chunks: read, or being written */
#define DEPTH 4u   /* of them those that are being read */
#define RUNS_MAX (VMF_CHUNK_PAGES / 2)

typedef struct One One;

/* A chunk on its way. */
typedef struct {
    One *one;
    uint8_t *memory;
    bool busy;
    unsigned n_writes; /* under way; under the lock, as busy */
    VmfDiskRequest requests[RUNS_MAX];
    struct iovec iov[RUNS_MAX];
} Buffer;

struct One {
    VmfImageDiskLoad *load;
    unsigned block;
    VmfDisk *disk;
    uint64_t size_bytes;
    bool begun;
    uint64_t n_data, sum; /* of what was read */
};

struct VmfImageDiskLoad {
    VmfImageChain *chain;
    VmfSession *session;
    VmfImageFile *image;
    unsigned n_disks;
    One *disks;
    VmfImageReader *reader;
    uint8_t *memory;
    Buffer *buffers;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    GError *error; /* of a read or write, the first; under the lock */
    _Atomic uint64_t total_bytes, written_bytes;
};

VmfImageDiskLoad *vmf_image_disk_load_new(VmfImageChain *chain, VmfSession *session)
{
    VmfImageDiskLoad *load = g_new0(VmfImageDiskLoad, 1);

    load->chain = chain;
    load->session = session;
    load->image = vmf_image_chain_layer(chain, 0);
    load->n_disks = load->image->layout.n_disks;
    load->disks = g_new0(One, load->n_disks + 1);
    pthread_mutex_init(&load->lock, NULL);
    pthread_cond_init(&load->ended, NULL);
    return load;
}

void vmf_image_disk_load_free(VmfImageDiskLoad *load)
{
    if (!load)
        return;
    g_free(load->disks);
    g_clear_error(&load->error);
    pthread_cond_destroy(&load->ended);
    pthread_mutex_destroy(&load->lock);
    g_free(load);
}

/* ---- writes ------------------------------------------------------------------------------------------------------ */

static void fail(VmfImageDiskLoad *load, GError *error)
{
    pthread_mutex_lock(&load->lock);
    if (load->error)
        g_error_free(error);
    else
        load->error = error;
    pthread_mutex_unlock(&load->lock);
}

/* One of the buffer's writes, or whoever begins them. */
static void leave(Buffer *buffer)
{
    VmfImageDiskLoad *load = buffer->one->load;

    pthread_mutex_lock(&load->lock);
    if (--buffer->n_writes == 0)
        buffer->busy = false;
    pthread_cond_broadcast(&load->ended);
    pthread_mutex_unlock(&load->lock);
}

static void on_written(VmfDiskRequest *request, const GError *error)
{
    Buffer *buffer = request->opaque;
    VmfImageDiskLoad *load = buffer->one->load;

    if (error)
        fail(load, g_error_copy(error));
    else
        load->written_bytes += request->length;
    leave(buffer);
}

static void write_run(Buffer *buffer, unsigned run, uint64_t offset, uint8_t *data, uint64_t length)
{
    VmfDiskRequest *request = &buffer->requests[run];

    buffer->iov[run] = (struct iovec){data, length};
    *request = (VmfDiskRequest){
        .operation = VMF_DISK_WRITE,
        .offset = offset,
        .length = length,
        .iov = &buffer->iov[run],
        .n_iov = 1,
        .done = on_written,
        .opaque = buffer,
    };
    pthread_mutex_lock(&buffer->one->load->lock);
    buffer->n_writes++;
    pthread_mutex_unlock(&buffer->one->load->lock);
    vmf_disk_submit(buffer->one->disk, request);
}

/* The last page of a disk may reach past its end: there is nothing but what filled it up. */
static void write_pages(Buffer *buffer, const VmfImageRead *read)
{
    uint64_t base = read->chunk * VMF_CHUNK_SIZE, size = buffer->one->size_bytes;
    unsigned first, n_pages, run = 0;

    for (unsigned from = 0; vmf_page_set_next_run(&read->data, from, &first, &n_pages); from = first + n_pages) {
        uint64_t offset = base + (uint64_t)first * VMF_PAGE_SIZE;
        write_run(buffer, run++, offset, buffer->memory + (size_t)first * VMF_PAGE_SIZE,
                  MIN((uint64_t)n_pages * VMF_PAGE_SIZE, size - offset));
    }
}

static void count(One *one, const VmfImageRead *read)
{
    one->n_data += vmf_page_set_count(&read->data);
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++)
        if (vmf_page_set_test(&read->data, page))
            one->sum += vmf_page_digest_mix(read->chunk * VMF_CHUNK_PAGES + page, read->digests[page]);
}

static void on_read(void *opaque, const VmfImageRead *read, GError *error)
{
    Buffer *buffer = opaque;

    if (error) {
        fail(buffer->one->load, error);
    } else {
        count(buffer->one, read);
        write_pages(buffer, read);
    }
    leave(buffer);
}

/* ---- one disk ---------------------------------------------------------------------------------------------------- */

static bool check(VmfImageDiskLoad *load, GError **error)
{
    pthread_mutex_lock(&load->lock);
    GError *failed = load->error ? g_error_copy(load->error) : NULL;
    pthread_mutex_unlock(&load->lock);
    if (!failed)
        return vmf_session_check_cancelled(load->session, error);
    g_propagate_error(error, failed);
    return false;
}

static Buffer *find_free(VmfImageDiskLoad *load)
{
    Buffer *found = NULL;

    pthread_mutex_lock(&load->lock);
    for (unsigned i = 0; i < BUFFERS && !found; i++)
        if (!load->buffers[i].busy)
            found = &load->buffers[i];
    pthread_mutex_unlock(&load->lock);
    return found;
}

/* Reads end within calls of the reader, writes by themselves: with no read under way all that is busy is written. */
static Buffer *wait_for_buffer(VmfImageDiskLoad *load)
{
    Buffer *found;

    while (!(found = find_free(load))) {
        unsigned n = vmf_image_reader_under_way(load->reader);
        if (n > 0) {
            vmf_image_reader_wait(load->reader, n - 1);
            continue;
        }
        pthread_mutex_lock(&load->lock);
        bool all_busy = true;
        for (unsigned i = 0; i < BUFFERS; i++)
            all_busy = all_busy && load->buffers[i].busy;
        if (all_busy)
            pthread_cond_wait(&load->ended, &load->lock);
        pthread_mutex_unlock(&load->lock);
    }
    return found;
}

static bool load_chunk(One *one, uint64_t chunk, GError **error)
{
    VmfImageDiskLoad *load = one->load;
    VmfImageChunk content;

    if (!vmf_image_chain_chunk(load->chain, one->block, chunk, &content, NULL, error))
        return false;
    if (vmf_page_set_is_empty(&content.data))
        return true;
    Buffer *buffer = wait_for_buffer(load);
    buffer->one = one;
    buffer->busy = true; /* nobody else looks at one that is free */
    buffer->n_writes = 1;
    if (vmf_image_reader_start(load->reader, one->block, chunk, &content.data, buffer->memory, on_read, buffer, error))
        return true;
    buffer->busy = false;
    return false;
}

/* What was never written there does not read as zeros: all of it does then. */
static void clear_disk(One *one)
{
    Buffer *buffer = wait_for_buffer(one->load);

    buffer->one = one;
    buffer->busy = true;
    buffer->n_writes = 1;
    buffer->requests[0] = (VmfDiskRequest){.operation = VMF_DISK_ZERO,
                                           .length = one->size_bytes,
                                           .done = on_written,
                                           .opaque = buffer};
    vmf_disk_submit(one->disk, &buffer->requests[0]);
    vmf_disk_drain(one->disk);
    one->load->written_bytes -= one->size_bytes; /* it was no data */
}

static bool begin(One *one, GError **error)
{
    const VmfStaticDisk *there = vmf_image_file_block_disk(one->load->image, one->block);
    const VmfGuestDisk *here = vmf_guest_find_disk(one->load->session->guest, there->name);

    one->disk = here->ops.disk(here->opaque); /* the check of the static data has found both */
    one->size_bytes = there->size;
    if (!vmf_disk_receive_begin(one->disk, one->size_bytes, VMF_RECEIVE_ANEW, error))
        return false;
    one->begun = true;
    one->load->total_bytes += one->size_bytes;
    return true;
}

static bool load_disk(One *one, GError **error)
{
    uint64_t n_chunks = vmf_image_block_n_chunks(&one->load->image->layout.blocks[one->block]);
    bool good = true;

    if (!vmf_disk_receive_is_new(one->disk))
        clear_disk(one);
    for (uint64_t chunk = 0; good && chunk < n_chunks; chunk++)
        good = check(one->load, error) && load_chunk(one, chunk, error);
    vmf_image_reader_wait(one->load->reader, 0);
    vmf_disk_drain(one->disk);
    return good && check(one->load, error);
}

static bool check_sum(const One *one, GError **error)
{
    const VmfBlockSummary *said = &one->load->image->summary.blocks[one->block];
    bool counts = said->data != one->n_data;

    if (!counts && said->sum == one->sum)
        return true;
    g_set_error(error, VMF_ERROR, counts ? VMF_ERROR_DISK_COUNTS : VMF_ERROR_DISK_SUM,
                "disk %s: image: %s of its pages is not what the image says", vmf_disk_name(one->disk),
                counts ? "the number" : "the sum");
    return false;
}

/* ---- all of them ------------------------------------------------------------------------------------------------- */

static bool equip(VmfImageDiskLoad *load, GError **error)
{
    load->reader = vmf_image_reader_new(load->chain, DEPTH, error);
    if (!load->reader)
        return false;
    load->buffers = g_new0(Buffer, BUFFERS);
    load->memory = aligned_alloc(VMF_PAGE_SIZE, (size_t)BUFFERS * VMF_CHUNK_SIZE);
    if (!load->memory) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disks: image: no memory for chunks");
        return false;
    }
    for (unsigned i = 0; i < BUFFERS; i++)
        load->buffers[i].memory = load->memory + (size_t)i * VMF_CHUNK_SIZE;
    return true;
}

static void unequip(VmfImageDiskLoad *load)
{
    g_clear_pointer(&load->reader, vmf_image_reader_free);
    g_clear_pointer(&load->buffers, g_free);
    g_clear_pointer(&load->memory, free);
}

static bool load_all(VmfImageDiskLoad *load, GError **error)
{
    unsigned n_ram = load->image->layout.n_blocks - load->n_disks;

    for (unsigned i = 0; i < load->n_disks; i++) {
        load->disks[i].load = load;
        load->disks[i].block = n_ram + i;
        if (!begin(&load->disks[i], error))
            return false;
    }
    for (unsigned i = 0; i < load->n_disks; i++)
        if (!load_disk(&load->disks[i], error) || !check_sum(&load->disks[i], error))
            return false;
    for (unsigned i = 0; i < load->n_disks; i++)
        if (!vmf_disk_receive_commit(load->disks[i].disk, error))
            return false;
    return true;
}

bool vmf_image_disk_load_run(VmfImageDiskLoad *load, GError **error)
{
    bool good = load->n_disks == 0 || (equip(load, error) && load_all(load, error));

    unequip(load);
    return good;
}

void vmf_image_disk_load_end(VmfImageDiskLoad *load, VmfReceiveEnd how)
{
    for (unsigned i = 0; load && i < load->n_disks; i++)
        if (load->disks[i].begun)
            vmf_disk_receive_end(load->disks[i].disk, how);
}

void vmf_image_disk_load_gather(const VmfImageDiskLoad *load, VmfStatistics *statistics)
{
    statistics->disk_total_bytes = load->total_bytes;
    statistics->disk_sent_bytes = load->written_bytes;
}
