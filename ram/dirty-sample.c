/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/dirty-sample.h"

#include "ram/block.h"
#include "stream/clock.h"

#define SAMPLE_CHUNKS 64 /* 128 MiB: to protect them again takes about a millisecond */

struct VmfDirtySample {
    VmfRamSave *save;
    uint64_t n_pending; /* chunks, of which some are in the sample */
    GArray *chunks;     /* VmfChunkId, in order */
    int64_t began_ns;
    uint64_t pages; /* of the sample, written since */
};

static uint64_t count_pending(const VmfRamSave *save)
{
    uint64_t n = 0;

    for (unsigned b = 0; b < save->n_blocks; b++)
        for (uint64_t chunk = 0; vmf_dirty_bitmap_next_chunk(save->blocks[b].dirty, chunk, &chunk); chunk++)
            n++;
    return n;
}

/* What the log had of it stays pending. */
static void clear_chunk(VmfRamSave *save, VmfChunkId id)
{
    VmfRamSaveBlock *own = &save->blocks[id.block];
    VmfPageSet pages;
    uint64_t first;
    unsigned n_pages = vmf_ram_block_chunk_pages(own->block, id.chunk, &first);

    vmf_dirty_bitmap_peek_chunk(own->dirty, id.chunk, &pages);
    save->config.log->clear(save->config.log_opaque, id.block, first, n_pages, pages.words);
    vmf_dirty_bitmap_or_words(own->dirty, id.chunk * VMF_CHUNK_WORDS, pages.words, VMF_CHUNK_WORDS);
}

VmfDirtySample *vmf_dirty_sample_begin(VmfRamSave *save)
{
    uint64_t n_pending = save->log_started ? count_pending(save) : 0, nth = 0;
    uint64_t step = (n_pending + SAMPLE_CHUNKS - 1) / SAMPLE_CHUNKS;

    if (n_pending == 0)
        return NULL;
    VmfDirtySample *sample = g_new0(VmfDirtySample, 1);
    sample->save = save;
    sample->n_pending = n_pending;
    sample->chunks = g_array_new(false, false, sizeof(VmfChunkId));
    for (unsigned b = 0; b < save->n_blocks; b++)
        for (uint64_t chunk = 0; vmf_dirty_bitmap_next_chunk(save->blocks[b].dirty, chunk, &chunk); chunk++) {
            VmfChunkId id = {b, chunk};
            if (nth++ % step != 0)
                continue;
            clear_chunk(save, id);
            g_array_append_val(sample->chunks, id);
        }
    sample->began_ns = vmf_now_ns();
    return sample;
}

void vmf_dirty_sample_free(VmfDirtySample *sample)
{
    if (!sample)
        return;
    g_array_unref(sample->chunks);
    g_free(sample);
}

typedef struct {
    VmfDirtySample *sample;
    unsigned block;
} Report;

static int compare(const void *a, const void *b)
{
    const VmfChunkId *x = a, *y = b;

    if (x->block != y->block)
        return x->block < y->block ? -1 : 1;
    return x->chunk < y->chunk ? -1 : x->chunk > y->chunk;
}

static void report(void *opaque, uint64_t first_word, const uint64_t *words, size_t n_words)
{
    const Report *r = opaque;
    const GArray *chunks = r->sample->chunks;

    vmf_dirty_bitmap_or_words(r->sample->save->blocks[r->block].dirty, first_word, words, n_words);
    for (size_t i = 0; i < n_words; i++) {
        VmfChunkId id = {r->block, (first_word + i) / VMF_CHUNK_WORDS};
        if (words[i] && bsearch(&id, chunks->data, chunks->len, sizeof(id), compare))
            r->sample->pages += (unsigned)__builtin_popcountll(words[i]);
    }
}

bool vmf_dirty_sample_end(VmfDirtySample *sample, GError **error)
{
    VmfRamSave *save = sample->save;

    for (unsigned b = 0; b < save->n_blocks; b++) {
        Report r = {sample, b};
        if (!save->config.log->harvest(save->config.log_opaque, b, report, &r, error))
            return false;
    }
    int64_t now_ns = vmf_now_ns();
    double seconds = (double)MAX(now_ns - sample->began_ns, 1) / 1e9;
    double bytes = (double)sample->pages * VMF_PAGE_SIZE * (double)sample->n_pending / sample->chunks->len;
    save->harvested_at_ns = (uint64_t)now_ns;
    vmf_dirty_rate_set(&save->dirty_rate, (uint64_t)(bytes / seconds));
    return true;
}
