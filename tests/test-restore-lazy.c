/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Restoring behind the back of a guest that runs already: what it sees, what others see of it, and what becomes of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include <vmferry/error.h>

#include "ram/touch-order.h"
#include "ram/uffd.h"
#include "tests/restore-rig.h"

/* ---- what a guest touches ----------------------------------------------------------------------------------------------- */

static const uint8_t *page_of(Guest *guest, unsigned block, uint32_t page)
{
    return (const uint8_t *)vmf_ram_block_host(vmf_guest_ram(guest->guest, block)) + (size_t)page * PAGE;
}

/* Pages with content, pages of zeros, in an order of its own: all as they should be, right after the start. */
static const uint32_t touched[] = {1099, 7, 45, 600, 21, 1024, 63};

static void look_around(Guest *guest, void *opaque)
{
    const ForgeImage *image = opaque;

    for (size_t i = 0; i < G_N_ELEMENTS(touched); i++)
        assert_memory_equal(page_of(guest, 0, touched[i]), image->blocks[0].memory + (size_t)touched[i] * PAGE, PAGE);
    assert_memory_equal(page_of(guest, 1, 0), image->blocks[1].memory, PAGE);
}

static void lazy_init(Trial *trial, const char *uri)
{
    trial_init(trial, uri);
    trial->options.mode = VMF_RESTORE_LAZY;
}

/* ---- a restore in a thread of its own ----------------------------------------------------------------------------------- */

typedef struct {
    Trial *trial;
    Guest *guest;
    pthread_t thread;
    bool done;
    GError *error;
} Running;

static void *running_main(void *opaque)
{
    Running *running = opaque;

    running->done = trial_run(running->trial, running->guest, &running->error);
    return NULL;
}

static void begin(Running *running, Trial *trial, Guest *guest)
{
    *running = (Running){.trial = trial, .guest = guest};
    assert_int_equal(pthread_create(&running->thread, NULL, running_main, running), 0);
}

static VmfStatistics statistics_of(const Running *running)
{
    VmfStatistics statistics = {.size = sizeof(statistics)};
    VmfSession *session = atomic_load(&running->trial->session);

    if (session)
        vmf_session_get_statistics(session, &statistics);
    return statistics;
}

/* Until its guest is there and its memory is not. */
static void wait_for_start(Running *running)
{
    while (statistics_of(running).status != VMF_STATUS_POSTCOPY_ACTIVE)
        usleep(1000);
}

static char *wait_for_hold(Running *running)
{
    char *hold = NULL;

    while (!hold) {
        VmfSession *session = atomic_load(&running->trial->session);
        hold = session ? vmf_session_hold(session) : NULL;
        usleep(1000);
    }
    return hold;
}

static void assert_given_up(Running *running, VmfOutcome outcome, const char *id, const char *words)
{
    pthread_join(running->thread, NULL);
    assert_false(running->done);
    image_assert_id(running->error, id, words);
    assert_non_null(strstr(running->error->message, words));
    assert_int_equal(running->trial->statistics.outcome, outcome);
    g_clear_error(&running->error);
}

/* ---- whole images ------------------------------------------------------------------------------------------------------- */

static void restore_everywhere(const ImageRoom *room, ForgeImage *image)
{
    static const struct {
        VmfRamBackend backend;
        VmfRamFlags flags;
    } kinds[] = {{VMF_RAM_ANON, VMF_RAM_NO_HUGE_PAGES}, {VMF_RAM_ANON, 0}, {VMF_RAM_MEMFD, 0}};
    g_autofree char *uri = image_uri(room, "a.img");

    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autoptr(Guest) guest = guest_new(kinds[i].backend, kinds[i].flags, FORGE_IMAGE_RAM_PAGES, false);
        g_auto(Trial) trial;
        lazy_init(&trial, uri);
        guest->started = look_around;
        guest->opaque = image;
        assert_restored(&trial, guest, image);
        assert_true(guest->running);
        assert_int_equal(guest->n_stops, 0);
        assert_string_equal(guest->statuses->str, "setup active device postcopy-active completed ");
        assert_true(trial.statistics.faults >= 3);
        assert_true(trial.statistics.fault_max_ns >= trial.statistics.fault_p50_ns);
        assert_int_not_equal(trial.statistics.start_ns, 0);
        assert_true(trial.statistics.start_ns <= trial.statistics.total_ns);
        assert_int_equal(trial.statistics.working_set_ns, 0);
        assert_int_equal(trial.statistics.ram_remaining_bytes, 0);
    }
}

static void test_whole(void **state)
{
    for (unsigned big = 0; big < 2; big++) {
        g_autoptr(ForgeImage) image = forge_image_new(big, 2);
        image_write(*state, image, "a.img");
        restore_everywhere(*state, image);
    }
}

static void test_layers(void **state)
{
    g_autoptr(ForgeImage) parent = forge_image_new(false, 2);
    g_autoptr(ForgeImage) layer = forge_image_layer(parent, "file:parent.img", 3);

    image_write(*state, parent, "parent.img");
    image_write(*state, layer, "a.img");
    restore_everywhere(*state, layer);
}

static void test_paused(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;

    image_write(*state, image, "a.img");
    lazy_init(&trial, uri);
    trial.options.paused = true;
    assert_restored(&trial, guest, image);
    assert_int_equal(guest->n_starts, 0);
    assert_int_equal(trial.statistics.start_ns, 0);
}

/* ---- the order of touches ----------------------------------------------------------------------------------------------- */

static void assert_recorded(const ForgeImage *image, const char *path)
{
    VmfImageDigest root;

    memcpy(root.bytes, image->root, sizeof(root.bytes));
    g_autoptr(VmfTouchOrder) order = vmf_touch_order_read(path, image->id, &root, NULL);
    assert_non_null(order);
    uint64_t at = 0, page;
    unsigned block;
    /* The pages of zeros among them are not worth noting. */
    for (size_t i = 0; i < G_N_ELEMENTS(touched); i++) {
        if (!image->blocks[0].data[touched[i]])
            continue;
        assert_true(at < vmf_touch_order_length(order));
        vmf_touch_order_get(order, at++, &block, &page);
        assert_int_equal(block, 0);
        assert_int_equal(page, touched[i]);
    }
}

static void test_order(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img"), *path = image_path(*state, "a.img.order");
    g_autoptr(Guest) first = fitting_guest(), second = fitting_guest(), third = fitting_guest();
    g_auto(Trial) trial;

    image_write(*state, image, "a.img");
    lazy_init(&trial, uri);
    trial.options.order_path = path;
    trial.options.record_order = true;
    first->started = look_around;
    first->opaque = image;
    assert_restored(&trial, first, image);
    assert_int_equal(first->events->len, 0);
    assert_recorded(image, path);

    trial.options.record_order = false;
    assert_restored(&trial, second, image);
    assert_int_not_equal(trial.statistics.working_set_ns, 0);
    assert_int_equal(second->events->len, 0);

    assert_true(g_file_set_contents(path, "VMFORDER and nothing that goes on", -1, NULL));
    assert_restored(&trial, third, image);
    assert_int_equal(trial.statistics.working_set_ns, 0);
    assert_non_null(strstr(third->events->str, "order.ignored: "));
}

/* A guest that is paused at first is recorded from its first run on; a save or a move would bring all that it could touch. */
static void test_order_of_a_paused_guest(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img"), *path = image_path(*state, "a.img.order");
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;
    Running running;

    image_write(*state, image, "a.img");
    lazy_init(&trial, uri);
    trial.options.paused = true;
    trial.options.order_path = path;
    trial.options.record_order = true;
    begin(&running, &trial, guest);
    wait_for_start(&running);
    for (unsigned i = 0; i < 30 && statistics_of(&running).status == VMF_STATUS_POSTCOPY_ACTIVE; i++)
        usleep(100000); /* more than is recorded of a guest that runs */
    look_around(guest, image);
    __atomic_store_n(&guest->running, true, __ATOMIC_RELAXED);
    pthread_join(running.thread, NULL);
    image_no_error(running.error);
    assert_memory(guest, image);
    assert_recorded(image, path);
}

/* What was recorded is not given up for a record of nothing. */
static void test_empty_order(void **state)
{
    static const char former[] = "what was recorded";
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img"), *path = image_path(*state, "a.img.order"), *left = NULL;
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;

    image_write(*state, image, "a.img");
    assert_true(g_file_set_contents(path, former, -1, NULL));
    lazy_init(&trial, uri);
    trial.options.order_path = path;
    trial.options.record_order = true;
    assert_restored(&trial, guest, image);
    assert_true(g_file_get_contents(path, &left, NULL, NULL));
    assert_string_equal(left, former);
    assert_non_null(strstr(guest->events->str, "order.not-written: "));
}

/* ---- pages that cannot be had ------------------------------------------------------------------------------------------- */

#define BAD_PAGE 1099u

static void write_damaged(const ImageRoom *room, ForgeImage *image)
{
    image->file->data[image->blocks[0].pages + (size_t)BAD_PAGE * PAGE + 99] ^= 4;
    image_write(room, image, "a.img");
}

/* Reading ahead finds it: the guest has not asked for it, and stands from then on. */
static void test_damaged_page(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_autoptr(Guest) guest = fitting_guest();
    g_autoptr(GError) error = NULL;
    g_auto(Trial) trial;
    Running running;

    write_damaged(*state, image);
    lazy_init(&trial, uri);
    begin(&running, &trial, guest);
    g_autofree char *hold = wait_for_hold(&running);
    assert_non_null(strstr(hold, "RAM block ram, page 1099: does not match its digest"));
    assert_false(guest->running);
    assert_int_equal(statistics_of(&running).outcome, VMF_OUTCOME_HELD);
    assert_true(guest->locked);
    assert_false(vmf_session_resolve(trial.session, true, true, &error));
    image_assert_id(error, "handover.held", "");
    assert_true(vmf_session_resolve(trial.session, false, false, NULL));
    assert_given_up(&running, VMF_OUTCOME_FAILED, "image.page", "page 1099");
    assert_nothing(guest);
    assert_int_equal(guest->n_cleanups, 2);
}

static void test_hold_that_is_left(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;
    Running running;

    write_damaged(*state, image);
    lazy_init(&trial, uri);
    begin(&running, &trial, guest);
    g_free(wait_for_hold(&running));
    vmf_session_cancel(trial.session);
    assert_given_up(&running, VMF_OUTCOME_HELD, "handover.held", "page 1099");
    assert_false(guest->running);
}

/* A vCPU that asks for the page never gets past its access: it is let go into SIGSEGV, or taken out by whoever stops the guest. */

/* Not one that the thread sanitizer keeps back until the thread makes a call: this one never gets to any. */
#define KICK_SIGNAL SIGTRAP

static __thread sigjmp_buf out;

static void on_signal(int signal)
{
    siglongjmp(out, 1);
}

typedef struct {
    const volatile uint8_t *at;
    pthread_t thread;
    bool left, got;
} Vcpu;

static void *vcpu_main(void *opaque)
{
    Vcpu *vcpu = opaque;

    if (sigsetjmp(out, 1)) {
        vcpu->left = true;
    } else {
        (void)*vcpu->at;
        vcpu->got = true;
    }
    return NULL;
}

static void kick(Guest *guest, void *opaque)
{
    pthread_kill(((Vcpu *)opaque)->thread, KICK_SIGNAL);
}

static void test_damaged_page_that_is_touched(void **state)
{
    for (unsigned leaves = 0; leaves < 2; leaves++) {
        g_autoptr(ForgeImage) image = forge_image_new(false, 1);
        g_autofree char *uri = image_uri(*state, "a.img"), *order = image_path(*state, "order");
        g_autoptr(Guest) guest = fitting_guest();
        g_auto(Trial) trial;
        Running running;
        Vcpu vcpu = {.at = page_of(guest, 0, BAD_PAGE)};
        struct sigaction action = {.sa_handler = on_signal}, before, before_kick;

        sigaction(SIGSEGV, &action, &before);
        sigaction(KICK_SIGNAL, &action, &before_kick);
        write_damaged(*state, image);
        lazy_init(&trial, uri);
        trial.options.order_path = order; /* recording keeps reading ahead from finding it first */
        trial.options.record_order = true;
        guest->leaves_lost_memory = leaves;
        guest->stopped = leaves ? NULL : kick;
        guest->opaque = &vcpu;
        begin(&running, &trial, guest);
        wait_for_start(&running);
        assert_int_equal(pthread_create(&vcpu.thread, NULL, vcpu_main, &vcpu), 0);
        g_free(wait_for_hold(&running));
        pthread_join(vcpu.thread, NULL); /* it is out, while the session still holds */
        assert_true(vmf_session_resolve(trial.session, false, false, NULL));
        assert_given_up(&running, VMF_OUTCOME_FAILED, "image.page", "page 1099");
        assert_true(vcpu.left);
        assert_false(vcpu.got);
        assert_nothing(guest);
        assert_false(g_file_test(order, G_FILE_TEST_EXISTS));
        sigaction(SIGSEGV, &before, NULL);
        sigaction(KICK_SIGNAL, &before_kick, NULL);
    }
}

/* All pages are as their digests say, and the digests are not of the guest that was saved. */
static void test_lying_summary(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;
    Running running;

    image->blocks[0].memory[3 * PAGE + 10]++;
    forge_image_records(image);
    image->blocks[0].memory[3 * PAGE + 10]--;
    forge_image_assemble(image);
    forge_image_seal(image);
    image_write(*state, image, "a.img");
    lazy_init(&trial, uri);
    begin(&running, &trial, guest);
    g_autofree char *hold = wait_for_hold(&running);
    assert_non_null(strstr(hold, "RAM block ram: sum differs"));
    assert_false(guest->running);
    assert_true(vmf_session_resolve(trial.session, false, false, NULL));
    assert_given_up(&running, VMF_OUTCOME_FAILED, "ram.sum", "RAM block ram");
    assert_nothing(guest);
}

/* ---- other ends --------------------------------------------------------------------------------------------------------- */

static void test_cancel(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img"), *order = image_path(*state, "order");
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;
    Running running;

    image_write(*state, image, "a.img");
    lazy_init(&trial, uri);
    trial.options.order_path = order;
    trial.options.record_order = true;
    begin(&running, &trial, guest);
    wait_for_start(&running);
    look_around(guest, image);
    vmf_session_cancel(trial.session);
    assert_given_up(&running, VMF_OUTCOME_CANCELLED, "cancelled", "");
    assert_int_equal(guest->n_stops, 1);
    assert_nothing(guest);
}

static bool refuse_to_start(void *opaque, const char *point)
{
    return strcmp(point, "restore.start") == 0;
}

static void test_failure_before_the_start(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img");
    g_autoptr(Guest) guest = fitting_guest();
    g_auto(Trial) trial;

    image_write(*state, image, "a.img");
    lazy_init(&trial, uri);
    trial.parameters.fault = refuse_to_start;
    assert_refused(&trial, guest, "internal", "restore.start");
    assert_nothing(guest);
    trial.parameters.fault = NULL;
    guest->n_cleanups = 0;
    assert_restored(&trial, guest, image); /* and its memory can be used again */
}

/* ---- moving on before all is there -------------------------------------------------------------------------------------- */

typedef struct {
    VmfSession *session;
    bool done;
    GError *error;
} Side;

static void *side_main(void *opaque)
{
    Side *side = opaque;

    side->done = vmf_session_run(side->session, &side->error);
    return NULL;
}

/* Moves the guest, which stands, into another one. */
static void move(Guest *from, Guest *to, Side *source, Side *target)
{
    VmfConnector *connector;
    VmfListener *listener;
    VmfParameters parameters;
    pthread_t thread;

    vmf_memory_link_new(1 << 20, &connector, &listener);
    vmf_parameters_init(&parameters);
    parameters.audit = VMF_AUDIT_BEFORE;
    parameters.switchover_timeout_ns = 60 * UINT64_C(1000000000);
    *source = (Side){.session = vmf_session_new_source(from->guest, connector, &parameters, NULL, NULL)};
    *target = (Side){.session = vmf_session_new_target(to->guest, listener, &parameters, NULL, NULL)};
    assert_int_equal(pthread_create(&thread, NULL, side_main, target), 0);
    side_main(source);
    if (!source->done)
        vmf_session_cancel(target->session);
    pthread_join(thread, NULL);
    vmf_session_free(source->session);
    vmf_session_free(target->session);
    vmf_connector_free(connector);
    vmf_listener_free(listener);
}

/* What is still in the image is neither a hole nor zeros for who moves the guest on. */
static void test_moves_on(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img"), *order = image_path(*state, "order");
    g_autoptr(Guest) guest = fitting_guest(), other = fitting_guest();
    g_auto(Trial) trial;
    Running running;
    Side source, target;

    image_write(*state, image, "a.img");
    lazy_init(&trial, uri);
    trial.options.paused = true;
    trial.options.order_path = order; /* recording: nothing is read ahead for now */
    trial.options.record_order = true;
    begin(&running, &trial, guest);
    wait_for_start(&running);
    look_around(guest, image);
    uint64_t before = statistics_of(&running).bytes_received;
    assert_true(before < pages_of(image) * PAGE);
    move(guest, other, &source, &target);
    image_no_error(source.error);
    image_no_error(target.error);
    assert_true(source.done && target.done);
    assert_memory(other, image);
    pthread_join(running.thread, NULL);
    assert_true(running.done);
    assert_memory(guest, image);
}

/* A page that cannot be had ends the move, and nothing waits for it for ever. */
static void test_moves_on_without_a_page(void **state)
{
    g_autoptr(ForgeImage) image = forge_image_new(false, 1);
    g_autofree char *uri = image_uri(*state, "a.img"), *order = image_path(*state, "order");
    g_autoptr(Guest) guest = fitting_guest(), other = fitting_guest();
    g_auto(Trial) trial;
    Running running;
    Side source, target;

    write_damaged(*state, image);
    lazy_init(&trial, uri);
    trial.options.paused = true;
    trial.options.order_path = order;
    trial.options.record_order = true;
    begin(&running, &trial, guest);
    wait_for_start(&running);
    move(guest, other, &source, &target);
    assert_false(source.done);
    assert_false(target.done);
    image_assert_id(source.error, "image.page", "the move");
    g_clear_error(&source.error);
    g_clear_error(&target.error);
    assert_nothing(other);
    g_free(wait_for_hold(&running)); /* once reading ahead has come there too */
    vmf_session_cancel(trial.session);
    pthread_join(running.thread, NULL);
    g_clear_error(&running.error);
}

int main(void)
{
    static const struct CMUnitTest group[] = {
        cmocka_unit_test_setup_teardown(test_whole, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_layers, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_paused, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_order, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_order_of_a_paused_guest, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_empty_order, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_damaged_page, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_hold_that_is_left, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_damaged_page_that_is_touched, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_lying_summary, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_cancel, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_failure_before_the_start, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_moves_on, image_enter, image_leave),
        cmocka_unit_test_setup_teardown(test_moves_on_without_a_page, image_enter, image_leave),
    };

    return cmocka_run_group_tests(group, NULL, NULL);
}
