/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The smallest VMM that moves: 64 MiB of memory, one "vCPU" (a thread) that never stops writing it, one device. Built as any embedder
 * would build it:
 *
 *     cc -o embedder embedder.c $(pkg-config --cflags --libs vmferry) -pthread
 *
 * It starts a second process as its target, moves the running guest there over a Unix socket, and lets it run on. docs/embedding.rst
 * walks through this file.
 *
 * The guest can tell whether it arrived whole: each write adds one to a counter in some page, and the vCPU counts its writes. A page
 * that was lost, stale or torn makes the two disagree.
 */
#include <vmferry/vmferry.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096u
#define N_PAGES (64u << 20 >> 12)
#define N_WORDS (N_PAGES / 64)

typedef struct {
    uint64_t random; /* the vCPU's registers, so to speak; only its thread touches them while it runs */
    uint64_t writes;
} Cpu;

typedef struct {
    VmfGuest *guest;
    uint8_t *memory;
    Cpu cpu;
    pthread_t thread;
    bool running;
    atomic_bool stop_asked;
    _Atomic uint64_t dirty[N_WORDS]; /* bit n of word w: page w * 64 + n was written */
} Vm;

/* ---- the guest ----------------------------------------------------------------------------------------------------------- */

static void *vcpu(void *opaque)
{
    Vm *vm = opaque;

    while (!atomic_load(&vm->stop_asked)) {
        vm->cpu.random = vm->cpu.random * 6364136223846793005u + 1442695040888963407u;
        uint64_t page = (vm->cpu.random >> 33) % (N_PAGES / 4); /* a working set of 16 MiB */
        volatile uint64_t *counter = (volatile uint64_t *)(vm->memory + page * PAGE);
        counter[0]++;
        counter[511] = ~counter[0];
        vm->cpu.writes++;
        /* After the write: were it before, the engine could clear the bit and read the page while the write is still to come. */
        atomic_fetch_or(&vm->dirty[page / 64], 1ull << page % 64);
        if (vm->cpu.writes % 64 == 0)
            usleep(100);
    }
    return NULL;
}

static bool guest_is_whole(const Vm *vm)
{
    uint64_t sum = 0;

    for (uint64_t page = 0; page < N_PAGES; page++) {
        const uint64_t *counter = (const uint64_t *)(vm->memory + page * PAGE);
        if (counter[0] && counter[511] != ~counter[0])
            return false;
        sum += counter[0];
    }
    return sum == vm->cpu.writes;
}

/* ---- run control: what the engine asks of a VMM ----------------------------------------------------------------------------- */

static bool vm_start(void *opaque, GError **error)
{
    Vm *vm = opaque;

    if (vm->running)
        return true;
    atomic_store(&vm->stop_asked, false);
    if (pthread_create(&vm->thread, NULL, vcpu, vm)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_GUEST, "vcpu: start: no thread");
        return false;
    }
    vm->running = true;
    return true;
}

static bool vm_stop(void *opaque, GError **error)
{
    Vm *vm = opaque;

    if (vm->running) {
        atomic_store(&vm->stop_asked, true);
        pthread_join(vm->thread, NULL);
        vm->running = false;
    }
    return true;
}

static bool vm_is_running(void *opaque)
{
    return ((Vm *)opaque)->running;
}

static const VmfGuestOps guest_ops = {
    .size = sizeof(VmfGuestOps), .stop = vm_stop, .start = vm_start, .is_running = vm_is_running};

/* ---- the dirty log ------------------------------------------------------------------------------------------------------------ */

static bool log_start(void *opaque, GError **error)
{
    Vm *vm = opaque;

    for (size_t word = 0; word < N_WORDS; word++)
        atomic_store(&vm->dirty[word], 0);
    return true;
}

static void log_stop(void *opaque)
{
}

static bool log_harvest(void *opaque, unsigned block, void (*report)(void *, uint64_t, const uint64_t *, size_t),
                        void *report_opaque, GError **error)
{
    Vm *vm = opaque;
    uint64_t words[N_WORDS];

    for (size_t word = 0; word < N_WORDS; word++)
        words[word] = atomic_load(&vm->dirty[word]);
    report(report_opaque, 0, words, N_WORDS);
    return true;
}

static void log_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
    Vm *vm = opaque;

    /* Whole words are cleared; what they held besides the pages about to be sent is handed back, so that it is sent as well. */
    for (uint64_t word = 0; word < (n_pages + 63) / 64; word++)
        words[word] |= atomic_exchange(&vm->dirty[first_page / 64 + word], 0);
}

static const VmfDirtyLogOps log_ops = {.size = sizeof(VmfDirtyLogOps),
                                       .name = "embedder",
                                       .start = log_start,
                                       .stop = log_stop,
                                       .harvest = log_harvest,
                                       .clear = log_clear};

/* ---- the device ----------------------------------------------------------------------------------------------------------------- */

static const VmfField cpu_fields[] = {
    VMF_FIELD(Cpu, random, VMF_FIELD_U64, 1),
    VMF_FIELD(Cpu, writes, VMF_FIELD_U64, 1),
    VMF_FIELD_END,
};
static const VmfDeviceState cpu_state = {
    .size = sizeof(VmfDeviceState), .name = "cpu", .version = 1, .minimum_version = 1, .fields = cpu_fields};

/* ---- a machine and its two lives ---------------------------------------------------------------------------------------------- */

static bool vm_make(Vm *vm, GError **error)
{
    static const uint8_t uuid[16] = "embedder-example";
    VmfRamBlock *ram = vmf_ram_block_new("ram", (uint64_t)N_PAGES * PAGE, VMF_RAM_ANON, 0, 0, error);

    if (!ram)
        return false;
    vm->guest = vmf_guest_new("example", uuid, &guest_ops, vm);
    vm->memory = vmf_ram_block_host(ram);
    vmf_guest_set_dirty_log(vm->guest, &log_ops, vm);
    return vmf_guest_add_ram(vm->guest, ram, NULL, error) && vmf_guest_add_device(vm->guest, &cpu_state, 0, &vm->cpu, error);
}

static void vm_free(Vm *vm)
{
    vm_stop(vm, NULL);
    vmf_guest_free(vm->guest);
}

static bool be_target(Vm *vm, const char *uri, int ready_fd, GError **error)
{
    g_autoptr(VmfListener) listener = vmf_listener_new(uri, 0, error);
    VmfParameters parameters;

    if (!listener || write(ready_fd, "", 1) != 1)
        return false;
    vmf_parameters_init(&parameters);
    g_autoptr(VmfSession) session = vmf_session_new_target(vm->guest, listener, &parameters, NULL, NULL);
    if (!vmf_session_run(session, error))
        return false;

    usleep(300 * 1000); /* the guest runs here now */
    vm_stop(vm, NULL);
    bool whole = guest_is_whole(vm);
    printf("target: the guest made %" G_GUINT64_FORMAT " writes and is %s\n", vm->cpu.writes, whole ? "whole" : "DAMAGED");
    if (!whole)
        g_set_error(error, VMF_ERROR, VMF_ERROR_GUEST, "guest: its counters do not add up");
    return whole;
}

static bool be_source(Vm *vm, const char *uri, GError **error)
{
    g_autoptr(VmfConnector) connector = vmf_connector_new(uri, 0, error);
    VmfStatistics statistics = {.size = sizeof(VmfStatistics)};
    VmfParameters parameters;

    if (!connector || !vm_start(vm, error))
        return false;
    usleep(200 * 1000);
    vmf_parameters_init(&parameters);
    parameters.minimum_rounds = 2; /* for show: pages that were written meanwhile travel again while the guest runs */
    g_autoptr(VmfSession) session = vmf_session_new_source(vm->guest, connector, &parameters, NULL, NULL);
    if (!vmf_session_run(session, error))
        return false; /* the guest goes on here; an embedder would tell its owner and carry on */

    vmf_session_get_statistics(session, &statistics);
    printf("source: gone after %u rounds, %" G_GUINT64_FORMAT " bytes; downtime %" G_GUINT64_FORMAT " ns; verified: %s\n",
           statistics.round, statistics.bytes_sent, statistics.downtime_ns, vmf_verified_word(statistics.verified));
    return true;
}

int main(void)
{
    int ready[2], status = 1;
    char byte;
    g_autoptr(GError) error = NULL;
    g_autofree char *directory = g_dir_make_tmp("embedder-XXXXXX", &error);

    if (!directory || pipe(ready))
        return 1;
    g_autofree char *path = g_build_filename(directory, "socket", NULL);
    g_autofree char *uri = g_strconcat("unix:", path, NULL);
    g_autofree Vm *vm = g_new0(Vm, 1);

    pid_t child = fork(); /* before anything else: a process with threads cannot be forked well */
    bool ok = child >= 0 && vm_make(vm, &error);
    if (child == 0) {
        ok = ok && be_target(vm, uri, ready[1], &error);
    } else if (ok) {
        close(ready[1]);
        ok = read(ready[0], &byte, 1) == 1 && be_source(vm, uri, &error);
        waitpid(child, &status, 0);
        ok = ok && status == 0;
    }
    if (error)
        fprintf(stderr, "embedder: %s (%s)\n", error->message, vmf_error_id(error));
    if (vm->guest)
        vm_free(vm);
    if (child > 0) {
        unlink(path);
        rmdir(directory);
    }
    return ok ? 0 : 1;
}
