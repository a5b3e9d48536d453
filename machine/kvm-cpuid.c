/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the guest sees by CPUID: all that this host's KVM supports, with what differs between vCPUs and between calls
 * put in order. Both ends of a migration must show the same; a digest of it is a property of the guest.
 */
#include "machine/kvm.h"
#include <asm/kvm_para.h>
#include <string.h>
#include <vmferry/error.h>
#include <xxhash.h>

#define ENTRIES_MAX 256
#define KVM_FEATURES_SHOWN (1u << KVM_FEATURE_CLOCKSOURCE2 | 1u << KVM_FEATURE_CLOCKSOURCE_STABLE_BIT)

#define FEATURE_ECX_OSXSAVE (1u << 27)

typedef struct {
    struct kvm_cpuid2 header;
    struct kvm_cpuid_entry2 entries[ENTRIES_MAX];
} Table;

/* What depends on the vCPU: its APIC's number, in each place that has it. */
static void adapt_entry(struct kvm_cpuid_entry2 *e, unsigned index, unsigned n_vcpus)
{
    switch (e->function) {
    case 1:
        e->ebx = (e->ebx & 0xffff) | n_vcpus << 16 | index << 24;
        e->ecx &= ~FEATURE_ECX_OSXSAVE; /* follows CR4 */
        break;
    case 0xb:
    case 0x1f:
        e->eax = e->ebx = 0;
        e->ecx = e->index;
        e->edx = index;
        break;
    case 0x8000001e:
        e->eax = index;
        e->ebx = e->ecx = 0;
        break;
    case KVM_CPUID_FEATURES:
        e->eax &= KVM_FEATURES_SHOWN;
        e->edx = 0;
        break;
    }
}

static void adapt(Table *table, unsigned index, unsigned n_vcpus)
{
    for (unsigned i = 0; i < table->header.nent; i++)
        adapt_entry(&table->entries[i], index, n_vcpus);
}

static const struct kvm_cpuid_entry2 *find(const Table *table, uint32_t function)
{
    for (unsigned i = 0; i < table->header.nent; i++) {
        if (table->entries[i].function == function)
            return &table->entries[i];
    }
    return NULL;
}

/* "AuthenticAMD 00a00f11": the maker and the signature of leaf 1. */
static char *model_text(const Table *table)
{
    const struct kvm_cpuid_entry2 *vendor = find(table, 0), *signature = find(table, 1);
    char name[13] = "unknown";

    if (vendor) {
        memcpy(name, &vendor->ebx, 4);
        memcpy(name + 4, &vendor->edx, 4);
        memcpy(name + 8, &vendor->ecx, 4);
    }
    for (char *c = name; *c; c++)
        *c = g_ascii_isprint(*c) ? *c : '?';
    return g_strdup_printf("%s %08x", name, signature ? signature->eax : 0);
}

static void set_properties(VmfMachine *m, const Table *table)
{
    g_autofree char *model = model_text(table);
    g_autofree char *digest = g_strdup_printf(
        "%016" G_GINT64_MODIFIER "x", XXH3_64bits(table->entries, table->header.nent * sizeof(table->entries[0])));
    g_autofree char *khz = g_strdup_printf("%u", m->kvm->tsc_khz);

    vmf_guest_set_property(m->guest, "cpu.model", model);
    vmf_guest_set_property(m->guest, "cpu.cpuid", digest);
    vmf_guest_set_property(m->guest, "cpu.tsc_khz", khz);
}

bool vmf_kvm_set_cpuid(VmfMachine *m, GError **error)
{
    VmfKvm *k = m->kvm;
    g_autofree Table *table = g_new0(Table, 1);

    table->header.nent = ENTRIES_MAX;
    if (!vmf_kvm_call(m, k->system_fd, KVM_GET_SUPPORTED_CPUID, table, "list CPUID", error))
        return false;
    for (unsigned i = 0; i < k->n_vcpus; i++) {
        adapt(table, i, k->n_vcpus);
        if (!vmf_kvm_call(m, k->vcpus[i].fd, KVM_SET_CPUID2, table, "set CPUID", error))
            return false;
    }
    k->tsc_khz = (uint32_t)MAX(vmf_kvm_ioctl(k->vcpus[0].fd, KVM_GET_TSC_KHZ, NULL), 0);
    adapt(table, 0, k->n_vcpus);
    set_properties(m, table);
    return true;
}
