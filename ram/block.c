/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RAM blocks on anonymous memory, on memfds and on huge pages.
 *
 * Theory of operation. A block is mapped at a multiple of 2 MiB, so that chunks, huge pages and digests share their
 * borders. The mapping is not reserved (MAP_NORESERVE): a guest may be given more memory than it will touch. Memory of
 * either kind starts as zeros, which is what lets a target leave out what the source never touched.
 *
 * A memfd is sealed against growing and shrinking: once its descriptor is handed over, a peer that truncated it could
 * kill this process by SIGBUS.
 *
 * Hugetlb memory is a memfd of the host's reserved 2 MiB pages. It is reserved in full when the block is made, unlike
 * the others: a first touch that finds no page left would be a SIGBUS in the middle of a migration. A page that is given
 * back loses its reservation, as a released guest's memory shall (pages that it never touched keep theirs); a load
 * reserves all of it anew, by a second mapping that ends at once, because the reservation is the file's. What goes over
 * the wire, and what KVM's logs record, are still pages of 4 KiB; a huge page is one chunk, so nothing that is claimed,
 * sent or summed is smaller than what the host can protect or give back.
 */
#include "ram/block.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vmferry/error.h>

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif
#define HUGE_PAGE_SIZE (2u << 20)
_Static_assert(VMF_CHUNK_SIZE % HUGE_PAGE_SIZE == 0, "a chunk is never smaller than its block's host pages");
#define HUGE_PAGES_DIRECTORY "/sys/kernel/mm/hugepages/hugepages-2048kB/"

struct VmfRamBlock {
    char *name;
    uint64_t size; /* bytes */
    uint64_t guest_address;
    VmfRamBackend backend;
    VmfRamFlags flags;
    uint8_t *host;
    int fd; /* -1: anon */
};

static const char *const backend_names[] = {
    [VMF_RAM_ANON] = "anon",
    [VMF_RAM_MEMFD] = "memfd",
    [VMF_RAM_HUGETLB] = "hugetlb",
};
_Static_assert(G_N_ELEMENTS(backend_names) == VMF_RAM_N_BACKENDS, "every backend has a name");

const char *vmf_ram_backend_name(VmfRamBackend backend)
{
    return backend_names[backend];
}

bool vmf_ram_backend_parse(const char *name, VmfRamBackend *out, GError **error)
{
    for (unsigned i = 0; i < VMF_RAM_N_BACKENDS; i++) {
        if (strcmp(name, backend_names[i]) == 0) {
            *out = i;
            return true;
        }
    }
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "RAM backend '%s': unknown; anon, memfd or hugetlb", name);
    return false;
}

static bool check_name(const char *name, GError **error)
{
    size_t length = strnlen(name, VMF_RAM_NAME_MAX + 1);
    bool printable = true;

    for (size_t i = 0; i < length; i++)
        printable = printable && name[i] >= 0x20 && name[i] <= 0x7e;
    if (length >= 1 && length <= VMF_RAM_NAME_MAX && printable)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_BLOCK, "RAM block: name: must be 1 to %d bytes of printable ASCII",
                VMF_RAM_NAME_MAX);
    return false;
}

static bool check_size(const char *name, uint64_t size, uint64_t guest_address, GError **error)
{
    uint64_t end;

    /* The margin of one chunk is for aligning the mapping; size_t matters on 32-bit hosts. */
    if (size > 0 && size % VMF_PAGE_SIZE == 0 && guest_address % VMF_PAGE_SIZE == 0 &&
        size <= (uint64_t)SSIZE_MAX - VMF_CHUNK_SIZE && !__builtin_add_overflow(size, guest_address, &end))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_BLOCK,
                "RAM block '%s': size %" G_GUINT64_FORMAT " at guest address 0x%" G_GINT64_MODIFIER
                "x: both must be multiples of %u, the size above zero, the end within 64 bits",
                name, size, guest_address, VMF_PAGE_SIZE);
    return false;
}

static bool check_backend_size(const char *name, uint64_t size, VmfRamBackend backend, GError **error)
{
    if (backend != VMF_RAM_HUGETLB || size % HUGE_PAGE_SIZE == 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_BLOCK,
                "RAM block '%s': size %" G_GUINT64_FORMAT ": hugetlb memory has pages of 2 MiB", name, size);
    return false;
}

static void set_errno_error(GError **error, int code, const char *name, const char *operation)
{
    int cause = errno;
    g_set_error(error, VMF_ERROR, code, "RAM block '%s': %s: %s", name, operation, g_strerror(cause));
}

/* An address range of @size bytes that begins at a multiple of the chunk size, inaccessible so far; NULL with errno. */
static uint8_t *reserve_aligned(size_t size)
{
    size_t length = size + VMF_CHUNK_SIZE;
    uint8_t *raw = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (raw == MAP_FAILED)
        return NULL;
    size_t head = -(uintptr_t)raw % VMF_CHUNK_SIZE;
    if (head > 0)
        munmap(raw, head);
    if (head < VMF_CHUNK_SIZE)
        munmap(raw + head + size, VMF_CHUNK_SIZE - head);
    return raw + head;
}

static bool map_anon(VmfRamBlock *block, uint8_t *at, GError **error)
{
    if (mmap(at, block->size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) ==
        MAP_FAILED) {
        set_errno_error(error, VMF_ERROR_MEMORY, block->name, "mmap");
        return false;
    }
    /* Advice only: a kernel without transparent huge pages refuses it and nothing is lost. */
    (void)madvise(at, block->size, block->flags & VMF_RAM_NO_HUGE_PAGES ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    return true;
}

static bool create_memfd(VmfRamBlock *block, unsigned flags, GError **error)
{
    char *label = g_strdup_printf("vmferry-%.200s", block->name); /* the kernel takes 249 bytes */

    block->fd = memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
    g_free(label);
    if (block->fd < 0) {
        set_errno_error(error, flags ? VMF_ERROR_UNSUPPORTED : VMF_ERROR_MEMORY, block->name,
                        flags ? "memfd_create of huge pages" : "memfd_create");
        return false;
    }
    if (ftruncate(block->fd, block->size) < 0 ||
        fcntl(block->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        set_errno_error(error, VMF_ERROR_MEMORY, block->name, "setting the size of the memfd");
        return false;
    }
    return true;
}

static bool map_memfd(VmfRamBlock *block, uint8_t *at, GError **error)
{
    if (!create_memfd(block, 0, error))
        return false;
    if (mmap(at, block->size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED | MAP_NORESERVE, block->fd, 0) ==
        MAP_FAILED) {
        set_errno_error(error, VMF_ERROR_MEMORY, block->name, "mmap of the memfd");
        return false;
    }
    if (block->flags & VMF_RAM_NO_HUGE_PAGES)
        (void)madvise(at, block->size, MADV_NOHUGEPAGE);
    return true;
}

/* A line of what the host tells about its huge pages; 0 where it tells nothing. */
static uint64_t count_huge_pages(const char *file)
{
    g_autofree char *path = g_strconcat(HUGE_PAGES_DIRECTORY, file, NULL);
    g_autofree char *text = NULL;

    return g_file_get_contents(path, &text, NULL, NULL) ? g_ascii_strtoull(text, NULL, 10) : 0;
}

static bool lacks_huge_pages(const VmfRamBlock *block, GError **error)
{
    if (errno != ENOMEM) {
        set_errno_error(error, VMF_ERROR_MEMORY, block->name, "mmap of huge pages");
        return false;
    }
    uint64_t free = count_huge_pages("free_hugepages"), reserved = count_huge_pages("resv_hugepages");
    g_set_error(error, VMF_ERROR, VMF_ERROR_HUGE_PAGES,
                "RAM block '%s': hugetlb: %" G_GUINT64_FORMAT " pages of 2 MiB are needed, this host has %" G_GUINT64_FORMAT
                " to spare",
                block->name, block->size / HUGE_PAGE_SIZE, free > reserved ? free - reserved : 0);
    return false;
}

static bool map_hugetlb(VmfRamBlock *block, uint8_t *at, GError **error)
{
    if (!create_memfd(block, MFD_HUGETLB | MFD_HUGE_2MB, error))
        return false;
    return mmap(at, block->size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, block->fd, 0) != MAP_FAILED ||
           lacks_huge_pages(block, error);
}

static bool map(VmfRamBlock *block, GError **error)
{
    switch (block->backend) {
    case VMF_RAM_MEMFD:
        return map_memfd(block, block->host, error);
    case VMF_RAM_HUGETLB:
        return map_hugetlb(block, block->host, error);
    default:
        return map_anon(block, block->host, error);
    }
}

VmfRamBlock *vmf_ram_block_new(const char *name, uint64_t size, VmfRamBackend backend, VmfRamFlags flags,
                               uint64_t guest_address, GError **error)
{
    if (!check_name(name, error) || !check_size(name, size, guest_address, error) ||
        !check_backend_size(name, size, backend, error))
        return NULL;

    g_autoptr(VmfRamBlock) block = g_new0(VmfRamBlock, 1);
    *block = (VmfRamBlock){.name = g_strdup(name),
                           .size = size,
                           .guest_address = guest_address,
                           .backend = backend,
                           .flags = flags,
                           .fd = -1};
    block->host = reserve_aligned(size);
    if (!block->host) {
        set_errno_error(error, VMF_ERROR_MEMORY, name, "mmap");
        return NULL;
    }
    if (!map(block, error))
        return NULL;
    /* A child (of an exec: channel, say) has no use for the guest, and copying its page tables would stall every vCPU.
     */
    (void)madvise(block->host, size, MADV_DONTFORK);
    return g_steal_pointer(&block);
}

void vmf_ram_block_free(VmfRamBlock *block)
{
    if (!block)
        return;
    if (block->host)
        munmap(block->host, block->size);
    if (block->fd >= 0)
        close(block->fd);
    g_free(block->name);
    g_free(block);
}

const char *vmf_ram_block_name(const VmfRamBlock *block)
{
    return block->name;
}

uint64_t vmf_ram_block_size(const VmfRamBlock *block)
{
    return block->size;
}

uint32_t vmf_ram_block_page_size(const VmfRamBlock *block)
{
    return VMF_PAGE_SIZE;
}

uint32_t vmf_ram_block_host_page_size(const VmfRamBlock *block)
{
    return block->backend == VMF_RAM_HUGETLB ? HUGE_PAGE_SIZE : VMF_PAGE_SIZE;
}

uint64_t vmf_ram_block_guest_address(const VmfRamBlock *block)
{
    return block->guest_address;
}

VmfRamFlags vmf_ram_block_flags(const VmfRamBlock *block)
{
    return block->flags;
}

VmfRamBackend vmf_ram_block_backend(const VmfRamBlock *block)
{
    return block->backend;
}

void *vmf_ram_block_host(const VmfRamBlock *block)
{
    return block->host;
}

int vmf_ram_block_fd(const VmfRamBlock *block)
{
    return block->fd;
}

/* A part of one host page, which stays: what the kernel does about it depends on its age. An absent page is not touched. */
static void clear_part(VmfRamBlock *block, uint64_t from, uint64_t to)
{
    unsigned char resident = 0;

    if (from < to && (mincore(block->host + from, VMF_PAGE_SIZE, &resident) < 0 || resident & 1))
        memset(block->host + from, 0, to - from);
}

static bool give_back(VmfRamBlock *block, uint64_t from, uint64_t to)
{
    if (from >= to)
        return true;
    if (block->fd < 0)
        return madvise(block->host + from, to - from, MADV_DONTNEED) == 0;
    return fallocate(block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, to - from) == 0;
}

bool vmf_ram_block_discard(VmfRamBlock *block, uint64_t offset, uint64_t length, GError **error)
{
    uint64_t end;

    if (offset % VMF_PAGE_SIZE != 0 || length % VMF_PAGE_SIZE != 0 || __builtin_add_overflow(offset, length, &end) ||
        end > block->size) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RAM_RANGE,
                    "RAM block '%s': discard of %" G_GUINT64_FORMAT " bytes at %" G_GUINT64_FORMAT
                    ": not whole pages of a block of %" G_GUINT64_FORMAT " bytes",
                    block->name, length, offset, block->size);
        return false;
    }
    uint64_t unit = vmf_ram_block_host_page_size(block), first = (offset + unit - 1) / unit * unit, last = end / unit * unit;

    clear_part(block, offset, MIN(first, end));
    if (last >= first) /* else all of it lies in one host page */
        clear_part(block, last, end);
    if (give_back(block, first, last))
        return true;
    set_errno_error(error, VMF_ERROR_IO, block->name, "discard");
    return false;
}

/* What is reserved already is not counted twice. */
static bool reserve_huge_pages(VmfRamBlock *block, GError **error)
{
    void *again = mmap(NULL, block->size, PROT_NONE, MAP_SHARED, block->fd, 0);

    if (again == MAP_FAILED)
        return lacks_huge_pages(block, error);
    munmap(again, block->size);
    return true;
}

void vmf_ram_block_forbid(VmfRamBlock *block, uint64_t offset, uint64_t length)
{
    /* A mapping that cannot be split any further is forbidden as a whole: better too much than wrong bytes. */
    if (mprotect(block->host + offset, length, PROT_NONE) < 0)
        (void)mprotect(block->host, block->size, PROT_NONE);
}

bool vmf_ram_block_empty(VmfRamBlock *block, GError **error)
{
    if (!vmf_ram_block_discard(block, 0, block->size, error))
        return false;
    if (mprotect(block->host, block->size, PROT_READ | PROT_WRITE) < 0) {
        set_errno_error(error, VMF_ERROR_MEMORY, block->name, "mprotect");
        return false;
    }
    return block->backend != VMF_RAM_HUGETLB || reserve_huge_pages(block, error);
}

uint64_t vmf_ram_block_n_pages(const VmfRamBlock *block)
{
    return block->size / VMF_PAGE_SIZE;
}

uint64_t vmf_ram_block_n_chunks(const VmfRamBlock *block)
{
    return (block->size + VMF_CHUNK_SIZE - 1) / VMF_CHUNK_SIZE;
}

unsigned vmf_ram_block_chunk_pages(const VmfRamBlock *block, uint64_t chunk, uint64_t *first_page)
{
    *first_page = chunk * VMF_CHUNK_PAGES;
    return MIN(VMF_CHUNK_PAGES, vmf_ram_block_n_pages(block) - *first_page);
}

void *vmf_ram_block_page(const VmfRamBlock *block, uint64_t page)
{
    return block->host + page * VMF_PAGE_SIZE;
}
