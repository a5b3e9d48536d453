/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RAM blocks: named, contiguous pieces of guest memory. A guest has one or more of them, the same list at both ends.
 */
#ifndef VMFERRY_RAM_H
#define VMFERRY_RAM_H

#include <glib.h>
#include <stdint.h>
#include <stdbool.h>

G_BEGIN_DECLS

#define VMF_RAM_NAME_MAX 255        /* bytes, without the terminating NUL */
#define VMF_RAM_BLOCKS_MAX 256      /* blocks a guest can have */
#define VMF_CHUNK_SIZE (2u << 20)   /* bytes: the unit in which pages are claimed, sent and summed */

typedef struct VmfRamBlock VmfRamBlock;

typedef enum {
    VMF_RAM_ANON,    /* private anonymous memory, transparent huge pages advised */
    VMF_RAM_MEMFD,   /* a memfd, shared mapping: can be handed over */
    VMF_RAM_HUGETLB, /* the same, of the host's reserved 2 MiB pages: a size that is no multiple of 2 MiB is refused */
    VMF_RAM_N_BACKENDS
} VmfRamBackend;
const char *vmf_ram_backend_name(VmfRamBackend backend);                      /* "anon", "memfd", "hugetlb" */
bool vmf_ram_backend_parse(const char *name, VmfRamBackend *out, GError **error);

typedef enum {
    VMF_RAM_ROM = 1 << 0,          /* the guest cannot write it; the target may start with content of its own, so all pages travel */
    VMF_RAM_NO_HUGE_PAGES = 1 << 1 /* advise against transparent huge pages (anon), for measurements on 4 KiB pages */
} VmfRamFlags;

/*
 * Allocates a block. @name 1 to 255 bytes of printable ASCII, unique in its guest; @size a multiple of the page size (4096), above
 * zero. Memory is reserved, not touched. The caller owns it until it is added to a guest (vmf_guest_add_ram), which then does.
 */
VmfRamBlock *vmf_ram_block_new(const char *name, uint64_t size, VmfRamBackend backend, VmfRamFlags flags, uint64_t guest_address,
                               GError **error);
void vmf_ram_block_free(VmfRamBlock *block);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfRamBlock, vmf_ram_block_free)

const char *vmf_ram_block_name(const VmfRamBlock *block);
uint64_t vmf_ram_block_size(const VmfRamBlock *block);           /* bytes */
uint32_t vmf_ram_block_page_size(const VmfRamBlock *block);      /* bytes: the unit of dirty tracking on the wire, 4096 */
/* bytes: what the host gives, takes back and protects at once; 2 MiB for hugetlb, else 4096 */
uint32_t vmf_ram_block_host_page_size(const VmfRamBlock *block);
uint64_t vmf_ram_block_guest_address(const VmfRamBlock *block);
VmfRamFlags vmf_ram_block_flags(const VmfRamBlock *block);
VmfRamBackend vmf_ram_block_backend(const VmfRamBlock *block);
/* Where the block is mapped; valid until the block is freed. The engine reads it while the guest runs. */
void *vmf_ram_block_host(const VmfRamBlock *block);
/* The memfd, or -1. Owned by the block. */
int vmf_ram_block_fd(const VmfRamBlock *block);
/*
 * Gives back [offset, offset + length) to the host: it reads as zero and costs nothing; of a larger host page that is not all in the
 * range only the content goes. Page aligned. A hugetlb page that was in use is then anybody's again.
 */
bool vmf_ram_block_discard(VmfRamBlock *block, uint64_t offset, uint64_t length, GError **error);

G_END_DECLS
#endif
