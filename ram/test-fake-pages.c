/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/test-fake-pages.h"

#include <time.h>
#include <vmferry/error.h>

#define READS_MAX 64

typedef struct {
    unsigned block;
    uint64_t chunk;
    VmfPageSet wanted;
    void *memory;
    VmfPageReadDone done;
    void *opaque;
} Read;

typedef struct {
    FakePages *fake;
    unsigned depth;
    unsigned n;
    Read reads[READS_MAX]; /* ended from the end: in no useful order */
} Reader;

static uint64_t word_of(unsigned block, uint64_t page, unsigned word)
{
    return (fake_place(block, page) + 1) * UINT64_C(0x9E3779B97F4A7C15) + word * UINT64_C(0xD6E8FEB86659FD93);
}

bool fake_usual(unsigned block, uint64_t page)
{
    uint64_t chunk = page / VMF_CHUNK_PAGES;

    return chunk % 3 != 2 && (page + chunk * 7 + block) % 16 != 5 && page / 128 % 4 != 3;
}

static bool has_data(const FakePages *fake, unsigned block, uint64_t page)
{
    return fake->has_data ? fake->has_data(block, page) : fake_usual(block, page);
}

bool fake_is_right(const FakePages *fake, unsigned block, uint64_t page, const void *memory)
{
    bool data = has_data(fake, block, page), right = true;
    const uint64_t *words = memory;

    for (unsigned i = 0; i < VMF_PAGE_SIZE / sizeof(*words); i++)
        right &= words[i] == (data ? word_of(block, page, i) : 0);
    return right;
}

/* ---- the source ---------------------------------------------------------------------------------------------------
 */

static bool fake_may_have_data(void *source, unsigned block, uint64_t chunk)
{
    for (unsigned i = 0; i < VMF_CHUNK_PAGES; i++) {
        if (has_data(source, block, chunk * VMF_CHUNK_PAGES + i))
            return true;
    }
    return false;
}

static bool fake_data_pages(void *source, unsigned block, uint64_t chunk, VmfPageSet *data, GError **error)
{
    FakePages *fake = source;

    fake->n_tables_first += fake->n_reads == 0;
    vmf_page_set_clear(data);
    for (unsigned i = 0; i < VMF_CHUNK_PAGES; i++) {
        if (has_data(fake, block, chunk * VMF_CHUNK_PAGES + i))
            vmf_page_set_add(data, i);
    }
    if (fake->bad_tables != chunk + 1)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_DIGEST, "fake: chunk %" G_GUINT64_FORMAT ": damaged", chunk);
    return false;
}

/* ---- a reader -----------------------------------------------------------------------------------------------------
 */

static void *fake_open(void *source, unsigned depth, GError **error)
{
    Reader *reader = g_new0(Reader, 1);

    reader->fake = source;
    reader->depth = MIN(depth, READS_MAX);
    return reader;
}

static void fake_close(void *opaque)
{
    g_free(opaque);
}

static GError *trouble(FakePages *fake, const Read *read)
{
    unsigned left = atomic_load(&fake->n_failures);

    for (unsigned i = 0; i < FAKE_BAD_MAX; i++) {
        uint64_t page = fake->bad[i] - 1 - fake_place(read->block, read->chunk * VMF_CHUNK_PAGES);
        if (fake->bad[i] && page < VMF_CHUNK_PAGES && vmf_page_set_test(&read->wanted, (unsigned)page))
            return g_error_new(VMF_ERROR, VMF_ERROR_IMAGE_PAGE, "fake: block %u: page %" G_GUINT64_FORMAT ": damaged",
                               read->block, read->chunk * VMF_CHUNK_PAGES + page);
    }
    while (vmf_page_set_count(&read->wanted) > 1 && left > 0) {
        if (atomic_compare_exchange_weak(&fake->n_failures, &left, left - 1))
            return g_error_new(VMF_ERROR, VMF_ERROR_IO, "fake: read: passing trouble");
    }
    return NULL;
}

static void fill(const FakePages *fake, const Read *read, VmfPageSet *data, VmfPageSet *zero)
{
    for (unsigned page = 0; page < VMF_CHUNK_PAGES; page++) {
        uint64_t in_block = read->chunk * VMF_CHUNK_PAGES + page;
        uint64_t *words = (uint64_t *)((uint8_t *)read->memory + (size_t)page * VMF_PAGE_SIZE);

        if (!vmf_page_set_test(&read->wanted, page))
            continue;
        if (!has_data(fake, read->block, in_block)) {
            vmf_page_set_add(zero, page);
            continue;
        }
        vmf_page_set_add(data, page);
        for (unsigned i = 0; i < VMF_PAGE_SIZE / sizeof(*words); i++)
            words[i] = word_of(read->block, in_block, i);
    }
}

static void end_one(Reader *reader)
{
    Read read = reader->reads[--reader->n];
    VmfPageSet data = {{0}}, zero = {{0}};
    GError *error = trouble(reader->fake, &read);

    while (atomic_load(&reader->fake->shut))
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    if (!error)
        fill(reader->fake, &read, &data, &zero);
    read.done(read.opaque, read.block, read.chunk, &data, &zero, error);
}

static void fake_wait(void *opaque, unsigned n_under_way)
{
    Reader *reader = opaque;

    while (reader->n > n_under_way)
        end_one(reader);
}

static void log_read(FakePages *fake, const Read *read)
{
    unsigned first, n, index = atomic_fetch_add(&fake->n_reads, 1);

    vmf_page_set_next_run(&read->wanted, 0, &first, &n);
    if (index < FAKE_LOG_MAX)
        fake->log[index] = fake_place(read->block, read->chunk * VMF_CHUNK_PAGES + first) + 1;
}

static bool fake_start(void *opaque, unsigned block, uint64_t chunk, const VmfPageSet *wanted, void *memory,
                       VmfPageReadDone done, void *done_opaque, GError **error)
{
    Reader *reader = opaque;

    while (reader->n >= reader->depth)
        end_one(reader);
    reader->reads[reader->n++] = (Read){block, chunk, *wanted, memory, done, done_opaque};
    log_read(reader->fake, &reader->reads[reader->n - 1]);
    unsigned most = atomic_load(&reader->fake->max_under_way);
    while (reader->n > most && !atomic_compare_exchange_weak(&reader->fake->max_under_way, &most, reader->n))
        continue;
    return true;
}

static bool fake_read_now(void *opaque, unsigned block, uint64_t chunk, const VmfPageSet *wanted, void *memory,
                          VmfPageReadDone done, void *done_opaque, GError **error)
{
    bool begun = fake_start(opaque, block, chunk, wanted, memory, done, done_opaque, error);

    fake_wait(opaque, 0);
    return begun;
}

const VmfPageReaderOps fake_reader_ops = {
    .size = sizeof(VmfPageReaderOps),
    .may_have_data = fake_may_have_data,
    .data_pages = fake_data_pages,
    .open = fake_open,
    .close = fake_close,
    .start = fake_start,
    .read_now = fake_read_now,
    .wait = fake_wait,
};
