/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Owners of state: their order, and what is called of them when, in whole sessions over a memory link. Then one
 * callback after the other fails, on either side: whatever was begun is cleaned up once, and the guest runs on at the
 * source.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <vmferry/error.h>

#include "migration/owners.h"

/* X(name): the callbacks that can fail, in the order in which a session calls them */
#define SOURCE_STEPS(X) X(save_prepare) X(save_setup) X(save_iterate) X(pending_exact) X(quiesce) X(save_complete)
#define TARGET_STEPS(X) X(load_setup) X(static_data_done) X(load_state)

typedef enum {
#define X(name) STEP_##name,
    SOURCE_STEPS(X) N_SOURCE_STEPS,
    STEP_before_target = N_SOURCE_STEPS - 1,
    TARGET_STEPS(X) N_STEPS
#undef X
} Step;

static const char *const step_names[] = {
#define X(name) #name,
    SOURCE_STEPS(X) TARGET_STEPS(X)
#undef X
};

/* One owner on one side. */
typedef struct {
    const char *name;
    bool inactive;
    int fails_at; /* a Step, or -1 */
    unsigned calls[N_STEPS];
    unsigned cleanups, estimates;
    Step last;
    bool out_of_order; /* a callback came after cleanup, or ahead of one that comes before it */
    VmfMissing missing;
    bool loaded;
} Owner;

static bool step(Owner *owner, Step at, GError **error)
{
    bool repeats = at == STEP_save_iterate || at == STEP_pending_exact;

    owner->out_of_order |= owner->cleanups > 0 || (at < owner->last && !repeats);
    owner->last = MAX(owner->last, at);
    owner->calls[at]++;
    if (owner->fails_at != (int)at)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_GUEST, "%s: %s failed on purpose", owner->name, step_names[at]);
    return false;
}

static bool save_prepare(void *opaque, GError **error)
{
    return step(opaque, STEP_save_prepare, error);
}

static bool save_setup(void *opaque, VmfSaveStream *stream, GError **error)
{
    return step(opaque, STEP_save_setup, error);
}

static bool save_iterate(void *opaque, VmfSaveStream *stream, GError **error)
{
    return step(opaque, STEP_save_iterate, error);
}

static void pending_estimate(void *opaque, VmfPending *pending)
{
    ((Owner *)opaque)->estimates++;
}

static bool pending_exact(void *opaque, VmfPending *pending, GError **error)
{
    return step(opaque, STEP_pending_exact, error);
}

static bool quiesce(void *opaque, GError **error)
{
    return step(opaque, STEP_quiesce, error);
}

static bool save_complete(void *opaque, VmfSaveStream *stream, GError **error)
{
    Owner *owner = opaque;

    return step(owner, STEP_save_complete, error) && vmf_save_bytes(stream, owner->name, strlen(owner->name), error);
}

static void cleanup(void *opaque)
{
    ((Owner *)opaque)->cleanups++;
}

static bool is_active(void *opaque)
{
    return !((Owner *)opaque)->inactive;
}

static bool load_setup(void *opaque, GError **error)
{
    return step(opaque, STEP_load_setup, error);
}

static bool static_data_done(void *opaque, VmfMissing missing, GError **error)
{
    ((Owner *)opaque)->missing = missing;
    return step(opaque, STEP_static_data_done, error);
}

static bool load_state(void *opaque, uint32_t version, const uint8_t *data, size_t length, bool last, GError **error)
{
    Owner *owner = opaque;

    owner->loaded = last && version == 1 && length == strlen(owner->name) && memcmp(data, owner->name, length) == 0;
    return step(owner, STEP_load_state, error);
}

static const VmfSaveHandlers counting = {
    .size = sizeof(VmfSaveHandlers),
    .save_prepare = save_prepare,
    .save_setup = save_setup,
    .save_iterate = save_iterate,
    .pending_estimate = pending_estimate,
    .pending_exact = pending_exact,
    .quiesce = quiesce,
    .save_complete = save_complete,
    .save_cleanup = cleanup,
    .is_active = is_active,
    .load_setup = load_setup,
    .static_data_done = static_data_done,
    .load_state = load_state,
    .load_cleanup = cleanup,
};

/* ---- a guest of three owners ----------------------------------------------------------------------------------- */

#define OWNERS 3

typedef struct {
    VmfGuest *guest;
    Owner owners[OWNERS];
    bool running;
    unsigned n_starts;
    bool start_fails;
} Side;

static bool side_stop(void *opaque, GError **error)
{
    ((Side *)opaque)->running = false;
    return true;
}

static bool side_start(void *opaque, GError **error)
{
    Side *side = opaque;

    side->n_starts++;
    side->running = !side->start_fails;
    if (side->start_fails)
        g_set_error(error, VMF_ERROR, VMF_ERROR_GUEST, "start failed on purpose");
    return side->running;
}

static bool side_is_running(void *opaque)
{
    return ((Side *)opaque)->running;
}

static const VmfGuestOps guest_ops = {
    .size = sizeof(VmfGuestOps), .stop = side_stop, .start = side_start, .is_running = side_is_running};

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

static void side_init(Side *side, bool running)
{
    static const char *const names[OWNERS] = {"disk", "net", "clock"};
    static const uint8_t uuid[16] = {1};

    *side = (Side){.running = running, .guest = vmf_guest_new("plain", uuid, &guest_ops, side)};
    assert_true(
        vmf_guest_add_ram(side->guest, vmf_ram_block_new("ram", 16 * 4096, VMF_RAM_ANON, 0, 0, NULL), NULL, NULL));
    vmf_guest_set_dirty_log(side->guest, &log_ops, side);
    memset(vmf_ram_block_host(vmf_guest_ram(side->guest, 0)), running, 4096);
    for (unsigned i = 0; i < OWNERS; i++) {
        side->owners[i] = (Owner){.name = names[i], .fails_at = -1};
        assert_true(vmf_guest_add_handlers(side->guest, names[i], 0, 1, &counting, &side->owners[i], NULL));
    }
}

/* ---- whole sessions -------------------------------------------------------------------------------------------- */

typedef struct {
    VmfSession *session;
    pthread_t thread;
    bool done;
    GError *error;
} Running;

static void *run_main(void *opaque)
{
    Running *running = opaque;

    running->done = vmf_session_run(running->session, &running->error);
    return NULL;
}

/* Moves @from to @to. A target that nobody called, or that goes on waiting, is cancelled. */
static void run(Side *from, Side *to, unsigned version, Running *source, Running *target)
{
    VmfConnector *connector;
    VmfListener *listener;
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    parameters.stream_version = version;
    parameters.minimum_rounds = 2;
    vmf_memory_link_new(0, &connector, &listener);
    *source = (Running){.session = vmf_session_new_source(from->guest, connector, &parameters, NULL, NULL)};
    *target = (Running){.session = vmf_session_new_target(to->guest, listener, &parameters, NULL, NULL)};
    assert_int_equal(pthread_create(&target->thread, NULL, run_main, target), 0);
    run_main(source);
    if (!source->done)
        vmf_session_cancel(target->session);
    pthread_join(target->thread, NULL);
    vmf_session_free(source->session);
    vmf_session_free(target->session);
    vmf_connector_free(connector);
    vmf_listener_free(listener);
}

static void clear(Running *running)
{
    g_clear_error(&running->error);
}

static void assert_done(const Running *running)
{
    if (!running->done)
        fail_msg("%s", running->error->message);
}

static void each_callback_is_called_as_often_as_it_is_due(void **state)
{
    Side a, b;
    Running source, target;

    side_init(&a, true);
    side_init(&b, false);
    run(&a, &b, 3, &source, &target);
    assert_done(&source);
    assert_done(&target);
    assert_true(b.running && !a.running);
    for (unsigned i = 0; i < OWNERS; i++) {
        const Owner *saved = &a.owners[i], *loaded = &b.owners[i];
        assert_false(saved->out_of_order || loaded->out_of_order);
        assert_int_equal(saved->calls[STEP_save_prepare], 1);
        assert_int_equal(saved->calls[STEP_save_setup], 1);
        assert_true(saved->calls[STEP_save_iterate] >= 2);
        assert_true(saved->calls[STEP_pending_exact] > saved->calls[STEP_save_iterate]);
        assert_true(saved->estimates > 0);
        assert_int_equal(saved->calls[STEP_quiesce], 1);
        assert_int_equal(saved->calls[STEP_save_complete], 1);
        assert_int_equal(saved->cleanups, 1);
        assert_int_equal(saved->calls[STEP_load_setup], 0);
        assert_int_equal(loaded->calls[STEP_load_setup], 1);
        assert_int_equal(loaded->calls[STEP_static_data_done], 1);
        assert_int_equal(loaded->missing, 0);
        assert_int_equal(loaded->calls[STEP_load_state], 1);
        assert_int_equal(loaded->cleanups, 1);
        assert_int_equal(loaded->calls[STEP_save_prepare], 0);
        assert_true(loaded->loaded);
    }
    vmf_guest_free(a.guest);
    vmf_guest_free(b.guest);
}

static void version_2_says_what_it_lacks(void **state)
{
    Side a, b;
    Running source, target;

    side_init(&a, true);
    side_init(&b, false);
    run(&a, &b, 2, &source, &target);
    assert_done(&source);
    assert_done(&target);
    for (unsigned i = 0; i < OWNERS; i++)
        assert_true(b.owners[i].missing & VMF_MISSING_FEATURES);
    vmf_guest_free(a.guest);
    vmf_guest_free(b.guest);
}

/* Who was begun is cleaned up once, who was not is left alone; nobody is called afterwards. */
static void assert_cleaned(const Side *side, bool source)
{
    for (unsigned i = 0; i < OWNERS; i++) {
        const Owner *owner = &side->owners[i];
        bool begun = owner->calls[source ? STEP_save_prepare : STEP_load_setup] > 0;
        assert_int_equal(owner->cleanups, begun);
        assert_false(owner->out_of_order);
    }
}

static void fail_at(Step at, unsigned which, unsigned version)
{
    bool at_source = at < N_SOURCE_STEPS;
    Side a, b;
    Running source, target;

    side_init(&a, true);
    side_init(&b, false);
    (at_source ? &a : &b)->owners[which].fails_at = (int)at;
    run(&a, &b, version, &source, &target);
    g_autofree char *expected = g_strdup_printf("%s: %s failed on purpose", a.owners[which].name, step_names[at]);
    assert_false(source.done);
    assert_false(target.done);
    const GError *error = at_source ? source.error : target.error;
    if (!strstr(error->message, expected) || !strstr(source.error->message, at_source ? expected : "target: "))
        fail_msg("'%s' expected; source: %s; target: %s", expected, source.error->message, target.error->message);
    assert_true(a.running);
    assert_false(b.running);
    assert_int_equal(b.n_starts, 0);
    assert_int_equal(a.n_starts, at == STEP_quiesce || at == STEP_save_complete || at == STEP_load_state);
    assert_cleaned(&a, true);
    assert_cleaned(&b, false);
    assert_int_equal(((uint8_t *)vmf_ram_block_host(vmf_guest_ram(b.guest, 0)))[0], 0);
    clear(&source);
    clear(&target);
    vmf_guest_free(a.guest);
    vmf_guest_free(b.guest);
}

static void a_callback_that_fails_leaves_the_guest_at_the_source(void **state)
{
    for (Step at = 0; at < N_STEPS; at++)
        for (unsigned which = 0; which < OWNERS; which++)
            for (unsigned version = 2; version <= 3; version++)
                fail_at(at, which, version);
}

static void a_guest_that_cannot_start_there_is_there_all_the_same(void **state)
{
    Side a, b;
    Running source, target;

    side_init(&a, true);
    side_init(&b, false);
    b.start_fails = true;
    run(&a, &b, 3, &source, &target);
    assert_true(source.done && target.done);
    assert_false(a.running || b.running);
    assert_cleaned(&a, true);
    assert_cleaned(&b, false);
    clear(&source);
    clear(&target);
    vmf_guest_free(a.guest);
    vmf_guest_free(b.guest);
}

/* ---- the list -------------------------------------------------------------------------------------------------- */

static void ram_comes_first_and_then_what_was_added(void **state)
{
    static const VmfField no_fields[] = {VMF_FIELD_END};
    static const VmfDeviceState timer = {
        .size = sizeof(VmfDeviceState), .name = "timer", .version = 4, .minimum_version = 1, .fields = no_fields};
    static const char *const names[] = {"ram", "disk", "net", "clock", "timer"};
    int device = 0, ram = 0;
    Side side;

    side_init(&side, false);
    assert_true(vmf_guest_add_device(side.guest, &timer, 3, &device, NULL));
    GArray *owners = vmf_owners_new(side.guest, &counting, &ram, true);
    assert_int_equal(owners->len, G_N_ELEMENTS(names));
    for (unsigned i = 0; i < owners->len; i++)
        assert_string_equal(vmf_owner(owners, i)->name, names[i]);
    assert_ptr_equal(vmf_owner(owners, 0)->opaque, &ram);
    assert_int_equal(vmf_owner(owners, 4)->instance, 3);
    assert_int_equal(vmf_owner(owners, 4)->version, 4);
    assert_ptr_equal(vmf_owner(owners, 4)->handlers, vmf_device_handlers());
    vmf_owners_free(owners);
    vmf_guest_free(side.guest);
}

static void without_ram_there_is_no_section_of_it(void **state)
{
    static const uint8_t uuid[16] = {1};
    VmfGuest *guest = vmf_guest_new("plain", uuid, &guest_ops, NULL);
    GArray *owners = vmf_owners_new(guest, &counting, NULL, true);

    assert_int_equal(owners->len, 0);
    vmf_owners_free(owners);
    vmf_guest_free(guest);
}

static void who_is_not_active_is_left_out_at_the_source(void **state)
{
    Side side;

    side_init(&side, false);
    side.owners[1].inactive = true;
    GArray *source = vmf_owners_new(side.guest, NULL, NULL, true),
           *target = vmf_owners_new(side.guest, NULL, NULL, false);
    assert_int_equal(source->len, OWNERS - 1);
    assert_string_equal(vmf_owner(source, 1)->name, "clock");
    assert_int_equal(target->len, OWNERS);
    vmf_owners_free(source);
    vmf_owners_free(target);
    vmf_guest_free(side.guest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ram_comes_first_and_then_what_was_added),
        cmocka_unit_test(without_ram_there_is_no_section_of_it),
        cmocka_unit_test(who_is_not_active_is_left_out_at_the_source),
        cmocka_unit_test(each_callback_is_called_as_often_as_it_is_due),
        cmocka_unit_test(version_2_says_what_it_lacks),
        cmocka_unit_test(a_callback_that_fails_leaves_the_guest_at_the_source),
        cmocka_unit_test(a_guest_that_cannot_start_there_is_there_all_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
