/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A source and a target that lies, or says nothing, or goes. Until RUN was sent the guest is the source's and beats on, whatever the
 * target does; from then on what is not RUNNING or NEVER of this migration is a hold. One machine lives through all rows.
 */
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "stream/channel.h"
#include "tests/forge-target.h"
#include "tests/world.h"

#define MIB (UINT64_C(1) << 20)
#define NS_PER_MS INT64_C(1000000)

typedef enum {
    BACK, /* the guest goes on here */
    HELD, /* it stands here, and the session says so */
    GONE  /* it is the target's */
} End;

typedef struct {
    const char *name;
    FakePoint point;
    bool instead;
    void (*plant)(FakeTarget *t);
    const char *id; /* of the error; NULL with GONE */
    End end;
    unsigned page_channels;
} Row;

#define PLANT(name, ...)                                                                                                        \
    static void name(FakeTarget *t)                                                                                             \
    {                                                                                                                           \
        __VA_ARGS__;                                                                                                            \
    }

static const uint8_t other_token[VMF_TOKEN_SIZE] = "another's token";

/* ---- anywhere -------------------------------------------------------------------------------------------------------------- */

PLANT(hang_up, vmf_channel_shutdown(t->main); t->over = true)
PLANT(fall_silent, fake_target_drain(t))
PLANT(go_deaf, fake_target_go_deaf(t))
PLANT(http, vmf_channel_write_all(t->main, "HTTP/1.1 400 Bad Request\r\n\r\n", 28, NULL))
PLANT(oversized, const uint32_t header[4] = {VMF_RECORD_READY, VMF_RECORD_BODY_MAX + 1, VMF_RECORD_BODY_MAX + 1, 0};
      vmf_channel_write_all(t->main, header, 16, NULL))
PLANT(wrong_crc, const uint32_t header[4] = {VMF_RECORD_PONG, 0, 0, 1}; vmf_channel_write_all(t->main, header, 16, NULL))
PLANT(unknown, vmf_record_write(t->writer, 0x55, "what?", 5, NULL))
PLANT(unknown_optional, vmf_record_write(t->writer, 0x80000055u, "later", 5, NULL))
PLANT(a_request, vmf_record_write(t->writer, VMF_RECORD_PING, "12345678", 8, NULL))
PLANT(static_data, vmf_record_write(t->writer, VMF_RECORD_STATIC_DATA_END, NULL, 0, NULL))
PLANT(pong_short, vmf_record_write(t->writer, VMF_RECORD_PONG, "short", 5, NULL))
PLANT(pong_from_the_future, vmf_u64_send(t->writer, VMF_RECORD_PONG, UINT64_MAX, NULL))
PLANT(half_a_record, const uint32_t header[4] = {VMF_RECORD_READY, 64, 64, 0}; vmf_channel_write_all(t->main, header, 16, NULL);
      hang_up(t))

static void complain(FakeTarget *t, uint32_t type, const uint8_t *token)
{
    GError *why = g_error_new(VMF_ERROR, VMF_ERROR_RAM_SUM, "it does not look right");

    vmf_complaint_send(t->writer, type, token, why, NULL);
    g_error_free(why);
}
PLANT(failed, complain(t, VMF_RECORD_FAILED, NULL))

/* ---- ahead of and at the verdict ------------------------------------------------------------------------------------------- */

static void verdict(FakeTarget *t, bool accepted, uint64_t features, uint32_t page_channels)
{
    char *texts[] = {(char *)"ram.size: block ram: here 1, there 2", NULL};
    VmfVerdict message = {.accepted = accepted, .features = features, .page_channels = page_channels, .texts = accepted ? NULL : texts};

    vmf_verdict_send(t->writer, &message, NULL);
}
PLANT(refused_verdict, verdict(t, false, 0, 0))
PLANT(verdict_without_features, verdict(t, true, 0, 0))
PLANT(verdict_again, verdict(t, true, 0, 0))
PLANT(verdict_short, vmf_record_write(t->writer, VMF_RECORD_VERDICT, "short", 5, NULL))
PLANT(verdict_of_two, const uint32_t words[6] = {2}; vmf_record_write(t->writer, VMF_RECORD_VERDICT, words, 24, NULL))

/* ---- acknowledgements ------------------------------------------------------------------------------------------------------ */

static void acknowledge(FakeTarget *t, VmfAck ack, VmfAckEntry entry)
{
    vmf_ack_send(t->page_writer ? t->page_writer : t->writer, &ack, &entry, NULL);
}
PLANT(ack_ahead, acknowledge(t, (VmfAck){1, 0, UINT64_C(1) << 40, 0}, (VmfAckEntry){0}))
PLANT(ack_max, acknowledge(t, (VmfAck){1, 0, UINT64_MAX, 0}, (VmfAckEntry){0}))
PLANT(ack_back, acknowledge(t, (VmfAck){1, 0, t->receiver.sequence, 0}, (VmfAckEntry){0});
      acknowledge(t, (VmfAck){1, 0, t->receiver.sequence - 1, 0}, (VmfAckEntry){0}))
PLANT(ack_epoch, acknowledge(t, (VmfAck){2, 0, 0, 0}, (VmfAckEntry){0}))
PLANT(ack_channel, acknowledge(t, (VmfAck){1, 1, 0, 0}, (VmfAckEntry){0}))
PLANT(ack_channel_max, acknowledge(t, (VmfAck){1, UINT32_MAX, 0, 0}, (VmfAckEntry){0}))
PLANT(ack_block, acknowledge(t, (VmfAck){1, 0, t->receiver.sequence, 1}, (VmfAckEntry){UINT32_MAX, 0, 0}))
PLANT(ack_chunk, acknowledge(t, (VmfAck){1, 0, t->receiver.sequence, 1}, (VmfAckEntry){0, UINT64_MAX, 0}))
PLANT(ack_short, vmf_record_write(t->writer, VMF_RECORD_ACK, "short", 5, NULL))
PLANT(wrong_sums, t->damage = true)
PLANT(join_ahead, acknowledge(t, (VmfAck){1, 0, 1, 0}, (VmfAckEntry){0}))
PLANT(join_other, vmf_record_write(t->page_writer, VMF_RECORD_READY, NULL, 0, NULL))
PLANT(join_hang_up, vmf_channel_shutdown(t->page))
PLANT(join_failed, failed(t); vmf_channel_shutdown(t->page))

/* ---- the handover ---------------------------------------------------------------------------------------------------------- */

static void early(FakeTarget *t, uint32_t type)
{
    if (type == VMF_RECORD_REFUSED || type == VMF_RECORD_NEVER)
        complain(t, type, other_token);
    else
        vmf_token_send(t->writer, type, other_token, NULL);
}
PLANT(early_ready, early(t, VMF_RECORD_READY))
PLANT(early_refused, early(t, VMF_RECORD_REFUSED))
PLANT(early_running, early(t, VMF_RECORD_RUNNING))
PLANT(early_never, early(t, VMF_RECORD_NEVER))
PLANT(early_report, early(t, VMF_RECORD_REPORT))

PLANT(ready_token, t->ready.token[5] ^= 1)
PLANT(ready_static, t->ready.static_sum++)
PLANT(ready_device, t->ready.device_sum++)
PLANT(ready_ram, t->ready.sums[0]++)
PLANT(ready_rom, t->ready.sums[t->ready.n_blocks - 1]++)
PLANT(ready_blocks, t->ready.n_blocks--)
PLANT(ready_flags, t->ready.flags = 8)
PLANT(ready_unaudited, t->ready.flags = 0)
PLANT(running, vmf_token_send(t->writer, VMF_RECORD_RUNNING, t->token, NULL))
PLANT(running_other, vmf_token_send(t->writer, VMF_RECORD_RUNNING, other_token, NULL))
PLANT(running_short, vmf_record_write(t->writer, VMF_RECORD_RUNNING, "short", 5, NULL))
PLANT(refused, complain(t, VMF_RECORD_REFUSED, t->token))
PLANT(refused_other, complain(t, VMF_RECORD_REFUSED, other_token))
PLANT(refused_short, vmf_record_write(t->writer, VMF_RECORD_REFUSED, "short", 5, NULL))
PLANT(never, complain(t, VMF_RECORD_NEVER, t->token))
PLANT(never_other, complain(t, VMF_RECORD_NEVER, other_token))
PLANT(never_short, vmf_record_write(t->writer, VMF_RECORD_NEVER, "short", 5, NULL))
PLANT(ready_again, vmf_ready_send(t->writer, &t->ready, NULL))
PLANT(a_report, VmfReport report = {.gap_known = true}; memcpy(report.token, t->token, 16); vmf_report_send(t->writer, &report, NULL))
PLANT(report_other, VmfReport report = {.gap_known = true, .guest_gap_ns = 99}; vmf_report_send(t->writer, &report, NULL))

static const Row rows[] = {
    {"hangs up at once", FAKE_CONNECTED, true, hang_up, "channel.cut", BACK, 0},
    {"speaks HTTP", FAKE_CONNECTED, true, http, "stream.record-length", BACK, 0},

    {"no verdict", FAKE_VERDICT, true, hang_up, "channel.cut", BACK, 0},
    {"verdict: refused", FAKE_VERDICT, true, refused_verdict, "static.incompatible", BACK, 0},
    {"verdict: without what is required", FAKE_VERDICT, true, verdict_without_features, "static.feature", BACK, 0},
    {"verdict: short", FAKE_VERDICT, true, verdict_short, "stream.record-body", BACK, 0},
    {"verdict: neither yes nor no", FAKE_VERDICT, true, verdict_of_two, "stream.record-body", BACK, 0},
    {"verdict: twice", FAKE_PAGE_CHANNELS, false, verdict_again, "stream.record-order", BACK, 0},
    {"verdict: oversized", FAKE_VERDICT, true, oversized, "stream.record-length", BACK, 0},
    {"verdict: half", FAKE_VERDICT, true, half_a_record, "channel.cut", BACK, 0},
    {"verdict: wrong CRC", FAKE_VERDICT, true, wrong_crc, "stream.crc", BACK, 0},
    {"verdict: unknown record", FAKE_VERDICT, true, unknown, "stream.record-unknown", BACK, 0},
    {"verdict: READY", FAKE_VERDICT, true, early_ready, "stream.record-order", BACK, 0},
    {"verdict: FAILED", FAKE_VERDICT, true, failed, "peer", BACK, 0},
    {"verdict: a request", FAKE_VERDICT, true, a_request, "stream.record-order", BACK, 0},

    {"page channel: hangs up", FAKE_JOIN, true, join_hang_up, "channel.cut", BACK, 1},
    {"page channel: hangs up and says why", FAKE_JOIN, true, join_failed, "peer", BACK, 1},
    {"page channel: acknowledges ahead", FAKE_JOIN, true, join_ahead, "peer", BACK, 1},
    {"page channel: epoch", FAKE_JOIN, true, ack_epoch, "peer", BACK, 1},
    {"page channel: channel", FAKE_JOIN, true, ack_channel, "peer", BACK, 1},
    {"page channel: no ACK", FAKE_JOIN, true, join_other, "stream.record-order", BACK, 1},

    {"pages: hangs up", FAKE_PAGES, true, hang_up, "channel.cut", BACK, 0},
    {"pages: hangs up sooner", FAKE_PAGE_CHANNELS, true, hang_up, "channel.cut", BACK, 0},
    {"pages: FAILED", FAKE_PAGES, true, failed, "peer", BACK, 0},
    {"pages: FAILED sooner", FAKE_PAGE_CHANNELS, false, failed, "peer", BACK, 0},
    {"pages: garbage", FAKE_PAGES, true, http, "stream.record-length", BACK, 0},
    {"pages: garbage sooner", FAKE_PAGE_CHANNELS, false, http, "stream.record-length", BACK, 0},
    {"pages: wrong CRC", FAKE_PAGES, true, wrong_crc, "stream.crc", BACK, 0},
    {"pages: unknown record", FAKE_PAGES, true, unknown, "stream.record-unknown", BACK, 0},
    {"pages: a request", FAKE_PAGES, true, a_request, "stream.record-order", BACK, 0},
    {"pages: static data", FAKE_PAGES, true, static_data, "stream.record-order", BACK, 0},
    {"pages: short PONG", FAKE_PAGES, true, pong_short, "stream.record-body", BACK, 0},
    {"pages: acknowledges ahead", FAKE_PAGES, true, ack_ahead, "peer", BACK, 0},
    {"pages: acknowledges everything", FAKE_PAGES, true, ack_max, "peer", BACK, 0},
    {"pages: takes an ACK back", FAKE_PAGES, true, ack_back, "peer", BACK, 0},
    {"pages: epoch", FAKE_PAGES, true, ack_epoch, "peer", BACK, 0},
    {"pages: channel", FAKE_PAGES, true, ack_channel, "peer", BACK, 0},
    {"pages: channel ~0", FAKE_PAGES, true, ack_channel_max, "peer", BACK, 0},
    {"pages: block", FAKE_PAGES, true, ack_block, "peer", BACK, 0},
    {"pages: chunk", FAKE_PAGES, true, ack_chunk, "peer", BACK, 0},
    {"pages: short ACK", FAKE_PAGES, true, ack_short, "stream.record-body", BACK, 0},
    {"pages: wrong sums", FAKE_PAGES, false, wrong_sums, "ram.sum", BACK, 0},
    {"pages: READY", FAKE_PAGES, true, early_ready, "stream.record-order", BACK, 0},
    {"pages: REFUSED", FAKE_PAGES, true, early_refused, "stream.record-order", BACK, 0},
    {"pages: RUNNING", FAKE_PAGES, true, early_running, "stream.record-order", BACK, 0},
    {"pages: NEVER", FAKE_PAGES, true, early_never, "stream.record-order", BACK, 0},
    {"pages: REPORT", FAKE_PAGES, true, early_report, "stream.record-order", BACK, 0},

    {"last pages: deaf", FAKE_STANDS, true, go_deaf, "handover.timeout", BACK, 0},
    {"last pages: hangs up", FAKE_STANDS, true, hang_up, "channel.cut", BACK, 0},
    {"last pages: FAILED", FAKE_STANDS, true, failed, "peer", BACK, 0},
    {"last pages: garbage", FAKE_STANDS, true, http, "stream.record-length", BACK, 0},

    {"offer: hangs up", FAKE_SWITCHOVER, true, hang_up, "channel.cut", BACK, 0},
    {"offer: silence", FAKE_SWITCHOVER, true, fall_silent, "handover.timeout", BACK, 0},
    {"offer: garbage", FAKE_SWITCHOVER, true, http, "stream.record-length", BACK, 0},
    {"offer: half an answer", FAKE_SWITCHOVER, true, half_a_record, "channel.cut", BACK, 0},
    {"offer: FAILED", FAKE_SWITCHOVER, true, failed, "peer", BACK, 0},
    {"READY: token", FAKE_SWITCHOVER, false, ready_token, "stream.record-body", BACK, 0},
    {"READY: static sum", FAKE_SWITCHOVER, false, ready_static, "static.sum", BACK, 0},
    {"READY: device sum", FAKE_SWITCHOVER, false, ready_device, "device-state.sum", BACK, 0},
    {"READY: sum of RAM", FAKE_SWITCHOVER, false, ready_ram, "ram.sum", BACK, 0},
    {"READY: sum of the last block", FAKE_SWITCHOVER, false, ready_rom, "ram.sum", BACK, 0},
    {"READY: a block less", FAKE_SWITCHOVER, false, ready_blocks, "stream.record-body", BACK, 0},
    {"READY: flags", FAKE_SWITCHOVER, false, ready_flags, "stream.record-body", BACK, 0},
    {"READY: no audit", FAKE_SWITCHOVER, false, ready_unaudited, "ram.audit", BACK, 0},
    {"offer: RUNNING ahead of RUN", FAKE_SWITCHOVER, true, running, "stream.record-order", BACK, 0},
    {"offer: NEVER ahead of RUN", FAKE_SWITCHOVER, true, never, "stream.record-order", BACK, 0},
    {"offer: REPORT", FAKE_SWITCHOVER, true, a_report, "stream.record-order", BACK, 0},
    {"offer: REFUSED", FAKE_SWITCHOVER, true, refused, "handover.refused", BACK, 0},
    {"offer: REFUSED of another token", FAKE_SWITCHOVER, true, refused_other, "stream.record-body", BACK, 0},
    {"offer: REFUSED, short", FAKE_SWITCHOVER, true, refused_short, "stream.record-body", BACK, 0},

    {"RUN: NEVER", FAKE_RUN, true, never, "handover.refused", BACK, 0},
    {"RUN: NEVER of another token", FAKE_RUN, true, never_other, "handover.held", HELD, 0},
    {"RUN: NEVER, short", FAKE_RUN, true, never_short, "handover.held", HELD, 0},
    {"RUN: RUNNING of another token", FAKE_RUN, true, running_other, "handover.held", HELD, 0},
    {"RUN: RUNNING, short", FAKE_RUN, true, running_short, "handover.held", HELD, 0},
    {"RUN: REFUSED", FAKE_RUN, true, refused, "handover.held", HELD, 0},
    {"RUN: READY again", FAKE_RUN, true, ready_again, "handover.held", HELD, 0},
    {"RUN: REPORT", FAKE_RUN, true, a_report, "handover.held", HELD, 0},
    {"RUN: FAILED", FAKE_RUN, true, failed, "handover.held", HELD, 0},
    {"RUN: garbage", FAKE_RUN, true, http, "handover.held", HELD, 0},
    {"RUN: hangs up", FAKE_RUN, true, hang_up, "handover.held", HELD, 0},
    {"RUN: half an answer", FAKE_RUN, true, half_a_record, "handover.held", HELD, 0},

    {"a good target", FAKE_NOWHERE, false, hang_up, NULL, GONE, 0},
    {"unknown optional: verdict", FAKE_VERDICT, false, unknown_optional, NULL, GONE, 0},
    {"unknown optional: pages", FAKE_PAGES, false, unknown_optional, NULL, GONE, 0},
    {"unknown optional: offer", FAKE_SWITCHOVER, false, unknown_optional, NULL, GONE, 0},
    {"unknown optional: RUN", FAKE_RUN, false, unknown_optional, NULL, GONE, 0},
    {"PONG from the future", FAKE_PAGES, false, pong_from_the_future, NULL, GONE, 0},
    {"ran: hangs up", FAKE_RAN, true, hang_up, NULL, GONE, 0},
    {"ran: garbage", FAKE_RAN, true, http, NULL, GONE, 0},
    {"ran: another's report", FAKE_RAN, true, report_other, NULL, GONE, 0},
    {"ran: FAILED", FAKE_RAN, true, failed, NULL, GONE, 0},
};

/* ---- what is expected ------------------------------------------------------------------------------------------------------ */

static uint64_t beats_of(VmfMachine *machine)
{
    VmfMachineInfo info;

    vmf_machine_get_info(machine, &info);
    assert_int_equal(info.guest_errors, 0);
    return info.beats;
}

static void await_beats(VmfMachine *machine, const char *what)
{
    uint64_t before = beats_of(machine);

    for (unsigned i = 0; beats_of(machine) < before + 3; i++) {
        if (i > 60000)
            fail_msg("%s: the guest does not beat", what);
        g_usleep(1000);
    }
}

static VmfMachine *paced_machine(void)
{
    VmfMachineConfig config = {
        .name = "victim", .memory_bytes = MIB, .dirty_bytes_per_second = 2 * MIB, .set_bytes = MIB / 4, .seed = 3};
    VmfMachine *machine = vmf_machine_new(&config, NULL);

    assert_non_null(machine);
    return machine;
}

static VmfParameters parameters_of(const Row *row)
{
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    parameters.channels = 1;
    parameters.audit = row->plant == ready_unaudited ? VMF_AUDIT_BEFORE : VMF_AUDIT_OFF;
    parameters.downtime_limit_ns = 200 * NS_PER_MS;
    if (row->plant == fall_silent || row->plant == go_deaf)
        parameters.switchover_timeout_ns = 50 * NS_PER_MS;
    /* A chunk that differs is sent again, and found a second time, in later rounds. */
    parameters.minimum_rounds = row->plant == wrong_sums ? 1000000 : 2;
    return parameters;
}

static void check(const Row *row, bool done, const GError *error, const VmfStatistics *statistics, VmfMachine *machine)
{
    static const VmfOutcome outcomes[] = {VMF_OUTCOME_FAILED, VMF_OUTCOME_HELD, VMF_OUTCOME_COMPLETED};

    if (done != (row->end == GONE))
        fail_msg("%s: %s", row->name, done ? "the guest went" : error->message);
    if (!done && strcmp(vmf_error_id(error), row->id) != 0)
        fail_msg("%s: wanted %s, is %s: %s", row->name, row->id, vmf_error_id(error), error->message);
    assert_int_equal(statistics->outcome, outcomes[row->end]);
    assert_int_equal(vmf_machine_is_running(machine), row->end == BACK);
    if (row->plant == wrong_sums)
        assert_int_equal(statistics->chunks_mended, 1);
}

static bool stands(void *machine)
{
    return !vmf_machine_is_running(machine);
}

static void leave_what_is_held(void *opaque, const char *id, const char *text)
{
    VmfSession **session = opaque;

    if (strcmp(id, "handover.held") == 0)
        vmf_session_cancel(*session);
}

static void play(const Row *row, VmfMachine *machine)
{
    static const VmfSessionOps ops = {.size = sizeof(VmfSessionOps), .event = leave_what_is_held};
    VmfParameters parameters = parameters_of(row);
    FakeTarget *target = fake_target_new(row->point == FAKE_STANDS ? 4096 : 0, row->point, row->instead, row->plant);
    VmfStatistics statistics = {.size = sizeof(statistics)};
    g_autoptr(GError) error = NULL;

    target->page_channels = row->page_channels;
    target->stands = stands;
    target->opaque = machine;
    fake_target_start(target);
    g_autoptr(VmfSession) session = NULL;
    session = vmf_session_new_source(vmf_machine_guest(machine), target->connector, &parameters, &ops, &session);
    bool done = vmf_session_run(session, &error);
    vmf_session_get_statistics(session, &statistics);
    if (!fake_target_finish(target))
        fail_msg("%s: it did not come to that", row->name);
    fake_target_free(target);
    check(row, done, error, &statistics, machine);
}

static void test_rows(void **state)
{
    g_autoptr(VmfMachine) machine = paced_machine();

    assert_true(vmf_machine_start(machine, NULL));
    await_beats(machine, "the start");
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        play(&rows[i], machine);
        if (rows[i].end != BACK)
            assert_true(vmf_machine_start(machine, NULL));
        await_beats(machine, rows[i].name);
    }
}

/* ---- silence, and an owner who has had enough ------------------------------------------------------------------------------ */

PLANT(page_silent, fake_target_drain(t))

static const Row silent_rows[] = {
    {"silent at once", FAKE_CONNECTED, true, fall_silent, "cancelled", BACK, 0},
    {"silent on static data", FAKE_VERDICT, true, fall_silent, "cancelled", BACK, 0},
    {"silent on a page channel", FAKE_JOIN, true, page_silent, "cancelled", BACK, 1},
    {"silent on pages", FAKE_PAGES, true, fall_silent, "cancelled", BACK, 0},
    {"deaf to pages", FAKE_PAGES, true, go_deaf, "cancelled", BACK, 0},
};

typedef struct {
    VmfSession *session;
    bool done;
    GError *error;
} Runner;

static void *runner_main(void *opaque)
{
    Runner *runner = opaque;

    runner->done = vmf_session_run(runner->session, &runner->error);
    return NULL;
}

static void cancel_in_silence(const Row *row, VmfMachine *machine)
{
    VmfParameters parameters = parameters_of(row);
    FakeTarget *target = fake_target_new(4096, row->point, row->instead, row->plant);
    Runner runner = {0};
    pthread_t thread;

    target->page_channels = row->page_channels;
    fake_target_start(target);
    runner.session = vmf_session_new_source(vmf_machine_guest(machine), target->connector, &parameters, NULL, NULL);
    pthread_create(&thread, NULL, runner_main, &runner);
    while (!target->planted)
        g_usleep(1000);
    await_beats(machine, row->name); /* it goes on while nobody answers */
    vmf_session_cancel(runner.session);
    pthread_join(thread, NULL);
    fake_target_finish(target);
    fake_target_free(target);
    assert_false(runner.done);
    assert_string_equal(vmf_error_id(runner.error), row->id);
    assert_true(vmf_machine_is_running(machine));
    g_clear_error(&runner.error);
    vmf_session_free(runner.session);
}

/* Nobody cancels: the limit that was asked for ends it. */
static void time_out_in_silence(const Row *row, VmfMachine *machine)
{
    VmfParameters parameters = parameters_of(row);
    FakeTarget *target = fake_target_new(4096, row->point, row->instead, row->plant);
    g_autoptr(GError) error = NULL;

    parameters.timeout_ns = 300 * NS_PER_MS;
    target->page_channels = row->page_channels;
    fake_target_start(target);
    VmfSession *session = vmf_session_new_source(vmf_machine_guest(machine), target->connector, &parameters, NULL, NULL);
    assert_false(vmf_session_run(session, &error));
    fake_target_finish(target);
    fake_target_free(target);
    assert_string_equal(vmf_error_id(error), "channel.timeout");
    assert_non_null(strstr(error->message, "not done in 0.3 s"));
    assert_true(vmf_machine_is_running(machine));
    vmf_session_free(session);
}

static void test_time_out(void **state)
{
    g_autoptr(VmfMachine) machine = paced_machine();

    assert_true(vmf_machine_start(machine, NULL));
    for (size_t i = 0; i < G_N_ELEMENTS(silent_rows); i++) {
        time_out_in_silence(&silent_rows[i], machine);
        await_beats(machine, silent_rows[i].name);
    }
}

static void test_silence(void **state)
{
    g_autoptr(VmfMachine) machine = paced_machine();

    assert_true(vmf_machine_start(machine, NULL));
    for (size_t i = 0; i < G_N_ELEMENTS(silent_rows); i++) {
        cancel_in_silence(&silent_rows[i], machine);
        await_beats(machine, silent_rows[i].name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_silence),
        cmocka_unit_test(test_time_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
