/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. UFFDIO_COPY allocates a page, copies into it and maps it: no fault, no clearing of what is overwritten at once, no
 * walk of the page tables for each page. It is allowed only where memory is registered for missing faults, and registering brings two
 * things along.
 *
 * 1. Whoever touches a page that is not there waits until somebody provides it. The engine itself does not: it knows by a bit a page what
 *    was placed (all writers of one chunk are one receiver and the populating thread). Anybody else (a device that is being loaded, a
 *    debugger) is served a page of zeros by a thread that sleeps otherwise. vmf_fresh_place() then finds the page there and copies.
 *    Where the host permits watching faults of user mode only, the kernel's own accesses fail instead of waiting.
 * 2. It has to end before the guest runs: nothing here is meant to be in a guest's way. Ending costs no time for what was placed.
 *
 * Only the first content of a page comes this way; what is there is overwritten as ever.
 *
 * One GiB of fresh 4 KiB pages of anonymous memory from a buffer in the cache, one thread: 0.39 s by plain writes, 0.33 s populated first
 * (MADV_POPULATE_WRITE), 0.195 s this way; of a memfd 0.63, 0.59 and 0.31 s.
 */
#include "ram/fresh.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/block.h"
#include "ram/sparse-array.h"
#include "ram/sparse-words.h"
#include "ram/uffd.h"

#define ZERO_PAGES 64u /* placed ahead in one step */

typedef struct {
    VmfRamBlock *block;
    VmfSparseWords *placed; /* a bit a page; NULL: not watched */
} Watched;

struct VmfFresh {
    int fd;
    int end_fd; /* readable when the thread is to end */
    pthread_t thread;
    bool started;
    unsigned n_blocks;
    Watched *blocks;
    uint8_t *zeros; /* never written: all of it is the kernel's one page of zeros */
};

/* ---- what is watched ------------------------------------------------------------------------------------------------------------ */

/* Whether the kernel's setting @name, of which the choice in force stands in brackets, is one of @choices. */
static bool setting_is(const char *name, const char *const *choices)
{
    g_autofree char *path = g_build_filename("/sys/kernel/mm/transparent_hugepage", name, NULL);
    g_autofree char *text = NULL;

    if (!g_file_get_contents(path, &text, NULL, NULL))
        return true; /* a kernel without huge pages */
    for (; *choices; choices++)
        if (strstr(text, *choices))
            return true;
    return false;
}

bool vmf_fresh_is_small(const VmfRamBlock *block)
{
    static const char *const anon[] = {"[never]", NULL}, *const shared[] = {"[never]", "[advise]", "[deny]", NULL};

    switch (vmf_ram_block_backend(block)) {
    case VMF_RAM_ANON:
        return vmf_ram_block_flags(block) & VMF_RAM_NO_HUGE_PAGES || setting_is("enabled", anon);
    case VMF_RAM_MEMFD:
        return vmf_ram_block_flags(block) & VMF_RAM_NO_HUGE_PAGES || setting_is("shmem_enabled", shared);
    default:
        return false;
    }
}

static bool watch(VmfFresh *fresh, Watched *own, VmfRamBlock *block)
{
    uint64_t n_words = vmf_ram_block_n_chunks(block) * VMF_CHUNK_WORDS;

    if (!vmf_fresh_is_small(block))
        return false;
    VmfSparseWords *placed = vmf_sparse_words_new(n_words, "placed pages", NULL);
    if (!placed)
        return false;
    if (!vmf_uffd_register(fresh->fd, vmf_ram_block_host(block), vmf_ram_block_size(block), UFFDIO_REGISTER_MODE_MISSING)) {
        vmf_sparse_words_free(placed);
        return false;
    }
    *own = (Watched){block, placed};
    return true;
}

/* ---- others who touch it -------------------------------------------------------------------------------------------------------- */

static void serve(VmfFresh *fresh, const struct uffd_msg *message)
{
    uint8_t *at = (uint8_t *)(uintptr_t)(message->arg.pagefault.address & -(uint64_t)VMF_PAGE_SIZE);

    if (message->event != UFFD_EVENT_PAGEFAULT)
        return;
    /* There by now, or not watched any more: let it look again. */
    if (vmf_uffd_zero(fresh->fd, at, VMF_PAGE_SIZE) <= 0)
        vmf_uffd_wake(fresh->fd, at, VMF_PAGE_SIZE);
}

static void *server_main(void *opaque)
{
    VmfFresh *fresh = opaque;
    struct pollfd fds[] = {{.fd = fresh->fd, .events = POLLIN}, {.fd = fresh->end_fd, .events = POLLIN}};
    struct uffd_msg message;

    while (!(fds[1].revents & POLLIN)) {
        if (poll(fds, G_N_ELEMENTS(fds), -1) < 0)
            continue;
        while (read(fresh->fd, &message, sizeof(message)) == (ssize_t)sizeof(message))
            serve(fresh, &message);
    }
    return NULL;
}

/* ---- beginning and end ---------------------------------------------------------------------------------------------------------- */

static bool begin(VmfFresh *fresh, VmfRamBlock *const *blocks)
{
    bool any = false;

    if (fresh->fd < 0 || fresh->end_fd < 0)
        return false;
    fresh->zeros = vmf_sparse_array_new(ZERO_PAGES, VMF_PAGE_SIZE, "zeros", NULL);
    fresh->started = fresh->zeros && pthread_create(&fresh->thread, NULL, server_main, fresh) == 0;
    for (unsigned b = 0; fresh->started && b < fresh->n_blocks; b++)
        any |= watch(fresh, &fresh->blocks[b], blocks[b]);
    return any;
}

VmfFresh *vmf_fresh_new(VmfRamBlock *const *blocks, unsigned n_blocks)
{
    g_autoptr(VmfFresh) fresh = g_new0(VmfFresh, 1);

    fresh->fd = vmf_uffd_open(0, NULL, NULL);
    fresh->end_fd = eventfd(0, EFD_CLOEXEC);
    fresh->n_blocks = n_blocks;
    fresh->blocks = g_new0(Watched, n_blocks);
    return begin(fresh, blocks) ? g_steal_pointer(&fresh) : NULL;
}

static void unwatch(VmfFresh *fresh, Watched *own)
{
    if (!own->placed)
        return;
    vmf_uffd_unregister(fresh->fd, vmf_ram_block_host(own->block), vmf_ram_block_size(own->block));
    vmf_sparse_words_free(own->placed);
}

void vmf_fresh_free(VmfFresh *fresh)
{
    uint64_t one = 1;

    if (!fresh)
        return;
    for (unsigned b = 0; b < fresh->n_blocks; b++)
        unwatch(fresh, &fresh->blocks[b]);
    if (fresh->started && write(fresh->end_fd, &one, sizeof(one)) == (ssize_t)sizeof(one))
        pthread_join(fresh->thread, NULL);
    if (fresh->fd >= 0)
        close(fresh->fd);
    if (fresh->end_fd >= 0)
        close(fresh->end_fd);
    vmf_sparse_array_free(fresh->zeros, ZERO_PAGES, VMF_PAGE_SIZE);
    g_free(fresh->blocks);
    g_free(fresh);
}

/* ---- placing -------------------------------------------------------------------------------------------------------------------- */

bool vmf_fresh_has(const VmfFresh *fresh, unsigned index)
{
    return fresh && index < fresh->n_blocks && fresh->blocks[index].placed;
}

int vmf_fresh_index(const VmfFresh *fresh, const VmfRamBlock *block)
{
    for (unsigned b = 0; fresh && b < fresh->n_blocks; b++)
        if (fresh->blocks[b].placed && fresh->blocks[b].block == block)
            return (int)b;
    return -1;
}

VmfPageSet vmf_fresh_absent(const VmfFresh *fresh, unsigned index, uint64_t chunk, const VmfPageSet *pages)
{
    VmfPageSet absent = {{0}};

    if (!vmf_fresh_has(fresh, index))
        return absent;
    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        absent.words[w] = pages->words[w] & ~vmf_sparse_words_get(fresh->blocks[index].placed, chunk * VMF_CHUNK_WORDS + w);
    return absent;
}

static void note(Watched *own, uint64_t first_page, unsigned n_pages)
{
    uint64_t end = first_page + n_pages;

    for (uint64_t word = first_page / 64; word * 64 < end; word++)
        vmf_sparse_words_or(own->placed, word, vmf_page_word_mask(word, first_page, end));
}

bool vmf_fresh_place(VmfFresh *fresh, unsigned index, uint64_t first_page, unsigned n_pages, const uint8_t *content, GError **error)
{
    Watched *own = &fresh->blocks[index];
    uint8_t *at = vmf_ram_block_page(own->block, first_page);

    for (unsigned done = 0; done < n_pages;) {
        size_t offset = (size_t)done * VMF_PAGE_SIZE, left = (size_t)(n_pages - done) * VMF_PAGE_SIZE;
        ssize_t n = vmf_uffd_copy(fresh->fd, at + offset, content + offset, left);
        if (n < 0 && errno == ENOMEM) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "RAM block %s: page %" G_GUINT64_FORMAT ": no memory",
                        vmf_ram_block_name(own->block), first_page + done);
            return false;
        }
        /* There, or out of the watch's reach: a plain write does. */
        if (n <= 0)
            memcpy(at + offset, content + offset, VMF_PAGE_SIZE);
        done += (unsigned)MAX(n / VMF_PAGE_SIZE, 1);
    }
    note(own, first_page, n_pages);
    return true;
}

static int provide_run(VmfFresh *fresh, Watched *own, uint64_t first_page, unsigned n_pages)
{
    uint8_t *at = vmf_ram_block_page(own->block, first_page);
    int placed = 0;

    for (unsigned done = 0; done < n_pages;) {
        size_t step = (size_t)MIN(n_pages - done, ZERO_PAGES) * VMF_PAGE_SIZE;
        ssize_t n = vmf_uffd_copy(fresh->fd, at + (size_t)done * VMF_PAGE_SIZE, fresh->zeros, step);
        if (n < 0)
            return -1;
        placed += (int)(n / VMF_PAGE_SIZE);
        done += (unsigned)MAX(n / VMF_PAGE_SIZE, 1);
    }
    note(own, first_page, n_pages);
    return placed;
}

int vmf_fresh_provide(VmfFresh *fresh, unsigned index, uint64_t first_page, unsigned n_pages)
{
    uint64_t chunk = first_page / VMF_CHUNK_PAGES;
    unsigned first, n, from = 0;
    VmfPageSet wanted = {{0}}, absent;
    int placed = 0;

    vmf_page_set_add_range(&wanted, (unsigned)(first_page % VMF_CHUNK_PAGES), n_pages);
    absent = vmf_fresh_absent(fresh, index, chunk, &wanted);
    for (; vmf_page_set_next_run(&absent, from, &first, &n); from = first + n) {
        int more = provide_run(fresh, &fresh->blocks[index], chunk * VMF_CHUNK_PAGES + first, n);
        if (more < 0)
            return -1;
        placed += more;
    }
    return placed;
}
