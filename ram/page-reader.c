/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/page-reader.h"

typedef struct {
    VmfPageSet zero;
    GError *error;
} Outcome;

static void read_done(void *opaque, unsigned block, uint64_t chunk, const VmfPageSet *data, const VmfPageSet *zero,
                      GError *error)
{
    Outcome *outcome = opaque;

    outcome->zero = *zero;
    outcome->error = error;
}

bool vmf_page_reader_read(const VmfPageReaderOps *ops, void *reader, unsigned block, uint64_t chunk,
                          const VmfPageSet *wanted, void *memory, GError **error)
{
    Outcome outcome = {{{0}}, NULL};
    unsigned first, n;

    if (!ops->start(reader, block, chunk, wanted, memory, read_done, &outcome, error))
        return false;
    ops->wait(reader, 0);
    if (outcome.error) {
        g_propagate_error(error, outcome.error);
        return false;
    }
    for (unsigned from = 0; vmf_page_set_next_run(&outcome.zero, from, &first, &n); from = first + n)
        memset((uint8_t *)memory + (size_t)first * VMF_PAGE_SIZE, 0, (size_t)n * VMF_PAGE_SIZE);
    return true;
}

bool vmf_page_reader_read_singly(const VmfPageReaderOps *ops, void *reader, unsigned block, uint64_t chunk,
                                 const VmfPageSet *wanted, void *memory, unsigned *bad, GError **error)
{
    unsigned first, n_pages;

    for (unsigned from = 0; vmf_page_set_next_run(wanted, from, &first, &n_pages); from = first + n_pages) {
        for (*bad = first; *bad < first + n_pages; ++*bad) {
            VmfPageSet one = {{0}};
            vmf_page_set_add(&one, *bad);
            if (!vmf_page_reader_read(ops, reader, block, chunk, &one, memory, error))
                return false;
        }
    }
    return true;
}
