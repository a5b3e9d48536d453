/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A migration in figures, twice: as QEMU's clients know it (milliseconds, floating megabits), and exactly, with the
 * names of VmfStatistics, in x-vmferry.
 */
#include "machine/qmp.h"

#include <vmferry/error.h>

#include "machine/qmp-error.h"

#define NS_PER_MS 1000000

/* Exact members: the name is that of the statistic. */
#define COUNTERS(X)                                                                                                    \
    X(live_rounds_resent)                                                                                              \
    X(total_ns)                                                                                                        \
    X(setup_ns)                                                                                                        \
    X(audit_ns)                                                                                                        \
    X(downtime_ns)                                                                                                     \
    X(downtime_stop_ns)                                                                                                \
    X(downtime_ram_ns)                                                                                                 \
    X(downtime_state_ns)                                                                                               \
    X(downtime_ready_ns)                                                                                               \
    X(downtime_run_ns)                                                                                                 \
    X(ram_total_bytes)                                                                                                 \
    X(ram_remaining_bytes)                                                                                             \
    X(bytes_sent)                                                                                                      \
    X(bytes_received)                                                                                                  \
    X(pages_data)                                                                                                      \
    X(pages_zero)                                                                                                      \
    X(pages_hole)                                                                                                      \
    X(pages_resent)                                                                                                    \
    X(page_size)                                                                                                       \
    X(rate_bytes_per_second)                                                                                           \
    X(dirty_bytes_per_second)                                                                                          \
    X(rtt_ns)                                                                                                          \
    X(throttle_percent)                                                                                                \
    X(chunks_mended)                                                                                                   \
    X(audit_pages_different)                                                                                           \
    X(log_audit_cpu_ns)                                                                                                \
    X(disk_total_bytes)                                                                                                \
    X(disk_sent_bytes)                                                                                                 \
    X(disk_zero_bytes)                                                                                                 \
    X(disk_base_bytes)                                                                                                 \
    X(disk_remaining_bytes)                                                                                            \
    X(disk_depth)                                                                                                      \
    X(disk_mirrored_writes)                                                                                            \
    X(downtime_disk_ns)                                                                                                \
    X(log_audit_pages)                                                                                                 \
    X(faults)                                                                                                          \
    X(fault_p50_ns)                                                                                                    \
    X(fault_p99_ns)                                                                                                    \
    X(fault_max_ns)                                                                                                    \
    X(disk_faults)                                                                                                     \
    X(disk_fault_p50_ns)                                                                                               \
    X(disk_fault_p99_ns)                                                                                               \
    X(disk_fault_max_ns)

/* Whom the error's cause calls the other side of the channel. */
static const char *peer_of(const VmfMigration *migration)
{
    if (vmf_migration_is_one_way(migration))
        return NULL;
    return vmf_migration_is_incoming(migration) ? "source" : "target";
}

/* 0 stands for what is not known yet. */
static json_t *forecast(uint64_t ns)
{
    return ns ? json_integer(ns) : json_null();
}

static json_t *string_list(char *const *strings)
{
    json_t *list = json_array();

    for (; *strings; strings++)
        json_array_append_new(list, json_string(*strings));
    return list;
}

static json_t *channel_bytes(const VmfStatistics *statistics)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < MIN(statistics->n_channels, VMF_CHANNELS_MAX); i++)
        json_array_append_new(list, json_integer(statistics->channel_bytes[i]));
    return list;
}

static json_t *throttle_steps(const VmfStatistics *statistics)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < MIN(statistics->n_throttle_steps, VMF_THROTTLE_STEPS_MAX); i++) {
        const VmfThrottleStep *step = &statistics->throttle_steps[i];

        json_array_append_new(list, json_pack("{s:i,s:I,s:I}", "percent", (int)step->percent, "dirty_before_bytes_per_second",
                                              (json_int_t)step->dirty_before_bytes_per_second, "dirty_after_bytes_per_second",
                                              (json_int_t)step->dirty_after_bytes_per_second));
    }
    return list;
}

/* A migration that has not ended has no outcome yet, but for one that holds the guest: there it is "held" for now. */
static json_t *outcome_of(VmfMigration *migration, const VmfStatistics *statistics)
{
    bool known = vmf_migration_has_ended(migration) || statistics->outcome == VMF_OUTCOME_HELD;

    return known ? json_string(vmf_outcome_word(statistics->outcome)) : json_null();
}

/* Nothing is proven before the end. */
static json_t *verified_of(VmfMigration *migration, const VmfStatistics *statistics)
{
    return vmf_migration_has_ended(migration) ? json_string(vmf_verified_word(statistics->verified)) : json_null();
}

/* A hold is told as the error that it will be if nobody settles it. */
static json_t *error_of(VmfMigration *migration, const char *hold)
{
    const GError *error = vmf_migration_error(migration);
    g_autoptr(GError) held = NULL;

    if (!error && hold)
        error = held = g_error_new(VMF_ERROR, VMF_ERROR_HELD, "migration: held: %s", hold);
    return error ? vmf_qmp_error_object(error, peer_of(migration)) : json_null();
}

/* A guest that is held stands at its devices, whatever of its memory came after them. */
static const char *status_of(const VmfStatistics *statistics, const char *hold)
{
    return vmf_status_word(hold ? VMF_STATUS_DEVICE : statistics->status);
}

json_t *vmf_qmp_migration_detail(VmfMigration *migration)
{
    g_autofree char *hold = vmf_migration_hold(migration);
    VmfStatistics statistics;
    json_t *detail;

    vmf_migration_get_statistics(migration, &statistics);
    detail =
        json_pack("{s:s,s:s,s:b,s:b,s:b,s:b,s:b,s:i,s:s?,s:o,s:o,s:i}", "side",
                  vmf_migration_is_incoming(migration) ? "target" : "source", "status",
                  status_of(&statistics, hold), "ended", vmf_migration_has_ended(migration), "one_way",
                  vmf_migration_is_one_way(migration), "image", vmf_migration_is_save(migration), "dry_run",
                  vmf_migration_is_dry_run(migration), "was_running", vmf_migration_was_running(migration),
                  "stream_version", (int)vmf_migration_stream_version(migration), "uri", vmf_migration_uri(migration),
                  "outcome", outcome_of(migration, &statistics), "verified",
                  verified_of(migration, &statistics), "round", (int)statistics.round);
#define X(member) json_object_set_new(detail, #member, json_integer(statistics.member));
    COUNTERS(X)
#undef X
    json_object_set_new(detail, "resumes", vmf_migration_is_save(migration) ? json_boolean(vmf_migration_resumes(migration)) : json_null());
    json_object_set_new(detail, "expected_downtime_ns", forecast(statistics.expected_downtime_ns));
    json_object_set_new(detail, "start_ns", forecast(statistics.start_ns));
    json_object_set_new(detail, "working_set_ns", forecast(statistics.working_set_ns));
    json_object_set_new(detail, "converge_reason",
                        statistics.converge_reason[0] ? json_string(statistics.converge_reason) : json_null());
    json_object_set_new(detail, "throttle_steps", throttle_steps(&statistics));
    json_object_set_new(detail, "guest_gap_ns",
                        statistics.guest_gap_known ? json_integer(statistics.guest_gap_ns) : json_null());
    json_object_set_new(detail, "channels", json_integer(statistics.n_channels));
    json_object_set_new(detail, "channel_bytes", channel_bytes(&statistics));
    json_object_set_new(detail, "incompatibilities", string_list(vmf_migration_incompatibilities(migration)));
    const char *peer = vmf_migration_peer_host_name(migration);
    json_object_set_new(detail, "peer_host_name", peer ? json_string(peer) : json_null());
    json_object_set_new(detail, "hold_reason", hold ? json_string(hold) : json_null());
    json_object_set_new(detail, "hold_id", hold ? json_string(vmf_migration_hold_id(migration)) : json_null());
    json_object_set_new(detail, "error", error_of(migration, hold));
    return detail;
}

static json_t *ram_object(const VmfStatistics *statistics)
{
    uint64_t page_size = statistics->page_size ? statistics->page_size : 4096;
    uint64_t multifd_bytes = 0;

    for (unsigned i = 0; i < MIN(statistics->n_channels, VMF_CHANNELS_MAX); i++)
        multifd_bytes += statistics->channel_bytes[i];
    return json_pack(
        "{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:I,s:I,s:I,s:I,s:I,s:I}", "transferred", (json_int_t)statistics->bytes_sent,
        "remaining", (json_int_t)statistics->ram_remaining_bytes, "total", (json_int_t)statistics->ram_total_bytes,
        "duplicate", (json_int_t)statistics->pages_zero, "skipped", (json_int_t)0, "normal",
        (json_int_t)statistics->pages_data, "normal-bytes", (json_int_t)(statistics->pages_data * page_size), "mbps",
        statistics->rate_bytes_per_second * 8 / 1e6, "dirty-pages-rate",
        (json_int_t)(statistics->dirty_bytes_per_second / page_size), "dirty-sync-count", (json_int_t)statistics->round,
        "pages-per-second", (json_int_t)(statistics->rate_bytes_per_second / page_size), "multifd-bytes",
        (json_int_t)multifd_bytes, "postcopy-requests", (json_int_t)0, "page-size", (json_int_t)page_size);
}

/* QEMU's object of block migration, with the members that mean something here. */
static json_t *disk_object(const VmfStatistics *statistics)
{
    return json_pack("{s:I,s:I,s:I}", "transferred", (json_int_t)statistics->disk_sent_bytes, "remaining",
                     (json_int_t)statistics->disk_remaining_bytes, "total", (json_int_t)statistics->disk_total_bytes);
}

static void set_ms(json_t *info, const char *name, uint64_t ns)
{
    json_object_set_new(info, name, json_integer(ns / NS_PER_MS));
}

/* QEMU reports the forecast while it runs and the fact afterwards, never both. */
static void add_source_members(json_t *info, const VmfStatistics *statistics)
{
    bool completed = statistics->status == VMF_STATUS_COMPLETED;

    set_ms(info, "total-time", statistics->total_ns);
    set_ms(info, "setup-time", statistics->setup_ns);
    if (completed)
        set_ms(info, "downtime", statistics->downtime_ns);
    else if (statistics->expected_downtime_ns)
        set_ms(info, "expected-downtime", statistics->expected_downtime_ns);
    if (statistics->throttle_percent > 0)
        json_object_set_new(info, "cpu-throttle-percentage", json_integer(statistics->throttle_percent));
    json_object_set_new(info, "ram", ram_object(statistics));
    if (statistics->disk_total_bytes > 0)
        json_object_set_new(info, "disk", disk_object(statistics));
}

json_t *vmf_qmp_migration_info(VmfMigration *migration)
{
    g_autofree char *hold = vmf_migration_hold(migration);
    const GError *error = vmf_migration_error(migration);
    VmfStatistics statistics;
    json_t *info = json_object();

    vmf_migration_get_statistics(migration, &statistics);
    json_object_set_new(info, "status", json_string(status_of(&statistics, hold)));
    if (!vmf_migration_is_incoming(migration))
        add_source_members(info, &statistics);
    if (error)
        json_object_set_new(info, "error-desc", json_string(error->message));
    if (hold)
        json_object_set_new(info, "x-vmferry-hold", json_string(hold));
    json_object_set_new(info, "x-vmferry", vmf_qmp_migration_detail(migration));
    return info;
}
