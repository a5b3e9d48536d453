/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A guest of one vCPU and 1 MiB, without interrupt chips or descriptor tables: it begins where it is told to, at CPL0
 * or CPL3, writes pages and then uses a port; from CPL3 that is an exception that nobody handles, and ends in a
 * shutdown.
 */
#include "machine/kvm-probe.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vmferry/error.h>
#include "machine/kvm.h"

#define PAGE_SIZE 4096u
#define TABLES_PAGE 1u /* three of them */
#define CODE_PAGE 8u
#define FIRST_PAGE 16u /* of those it writes: n_pages at CPL0, as many at CPL3 */
#define PAGES 64u
#define PAGES_RING 4096u
#define MEMORY_PAGES (FIRST_PAGE + 2 * PAGES_RING)
#define LARGE_PAGES (MEMORY_PAGES / 512 + 1)
#define ROUNDS 3u
#define RING_ENTRIES 1024u

typedef struct {
    int system_fd, vm_fd, vcpu_fd;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *memory;
    struct kvm_dirty_gfn *ring; /* NULL: not tried */
    uint32_t ring_next;
    bool *seen; /* in the ring, by page */
    unsigned n_pages;
} Probe;

static void probe_clear(Probe *p)
{
    if (p->ring)
        munmap(p->ring, RING_ENTRIES * sizeof(*p->ring));
    if (p->run)
        munmap(p->run, p->run_size);
    for (unsigned i = 0; i < 3; i++) {
        int fd = i == 0 ? p->vcpu_fd : i == 1 ? p->vm_fd : p->system_fd;

        if (fd >= 0)
            close(fd);
    }
    g_free(p->seen);
    if (p->memory)
        munmap(p->memory, MEMORY_PAGES * PAGE_SIZE);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Probe, probe_clear)

static bool fail(GError **error, const char *what)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "kvm: %s: %s", what, g_strerror(errno));
    return false;
}

static bool lacks(GError **error, const char *what)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "kvm: %s", what);
    return false;
}

/* ---- the guest --------------------------------------------------------------------------------------------------- */

static void put_entry(Probe *p, unsigned page, unsigned index, uint64_t value)
{
    memcpy(p->memory + page * PAGE_SIZE + index * sizeof(value), &value, sizeof(value));
}

static void write_guest(Probe *p)
{
    /* 1: mov %al,(%rdi); add $4096,%rdi; dec %ecx; jnz 1b; out %al,$0x80; hlt */
    static const uint8_t code[] = {0x88, 0x07, 0x48, 0x81, 0xc7, 0x00, 0x10, 0x00,
                                   0x00, 0xff, 0xc9, 0x75, 0xf3, 0xe6, 0x80, 0xf4};

    memcpy(p->memory + CODE_PAGE * PAGE_SIZE, code, sizeof(code));
    put_entry(p, TABLES_PAGE, 0, (TABLES_PAGE + 1) * PAGE_SIZE | 0x27);
    put_entry(p, TABLES_PAGE + 1, 0, (TABLES_PAGE + 2) * PAGE_SIZE | 0x27);
    for (unsigned i = 0; i < LARGE_PAGES; i++)
        put_entry(p, TABLES_PAGE + 2, i, (uint64_t)i << 21 | 0xe7);
}

static bool set_memory(Probe *p, GError **error)
{
    struct kvm_userspace_memory_region region = {
        .flags = p->ring ? KVM_MEM_LOG_DIRTY_PAGES : 0,
        .memory_size = MEMORY_PAGES * PAGE_SIZE,
        .userspace_addr = (uintptr_t)p->memory,
    };

    return vmf_kvm_ioctl(p->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) == 0 || fail(error, "set a memory slot");
}

static bool set_ring(Probe *p, GError **error)
{
    struct kvm_enable_cap enable = {.cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL, .args = {RING_ENTRIES * sizeof(*p->ring)}};

    if (ioctl(p->system_fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_ACQ_REL) <= 0)
        return lacks(error, "this host's has no dirty ring");
    return vmf_kvm_ioctl(p->vm_fd, KVM_ENABLE_CAP, &enable) == 0 || fail(error, "enable the dirty ring");
}

static void *map_vcpu(Probe *p, size_t size, off_t offset)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, p->vcpu_fd, offset);

    return at == MAP_FAILED ? NULL : at;
}

static bool create(Probe *p, bool ring, GError **error)
{
    p->system_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (p->system_fd < 0)
        return fail(error, "/dev/kvm");
    p->vm_fd = ioctl(p->system_fd, KVM_CREATE_VM, 0);
    if (p->vm_fd < 0)
        return fail(error, "create a VM");
    if (ioctl(p->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000ul) < 0 || (ring && !set_ring(p, error)))
        return error && *error ? false : fail(error, "set the TSS address");
    p->vcpu_fd = ioctl(p->vm_fd, KVM_CREATE_VCPU, 0);
    if (p->vcpu_fd < 0)
        return fail(error, "create a vCPU");
    p->run_size = (size_t)MAX(ioctl(p->system_fd, KVM_GET_VCPU_MMAP_SIZE, 0), 4096);
    p->run = map_vcpu(p, p->run_size, 0);
    if (ring)
        p->ring = map_vcpu(p, RING_ENTRIES * sizeof(*p->ring), KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE);
    void *memory = mmap(NULL, MEMORY_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    p->memory = memory == MAP_FAILED ? NULL : memory;
    if (!p->run || !p->memory || (ring && !p->ring))
        return fail(error, "map the vCPU");
    return true;
}

/* ---- one run ----------------------------------------------------------------------------------------------------- */

static bool begin_at(Probe *p, unsigned privilege, unsigned first_page, uint8_t value, GError **error)
{
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    struct kvm_regs regs = {
        .rip = CODE_PAGE * PAGE_SIZE, .rflags = 2, .rdi = first_page * PAGE_SIZE, .rcx = p->n_pages, .rax = value};
    struct kvm_sregs s;

    if (ioctl(p->vcpu_fd, KVM_GET_SREGS, &s) < 0)
        return fail(error, "read registers");
    data.dpl = (uint8_t)privilege;
    data.selector |= privilege;
    s.ds = s.es = s.ss = data;
    s.cs = data;
    s.cs.selector = (uint16_t)(0x08 | privilege);
    s.cs.type = 11;
    s.cs.db = 0;
    s.cs.l = 1;
    s.idt.limit = 0;
    s.cr0 = 0x80010033;
    s.cr3 = TABLES_PAGE * PAGE_SIZE;
    s.cr4 = 0x20;
    s.efer = 0x500;
    if (ioctl(p->vcpu_fd, KVM_SET_SREGS, &s) < 0 || ioctl(p->vcpu_fd, KVM_SET_REGS, &regs) < 0)
        return fail(error, "set registers");
    return true;
}

/*
 * Takes all entries off the ring and protects their pages again. A ring that is full and has none to take off has been
 * written past its end: it would stay so for ever.
 */
static bool collect_ring(Probe *p, GError **error)
{
    uint32_t before = p->ring_next;

    for (; p->ring; p->ring_next++) {
        struct kvm_dirty_gfn *entry = &p->ring[p->ring_next % RING_ENTRIES];

        if (!(__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
            break;
        if (entry->offset < MEMORY_PAGES)
            p->seen[entry->offset] = true;
        __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
    }
    if (p->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL && p->ring_next == before)
        return lacks(error, "the dirty ring of this host overflows");
    if (p->ring && vmf_kvm_ioctl(p->vm_fd, KVM_RESET_DIRTY_RINGS, NULL) < 0)
        return fail(error, "reset the dirty ring");
    return true;
}

static bool run_at(Probe *p, unsigned privilege, uint8_t value, GError **error)
{
    unsigned first = FIRST_PAGE + (privilege ? p->n_pages : 0);

    if (!begin_at(p, privilege, first, value, error))
        return false;
    do {
        if (vmf_kvm_ioctl(p->vcpu_fd, KVM_RUN, NULL) < 0)
            return fail(error, "run a guest");
        if (!collect_ring(p, error))
            return false;
    } while (p->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL);
    for (unsigned page = first; page < first + p->n_pages; page++) {
        if (p->memory[page * PAGE_SIZE] != value)
            return lacks(error,
                         privilege ? "this host's does not run user code" : "this host's does not run supervisor code");
    }
    return true;
}

/* Whether each page that the guest wrote in this round was in the ring. */
static bool ring_had_all(Probe *p, GError **error)
{
    for (unsigned i = 0; i < 2 * p->n_pages; i++) {
        if (!p->seen[FIRST_PAGE + i])
            return lacks(error, i < p->n_pages ? "the dirty ring of this host loses writes of supervisor code"
                                               : "the dirty ring of this host loses writes of user code");
    }
    memset(p->seen, 0, MEMORY_PAGES * sizeof(*p->seen));
    return true;
}

bool vmf_kvm_probe(bool ring, GError **error)
{
    g_auto(Probe) p = {.system_fd = -1, .vm_fd = -1, .vcpu_fd = -1, .n_pages = ring ? PAGES_RING : PAGES};

    p.seen = g_new0(bool, MEMORY_PAGES);

    if (!create(&p, ring, error))
        return false;
    write_guest(&p);
    if (!set_memory(&p, error))
        return false;
    for (uint8_t round = 1; round <= ROUNDS; round++) {
        if (!run_at(&p, 0, round, error) || !run_at(&p, 3, round, error) || (ring && !ring_had_all(&p, error)))
            return false;
    }
    return true;
}

bool vmf_kvm_works(GError **error)
{
    return vmf_kvm_probe(false, error);
}
