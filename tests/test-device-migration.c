/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guests whose devices are described by tables of different age, and owners with handlers of their own, in whole
 * migrations: what loads both ways does, what does not is refused by name, before anything moved where the static data
 * can tell.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <stdatomic.h>

#include <vmferry/error.h>

#include "tests/world.h"

#define RAM_PAGES 64

/* ---- a device, as three releases of it describe it ------------------------------------------------------------- */

typedef struct {
    uint32_t period;
    uint64_t compare;
    uint16_t lines[4];
    uint32_t skew;  /* since version 2 */
    uint32_t rate;  /* subsection "rate": mandatory, sent when it is not the default */
    uint8_t colour; /* subsection "colour": optional, always sent */
} Timer;

#define DEFAULT_SKEW 100
#define DEFAULT_RATE 50
#define DEFAULT_COLOUR 3

static void timer_defaults(void *device)
{
    Timer *timer = device;

    timer->skew = DEFAULT_SKEW;
    timer->rate = DEFAULT_RATE;
    timer->colour = DEFAULT_COLOUR;
}

static bool timer_check(void *device, GError **error)
{
    if (((Timer *)device)->period != 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "period 0");
    return false;
}

static bool rate_needed(const void *device)
{
    return ((const Timer *)device)->rate != DEFAULT_RATE;
}

#define OLD_FIELDS                                                                                                     \
    VMF_FIELD(Timer, period, VMF_FIELD_U32, 1), VMF_FIELD(Timer, compare, VMF_FIELD_U64, 1),                           \
        VMF_FIELD_ARRAY(Timer, lines, VMF_FIELD_U16, 1)
static const VmfField old_fields[] = {OLD_FIELDS, VMF_FIELD_END};
static const VmfField new_fields[] = {OLD_FIELDS, VMF_FIELD(Timer, skew, VMF_FIELD_U32, 2), VMF_FIELD_END};
static const VmfField rate_fields[] = {VMF_FIELD(Timer, rate, VMF_FIELD_U32, 1), VMF_FIELD_END};
static const VmfField colour_fields[] = {VMF_FIELD(Timer, colour, VMF_FIELD_U8, 1), VMF_FIELD_END};
static const VmfSubsection subsections[] = {{"rate", 1, 1, false, rate_needed, rate_fields},
                                            {"colour", 1, 1, true, NULL, colour_fields},
                                            {NULL, 0, 0, false, NULL, NULL}};

/* The first release. */
static const VmfDeviceState old_timer = {.size = sizeof(VmfDeviceState),
                                         .name = "timer",
                                         .version = 1,
                                         .minimum_version = 1,
                                         .fields = old_fields,
                                         .pre_load = timer_defaults,
                                         .post_load = timer_check};
/* The second has subsections: the version stays. */
static const VmfDeviceState mid_timer = {.size = sizeof(VmfDeviceState),
                                         .name = "timer",
                                         .version = 1,
                                         .minimum_version = 1,
                                         .fields = old_fields,
                                         .subsections = subsections,
                                         .pre_load = timer_defaults,
                                         .post_load = timer_check};
/* The third has a field more. */
static const VmfDeviceState new_timer = {.size = sizeof(VmfDeviceState),
                                         .name = "timer",
                                         .version = 2,
                                         .minimum_version = 1,
                                         .fields = new_fields,
                                         .subsections = subsections,
                                         .pre_load = timer_defaults,
                                         .post_load = timer_check};
/* The fourth dropped what the first wrote. */
static const VmfDeviceState newest_timer = {.size = sizeof(VmfDeviceState),
                                            .name = "timer",
                                            .version = 3,
                                            .minimum_version = 2,
                                            .fields = new_fields,
                                            .subsections = subsections,
                                            .pre_load = timer_defaults,
                                            .post_load = timer_check};

/* ---- a guest without a vCPU ------------------------------------------------------------------------------------ */

typedef struct {
    VmfGuest *guest;
    VmfRamBlock *ram;
    Timer timer;
    GByteArray *blob; /* of the handlers "blob" */
    unsigned blob_parts;
    bool blob_done;
    bool running;
    unsigned n_stops, n_starts;
} Plain;

static bool plain_stop(void *opaque, GError **error)
{
    ((Plain *)opaque)->running = false;
    ((Plain *)opaque)->n_stops++;
    return true;
}

static bool plain_start(void *opaque, GError **error)
{
    ((Plain *)opaque)->running = true;
    ((Plain *)opaque)->n_starts++;
    return true;
}

static bool plain_is_running(void *opaque)
{
    return ((Plain *)opaque)->running;
}

static const VmfGuestOps plain_ops = {
    .size = sizeof(VmfGuestOps), .stop = plain_stop, .start = plain_start, .is_running = plain_is_running};

/* Nothing writes this guest's memory, so its log has nothing to say. */
static bool log_start(void *opaque, GError **error)
{
    return true;
}

static void log_stop(void *opaque)
{
}

static bool log_harvest(void *opaque, unsigned block,
                        void (*report)(void *report_opaque, uint64_t first_word, const uint64_t *words, size_t n_words),
                        void *report_opaque, GError **error)
{
    return true;
}

static void log_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
}

static const VmfDirtyLogOps log_ops = {.size = sizeof(VmfDirtyLogOps),
                                       .name = "none",
                                       .start = log_start,
                                       .stop = log_stop,
                                       .harvest = log_harvest,
                                       .clear = log_clear};

/* @timer NULL: it has none. */
static Plain *plain_new(const VmfDeviceState *timer, bool running)
{
    static const uint8_t uuid[16] = {7};
    Plain *plain = g_new0(Plain, 1);

    plain->guest = vmf_guest_new("plain", uuid, &plain_ops, plain);
    plain->ram = vmf_ram_block_new("ram", RAM_PAGES * 4096, VMF_RAM_ANON, 0, 0, NULL);
    plain->running = running;
    assert_true(vmf_guest_add_ram(plain->guest, plain->ram, NULL, NULL));
    vmf_guest_set_dirty_log(plain->guest, &log_ops, plain);
    if (timer)
        assert_true(vmf_guest_add_device(plain->guest, timer, 0, &plain->timer, NULL));
    if (running) {
        memset(vmf_ram_block_host(plain->ram), 0x5a, RAM_PAGES / 2 * 4096);
        plain->timer = (Timer){1000, UINT64_C(1) << 40, {1, 2, 3, 4}, 7, DEFAULT_RATE, 9};
    }
    return plain;
}

static void plain_free(Plain *plain)
{
    vmf_guest_free(plain->guest);
    if (plain->blob)
        g_byte_array_unref(plain->blob);
    g_free(plain);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Plain, plain_free)

static void assert_moved(const Plain *from, const Plain *to)
{
    assert_false(from->running);
    assert_true(to->running);
    assert_int_equal(from->n_starts, 0);
    assert_int_equal(to->n_starts, 1);
    assert_memory_equal(vmf_ram_block_host(from->ram), vmf_ram_block_host(to->ram), RAM_PAGES * 4096);
}

/* Nothing happened to either: the source runs, the target is as empty as it was. */
static void assert_stayed(const Plain *from, const Plain *to, unsigned n_stops)
{
    static const uint8_t zeros[4096];

    assert_true(from->running);
    assert_int_equal(from->n_stops, n_stops);
    assert_int_equal(from->n_starts, n_stops);
    assert_false(to->running);
    assert_int_equal(to->n_starts, 0);
    for (unsigned page = 0; page < RAM_PAGES; page++)
        assert_memory_equal((uint8_t *)vmf_ram_block_host(to->ram) + page * 4096, zeros, 4096);
}

static void move(Plain *from, Plain *to)
{
    VmfTrip trip;

    vmf_trip_init(&trip);
    if (!vmf_trip_run(&trip, from->guest, to->guest))
        fail_msg("source: %s; target: %s", trip.source_error ? trip.source_error->message : "done",
                 trip.target_error ? trip.target_error->message : "done");
    assert_moved(from, to);
    vmf_trip_clear(&trip);
}

/* The source's words have to contain @words. */
static void fail_to_move(Plain *from, Plain *to, VmfErrorCode code, const char *words)
{
    VmfTrip trip;

    vmf_trip_init(&trip);
    assert_false(vmf_trip_run(&trip, from->guest, to->guest));
    assert_false(trip.source_done);
    assert_false(trip.target_done);
    if (!g_error_matches(trip.source_error, VMF_ERROR, (int)code) || !strstr(trip.source_error->message, words))
        fail_msg("expected error %d with '%s', got: %s", (int)code, words, trip.source_error->message);
    vmf_trip_clear(&trip);
}

/* ---- old and new ----------------------------------------------------------------------------------------------- */

static void assert_old_fields(const Plain *from, const Plain *to)
{
    assert_int_equal(to->timer.period, from->timer.period);
    assert_int_equal(to->timer.compare, from->timer.compare);
    assert_memory_equal(to->timer.lines, from->timer.lines, sizeof(to->timer.lines));
}

static void an_old_stream_loads_into_new_code(void **state)
{
    const VmfDeviceState *newer[] = {&mid_timer, &new_timer};

    for (unsigned i = 0; i < G_N_ELEMENTS(newer); i++) {
        g_autoptr(Plain) a = plain_new(&old_timer, true);
        g_autoptr(Plain) b = plain_new(newer[i], false);
        move(a, b);
        assert_old_fields(a, b);
        assert_int_equal(b->timer.skew, DEFAULT_SKEW);
        assert_int_equal(b->timer.rate, DEFAULT_RATE);
        assert_int_equal(b->timer.colour, DEFAULT_COLOUR);
    }
}

static void a_new_stream_without_the_subsection_loads_into_old_code(void **state)
{
    g_autoptr(Plain) a = plain_new(&mid_timer, true);
    g_autoptr(Plain) b = plain_new(&old_timer, false);

    move(a, b);
    assert_old_fields(a, b);
    assert_int_equal(b->timer.colour, DEFAULT_COLOUR);
}

static void a_subsection_travels_between_equals(void **state)
{
    g_autoptr(Plain) a = plain_new(&new_timer, true);
    g_autoptr(Plain) b = plain_new(&new_timer, false);

    a->timer.rate = 75;
    move(a, b);
    assert_old_fields(a, b);
    assert_int_equal(b->timer.skew, 7);
    assert_int_equal(b->timer.rate, 75);
    assert_int_equal(b->timer.colour, 9);
}

/* There and back again: each guest's newest knowledge that the other has no word for is the default afterwards. */
static void a_guest_goes_to_old_code_and_back(void **state)
{
    g_autoptr(Plain) a = plain_new(&mid_timer, true);
    g_autoptr(Plain) b = plain_new(&old_timer, false);
    g_autoptr(Plain) c = plain_new(&mid_timer, false);

    move(a, b);
    b->n_starts = 0;
    b->timer.period = 2000;
    move(b, c);
    assert_int_equal(c->timer.period, 2000);
    assert_int_equal(c->timer.colour, DEFAULT_COLOUR);
}

/* Only the last records show it: by then the guest is stopped, and goes on at the source. */
static void a_mandatory_subsection_is_refused_by_name(void **state)
{
    g_autoptr(Plain) a = plain_new(&mid_timer, true);
    g_autoptr(Plain) b = plain_new(&old_timer, false);

    a->timer.rate = 75;
    fail_to_move(a, b, VMF_ERROR_PEER, "rate");
    assert_stayed(a, b, 1);
    assert_int_equal(b->timer.period, 0);
}

static void a_device_that_refuses_its_state_is_named(void **state)
{
    g_autoptr(Plain) a = plain_new(&old_timer, true);
    g_autoptr(Plain) b = plain_new(&old_timer, false);

    a->timer.period = 0;
    fail_to_move(a, b, VMF_ERROR_PEER, "timer 0: ");
    assert_stayed(a, b, 1);
}

static void a_version_that_is_too_new_is_refused_before_anything_moves(void **state)
{
    g_autoptr(Plain) a = plain_new(&new_timer, true);
    g_autoptr(Plain) b = plain_new(&mid_timer, false);

    fail_to_move(a, b, VMF_ERROR_INCOMPATIBLE, "section.version: timer 0: here 1 to 1, there 2");
    assert_stayed(a, b, 0);
}

static void a_version_that_is_too_old_is_refused_before_anything_moves(void **state)
{
    g_autoptr(Plain) a = plain_new(&old_timer, true);
    g_autoptr(Plain) b = plain_new(&newest_timer, false);

    fail_to_move(a, b, VMF_ERROR_INCOMPATIBLE, "section.version: timer 0: here 2 to 3, there 1");
    assert_stayed(a, b, 0);
}

static void a_device_that_the_target_lacks_is_named(void **state)
{
    g_autoptr(Plain) a = plain_new(&old_timer, true);
    g_autoptr(Plain) b = plain_new(NULL, false);

    fail_to_move(a, b, VMF_ERROR_INCOMPATIBLE, "section.missing: timer 0: here nothing, there version 1");
    assert_stayed(a, b, 0);
}

/* ---- handlers of one's own ------------------------------------------------------------------------------------- */

static bool blob_save(void *opaque, VmfSaveStream *stream, GError **error)
{
    Plain *plain = opaque;
    size_t third = plain->blob->len / 3;

    return vmf_save_bytes(stream, plain->blob->data, third, error) &&
           vmf_save_bytes(stream, plain->blob->data + third, plain->blob->len - third, error);
}

static bool blob_load(void *opaque, uint32_t version, const uint8_t *data, size_t length, bool last, GError **error)
{
    Plain *plain = opaque;

    assert_int_equal(version, 3);
    assert_true(length <= 1u << 20);
    g_byte_array_append(plain->blob, data, (guint)length);
    plain->blob_parts++;
    plain->blob_done |= last;
    return true;
}

static const VmfSaveHandlers blob_handlers = {
    .size = sizeof(VmfSaveHandlers), .save_complete = blob_save, .load_state = blob_load};

static Plain *plain_with_blob(bool running, size_t length, uint32_t version)
{
    Plain *plain = plain_new(&old_timer, running);

    plain->blob = g_byte_array_new();
    for (size_t i = 0; i < length; i++) {
        uint8_t byte = (uint8_t)(i * 7 + i / 4096);
        g_byte_array_append(plain->blob, &byte, 1);
    }
    assert_true(vmf_guest_add_handlers(plain->guest, "blob", 2, version, &blob_handlers, plain, NULL));
    return plain;
}

/* Sections of nothing, of exactly one record, of a byte more, and of many. */
static void a_section_of_any_size_arrives_whole(void **state)
{
    static const struct {
        size_t length;
        unsigned parts;
    } sizes[] = {{0, 1}, {1, 1}, {1u << 20, 1}, {(1u << 20) + 1, 2}, {2u << 20, 2}, {5000000, 5}};

    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(Plain) a = plain_with_blob(true, sizes[i].length, 3);
        g_autoptr(Plain) b = plain_with_blob(false, 0, 4);
        move(a, b);
        assert_true(b->blob_done);
        assert_int_equal(b->blob_parts, sizes[i].parts);
        assert_int_equal(b->blob->len, sizes[i].length);
        assert_memory_equal(b->blob->data, a->blob->data, sizes[i].length);
        assert_old_fields(a, b);
    }
}

/* ---- preflight ------------------------------------------------------------------------------------------------- */

/* Both ends over one link; the target's session outlives the source's. */
typedef struct {
    VmfConnector *connector;
    VmfListener *listener;
    VmfSession *target;
    pthread_t thread;
    bool target_done;
} Host;

static void *host_main(void *opaque)
{
    Host *host = opaque;

    host->target_done = vmf_session_run(host->target, NULL);
    return NULL;
}

static void host_start(Host *host, VmfGuest *guest)
{
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    *host = (Host){.target_done = false};
    vmf_memory_link_new(0, &host->connector, &host->listener);
    host->target = vmf_session_new_target(guest, host->listener, &parameters, NULL, NULL);
    assert_int_equal(pthread_create(&host->thread, NULL, host_main, host), 0);
}

static void host_join(Host *host)
{
    pthread_join(host->thread, NULL);
    vmf_session_free(host->target);
    vmf_connector_free(host->connector);
    vmf_listener_free(host->listener);
}

static void host_stop(Host *host)
{
    vmf_session_cancel(host->target);
    host_join(host);
    assert_false(host->target_done);
}

/* Runs a source to its end. @texts: what it found incompatible, newly allocated. */
static VmfOutcome ask(Host *host, VmfGuest *guest, bool dry_run, unsigned version, char ***texts, GError **error)
{
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    parameters.dry_run = dry_run;
    parameters.stream_version = version;
    VmfSession *source = vmf_session_new_source(guest, host->connector, &parameters, NULL, NULL);
    vmf_session_run(source, error);
    VmfStatistics statistics = {.size = sizeof(statistics)};
    vmf_session_get_statistics(source, &statistics);
    *texts = vmf_session_incompatibilities(source);
    vmf_session_free(source);
    return statistics.outcome;
}

static VmfStatus status_of(VmfSession *session)
{
    VmfStatistics statistics = {.size = sizeof(statistics)};

    vmf_session_get_statistics(session, &statistics);
    return statistics.status;
}

static void a_preflight_reserves_nothing(void **state)
{
    for (unsigned version = 2; version <= 3; version++) {
        g_autoptr(Plain) a = plain_new(&old_timer, true);
        g_autoptr(Plain) b = plain_new(&new_timer, false);
        g_autoptr(GError) error = NULL;
        g_auto(GStrv) texts = NULL, none = NULL;
        Host host;
        host_start(&host, b->guest);
        for (unsigned i = 0; i < 3; i++) {
            g_auto(GStrv) nothing = NULL;
            assert_int_equal(ask(&host, a->guest, true, version, &nothing, &error), VMF_OUTCOME_PREFLIGHT_OK);
            assert_null(error);
            assert_null(nothing[0]);
            assert_stayed(a, b, 0);
            assert_int_equal(status_of(host.target), VMF_STATUS_SETUP);
        }
        assert_int_equal(ask(&host, a->guest, false, version, &none, &error), VMF_OUTCOME_COMPLETED);
        host_join(&host);
        assert_true(host.target_done);
        assert_moved(a, b);
    }
}

static void a_preflight_names_all_that_does_not_fit(void **state)
{
    for (unsigned version = 2; version <= 3; version++) {
        g_autoptr(Plain) a = plain_with_blob(true, 0, 9);
        g_autoptr(Plain) b = plain_new(&newest_timer, false);
        g_autoptr(Plain) c = plain_with_blob(false, 0, 9);
        g_autoptr(GError) error = NULL;
        g_auto(GStrv) texts = NULL;
        Host host;
        vmf_guest_set_property(a->guest, "cpu.model", "x1");
        vmf_guest_set_property(b->guest, "cpu.model", "x2");
        host_start(&host, b->guest);
        assert_int_equal(ask(&host, a->guest, true, version, &texts, &error), VMF_OUTCOME_PREFLIGHT_REFUSED);
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_INCOMPATIBLE));
        assert_int_equal(g_strv_length(texts), 3);
        assert_string_equal(texts[0], "cpu.model: here x2, there x1");
        assert_string_equal(texts[1], "section.version: timer 0: here 2 to 3, there 1");
        assert_string_equal(texts[2], "section.missing: blob 2: here nothing, there version 9");
        for (unsigned i = 0; i < 3; i++)
            assert_non_null(strstr(error->message, texts[i]));
        assert_stayed(a, b, 0);
        assert_int_equal(status_of(host.target), VMF_STATUS_SETUP);
        host_stop(&host);
    }
}

/* A target that refused one goes on waiting, and takes another. */
static void a_refused_guest_does_not_end_the_target(void **state)
{
    g_autoptr(Plain) a = plain_new(&new_timer, true);
    g_autoptr(Plain) other = plain_new(&mid_timer, true);
    g_autoptr(Plain) b = plain_new(&mid_timer, false);
    g_autoptr(GError) error = NULL;
    g_auto(GStrv) texts = NULL, none = NULL;
    Host host;

    host_start(&host, b->guest);
    assert_int_equal(ask(&host, a->guest, false, 3, &texts, &error), VMF_OUTCOME_FAILED);
    assert_int_equal(g_strv_length(texts), 1);
    assert_stayed(a, b, 0);
    assert_int_equal(ask(&host, other->guest, false, 3, &none, NULL), VMF_OUTCOME_COMPLETED);
    host_join(&host);
    assert_moved(other, b);
}

/* ---- a target that is taken ------------------------------------------------------------------------------------ */

typedef struct {
    Host *host;
    VmfSession *source;
    pthread_t thread;
    bool done;
} Mover;

static void *mover_main(void *opaque)
{
    Mover *mover = opaque;

    mover->done = vmf_session_run(mover->source, NULL);
    return NULL;
}

static void a_busy_target_says_so(void **state)
{
    g_autoptr(Plain) a = plain_new(&old_timer, true);
    g_autoptr(Plain) late = plain_new(&old_timer, true);
    g_autoptr(Plain) b = plain_new(&old_timer, false);
    VmfParameters parameters;
    Host host;
    Mover mover = {.host = &host};

    host_start(&host, b->guest);
    vmf_parameters_init(&parameters);
    parameters.pause_before_switchover = true;
    mover.source = vmf_session_new_source(a->guest, host.connector, &parameters, NULL, NULL);
    assert_int_equal(pthread_create(&mover.thread, NULL, mover_main, &mover), 0);
    while (status_of(mover.source) != VMF_STATUS_PRE_SWITCHOVER)
        g_usleep(1000);
    for (unsigned dry_run = 0; dry_run < 2; dry_run++) {
        g_autoptr(GError) error = NULL;
        g_auto(GStrv) texts = NULL;
        assert_int_equal(ask(&host, late->guest, dry_run, 3, &texts, &error),
                         dry_run ? VMF_OUTCOME_PREFLIGHT_REFUSED : VMF_OUTCOME_FAILED);
        assert_int_equal(g_strv_length(texts), 1);
        assert_true(g_str_has_prefix(texts[0], "target.busy: "));
        assert_true(late->running);
        assert_int_equal(late->n_stops, 0);
    }
    assert_true(vmf_session_continue(mover.source, NULL));
    pthread_join(mover.thread, NULL);
    assert_true(mover.done);
    vmf_session_free(mover.source);
    host_join(&host);
    assert_true(host.target_done);
    assert_moved(a, b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_old_stream_loads_into_new_code),
        cmocka_unit_test(a_new_stream_without_the_subsection_loads_into_old_code),
        cmocka_unit_test(a_subsection_travels_between_equals),
        cmocka_unit_test(a_guest_goes_to_old_code_and_back),
        cmocka_unit_test(a_mandatory_subsection_is_refused_by_name),
        cmocka_unit_test(a_device_that_refuses_its_state_is_named),
        cmocka_unit_test(a_version_that_is_too_new_is_refused_before_anything_moves),
        cmocka_unit_test(a_version_that_is_too_old_is_refused_before_anything_moves),
        cmocka_unit_test(a_device_that_the_target_lacks_is_named),
        cmocka_unit_test(a_section_of_any_size_arrives_whole),
        cmocka_unit_test(a_preflight_reserves_nothing),
        cmocka_unit_test(a_preflight_names_all_that_does_not_fit),
        cmocka_unit_test(a_refused_guest_does_not_end_the_target),
        cmocka_unit_test(a_busy_target_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
