/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Counting, limiting and damaging what goes through a channel. */
#include "stream/channel-wait.h"
#include "stream/filter-rate.h"
#include "stream/filter-pass.h"

#include <inttypes.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define MS INT64_C(1000000)
#define S (1000 * MS)
#define HOUR (3600 * S)
#define FOR_EVER INT64_C(-1)
#define TEXT "0123456789"
#define LENGTH 10

typedef struct {
    VmfChannel *near; /* with the filter */
    VmfChannel *far;
} Ends;

static Ends with_faults(const VmfFault *faults, size_t n)
{
    VmfChannel *a, *b;

    vmf_channel_memory_pair(1024, &a, &b);
    return (Ends){vmf_filter_fault(a, faults, n), b};
}

static void free_ends(Ends ends)
{
    vmf_channel_free(ends.near);
    vmf_channel_free(ends.far);
}

/* The text in three pieces, so that faults fall inside, between and at the edges of them. */
static bool write_text(VmfChannel *channel, GError **error)
{
    static const char text[] = TEXT;
    struct iovec iov[] = {{(char *)text, 3}, {NULL, 0}, {(char *)text + 3, 1}, {(char *)text + 4, 6}};
    bool written = vmf_channel_writev_all(channel, iov, G_N_ELEMENTS(iov), error);

    assert_string_equal(text, TEXT);
    return written;
}

static bool read_text(VmfChannel *channel, char *text, size_t length, GError **error)
{
    struct iovec iov[] = {{text, MIN(length, 2)}, {text + 2, length > 2 ? length - 2 : 0}};

    memset(text, 0, LENGTH + 1);
    return vmf_channel_readv_all(channel, iov, G_N_ELEMENTS(iov), error);
}

/* ---- counting --------------------------------------------------------------------------------------------------- */

static void bytes_are_counted_each_way(void **state)
{
    VmfChannel *a, *b;
    char text[LENGTH + 1];

    vmf_channel_memory_pair(4, &a, &b);
    a = vmf_filter_count(a);
    assert_true(vmf_channel_write_all(a, "abc", 3, NULL));
    assert_true(vmf_channel_write_all(b, "de", 2, NULL));
    assert_true(read_text(a, text, 2, NULL));
    assert_int_equal(vmf_filter_count_sent(a), 3);
    assert_int_equal(vmf_filter_count_received(a), 2);
    free_ends((Ends){a, b});
}

/* ---- faults ----------------------------------------------------------------------------------------------------- */

static void a_flip_hits_its_byte_alone(void **state)
{
    for (int on_read = 0; on_read <= 1; on_read++)
        for (size_t at = 0; at <= LENGTH; at++) {
            VmfFault fault = {.kind = VMF_FAULT_FLIP, .offset = at, .on_read = on_read};
            Ends ends = with_faults(&fault, 1);
            char text[LENGTH + 1], expected[] = TEXT;

            if (at < LENGTH)
                expected[at] ^= 0xff;
            assert_true(write_text(on_read ? ends.far : ends.near, NULL));
            assert_true(read_text(on_read ? ends.near : ends.far, text, LENGTH, NULL));
            assert_memory_equal(text, expected, LENGTH);
            /* The other direction is whole. */
            assert_true(write_text(on_read ? ends.near : ends.far, NULL));
            assert_true(read_text(on_read ? ends.far : ends.near, text, LENGTH, NULL));
            assert_string_equal(text, TEXT);
            free_ends(ends);
        }
}

static void each_fault_happens_once(void **state)
{
    const VmfFault faults[] = {{VMF_FAULT_FLIP, false, LENGTH + 2, 0},
                               {VMF_FAULT_FLIP, false, 2, 0},
                               {VMF_FAULT_FLIP, false, 3, 0},
                               {VMF_FAULT_FLIP, false, 7, 0},
                               {VMF_FAULT_FLIP, false, 7, 0}};
    static const char *const expected[] = {"01\xcd\xcc"
                                           "456789",
                                           "01\xcd"
                                           "3456789",
                                           TEXT};
    Ends ends = with_faults(faults, G_N_ELEMENTS(faults));
    char text[LENGTH + 1];

    for (size_t i = 0; i < G_N_ELEMENTS(expected); i++) {
        assert_true(write_text(ends.near, NULL));
        assert_true(read_text(ends.far, text, LENGTH, NULL));
        assert_string_equal(text, expected[i]);
    }
    free_ends(ends);
}

static void a_cut_lets_through_what_was_before(void **state)
{
    for (size_t at = 0; at < LENGTH; at++) {
        VmfFault fault = {.kind = VMF_FAULT_CUT, .offset = at};
        Ends ends = with_faults(&fault, 1);
        g_autoptr(GError) error = NULL;
        char text[LENGTH + 1];
        bool ended;

        assert_false(write_text(ends.near, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
        g_clear_error(&error);
        assert_false(vmf_channel_write_all(ends.near, "x", 1, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
        assert_true(read_text(ends.far, text, at, NULL));
        assert_memory_equal(text, TEXT, at);
        assert_true(vmf_channel_read_all_or_end(ends.far, text, 1, &ended, NULL));
        assert_true(ended);
        assert_true(vmf_channel_read_all_or_end(ends.near, text, 1, &ended, NULL));
        assert_true(ended);
        free_ends(ends);
    }
}

static void a_cut_of_the_reader_ends_its_stream(void **state)
{
    VmfFault fault = {.kind = VMF_FAULT_CUT, .offset = 4, .on_read = true};
    Ends ends = with_faults(&fault, 1);
    g_autoptr(GError) error = NULL;
    char text[LENGTH + 1];

    assert_true(write_text(ends.far, NULL));
    assert_false(read_text(ends.near, text, LENGTH, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
    assert_non_null(strstr(error->message, "4 of 10"));
    assert_string_equal(text, "0123");
    assert_int_equal(vmf_channel_wait_readable(ends.near, FOR_EVER, NULL), 1);
    assert_false(vmf_channel_write_all(ends.near, "x", 1, NULL));
    assert_false(vmf_channel_write_all(ends.far, "x", 1, NULL));
    free_ends(ends);
}

static void silence_swallows_and_never_fails(void **state)
{
    VmfFault fault = {.kind = VMF_FAULT_SILENCE, .offset = 4};
    Ends ends = with_faults(&fault, 1);
    char text[LENGTH + 1];

    for (int i = 0; i < 1000; i++) /* far more than the channel holds */
        assert_true(write_text(ends.near, NULL));
    assert_true(read_text(ends.far, text, 4, NULL));
    assert_string_equal(text, "0123");
    assert_int_equal(vmf_channel_wait_readable(ends.far, MS, NULL), 0);
    free_ends(ends);
}

static void *read_one(void *channel)
{
    bool ended = false;
    char buf;

    return GINT_TO_POINTER(vmf_channel_read_all_or_end(channel, &buf, 1, &ended, NULL) && ended);
}

/* Even though the bytes are there, and even when the peer is gone: a dead link shows neither. */
static void a_silent_reader_waits_until_shutdown(void **state)
{
    VmfFault fault = {.kind = VMF_FAULT_SILENCE, .offset = 4, .on_read = true};
    Ends ends = with_faults(&fault, 1);
    g_autoptr(GError) error = NULL;
    char text[LENGTH + 1];
    pthread_t reader;
    void *ended;

    assert_true(write_text(ends.far, NULL));
    assert_true(read_text(ends.near, text, 4, NULL));
    vmf_channel_shutdown(ends.far);
    assert_int_equal(vmf_channel_wait_readable(ends.near, MS, NULL), 0);
    assert_false(vmf_channel_read_all_deadline(ends.near, text, 1, vmf_deadline_after(MS), &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT));

    pthread_create(&reader, NULL, read_one, ends.near);
    g_usleep(2000);
    vmf_channel_shutdown(ends.near);
    pthread_join(reader, &ended);
    assert_true(GPOINTER_TO_INT(ended));
    assert_int_equal(vmf_channel_wait_readable(ends.near, FOR_EVER, NULL), 1);
    assert_false(vmf_channel_write_all(ends.near, "x", 1, NULL));
    free_ends(ends);
}

static void a_delay_holds_back_its_byte(void **state)
{
    VmfFault fault = {.kind = VMF_FAULT_DELAY, .offset = 4, .delay_ns = 20 * MS};
    Ends ends = with_faults(&fault, 1);
    int64_t before = vmf_now_ns();
    char text[LENGTH + 1];

    assert_true(write_text(ends.near, NULL));
    assert_true(vmf_now_ns() - before >= 20 * MS);
    assert_true(read_text(ends.far, text, LENGTH, NULL));
    assert_string_equal(text, TEXT);
    free_ends(ends);
}

static void a_delayed_byte_is_not_readable_yet(void **state)
{
    VmfFault fault = {.kind = VMF_FAULT_DELAY, .offset = 4, .delay_ns = HOUR, .on_read = true};
    Ends ends = with_faults(&fault, 1);
    g_autoptr(GError) error = NULL;
    char text[LENGTH + 1];

    assert_true(write_text(ends.far, NULL));
    assert_false(vmf_channel_read_all_deadline(ends.near, text, LENGTH, vmf_deadline_after(5 * MS), &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_TIMEOUT));
    assert_non_null(strstr(error->message, "4 of 10"));
    assert_memory_equal(text, "0123", 4);
    free_ends(ends);
}

/* The delay runs from when its byte was first asked for, however often it is asked for. */
static void a_delay_ends(void **state)
{
    VmfFault fault = {.kind = VMF_FAULT_DELAY, .offset = 0, .delay_ns = 3 * MS, .on_read = true};
    Ends ends = with_faults(&fault, 1);
    char text[LENGTH + 1];

    assert_true(write_text(ends.far, NULL));
    while (vmf_channel_wait_readable(ends.near, MS / 2, NULL) == 0)
        continue;
    assert_true(read_text(ends.near, text, LENGTH, NULL));
    assert_string_equal(text, TEXT);
    free_ends(ends);
}

static void *write_x(void *channel)
{
    GError *error = NULL;

    assert_false(vmf_channel_write_all(channel, "x", 1, &error));
    return error;
}

static void shutdown_ends_a_delay(void **state)
{
    const VmfFault faults[] = {{VMF_FAULT_DELAY, false, 0, HOUR}, {VMF_FAULT_DELAY, true, 0, HOUR}};
    Ends ends = with_faults(faults, G_N_ELEMENTS(faults));
    g_autoptr(GError) error = NULL;
    pthread_t writer, reader;
    void *result, *ended;

    pthread_create(&writer, NULL, write_x, ends.near);
    pthread_create(&reader, NULL, read_one, ends.near);
    g_usleep(2000);
    vmf_channel_shutdown(ends.near);
    pthread_join(writer, &result);
    pthread_join(reader, &ended);
    error = result;
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
    assert_true(GPOINTER_TO_INT(ended));
    free_ends(ends);
}

static void filters_stack(void **state)
{
    const VmfFault flip = {VMF_FAULT_FLIP, false, 5, 0}, back = {VMF_FAULT_FLIP, true, 5, 0};
    g_autoptr(VmfRateLimit) limit = vmf_rate_limit_new(0);
    VmfChannel *a, *b;
    char text[LENGTH + 1];

    vmf_channel_memory_pair(0, &a, &b);
    a = vmf_filter_count(vmf_filter_rate(vmf_filter_fault(a, &flip, 1), limit));
    b = vmf_filter_fault(vmf_filter_count(b), &back, 1);
    assert_true(write_text(a, NULL));
    assert_true(read_text(b, text, LENGTH, NULL));
    assert_string_equal(text, TEXT);
    assert_int_equal(vmf_filter_count_sent(a), LENGTH);
    assert_string_equal(vmf_channel_name(a), "memory");
    free_ends((Ends){a, b});
}

/* ---- the arithmetic of a limit, on a clock of our own ----------------------------------------------------------- */

static VmfTokenBucket bucket_at(uint64_t rate)
{
    VmfTokenBucket bucket = {0};

    vmf_token_bucket_set_rate(&bucket, rate, 0);
    return bucket;
}

/* What a writer of @want at a time gets from @from_ns to @until_ns. */
static uint64_t drain(VmfTokenBucket *bucket, uint64_t want, int64_t from_ns, int64_t until_ns)
{
    uint64_t total = 0;
    int64_t now = from_ns, ready = 0;

    while (now <= until_ns) {
        uint64_t taken = vmf_token_bucket_take(bucket, want, now, &ready);

        assert_true(taken <= want);
        assert_true(taken > 0 || ready > now);
        total += taken;
        now = taken > 0 ? now : ready;
    }
    return total;
}

static void a_rate_is_kept_over_any_time(void **state)
{
    static const uint64_t rates[] = {1000, 65536, 1000003, 1250000000, 50000000000};
    static const uint64_t wants[] = {1, 100, 4096, 512 * 1024, 1 << 30};

    for (size_t r = 0; r < G_N_ELEMENTS(rates); r++)
        for (size_t w = 0; w < G_N_ELEMENTS(wants); w++) {
            VmfTokenBucket bucket = bucket_at(rates[r]);
            /* Bounded steps: at most about 100,000 takes. */
            int64_t span = (int64_t)MIN(1e9, 1e14 * wants[w] / rates[r]);
            uint64_t sent = drain(&bucket, wants[w], 0, span);
            uint64_t fair = (uint64_t)((double)rates[r] * span / 1e9);

            if (sent > fair + 1 || sent + bucket.burst + 1 < fair)
                fail_msg("%" PRIu64 " bytes a second in pieces of %" PRIu64 ": %" PRIu64 " bytes, not %" PRIu64,
                         rates[r], wants[w], sent, fair);
        }
}

static void an_idle_limit_saves_up_little(void **state)
{
    VmfTokenBucket bucket = bucket_at(100 * 1000 * 1000);
    int64_t ready = 0;

    assert_int_equal(bucket.burst, 500 * 1000);
    assert_int_equal(vmf_token_bucket_take(&bucket, UINT64_MAX, HOUR, &ready), bucket.burst);
    assert_int_equal(vmf_token_bucket_take(&bucket, 1, HOUR, &ready), 0);
}

/* A tenth of a byte is earned between two looks. */
static void looking_often_loses_nothing(void **state)
{
    VmfTokenBucket bucket = bucket_at(1000);
    int64_t ready = 0;
    uint64_t sent = 0;

    for (int64_t now = 0; now <= S; now += MS / 10)
        sent += vmf_token_bucket_take(&bucket, 1, now, &ready);
    assert_int_equal(sent, 1000);
}

static void time_that_goes_back_earns_nothing(void **state)
{
    VmfTokenBucket bucket = bucket_at(1000 * 1000);
    int64_t ready = 0;

    assert_true(vmf_token_bucket_take(&bucket, 1 << 20, S, &ready) > 0);
    assert_int_equal(vmf_token_bucket_take(&bucket, 1, S - MS, &ready), 0);
    assert_true(ready > S - MS);
}

static void a_changed_rate_counts_from_now_on(void **state)
{
    VmfTokenBucket bucket = bucket_at(1000);
    uint64_t sent;

    drain(&bucket, 1 << 20, 0, S);
    vmf_token_bucket_set_rate(&bucket, 10 * 1000 * 1000, S);
    sent = drain(&bucket, 1 << 20, S, 2 * S);
    assert_in_range(sent, 10 * 1000 * 1000 - bucket.burst - 512, 10 * 1000 * 1000 + 512);
    vmf_token_bucket_set_rate(&bucket, 1000 * 1000, 2 * S);
    sent = drain(&bucket, 1 << 20, 2 * S, 3 * S);
    assert_in_range(sent, 1000 * 1000 - bucket.burst, 1000 * 1000 + bucket.burst);
}

static void without_a_rate_everything_passes(void **state)
{
    VmfTokenBucket bucket = bucket_at(0);
    int64_t ready = 0;

    assert_true(vmf_token_bucket_take(&bucket, UINT64_MAX, 0, &ready) == UINT64_MAX);
    vmf_token_bucket_set_rate(&bucket, 1000, HOUR);
    assert_int_equal(vmf_token_bucket_take(&bucket, 1, HOUR, &ready), 0);
    vmf_token_bucket_set_rate(&bucket, UINT64_MAX, HOUR);
    assert_true(vmf_token_bucket_take(&bucket, 1 << 20, HOUR + MS, &ready) == 1 << 20);
}

static void what_was_not_sent_is_given_back(void **state)
{
    VmfTokenBucket bucket = bucket_at(1000 * 1000);
    int64_t ready = 0;
    uint64_t taken = vmf_token_bucket_take(&bucket, 4000, S, &ready);

    vmf_token_bucket_return(&bucket, taken);
    assert_int_equal(vmf_token_bucket_take(&bucket, taken, S, &ready), taken);
    vmf_token_bucket_return(&bucket, UINT32_MAX);
    assert_int_equal(bucket.level, bucket.burst);
}

/* ---- limits on channels ----------------------------------------------------------------------------------------- */

#define CHANNELS 4
#define BYTES_EACH (64 * 1024)

static void *write_much(void *channel)
{
    g_autofree char *data = g_malloc0(BYTES_EACH);

    return GINT_TO_POINTER(vmf_channel_write_all(channel, data, BYTES_EACH, NULL));
}

/* The lower bound of time is what a limit promises; there is no upper one to be timed. */
static void channels_share_a_limit(void **state)
{
    const uint64_t rate = 8 * 1024 * 1024;
    g_autoptr(VmfRateLimit) limit = vmf_rate_limit_new(rate);
    VmfChannel *near[CHANNELS], *far[CHANNELS];
    pthread_t threads[CHANNELS];
    int64_t before = vmf_now_ns(), least = (int64_t)CHANNELS * BYTES_EACH * S / (int64_t)rate - 6 * MS;

    for (int i = 0; i < CHANNELS; i++) {
        vmf_channel_memory_pair(BYTES_EACH, &near[i], &far[i]);
        near[i] = vmf_filter_rate(near[i], limit);
        pthread_create(&threads[i], NULL, write_much, near[i]);
    }
    for (int i = 0; i < CHANNELS; i++) {
        void *written;

        pthread_join(threads[i], &written);
        assert_true(GPOINTER_TO_INT(written));
    }
    assert_true(vmf_now_ns() - before >= least);
    for (int i = 0; i < CHANNELS; i++)
        free_ends((Ends){near[i], far[i]});
}

/* At this rate the write would take a day: only the change can let it end. */
static void a_changed_limit_takes_effect_at_once(void **state)
{
    g_autoptr(VmfRateLimit) limit = vmf_rate_limit_new(1);
    VmfChannel *near, *far;
    pthread_t thread;
    void *written;

    vmf_channel_memory_pair(BYTES_EACH, &near, &far);
    near = vmf_filter_rate(near, limit);
    pthread_create(&thread, NULL, write_much, near);
    g_usleep(2000);
    vmf_rate_limit_set(limit, 0);
    pthread_join(thread, &written);
    assert_true(GPOINTER_TO_INT(written));
    free_ends((Ends){near, far});
}

static void shutdown_wakes_who_waits_for_a_limit(void **state)
{
    g_autoptr(VmfRateLimit) limit = vmf_rate_limit_new(1);
    VmfChannel *near[2], *far[2];
    pthread_t threads[2];

    for (int i = 0; i < 2; i++) {
        vmf_channel_memory_pair(0, &near[i], &far[i]);
        near[i] = vmf_filter_rate(near[i], limit);
        pthread_create(&threads[i], NULL, write_x, near[i]);
    }
    g_usleep(2000);
    for (int i = 0; i < 2; i++) {
        g_autoptr(GError) error = NULL;
        void *result;

        vmf_channel_shutdown(near[i]);
        pthread_join(threads[i], &result);
        error = result;
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
        free_ends((Ends){near[i], far[i]});
    }
}

static void a_limit_outlives_its_maker(void **state)
{
    VmfRateLimit *limit = vmf_rate_limit_new(1000 * 1000);
    VmfChannel *near, *far;

    vmf_channel_memory_pair(0, &near, &far);
    near = vmf_filter_rate(near, limit);
    vmf_rate_limit_unref(vmf_rate_limit_ref(limit));
    vmf_rate_limit_unref(limit);
    vmf_rate_limit_unref(NULL);
    assert_true(vmf_channel_write_all(near, "x", 1, NULL));
    free_ends((Ends){near, far});
}

/* ---- a link that fails ------------------------------------------------------------------------------------------ */

typedef struct {
    VmfLink *link;
    Ends old, later;
} LinkRig;

static Ends over(VmfLink *link)
{
    VmfChannel *a, *b;

    vmf_channel_memory_pair(1024, &a, &b);
    return (Ends){vmf_filter_link(a, link), b};
}

/* @later is added once the link has failed for channels of the next @for_ns. */
static LinkRig failed_link(VmfLinkFailure how, int64_t for_ns)
{
    LinkRig rig = {.link = vmf_link_new()};

    rig.old = over(rig.link);
    vmf_link_fail(rig.link, how, for_ns);
    rig.later = over(rig.link);
    return rig;
}

static void free_rig(LinkRig *rig)
{
    free_ends(rig->old);
    free_ends(rig->later);
    vmf_link_unref(rig->link);
}

static void assert_passes(Ends ends)
{
    char text[LENGTH + 1];

    assert_true(write_text(ends.near, NULL));
    assert_true(read_text(ends.far, text, LENGTH, NULL));
    assert_string_equal(text, TEXT);
}

static void assert_cut(Ends ends)
{
    g_autoptr(GError) error = NULL;
    char text[LENGTH + 1];

    assert_false(write_text(ends.near, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
    g_clear_error(&error);
    assert_false(read_text(ends.near, text, 1, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
    assert_false(read_text(ends.far, text, 1, NULL));
}

static void assert_silent(Ends ends)
{
    assert_true(write_text(ends.near, NULL));
    assert_true(write_text(ends.far, NULL));
    assert_int_equal(vmf_channel_wait_readable(ends.near, MS, NULL), 0);
    assert_int_equal(vmf_channel_wait_readable(ends.far, MS, NULL), 0);
}

static void a_link_that_is_whole_lets_all_pass(void **state)
{
    g_autoptr(VmfLink) link = vmf_link_new();
    Ends ends = over(link);

    assert_passes(ends);
    assert_passes((Ends){ends.far, ends.near});
    free_ends(ends);
}

static void a_cut_link_ends_what_there_is(void **state)
{
    LinkRig rig = failed_link(VMF_LINK_CUT, 0);

    assert_cut(rig.old);
    assert_passes(rig.later);
    free_rig(&rig);
}

static void a_link_that_stays_cut_ends_what_comes(void **state)
{
    LinkRig rig = failed_link(VMF_LINK_CUT, FOR_EVER);

    assert_cut(rig.old);
    assert_cut(rig.later);
    free_rig(&rig);
}

static void a_silent_link_swallows_both_ways(void **state)
{
    LinkRig rig = failed_link(VMF_LINK_SILENT, HOUR);

    assert_silent(rig.old);
    assert_silent(rig.later);
    vmf_channel_shutdown(rig.old.near);
    assert_int_equal(vmf_channel_wait_readable(rig.old.near, FOR_EVER, NULL), 1);
    free_rig(&rig);
}

static void *read_a_byte(void *channel)
{
    char byte;

    return vmf_channel_read_all(channel, &byte, 1, NULL) ? channel : NULL;
}

static void a_link_fails_under_its_readers(void **state)
{
    for (unsigned how = VMF_LINK_CUT; how <= VMF_LINK_SILENT; how++) {
        g_autoptr(VmfLink) link = vmf_link_new();
        Ends ends = over(link);
        pthread_t reader;
        void *got;

        assert_int_equal(pthread_create(&reader, NULL, read_a_byte, ends.near), 0);
        vmf_link_fail(link, how, 0);
        vmf_channel_write_all(ends.far, "x", 1, NULL);
        if (how == VMF_LINK_SILENT)
            vmf_channel_shutdown(ends.near);
        assert_int_equal(pthread_join(reader, &got), 0);
        assert_null(got);
        free_ends(ends);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_are_counted_each_way),
        cmocka_unit_test(a_flip_hits_its_byte_alone),
        cmocka_unit_test(each_fault_happens_once),
        cmocka_unit_test(a_cut_lets_through_what_was_before),
        cmocka_unit_test(a_cut_of_the_reader_ends_its_stream),
        cmocka_unit_test(silence_swallows_and_never_fails),
        cmocka_unit_test(a_silent_reader_waits_until_shutdown),
        cmocka_unit_test(a_delay_holds_back_its_byte),
        cmocka_unit_test(a_delayed_byte_is_not_readable_yet),
        cmocka_unit_test(a_delay_ends),
        cmocka_unit_test(shutdown_ends_a_delay),
        cmocka_unit_test(filters_stack),
        cmocka_unit_test(a_rate_is_kept_over_any_time),
        cmocka_unit_test(an_idle_limit_saves_up_little),
        cmocka_unit_test(looking_often_loses_nothing),
        cmocka_unit_test(time_that_goes_back_earns_nothing),
        cmocka_unit_test(a_changed_rate_counts_from_now_on),
        cmocka_unit_test(without_a_rate_everything_passes),
        cmocka_unit_test(what_was_not_sent_is_given_back),
        cmocka_unit_test(channels_share_a_limit),
        cmocka_unit_test(a_changed_limit_takes_effect_at_once),
        cmocka_unit_test(shutdown_wakes_who_waits_for_a_limit),
        cmocka_unit_test(a_limit_outlives_its_maker),
        cmocka_unit_test(a_link_that_is_whole_lets_all_pass),
        cmocka_unit_test(a_cut_link_ends_what_there_is),
        cmocka_unit_test(a_link_that_stays_cut_ends_what_comes),
        cmocka_unit_test(a_silent_link_swallows_both_ways),
        cmocka_unit_test(a_link_fails_under_its_readers),
    };

    return cmocka_run_group_tests_name("filter", tests, NULL, NULL);
}
