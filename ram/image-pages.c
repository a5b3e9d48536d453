/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/image-pages.h"

/* A read that is under way. */
typedef struct {
    bool busy;
    VmfPageReadDone done;
    void *opaque;
} Read;

typedef struct {
    VmfImageReader *reader;
    unsigned depth;
    Read *reads; /* depth of them */
} Reader;

/* A layer may say of a chunk that it is zeros now: that is looked at closer when it is needed. */
static bool may_have_data(void *source, unsigned block, uint64_t chunk)
{
    VmfImageChain *chain = source;

    for (unsigned i = 0; i < vmf_image_chain_n_layers(chain); i++) {
        const VmfImageFile *file = vmf_image_chain_layer(chain, i);
        if (file->table[file->layout.blocks[block].first_chunk + chunk] != 0)
            return true;
    }
    return false;
}

static bool data_pages(void *source, unsigned block, uint64_t chunk, VmfPageSet *data, GError **error)
{
    VmfImageChunk content;

    if (!vmf_image_chain_chunk(source, block, chunk, &content, NULL, error))
        return false;
    *data = content.data;
    return true;
}

static void *open_reader(void *source, unsigned depth, GError **error)
{
    VmfImageReader *images = vmf_image_reader_new(source, depth, error);

    if (!images)
        return NULL;
    Reader *reader = g_new0(Reader, 1);
    reader->reader = images;
    reader->depth = depth;
    reader->reads = g_new0(Read, depth);
    return reader;
}

static void close_reader(void *opaque)
{
    Reader *reader = opaque;

    vmf_image_reader_free(reader->reader);
    g_free(reader->reads);
    g_free(reader);
}

static void read_done(void *opaque, const VmfImageRead *read, GError *error)
{
    Read *own = opaque;

    own->busy = false;
    own->done(own->opaque, read->block, read->chunk, &read->data, &read->zero, error);
}

static Read *take_read(Reader *reader, VmfPageReadDone done, void *opaque)
{
    unsigned i = 0;

    vmf_image_reader_wait(reader->reader, reader->depth - 1);
    while (reader->reads[i].busy)
        i++;
    reader->reads[i] = (Read){.busy = true, .done = done, .opaque = opaque};
    return &reader->reads[i];
}

static bool start(void *opaque, unsigned block, uint64_t chunk, const VmfPageSet *wanted, void *memory, VmfPageReadDone done,
                  void *done_opaque, GError **error)
{
    Reader *reader = opaque;
    Read *read = take_read(reader, done, done_opaque);

    read->busy = vmf_image_reader_start(reader->reader, block, chunk, wanted, memory, read_done, read, error);
    return read->busy;
}

static bool read_now(void *opaque, unsigned block, uint64_t chunk, const VmfPageSet *wanted, void *memory, VmfPageReadDone done,
                     void *done_opaque, GError **error)
{
    Reader *reader = opaque;
    Read *read = take_read(reader, done, done_opaque);
    bool begun = vmf_image_reader_read_now(reader->reader, block, chunk, wanted, memory, read_done, read, error);

    read->busy = false;
    return begun;
}

static void wait_for(void *opaque, unsigned n_under_way)
{
    Reader *reader = opaque;

    vmf_image_reader_wait(reader->reader, n_under_way);
}

const VmfPageReaderOps vmf_image_pages_ops = {
    .size = sizeof(VmfPageReaderOps),
    .may_have_data = may_have_data,
    .data_pages = data_pages,
    .open = open_reader,
    .close = close_reader,
    .start = start,
    .read_now = read_now,
    .wait = wait_for,
};
