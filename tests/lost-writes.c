/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/lost-writes.h"

#include <inttypes.h>
#include <string.h>

#include <vmferry/error.h>

#define BLOCKS 3
#define PAGE 4096u

const char *const vmf_finding_words[VMF_FINDING_N] = {
    [VMF_FOUND_BY_LOG_AUDIT] = "log audit",       [VMF_FOUND_BY_FULL_AUDIT] = "full audit",
    [VMF_FOUND_BY_SUM] = "sum",                [VMF_FOUND_HARMLESS] = "harmless",
    [VMF_FOUND_NOTHING_LOST] = "nothing lost",    [VMF_FOUND_WRONG] = "wrong",
};

static VmfMachine *make(const VmfLostWriteSetting *setting, uint64_t seed)
{
    VmfMachineConfig config = setting->machine;
    g_autoptr(GError) error = NULL;

    config.lose_write_seed = seed;
    VmfMachine *machine = vmf_machine_new(&config, &error);
    if (!machine)
        g_error("%s", error->message);
    return machine;
}

static VmfMachineInfo info_of(VmfMachine *machine)
{
    VmfMachineInfo info;

    vmf_machine_get_info(machine, &info);
    return info;
}

/* Its working set is filled, and it has begun to write it anew. */
static void let_it_fill(VmfMachine *machine, uint64_t set_bytes)
{
    g_autoptr(GError) error = NULL;

    if (!vmf_machine_start(machine, &error))
        g_error("%s", error->message);
    while (info_of(machine).pages_written <= set_bytes / PAGE)
        g_usleep(500);
}

/* How many pages differ, and whether @page of @block is one of them. */
static uint64_t count_differences(VmfMachine *a, VmfMachine *b, const char *block, uint64_t page, bool *has_page)
{
    uint64_t n = 0;

    *has_page = false;
    for (unsigned i = 0; i < BLOCKS; i++) {
        VmfRamBlock *here = vmf_guest_ram(vmf_machine_guest(a), i), *there = vmf_guest_ram(vmf_machine_guest(b), i);
        const uint8_t *x = vmf_ram_block_host(here), *y = vmf_ram_block_host(there);
        for (uint64_t p = 0; p < vmf_ram_block_size(here) / PAGE; p++) {
            if (memcmp(x + p * PAGE, y + p * PAGE, PAGE) == 0)
                continue;
            n++;
            *has_page |= p == page && strcmp(vmf_ram_block_name(here), block) == 0;
        }
    }
    return n;
}

/* Whether the guest runs on at @machine and finds nothing wrong with its memory. */
static bool lives(VmfMachine *machine)
{
    uint64_t beats = info_of(machine).beats;

    for (unsigned i = 0; i < 5000 && info_of(machine).beats <= beats; i++)
        g_usleep(1000);
    return vmf_machine_is_running(machine) && info_of(machine).beats > beats && info_of(machine).guest_errors == 0;
}

static VmfFinding wrong(VmfLostWriteRun *run, const char *what, const char *text)
{
    run->text = g_strdup_printf("%s: %s", what, text);
    return VMF_FOUND_WRONG;
}

static VmfFinding judge_refused(const VmfTrip *trip, VmfMachine *a, const VmfMachineInfo *info, VmfLostWriteRun *run)
{
    const char *text = trip->source_error->message;
    g_autofree char *by_log =
        g_strdup_printf("dirty log %s: RAM block %s: page %" PRIu64 ": ", info->dirty_log, info->lost_write_block, info->lost_write_page);
    g_autofree char *by_all =
        g_strdup_printf("dirty log %s: 1 page differs: %s page %" PRIu64, info->dirty_log, info->lost_write_block, info->lost_write_page);

    if (strcmp(vmf_error_id(trip->source_error), "ram.audit") != 0 || !info->lost_write_block)
        return wrong(run, "failed for another reason", text);
    if (!lives(a))
        return wrong(run, "the guest does not run at the source", text);
    run->text = g_strdup(text);
    if (strstr(text, by_log))
        return VMF_FOUND_BY_LOG_AUDIT;
    if (g_str_has_suffix(text, by_all) && trip->source_parameters.audit == VMF_AUDIT_BEFORE)
        return VMF_FOUND_BY_FULL_AUDIT;
    g_free(run->text);
    return wrong(run, by_log, text);
}

static VmfFinding judge_completed(const VmfTrip *trip, VmfMachine *a, VmfMachine *b, const VmfMachineInfo *info, VmfLostWriteRun *run)
{
    bool lost = info->lost_write_block != NULL, named;
    uint64_t n = count_differences(a, b, lost ? info->lost_write_block : "", info->lost_write_page, &named);
    g_autofree char *page = g_strdup_printf("source audit.different: dirty log %s: 1 page differs: %s page %" PRIu64 "\n",
                                            info->dirty_log, lost ? info->lost_write_block : "", info->lost_write_page);

    if (n == 0 && trip->source.verified == VMF_VERIFIED_FULL)
        return !lost                       ? VMF_FOUND_NOTHING_LOST
               : trip->source.chunks_mended ? VMF_FOUND_BY_SUM
                                            : VMF_FOUND_HARMLESS;
    run->text = g_strdup(trip->events);
    if (n == 1 && named && trip->source.verified == VMF_VERIFIED_FAILED && trip->source.audit_pages_different == 1 &&
        trip->source_parameters.audit == VMF_AUDIT_AFTER && strstr(trip->events, page))
        return VMF_FOUND_BY_FULL_AUDIT;
    g_free(run->text);
    return wrong(run, n > 0 ? "memories differ" : "nothing differs", trip->events);
}

VmfLostWriteRun vmf_lose_write(const VmfLostWriteSetting *setting, uint64_t seed)
{
    g_autoptr(VmfMachine) a = make(setting, seed);
    g_autoptr(VmfMachine) b = make(setting, 0);
    VmfLostWriteRun run = {0};
    VmfTrip trip;

    vmf_trip_init(&trip);
    trip.listen_uri = "tcp:127.0.0.1:0";
    trip.source_parameters.audit = setting->audit;
    trip.source_parameters.minimum_rounds = setting->minimum_rounds;
    trip.source_parameters.max_bandwidth = setting->max_bandwidth;
    vmf_machine_lend(b);
    vmf_machine_stop(b, NULL); /* it arrives paused, so that the memories can be compared */
    let_it_fill(a, setting->machine.set_bytes);
    bool done = vmf_trip_run(&trip, vmf_machine_guest(a), vmf_machine_guest(b));
    VmfMachineInfo info = info_of(a);
    if (done)
        run.finding = judge_completed(&trip, a, b, &info, &run);
    else if (trip.source_error)
        run.finding = judge_refused(&trip, a, &info, &run);
    else
        run.finding = wrong(&run, "only the target failed", trip.target_error->message);
    run.log_audit_cpu_ns = trip.source.log_audit_cpu_ns;
    run.log_audit_pages = trip.source.log_audit_pages;
    run.rounds_ns = trip.source.total_ns - MIN(trip.source.downtime_ns, trip.source.total_ns);
    run.rounds = trip.source.round;
    run.pages = trip.source.pages_data;
    vmf_trip_clear(&trip);
    return run;
}
