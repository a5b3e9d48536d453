/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * Write protection by userfaultfd, of every page that is there. Until the instant a write to a protected page only
 * notes the page and goes on; at the instant, with the guest standing, what was noted is protected again, and from then
 * on a write waits until its page was copied into a buffer, or was read. So the guest stands for as long as it takes to
 * protect what it wrote lately, not what it has.
 *
 * Invariants:
 * 1. Before the instant, a page that is in the capture is protected, or unarmed, or both. (Noting a page and giving
 *    write access is one step under the lock, as is taking pages off the unarmed and protecting them.)
 * 2. At the instant no page is unarmed, and all that is not zeros is in the capture.
 * 3. After it, a page of an open chunk is protected, or copied. A chunk that is not open has been read, or is being
 * read and wholly protected.
 *
 * What is there. The first pass protects what the occupancy scan finds. Pages that come to be later are not protected
 * (that would cost page tables for all the holes of a sparse guest): the dirty log has them, as they were written, and
 * is asked for them while the guest still runs, so that few are left for the pause. A
 * page that was never written is zeros and not in the capture; writing it after the instant is nobody's business, nor
 * is that it may have been protected by the way, between two that are.
 *
 * Passes. A first pass over 4 GiB in small pages takes 60 ms or more, in which a busy guest writes thousands of pages.
 * So what was noted is protected again while the guest still runs, and again, until little is left: the pause is what
 * the last pass leaves. A guest that writes pages at random can note them as fast as they are protected, so from the
 * second pass on until the stop is asked for each of these writes is held up by SLOW_NS: some thousand writes a second get
 * through, and the next pass leaves a tenth of what it found. Guests that write little do not feel it.
 *
 * Neighbours. Who writes near a recent write is given the whole window around it, noted (or copied) with it
 * (touches.h).
 *
 * Calls. Protecting flushes TLBs: page by page for up to FLUSH_PAGES, beyond that at once, which is the cheaper way by
 * far where a hypervisor keeps shadow page tables (30 us a page against 100 us for all, measured) and no dearer
 * elsewhere. So stretches of more than a few pages are made that long, and short gaps between pages are protected with
 * them.
 *
 * The buffer is address space as large as each block: a copy lies at the page's own place, so that nothing has to be
 * looked up. Where it is full, writes wait, one after the other, for chunks that have copies, which are read first then.
 * A chunk that has copies is assembled in a place of its own, and its copies are given back to the host before it is
 * pushed. Places are used again: fresh memory for each chunk would cost a fault for each of its pages.
 *
 * Readers take write access from nobody and never wait for the fault thread; it may wait for them. A chunk without
 * copies is pushed straight from guest memory, which is protected until the batch is released: writes to it wait for
 * its I/O. A chunk with copies is assembled elsewhere and released before its I/O.
 *
 * Huge pages of hugetlb are protected, noted and copied whole: 2 MiB are one unit there.
 */
#include "ram/capture-private.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/block.h"
#include "ram/occupancy.h"
#include "ram/sparse-array.h"
#include "stream/clock.h"

#define PASSES_MAX 8u
#define FEW_UNARMED 32u /* pages: not worth another pass */
#define SLOW_NS 250000
#define GAP_PAGES 64u /* between pages that are protected by one call */
#define SHORT_PAGES 4u
#define FLUSH_PAGES 34u
#define STRETCH_CHUNKS 32u      /* protected in one call by the first pass, which holds up faults for that long */
#define BUFFER_LEAST (4u << 20) /* bytes: two huge pages */

/* ---- protecting ---------------------------------------------------------------------------------------------------
 */

static bool fail(const VmfCaptureBlock *block, const char *what, int cause, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "RAM block '%s': point-in-time capture: %s: %s",
                vmf_ram_block_name(block->block), what, g_strerror(cause));
    return false;
}

static bool is_huge(const VmfCaptureBlock *block)
{
    return vmf_ram_block_host_page_size(block->block) > VMF_PAGE_SIZE;
}

static bool protect(VmfCapture *capture, const VmfCaptureBlock *block, uint64_t first_page, uint64_t n_pages,
                    GError **error)
{
    void *at = vmf_ram_block_page(block->block, first_page);

    return vmf_uffd_write_protect(capture->fd, at, n_pages * VMF_PAGE_SIZE, true) ||
           fail(block, "take write access away", errno, error);
}

/* The pages of @set by stretches, gaps filled. */
static bool protect_set(VmfCapture *capture, const VmfCaptureBlock *block, uint64_t chunk, const VmfPageSet *set,
                        GError **error)
{
    unsigned n_chunk_pages = (unsigned)(vmf_capture_chunk_length(block, chunk) / VMF_PAGE_SIZE);
    unsigned first, n_pages, end = 0, more, n_more;

    if (is_huge(block))
        return protect(capture, block, chunk * VMF_CHUNK_PAGES, VMF_CHUNK_PAGES, error);
    while (vmf_page_set_next_run(set, end, &first, &n_pages)) {
        end = first + n_pages;
        while (vmf_page_set_next_run(set, end, &more, &n_more) && more - end <= GAP_PAGES)
            end = more + n_more;
        if (end - first > SHORT_PAGES)
            end = MIN(MAX(end, first + FLUSH_PAGES), n_chunk_pages);
        if (!protect(capture, block, chunk * VMF_CHUNK_PAGES + first, end - first, error))
            return false;
    }
    return true;
}

static bool is_cancelled(const VmfCapture *capture, GError **error)
{
    if (!capture->config.cancelled || !atomic_load(capture->config.cancelled))
        return false;
    g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "point-in-time capture: cancelled");
    return true;
}

/* The first pass over a block: whole stretches of chunks that hold anything, single pages where they are few. */
static bool protect_present(VmfCapture *capture, VmfCaptureBlock *block, GError **error)
{
    uint64_t chunk, end;

    if (!vmf_occupancy_scan(block->block, block->pages, error))
        return false;
    for (uint64_t from = 0; vmf_dirty_bitmap_next_chunk(block->pages, from, &chunk); from = end) {
        uint64_t next;
        for (end = chunk + 1; end - chunk < STRETCH_CHUNKS && vmf_dirty_bitmap_next_chunk(block->pages, end, &next);
             end++)
            if (next != end)
                break;
        uint64_t first = chunk * VMF_CHUNK_PAGES,
                 last = MIN(end * VMF_CHUNK_PAGES, vmf_ram_block_n_pages(block->block));
        if (is_cancelled(capture, error) || !protect(capture, block, first, last - first, error))
            return false;
    }
    return true;
}

/* Takes what is unarmed and protects it. Lock held by the caller, if @locked; otherwise for a chunk at a time. */
static bool rearm(VmfCapture *capture, VmfCaptureBlock *block, bool locked, uint64_t *n_pages, GError **error)
{
    uint64_t chunk;
    VmfPageSet set;
    bool whole = true;

    for (uint64_t from = 0; whole && vmf_dirty_bitmap_next_chunk(block->unarmed, from, &chunk); from = chunk + 1) {
        if (!locked) {
            if (is_cancelled(capture, error))
                return false;
            pthread_mutex_lock(&capture->lock);
        }
        unsigned n = vmf_dirty_bitmap_take_chunk(block->unarmed, chunk, &set);
        whole = n == 0 || protect_set(capture, block, chunk, &set, error);
        *n_pages += n;
        if (!locked)
            pthread_mutex_unlock(&capture->lock);
    }
    return whole;
}

static bool rearm_all(VmfCapture *capture, bool locked, uint64_t *n_pages, GError **error)
{
    *n_pages = 0;
    for (unsigned b = 0; b < capture->n_blocks; b++) {
        if (!rearm(capture, &capture->blocks[b], locked, n_pages, error))
            return false;
    }
    return true;
}

static uint64_t count_unarmed(const VmfCapture *capture)
{
    uint64_t n = 0;

    for (unsigned b = 0; b < capture->n_blocks; b++)
        n += vmf_dirty_bitmap_count(capture->blocks[b].unarmed);
    return n;
}

static void count_pass(VmfCapture *capture)
{
    pthread_mutex_lock(&capture->lock);
    capture->statistics.n_passes++;
    pthread_mutex_unlock(&capture->lock);
}

bool vmf_capture_arm_again(VmfCapture *capture, GError **error)
{
    uint64_t n;

    for (unsigned pass = 1; pass < PASSES_MAX && count_unarmed(capture) > FEW_UNARMED; pass++) {
        if (!rearm_all(capture, false, &n, error))
            return false;
        count_pass(capture);
        atomic_store(&capture->slow, true);
    }
    return true;
}

bool vmf_capture_arm(VmfCapture *capture, GError **error)
{
    for (unsigned b = 0; b < capture->n_blocks; b++) {
        if (!protect_present(capture, &capture->blocks[b], error))
            return false;
    }
    count_pass(capture);
    return vmf_capture_arm_again(capture, error);
}

void vmf_capture_hurry(VmfCapture *capture)
{
    atomic_store(&capture->slow, false);
}

void vmf_capture_touched(VmfCapture *capture, unsigned block, uint64_t first_word, const uint64_t *words,
                         size_t n_words)
{
    VmfCaptureBlock *own = &capture->blocks[block];
    VmfPageSet known;

    pthread_mutex_lock(&capture->lock);
    for (size_t i = 0; i < n_words; i++) {
        uint64_t word = first_word + i;
        if (!words[i] || word / VMF_CHUNK_WORDS >= own->n_chunks)
            continue;
        vmf_dirty_bitmap_peek_chunk(own->pages, word / VMF_CHUNK_WORDS, &known);
        uint64_t fresh = words[i] & ~known.words[word % VMF_CHUNK_WORDS];
        vmf_dirty_bitmap_or_words(own->pages, word, &fresh, 1);
        vmf_dirty_bitmap_or_words(own->unarmed, word, &fresh, 1);
    }
    pthread_mutex_unlock(&capture->lock);
}

bool vmf_capture_freeze(VmfCapture *capture, GError **error)
{
    int64_t began_ns = vmf_now_ns();
    uint64_t n_pages = 0;

    pthread_mutex_lock(&capture->lock);
    atomic_store(&capture->slow, false);
    capture->frozen = rearm_all(capture, true, &capture->statistics.n_rearmed, error);
    for (unsigned b = 0; b < capture->n_blocks; b++)
        n_pages += vmf_dirty_bitmap_count(capture->blocks[b].pages);
    capture->statistics.n_pages = n_pages;
    capture->statistics.freeze_ns = (uint64_t)(vmf_now_ns() - began_ns);
    bool frozen = capture->frozen;
    pthread_mutex_unlock(&capture->lock);
    return frozen;
}

const VmfDirtyBitmap *vmf_capture_pages(const VmfCapture *capture, unsigned block)
{
    return capture->blocks[block].pages;
}

/* ---- faults, with the lock held -----------------------------------------------------------------------------------
 */

/* What a write to @page frees: pages of one chunk, one after another. */
static VmfPageSet around(VmfCapture *capture, const VmfCaptureBlock *block, uint64_t page)
{
    bool near = vmf_touches_near(&capture->touches, (unsigned)(block - capture->blocks), page);
    unsigned unit = is_huge(block) ? VMF_CHUNK_PAGES : near ? VMF_TOUCH_WINDOW : 1;
    uint64_t first = page / unit * unit, n_pages = MIN(unit, vmf_ram_block_n_pages(block->block) - first);
    VmfPageSet window = {{0}};

    vmf_page_set_add_range(&window, (unsigned)(first % VMF_CHUNK_PAGES), (unsigned)n_pages);
    return window;
}

static void allow(VmfCapture *capture, const VmfCaptureBlock *block, uint64_t chunk, const VmfPageSet *window)
{
    unsigned first, n_pages;

    vmf_page_set_next_run(window, 0, &first, &n_pages);
    vmf_uffd_write_protect(capture->fd, vmf_capture_chunk_start(block, chunk) + (size_t)first * VMF_PAGE_SIZE,
                           (size_t)n_pages * VMF_PAGE_SIZE, false);
}

static void note(VmfCapture *capture, VmfCaptureBlock *block, uint64_t page)
{
    uint64_t chunk = page / VMF_CHUNK_PAGES;
    VmfPageSet window = around(capture, block, page), pages;

    vmf_dirty_bitmap_peek_chunk(block->pages, chunk, &pages);
    pages = vmf_page_set_and(&pages, &window);
    vmf_dirty_bitmap_or_words(block->unarmed, chunk * VMF_CHUNK_WORDS, pages.words, VMF_CHUNK_WORDS);
    allow(capture, block, chunk, &window);
    capture->statistics.n_noted++;
}

/* Puts @pages, which nobody can write, into the buffer. */
static void copy(VmfCapture *capture, VmfCaptureBlock *block, uint64_t chunk, const VmfPageSet *pages)
{
    VmfCaptureChunk id = {(unsigned)(block - capture->blocks), chunk};
    VmfPageSet *copied = &block->copied[chunk];
    unsigned n = vmf_page_set_count(pages);

    if (n == 0)
        return;
    if (vmf_page_set_is_empty(copied))
        g_array_append_val(capture->with_copies, id);
    vmf_capture_copy(vmf_capture_copies(block, chunk), vmf_capture_chunk_start(block, chunk), pages);
    *copied = vmf_page_set_or(copied, pages);
    capture->n_buffered += n;
    capture->statistics.n_copied += n;
    capture->statistics.buffer_peak_bytes =
        MAX(capture->statistics.buffer_peak_bytes, capture->n_buffered * VMF_PAGE_SIZE);
}

/* What of @window has to be copied before it is written. */
static VmfPageSet to_copy(const VmfCaptureBlock *block, uint64_t chunk, const VmfPageSet *window)
{
    VmfPageSet pages = {{0}};

    if (block->states[chunk] != VMF_CAPTURE_OPEN)
        return pages;
    vmf_dirty_bitmap_peek_chunk(block->pages, chunk, &pages);
    pages = vmf_page_set_and(&pages, window);
    return vmf_page_set_and_not(&pages, &block->copied[chunk]);
}

/* Waits for room for what of @window has to be copied: *@pages, none once the chunk is no longer open. False: it is
 * over.
 */
static bool wait_for_room(VmfCapture *capture, const VmfCaptureBlock *block, uint64_t chunk, const VmfPageSet *window,
                          VmfPageSet *pages)
{
    bool full = false;

    while (!capture->ended) {
        *pages = to_copy(block, chunk, window);
        unsigned n = vmf_page_set_count(pages);
        if (n == 0 || capture->n_buffered + n <= capture->buffer_pages)
            return true;
        capture->statistics.n_full += !full;
        full = true;
        pthread_cond_wait(&capture->room, &capture->lock);
    }
    return false;
}

/* Lets a write go on, once it may; false: it is over, or the page is being read and left to its reader. */
static bool let_write(VmfCapture *capture, VmfCaptureBlock *block, uint64_t page)
{
    uint64_t chunk = page / VMF_CHUNK_PAGES;
    VmfPageSet window = around(capture, block, page), pages;

    if (!wait_for_room(capture, block, chunk, &window, &pages) || block->states[chunk] == VMF_CAPTURE_CLAIMED)
        return false;
    copy(capture, block, chunk, &pages);
    allow(capture, block, chunk, &window);
    return true;
}

/* ---- the thread ---------------------------------------------------------------------------------------------------
 */

static VmfCaptureBlock *find(VmfCapture *capture, uint64_t address, uint64_t *page)
{
    for (unsigned b = 0; b < capture->n_blocks; b++) {
        uint64_t offset = address - (uintptr_t)vmf_ram_block_host(capture->blocks[b].block);

        *page = offset / VMF_PAGE_SIZE;
        if (offset < vmf_ram_block_size(capture->blocks[b].block))
            return &capture->blocks[b];
    }
    return NULL;
}

static void serve(VmfCapture *capture, const struct uffd_msg *message, int64_t read_ns)
{
    uint64_t page;
    VmfCaptureBlock *block = find(capture, message->arg.pagefault.address, &page);

    if (message->event != UFFD_EVENT_PAGEFAULT || !block)
        return;
    if (atomic_load(&capture->slow))
        nanosleep(&(struct timespec){.tv_nsec = SLOW_NS}, NULL);
    pthread_mutex_lock(&capture->lock);
    bool waited = capture->frozen && let_write(capture, block, page);
    if (!capture->frozen)
        note(capture, block, page);
    pthread_mutex_unlock(&capture->lock);
    if (waited)
        vmf_latency_add(&capture->latency, (uint64_t)(vmf_now_ns() - read_ns));
}

static void *fault_main(void *opaque)
{
    VmfCapture *capture = opaque;
    struct pollfd fds[] = {{.fd = capture->fd, .events = POLLIN}, {.fd = capture->end_fd, .events = POLLIN}};
    struct uffd_msg messages[16];

    while (!(fds[1].revents & POLLIN)) {
        if (poll(fds, G_N_ELEMENTS(fds), -1) <= 0)
            continue;
        ssize_t length = read(capture->fd, messages, sizeof(messages));
        int64_t read_ns = vmf_now_ns();
        for (size_t i = 0; length > 0 && i < (size_t)length / sizeof(*messages); i++)
            serve(capture, &messages[i], read_ns);
    }
    return NULL;
}

/* ---- beginning and end --------------------------------------------------------------------------------------------
 */

static bool watch(VmfCapture *capture, const VmfCaptureBlock *own, GError **error)
{
    if (vmf_uffd_register(capture->fd, vmf_ram_block_host(own->block), vmf_ram_block_size(own->block),
                          UFFDIO_REGISTER_MODE_WP))
        return true;
    return fail(own, errno == EBUSY ? "watched already, by its dirty log or as it is being restored" : "watch for writes",
                errno, error);
}

static bool add_block(VmfCapture *capture, VmfRamBlock *block, GError **error)
{
    VmfCaptureBlock *own = &capture->blocks[capture->n_blocks++];
    uint64_t n_pages = vmf_ram_block_n_pages(block);

    own->block = block;
    own->n_chunks = vmf_ram_block_n_chunks(block);
    own->pages = vmf_dirty_bitmap_new(n_pages, error);
    own->unarmed = own->pages ? vmf_dirty_bitmap_new(n_pages, error) : NULL;
    own->states = own->unarmed ? vmf_sparse_array_new(own->n_chunks, 1, "chunk states", error) : NULL;
    own->copied = own->states ? vmf_sparse_array_new(own->n_chunks, sizeof(VmfPageSet), "copied pages", error) : NULL;
    own->buffer = own->copied ? vmf_sparse_array_new(own->n_chunks, VMF_CHUNK_SIZE, "capture buffer", error) : NULL;
    return own->buffer && watch(capture, own, error);
}

static void clear_block(VmfCapture *capture, VmfCaptureBlock *own)
{
    if (capture->fd >= 0)
        vmf_uffd_unregister(capture->fd, vmf_ram_block_host(own->block), vmf_ram_block_size(own->block));
    vmf_sparse_array_free(own->buffer, own->n_chunks, VMF_CHUNK_SIZE);
    vmf_sparse_array_free(own->copied, own->n_chunks, sizeof(VmfPageSet));
    vmf_sparse_array_free(own->states, own->n_chunks, 1);
    vmf_dirty_bitmap_free(own->unarmed);
    vmf_dirty_bitmap_free(own->pages);
}

static bool open_watch(VmfCapture *capture, GError **error)
{
    uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
    VmfUffdScope scope;

    for (unsigned b = 0; b < capture->config.n_blocks; b++) {
        if (vmf_ram_block_backend(capture->config.blocks[b]) != VMF_RAM_ANON)
            features |= UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    }
    capture->fd = vmf_uffd_open(features, &scope, error);
    if (capture->fd < 0 || !capture->config.kernel_writes || scope == VMF_UFFD_ALL)
        return capture->fd >= 0;
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED,
                "userfaultfd: this host does not let writes of the kernel wait (/dev/userfaultfd cannot be opened)");
    return false;
}

static bool begin(VmfCapture *capture, GError **error)
{
    if (!open_watch(capture, error))
        return false;
    for (unsigned b = 0; b < capture->config.n_blocks; b++) {
        if (!add_block(capture, capture->config.blocks[b], error))
            return false;
    }
    capture->end_fd = eventfd(0, EFD_CLOEXEC);
    capture->started = capture->end_fd >= 0 && pthread_create(&capture->thread, NULL, fault_main, capture) == 0;
    if (!capture->started)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "point-in-time capture: no thread");
    return capture->started;
}

VmfCapture *vmf_capture_new(const VmfCaptureConfig *config, GError **error)
{
    g_autoptr(VmfCapture) capture = g_new0(VmfCapture, 1);

    capture->config = *config;
    capture->fd = capture->end_fd = -1;
    vmf_touches_init(&capture->touches);
    capture->buffer_pages = MAX(config->buffer_bytes, BUFFER_LEAST) / VMF_PAGE_SIZE;
    capture->blocks = g_new0(VmfCaptureBlock, config->n_blocks);
    capture->with_copies = g_array_new(FALSE, FALSE, sizeof(VmfCaptureChunk));
    capture->places = g_ptr_array_new();
    pthread_mutex_init(&capture->lock, NULL);
    pthread_cond_init(&capture->room, NULL);
    return begin(capture, error) ? g_steal_pointer(&capture) : NULL;
}

static void end_thread(VmfCapture *capture)
{
    uint64_t one = 1;

    pthread_mutex_lock(&capture->lock);
    capture->ended = true;
    pthread_cond_broadcast(&capture->room);
    pthread_mutex_unlock(&capture->lock);
    if (capture->started && write(capture->end_fd, &one, sizeof(one)) == (ssize_t)sizeof(one))
        pthread_join(capture->thread, NULL);
    if (capture->end_fd >= 0)
        close(capture->end_fd);
}

void vmf_capture_free(VmfCapture *capture)
{
    if (!capture)
        return;
    end_thread(capture);
    for (unsigned b = 0; b < capture->n_blocks; b++)
        clear_block(capture, &capture->blocks[b]);
    if (capture->fd >= 0)
        close(capture->fd);
    g_array_unref(capture->with_copies);
    for (unsigned i = 0; i < capture->places->len; i++)
        vmf_sparse_array_free(capture->places->pdata[i], VMF_CHUNK_SIZE, 1);
    g_ptr_array_unref(capture->places);
    pthread_cond_destroy(&capture->room);
    pthread_mutex_destroy(&capture->lock);
    g_free(capture->blocks);
    g_free(capture);
}

void vmf_capture_statistics(VmfCapture *capture, VmfCaptureStatistics *out)
{
    pthread_mutex_lock(&capture->lock);
    *out = capture->statistics;
    pthread_mutex_unlock(&capture->lock);
    out->write_p50_ns = vmf_latency_quantile_ns(&capture->latency, 500);
    out->write_p99_ns = vmf_latency_quantile_ns(&capture->latency, 990);
    out->write_max_ns = atomic_load(&capture->latency.max_ns);
}
