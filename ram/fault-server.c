/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * Three files. lazy-ram.c knows what is there and puts pages in place, each once, however many try. prefetch.c brings
 * everything, at leisure. This one serves the faults: one thread takes what has piled up in the userfaultfd, up to
 * BATCH faults, begins a read for each, and places each page as its read ends. Several vCPUs that wait so wait
 * together; one that waits alone waits for one read of one page, by the thread itself: where a backend hands reads to
 * another thread (io_uring does so on tmpfs), being woken costs more than the read.
 *
 * Neighbours. Reading more than the page makes the one who waits wait longer, and is wasted on a guest that touches
 * pages at random. A guest that touches two pages close to each other is likely to go on: so a touch near a recent one
 * reads the whole window around it, one request mostly, and a touch out of nowhere reads a page. The memory of
 * recent windows is short.
 *
 * Zeros need no read; neighbours of zeros follow the same rule, but only where a page of zeros costs no memory.
 *
 * Reading ahead yields. From a fault until CALM_NS after the last one it keeps one read under way instead of eight: on
 * most storage that is what a fault waits behind.
 *
 * Whole chunks. Who is to read memory that is not there yet, a migration, asks for it chunk by chunk ahead, on threads
 * of its own. Each reads for itself, several chunks at a time, and yields to faults as reading ahead does.
 *
 * Recording. Only a touch of a page that is not there is seen. So while a record is made nothing is placed but what is
 * touched: no neighbours, and reading ahead does not begin for the first record_ns. Then it does, and the record fades
 * out: it is of the guest's way back to work, which is what the next restore is to speed up, and not of its life. (To
 * read ahead without placing, and place on touch, would save the guest the waits; but it would have to keep all that is
 * read in memory a second time.)
 *
 * A page that cannot be had. The thread that touched it is inside an access, of the guest's or of a system call's, and
 * can neither be asked to stop nor be given anything. The owner is told first and keeps the guest from going on; then,
 * if the owner is prepared for it, the page is made inaccessible and the thread let go: it comes out of its access by a
 * signal (which a VMM that interprets its guest leaves by siglongjmp, the instruction not executed), or by EFAULT
 * (system calls, KVM_RUN). Otherwise it stays where it is; a signal takes a vCPU out of KVM_RUN even so, and freeing
 * the server lets go all that wait, into memory that is inaccessible as a whole.
 *
 * The end. When reading ahead has come through, all that is not zeros has been placed, by whomever. Then the watch is
 * taken away: who waits for zeros at this moment looks again and gets the kernel's. A fault that was read before that
 * and is served after it places nothing (lazy-ram.c), which is right.
 */
#include "ram/fault-server.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "ram/block.h"
#include "ram/latency.h"
#include "ram/lazy-ram.h"
#include "ram/prefetch.h"
#include "ram/sparse-array.h"
#include "ram/touches.h"
#include "stream/clock.h"

#define BATCH 16u
#define CALM_NS (200 * 1000)
#define ENSURE_MAX 8u /* chunks that are read for somebody at the same time */

typedef struct {
    VmfFaultServer *server;
    uint8_t *buffer; /* a chunk */
    uint8_t *base;   /* where page 0 of the chunk would be */
    int64_t read_ns; /* when the event was read */
    unsigned block;
    uint64_t page;
    VmfPageSet wanted; /* data that is being read */
    bool failed;
} Fault;

/* A way to the storage for who wants a whole chunk. */
typedef struct {
    void *reader; /* it and the buffer: made at need */
    uint8_t *buffer;
    bool busy;
    unsigned block; /* what is being read */
    uint64_t chunk;
} Ensure;

struct VmfFaultServer {
    VmfFaultServerConfig config;
    VmfLazyRam *ram;
    VmfPrefetch *prefetch;
    int end_fd; /* readable when the thread is to end */
    pthread_t thread;
    bool started;
    int64_t began_ns;

    /* The fault thread's. */
    void *reader;
    uint8_t *buffers;
    Fault faults[BATCH];
    VmfTouches touches;

    pthread_mutex_t ensure_lock; /* of the rest of this paragraph; who has made an entry busy has all else of it */
    pthread_cond_t ensured;      /* some entry is no longer busy */
    Ensure ensures[ENSURE_MAX];
    unsigned n_ensuring;

    _Atomic bool forbidden; /* some page is */
    _Atomic unsigned n_serving;
    _Atomic int64_t last_ns; /* of the last fault that was served */

    VmfLatency latency;
    _Atomic uint64_t n_zero_faults;
    _Atomic uint64_t fault_bytes, prefetch_bytes;
    _Atomic uint64_t first_fault_ns, order_90_ns, complete_ns;
};

/* ---- counting -----------------------------------------------------------------------------------------------------
 */

static void note_time(VmfFaultServer *server, _Atomic uint64_t *when)
{
    uint64_t none = 0;

    atomic_compare_exchange_strong(when, &none, (uint64_t)MAX(vmf_now_ns() - server->began_ns, 1));
}

static void note_placed(VmfFaultServer *server, _Atomic uint64_t *bytes, unsigned n_pages)
{
    uint64_t n_watched = vmf_lazy_ram_n_watched(server->ram);

    atomic_fetch_add_explicit(bytes, (uint64_t)n_pages * VMF_PAGE_SIZE, memory_order_relaxed);
    if (n_watched > 0 && !atomic_load_explicit(&server->order_90_ns, memory_order_relaxed) &&
        vmf_lazy_ram_n_watched_absent(server->ram) <= n_watched / 10)
        note_time(server, &server->order_90_ns);
}

/* ---- which pages ----------------------------------------------------------------------------------------------------
 */

/* The page, and what of @of is around it and not there, if that is likely to be of use. */
static VmfPageSet with_neighbours(VmfFaultServer *server, const Fault *fault, const VmfPageSet *of)
{
    unsigned page = fault->page % VMF_CHUNK_PAGES;
    VmfPageSet pages = {{0}};

    if (vmf_touches_near(&server->touches, fault->block, fault->page) && !server->config.record) {
        pages = vmf_page_set_slice(of, page / VMF_TOUCH_WINDOW * VMF_TOUCH_WINDOW, VMF_TOUCH_WINDOW);
        pages = vmf_lazy_ram_absent(server->ram, fault->block, fault->page / VMF_CHUNK_PAGES, &pages);
    }
    vmf_page_set_add(&pages, page);
    return pages;
}

/* ---- ends of a fault ------------------------------------------------------------------------------------------------
 */

static void served(VmfFaultServer *server, const Fault *fault)
{
    int64_t now_ns = vmf_now_ns();

    vmf_latency_add(&server->latency, (uint64_t)(now_ns - fault->read_ns));
    atomic_store_explicit(&server->last_ns, now_ns, memory_order_relaxed);
}

/* Takes @error. */
static void lose(VmfFaultServer *server, unsigned block, uint64_t page, bool touched, GError *error)
{
    if (server->config.ops->lost(server->config.opaque, block, page, touched, error)) {
        atomic_store(&server->forbidden, true);
        vmf_lazy_ram_forbid(server->ram, block, page);
    }
    g_error_free(error);
}

static void place(VmfFaultServer *server, Fault *fault, const VmfPageSet *pages)
{
    GError *error = NULL;
    int n = vmf_lazy_ram_place(server->ram, fault->block, fault->page / VMF_CHUNK_PAGES, pages, fault->base, &error);

    if (n < 0) {
        lose(server, fault->block, fault->page, true, error);
        return;
    }
    /* Somebody else placed it after this thread had missed it, and may have woken before the kernel put it to sleep. */
    if (n == 0)
        vmf_lazy_ram_wake(server->ram, fault->block, fault->page);
    served(server, fault);
    note_placed(server, &server->fault_bytes, (unsigned)n);
}

static void place_zeros(VmfFaultServer *server, Fault *fault, const VmfPageSet *zeros)
{
    VmfPageSet pages = {{0}};
    GError *error = NULL;

    if (vmf_lazy_ram_is_huge(server->ram, fault->block))
        memset(&pages, 0xff, sizeof(pages));
    else if (vmf_lazy_ram_zeros_cost(server->ram, fault->block))
        vmf_page_set_add(&pages, fault->page % VMF_CHUNK_PAGES);
    else
        pages = with_neighbours(server, fault, zeros);
    int n = vmf_lazy_ram_place_zeros(server->ram, fault->block, fault->page / VMF_CHUNK_PAGES, &pages, &error);
    if (n < 0) {
        lose(server, fault->block, fault->page, true, error);
        return;
    }
    if (n == 0)
        vmf_lazy_ram_wake(server->ram, fault->block, fault->page);
    served(server, fault);
    atomic_fetch_add_explicit(&server->n_zero_faults, 1, memory_order_relaxed);
}

/* A huge page is placed whole: what was not read is zeros. */
static void fill_up(const VmfPageSet *data, uint8_t *base)
{
    VmfPageSet all, rest;
    unsigned first, n_pages;

    memset(&all, 0xff, sizeof(all));
    rest = vmf_page_set_and_not(&all, data);
    for (unsigned from = 0; vmf_page_set_next_run(&rest, from, &first, &n_pages); from = first + n_pages)
        memset(base + (size_t)first * VMF_PAGE_SIZE, 0, (size_t)n_pages * VMF_PAGE_SIZE);
}

static void place_data(VmfFaultServer *server, Fault *fault, const VmfPageSet *data)
{
    VmfPageSet all;

    if (!vmf_lazy_ram_is_huge(server->ram, fault->block)) {
        place(server, fault, data);
        return;
    }
    fill_up(data, fault->base);
    memset(&all, 0xff, sizeof(all));
    place(server, fault, &all);
}

static void read_done(void *opaque, unsigned block, uint64_t chunk, const VmfPageSet *data, const VmfPageSet *zero,
                      GError *error)
{
    Fault *fault = opaque;
    VmfFaultServer *server = fault->server;
    unsigned page = fault->page % VMF_CHUNK_PAGES;

    fault->failed = error != NULL;
    g_clear_error(&error);
    if (fault->failed)
        return;
    if (vmf_page_set_test(zero, page) && !vmf_lazy_ram_is_huge(server->ram, block))
        place_zeros(server, fault, zero);
    else
        place_data(server, fault, data);
}

/* ---- a fault --------------------------------------------------------------------------------------------------------
 */

static void start_read(VmfFaultServer *server, Fault *fault, const VmfPageSet *data)
{
    const VmfPageReaderOps *ops = server->config.reader;
    bool alone = atomic_load_explicit(&server->n_serving, memory_order_relaxed) == 1;
    uint64_t chunk = fault->page / VMF_CHUNK_PAGES;
    bool huge = vmf_lazy_ram_is_huge(server->ram, fault->block);
    unsigned first, n_pages;

    fault->wanted = huge ? *data : with_neighbours(server, fault, data);
    vmf_page_set_next_run(&fault->wanted, 0, &first, &n_pages);
    fault->base = huge ? fault->buffer : vmf_page_reader_base(fault->buffer, first);
    if (!(alone ? ops->read_now : ops->start)(server->reader, fault->block, chunk, &fault->wanted, fault->base,
                                              read_done, fault, NULL))
        fault->failed = true;
}

/* What it takes is under way when this returns, or done. */
static void begin(VmfFaultServer *server, Fault *fault)
{
    uint64_t chunk = fault->page / VMF_CHUNK_PAGES;
    VmfPageSet one = {{0}}, data = {{0}};
    GError *error = NULL;

    vmf_page_set_add(&one, fault->page % VMF_CHUNK_PAGES);
    one = vmf_lazy_ram_absent(server->ram, fault->block, chunk, &one);
    if (vmf_page_set_is_empty(&one)) {
        vmf_lazy_ram_wake(server->ram, fault->block, fault->page);
        served(server, fault);
        return;
    }
    if (server->config.reader->may_have_data(server->config.source, fault->block, chunk) &&
        !server->config.reader->data_pages(server->config.source, fault->block, chunk, &data, &error)) {
        lose(server, fault->block, fault->page, true, error);
        return;
    }
    bool huge = vmf_lazy_ram_is_huge(server->ram, fault->block);
    if (huge ? !vmf_page_set_is_empty(&data) : vmf_page_set_test(&data, fault->page % VMF_CHUNK_PAGES)) {
        if (server->config.record)
            vmf_touch_order_add(server->config.record, fault->block, fault->page);
        start_read(server, fault, &data);
        return;
    }
    VmfPageSet all, zeros;
    memset(&all, 0xff, sizeof(all));
    zeros = vmf_page_set_and_not(&all, &data);
    place_zeros(server, fault, &zeros);
}

/* All of it failed, perhaps for a neighbour: the page alone, or the page of a huge one that is to blame. */
static void try_again(VmfFaultServer *server, Fault *fault)
{
    uint64_t chunk = fault->page / VMF_CHUNK_PAGES;
    GError *error = NULL;
    VmfPageSet wanted = {{0}};
    unsigned bad;

    fault->failed = false;
    if (vmf_lazy_ram_is_huge(server->ram, fault->block))
        wanted = fault->wanted;
    else
        vmf_page_set_add(&wanted, fault->page % VMF_CHUNK_PAGES);
    if (vmf_page_reader_read_singly(server->config.reader, server->reader, fault->block, chunk, &wanted, fault->base,
                                    &bad, &error))
        place_data(server, fault, &wanted);
    else
        lose(server, fault->block, chunk * VMF_CHUNK_PAGES + bad, true, error);
}

/* ---- the thread -----------------------------------------------------------------------------------------------------
 */

static unsigned read_faults(VmfFaultServer *server)
{
    struct uffd_msg messages[BATCH];
    ssize_t length = read(vmf_lazy_ram_fd(server->ram), messages, sizeof(messages));
    int64_t now_ns = vmf_now_ns();
    unsigned n = 0;

    for (size_t i = 0; length > 0 && i < (size_t)length / sizeof(*messages); i++) {
        Fault *fault = &server->faults[n];

        if (messages[i].event != UFFD_EVENT_PAGEFAULT ||
            !vmf_lazy_ram_find(server->ram, messages[i].arg.pagefault.address, &fault->block, &fault->page))
            continue;
        fault->read_ns = now_ns;
        fault->failed = false;
        n++;
    }
    return n;
}

static void serve(VmfFaultServer *server, unsigned n)
{
    atomic_store_explicit(&server->n_serving, n, memory_order_relaxed);
    if (!atomic_load_explicit(&server->first_fault_ns, memory_order_relaxed))
        note_time(server, &server->first_fault_ns);
    for (unsigned i = 0; i < n; i++)
        begin(server, &server->faults[i]);
    server->config.reader->wait(server->reader, 0);
    for (unsigned i = 0; i < n; i++) {
        if (server->faults[i].failed)
            try_again(server, &server->faults[i]);
    }
    atomic_store_explicit(&server->n_serving, 0, memory_order_relaxed);
}

static void *server_main(void *opaque)
{
    VmfFaultServer *server = opaque;
    struct pollfd fds[] = {{.fd = vmf_lazy_ram_fd(server->ram), .events = POLLIN},
                           {.fd = server->end_fd, .events = POLLIN}};
    unsigned n;

    while (!(fds[1].revents & POLLIN)) {
        if (poll(fds, G_N_ELEMENTS(fds), -1) <= 0 || !(fds[0].revents & POLLIN))
            continue;
        if ((n = read_faults(server)) > 0)
            serve(server, n);
    }
    return NULL;
}

/* ---- reading ahead --------------------------------------------------------------------------------------------------
 */

static bool is_calm(const VmfFaultServer *server)
{
    return !atomic_load_explicit(&server->n_serving, memory_order_relaxed) &&
           vmf_now_ns() - atomic_load_explicit(&server->last_ns, memory_order_relaxed) > CALM_NS;
}

static unsigned prefetch_depth(void *opaque)
{
    return is_calm(opaque) ? VMF_PREFETCH_DEPTH : 1;
}

static void prefetch_placed(void *opaque, unsigned n_pages)
{
    VmfFaultServer *server = opaque;

    note_placed(server, &server->prefetch_bytes, n_pages);
}

static void prefetch_ended(void *opaque, unsigned block, uint64_t page, GError *error)
{
    VmfFaultServer *server = opaque;

    if (error) {
        lose(server, block, page, false, error);
        return;
    }
    if (atomic_load(&server->forbidden))
        return; /* a page that could be read in the end, but nobody can use any more */
    vmf_lazy_ram_end(server->ram);
    note_time(server, &server->complete_ns);
    server->config.ops->complete(server->config.opaque);
}

bool vmf_fault_server_fill(VmfFaultServer *server, GError **error)
{
    const VmfPrefetchConfig config = {
        .ram = server->ram,
        .reader = server->config.reader,
        .source = server->config.source,
        .order = server->config.ignore_order ? NULL : server->config.order,
        .hold_ns = server->config.record ? server->config.record_ns : 0,
        .depth = prefetch_depth,
        .placed = prefetch_placed,
        .ended = prefetch_ended,
        .opaque = server,
    };

    server->prefetch = vmf_prefetch_new(&config, error);
    return server->prefetch != NULL;
}

/* ---- reading a chunk for somebody -----------------------------------------------------------------------------------
 */

static bool open_ensure(VmfFaultServer *server, Ensure *own, GError **error)
{
    if (!own->buffer)
        own->buffer = vmf_sparse_array_new(VMF_CHUNK_SIZE, 1, "chunk", error);
    if (own->buffer && !own->reader)
        own->reader = server->config.reader->open(server->config.source, 1, error);
    return own->reader != NULL;
}

static bool read_chunk(VmfFaultServer *server, Ensure *own, const VmfPageSet *data, GError **error)
{
    bool huge = vmf_lazy_ram_is_huge(server->ram, own->block);
    VmfPageSet wanted = vmf_lazy_ram_absent(server->ram, own->block, own->chunk, data), all;
    int n;

    if (vmf_page_set_is_empty(&wanted))
        return true;
    if (huge)
        wanted = *data;
    if (!vmf_page_reader_read(server->config.reader, own->reader, own->block, own->chunk, &wanted, own->buffer, error))
        return false;
    if (huge)
        fill_up(&wanted, own->buffer);
    memset(&all, 0xff, sizeof(all));
    n = vmf_lazy_ram_place(server->ram, own->block, own->chunk, huge ? &all : &wanted, own->buffer, error);
    if (n < 0)
        return false;
    note_placed(server, &server->prefetch_bytes, (unsigned)n);
    return true;
}

/* One that is free; NULL where none is, or the chunk is being read by somebody, or faults go first. */
static Ensure *free_ensure(VmfFaultServer *server, unsigned block, uint64_t chunk)
{
    Ensure *found = NULL;

    if (server->n_ensuring > 0 && !is_calm(server))
        return NULL;
    for (unsigned i = 0; i < ENSURE_MAX; i++) {
        Ensure *own = &server->ensures[i];
        if (own->busy && own->block == block && own->chunk == chunk)
            return NULL;
        if (!own->busy && (!found || own->reader))
            found = own;
    }
    return found;
}

/* Waits until somebody else's read has ended as often as it takes: one at least is under way where there is none free. */
static Ensure *take_ensure(VmfFaultServer *server, unsigned block, uint64_t chunk)
{
    Ensure *own;

    pthread_mutex_lock(&server->ensure_lock);
    while (!(own = free_ensure(server, block, chunk)))
        pthread_cond_wait(&server->ensured, &server->ensure_lock);
    own->busy = true;
    own->block = block;
    own->chunk = chunk;
    server->n_ensuring++;
    pthread_mutex_unlock(&server->ensure_lock);
    return own;
}

static void give_ensure(VmfFaultServer *server, Ensure *own)
{
    pthread_mutex_lock(&server->ensure_lock);
    own->busy = false;
    server->n_ensuring--;
    pthread_cond_broadcast(&server->ensured);
    pthread_mutex_unlock(&server->ensure_lock);
}

bool vmf_fault_server_ensure(VmfFaultServer *server, unsigned block, uint64_t chunk, GError **error)
{
    VmfPageSet data;

    if (!server->config.reader->may_have_data(server->config.source, block, chunk))
        return true;
    if (!server->config.reader->data_pages(server->config.source, block, chunk, &data, error))
        return false;
    VmfPageSet absent = vmf_lazy_ram_absent(server->ram, block, chunk, &data);
    if (vmf_page_set_is_empty(&absent))
        return true;
    Ensure *own = take_ensure(server, block, chunk);
    bool there = open_ensure(server, own, error) && read_chunk(server, own, &data, error);
    give_ensure(server, own);
    return there;
}

/* ---- beginning and end ----------------------------------------------------------------------------------------------
 */

static bool watch_order(VmfFaultServer *server, GError **error)
{
    uint64_t length = server->config.order ? vmf_touch_order_length(server->config.order) : 0, page;
    unsigned block;

    for (uint64_t i = 0; i < length; i++) {
        vmf_touch_order_get(server->config.order, i, &block, &page);
        if (block >= server->config.n_blocks || page >= vmf_ram_block_n_pages(server->config.blocks[block]))
            continue;
        if (!vmf_lazy_ram_watch(server->ram, block, page)) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "lazy memory: no memory to follow the order of touches");
            return false;
        }
    }
    return true;
}

static bool begin_serving(VmfFaultServer *server, GError **error)
{
    server->buffers = vmf_sparse_array_new(BATCH, VMF_CHUNK_SIZE, "faults", error);
    server->reader = server->buffers ? server->config.reader->open(server->config.source, BATCH, error) : NULL;
    if (!server->reader)
        return false;
    for (unsigned i = 0; i < BATCH; i++) {
        server->faults[i].server = server;
        server->faults[i].buffer = server->buffers + (size_t)i * VMF_CHUNK_SIZE;
    }
    server->end_fd = eventfd(0, EFD_CLOEXEC);
    server->started = server->end_fd >= 0 && pthread_create(&server->thread, NULL, server_main, server) == 0;
    if (!server->started)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "lazy memory: no thread for its faults");
    return server->started;
}

VmfFaultServer *vmf_fault_server_new(const VmfFaultServerConfig *config, GError **error)
{
    g_autoptr(VmfFaultServer) server = g_new0(VmfFaultServer, 1);

    server->config = *config;
    server->end_fd = -1;
    server->began_ns = vmf_now_ns();
    pthread_mutex_init(&server->ensure_lock, NULL);
    pthread_cond_init(&server->ensured, NULL);
    vmf_touches_init(&server->touches);
    server->ram = vmf_lazy_ram_new(config->blocks, config->n_blocks, config->reader, config->source, error);
    if (!server->ram)
        return NULL;
    if (!watch_order(server, error) || !begin_serving(server, error)) {
        vmf_lazy_ram_end(server->ram); /* nobody has used it */
        return NULL;
    }
    return g_steal_pointer(&server);
}

static void end_thread(VmfFaultServer *server)
{
    uint64_t one = 1;

    if (server->started && write(server->end_fd, &one, sizeof(one)) == (ssize_t)sizeof(one))
        pthread_join(server->thread, NULL);
    if (server->end_fd >= 0)
        close(server->end_fd);
}

void vmf_fault_server_free(VmfFaultServer *server)
{
    if (!server)
        return;
    vmf_prefetch_free(server->prefetch);
    end_thread(server);
    vmf_lazy_ram_free(server->ram);
    if (server->reader)
        server->config.reader->close(server->reader);
    for (unsigned i = 0; i < ENSURE_MAX; i++) {
        if (server->ensures[i].reader)
            server->config.reader->close(server->ensures[i].reader);
        vmf_sparse_array_free(server->ensures[i].buffer, VMF_CHUNK_SIZE, 1);
    }
    vmf_sparse_array_free(server->buffers, BATCH, VMF_CHUNK_SIZE);
    pthread_cond_destroy(&server->ensured);
    pthread_mutex_destroy(&server->ensure_lock);
    g_free(server);
}

bool vmf_fault_server_sees_kernel(const VmfFaultServer *server)
{
    return vmf_lazy_ram_scope(server->ram) == VMF_UFFD_ALL;
}

void vmf_fault_server_statistics(const VmfFaultServer *server, VmfFaultStatistics *out)
{
    uint64_t complete_ns = atomic_load(&server->complete_ns);

    *out = (VmfFaultStatistics){
        .complete = complete_ns > 0,
        .n_faults = atomic_load(&server->latency.n),
        .n_zero_faults = atomic_load(&server->n_zero_faults),
        .fault_p50_ns = vmf_latency_quantile_ns(&server->latency, 500),
        .fault_p99_ns = vmf_latency_quantile_ns(&server->latency, 990),
        .fault_max_ns = atomic_load(&server->latency.max_ns),
        .fault_bytes = atomic_load(&server->fault_bytes),
        .prefetch_bytes = atomic_load(&server->prefetch_bytes),
        .first_fault_ns = atomic_load(&server->first_fault_ns),
        .order_90_ns = atomic_load(&server->order_90_ns),
        .complete_ns = complete_ns,
    };
}
