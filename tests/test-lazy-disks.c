/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disks that are restored lazily: what their guest sees of them, what others see, and what becomes of them. */
#include "tests/lazy-rig.h"

/* ---- whole ----------------------------------------------------------------------------------------------------- */

static void test_used_meanwhile(void **state)
{
    World *world = *state;
    Restore restore;
    g_autoptr(GError) error = NULL;
    g_autofree char *path = world_path(world, "backup"), *uri = g_strconcat("file:", path, NULL);
    VmfBackupOptions backup = {.size = sizeof(backup), .target = uri, .buffered = true};
    bool whole;

    restore_begin_held(&restore, world);
    player_wait(restore.player, 100);
    player_stop(restore.player, NULL);
    VmfStatistics statistics = restore_statistics(&restore);
    assert_int_equal(statistics.status, VMF_STATUS_POSTCOPY_ACTIVE);
    assert_true(statistics.disk_faults > 0);
    assert_true(statistics.disk_fault_p50_ns > 0 && statistics.disk_fault_p50_ns <= statistics.disk_fault_p99_ns &&
                statistics.disk_fault_p99_ns <= statistics.disk_fault_max_ns);
    assert_true(statistics.start_ns > 0 && statistics.disk_remaining_bytes > 0);
    assert_true(world_has(world, "new.partial") && !world_has(world, "new"));
    assert_true(vmf_disk_is_whole(restore.player->disk, &whole, NULL) && !whole);
    assert_false(vmf_disk_release(restore.player->disk, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_STATE));
    g_clear_error(&error);
    assert_null(vmf_backup_begin(restore.player->disk, &backup, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_STATE));
    player_start(restore.player, NULL);
    world_let_go(world);
    restore_assert_whole(&restore);
    assert_true(vmf_disk_is_whole(restore.player->disk, &whole, NULL) && whole);
    restore_end(&restore);
}

/* All of it is brought for the guest, and none behind its back. */
static void test_all_is_asked_for(void **state)
{
    World *world = *state;
    Restore restore;
    Hand hand = {.data = g_malloc(DISK_BYTES)};

    restore_begin_held(&restore, world);
    player_stop(restore.player, NULL);
    hand.player = restore.player;
    assert_true(player_request(&hand, VMF_DISK_READ, 0, DISK_BYTES));
    assert_memory_equal(hand.data, restore.player->model, DISK_BYTES);
    assert_int_equal(restore_statistics(&restore).disk_remaining_bytes, 0);
    world_let_go(world);
    player_start(restore.player, NULL);
    restore_assert_whole(&restore);
    restore_end(&restore);
    g_free(hand.data);
}

/* What is written over as a whole is never read from the image. */
static void test_all_is_written(void **state)
{
    World *world = *state;
    Restore restore;
    Hand hand = {.data = g_malloc(DISK_BYTES)};

    restore_begin_held(&restore, world);
    player_stop(restore.player, NULL);
    hand.player = restore.player;
    uint64_t before = restore_statistics(&restore).disk_sent_bytes;
    player_change(&hand, VMF_DISK_ZERO, 0, DISK_BYTES);
    assert_int_equal(restore_statistics(&restore).disk_remaining_bytes, 0);
    assert_int_equal(restore_statistics(&restore).disk_sent_bytes, before);
    world_let_go(world);
    player_start(restore.player, NULL);
    restore_assert_whole(&restore);
    restore_end(&restore);
    g_free(hand.data);
}

static void test_layers(void **state)
{
    World *world = *state;
    g_autofree char *parent = g_strdup_printf("file:%s", world->rig.path);
    Player *player = player_new(world, "disk", false);

    assert_true(vmf_disk_acquire(player->disk, NULL) && player_start(player, NULL));
    player_wait(player, 30);
    world->rig.options.parent = parent;
    g_free(world->rig.path);
    world->rig.path = world_path(world, "layer");
    if (!vmf_save_rig_run(&world->rig, player->guest))
        fail_msg("%s", world->rig.error->message);
    memcpy(world->content, player->at_stop, DISK_BYTES);
    player_free(player);
    Restore restore;
    restore_begin(&restore, world, "layer");
    restore_assert_whole(&restore);
    restore_end(&restore);
}

/* What comes from the image is no change of the guest's. */
static void test_bitmap(void **state)
{
    World *world = *state;
    VmfBitmapOptions options = {.size = sizeof(options), .name = "since", .persistent = true};
    VmfBitmapInfo info = {.size = sizeof(info)};
    g_autoptr(GError) error = NULL;
    Restore restore;

    restore_begin_held(&restore, world);
    player_stop(restore.player, NULL);
    if (!vmf_disk_add_bitmap(restore.player->disk, &options, &error))
        fail_msg("%s", error->message);
    world_let_go(world);
    assert_true(restore_finish(&restore));
    assert_int_equal(vmf_disk_list_bitmaps(restore.player->disk, &info, 1), 1);
    assert_int_equal(info.dirty_bytes, 0);
    assert_false(info.inconsistent);
    world_assert_content(world, "new", restore.player->model);
    restore_end(&restore);
}

/* ---- what cannot be had ---------------------------------------------------------------------------------------- */

#define BAD_PAGE (3 * MIB + 4096)

static void damage(World *world)
{
    g_autofree char *image = NULL;
    size_t length;
    uint64_t at = BAD_PAGE;

    assert_true(world->content[at + 9] && g_file_get_contents(world->rig.path, &image, &length, NULL));
    char *found = memmem(image, length, world->content + at, 4096);
    assert_non_null(found);
    found[77] ^= 4;
    assert_true(g_file_set_contents(world->rig.path, image, (gssize)length, NULL));
}

static void test_damage(void **state)
{
    World *world = *state;
    Restore restore;

    damage(world);
    restore_begin(&restore, world, "guest.image");
    restore_assert_given_up(&restore, "does not match its digest", VMF_ERROR_IMAGE_PAGE);
    restore_end(&restore);
}

/* Whoever asks for it gets neither what is there nor an error while it runs. */
static void test_damage_that_is_read(void **state)
{
    World *world = *state;
    Hand hand = {.data = g_malloc(UNIT)};
    Restore restore;

    damage(world);
    restore_begin_held(&restore, world);
    player_stop(restore.player, NULL);
    hand.player = restore.player;
    assert_false(player_request(&hand, VMF_DISK_READ, BAD_PAGE / UNIT * UNIT, UNIT));
    assert_true(restore.player->disk_lost);
    assert_true(g_error_matches(hand.error, VMF_ERROR, VMF_ERROR_IMAGE_PAGE));
    assert_false(player_request(&hand, VMF_DISK_WRITE, BAD_PAGE, 512));
    assert_true(player_request(&hand, VMF_DISK_WRITE, 0, UNIT)); /* that it covers can be had */
    world_let_go(world);
    restore_assert_given_up(&restore, "does not match its digest", VMF_ERROR_IMAGE_PAGE);
    restore_end(&restore);
    g_clear_error(&hand.error);
    g_free(hand.data);
}

/* The image is cut off while the guest runs. */
static void test_read_error(void **state)
{
    World *world = *state;
    Restore restore;

    restore_begin_held(&restore, world);
    assert_int_equal(truncate(world->rig.path, 4 * MIB), 0);
    world_let_go(world);
    restore_assert_given_up(&restore, "disk root, page ", VMF_ERROR_IO);
    restore_end(&restore);
}

static void test_hold_that_is_left(void **state)
{
    World *world = *state;
    Restore restore;

    damage(world);
    restore_begin(&restore, world, "guest.image");
    g_free(restore_wait_for_hold(&restore));
    vmf_session_cancel(restore.session);
    assert_false(restore_finish(&restore));
    assert_true(g_error_matches(restore.error, VMF_ERROR, VMF_ERROR_HELD));
    assert_false(player_is_running(restore.player));
    assert_true(!world_has(world, "new") && world_has(world, "new.partial"));
    restore_end(&restore);
}

static void test_disk_that_cannot_be_written(void **state)
{
    static const VmfStorageFault kinds[] = {
        {.kind = VMF_STORAGE_FAULT_ERROR, .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_WRITE), .offset = 8 * MIB, .length = MIB},
        {.kind = VMF_STORAGE_FAULT_ERROR, .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_FLUSH)},
    };
    World *world = *state;

    world->quiet = true; /* it would hear of what fails when it writes there */
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        Restore restore;

        world->faults = &kinds[i];
        world->n_faults = 1;
        restore_begin_held(&restore, world);
        world_let_go(world);
        restore_assert_given_up(&restore, "disk root", VMF_ERROR_IO);
        restore_end(&restore);
    }
    world_comes_back(world, "guest.image");
}

/* The guest is told, as of any disk; what was there is there still, though it never was. */
static void test_write_that_fails(void **state)
{
    static const VmfStorageFault fault = {.kind = VMF_STORAGE_FAULT_ERROR,
                                          .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_WRITE),
                                          .times = 1,
                                          .offset = 8 * MIB,
                                          .length = 2 * UNIT};
    World *world = *state;
    Hand hand = {.data = g_malloc(2 * UNIT)};
    Restore restore;

    world->faults = &fault;
    world->n_faults = 1;
    world->quiet = true;
    restore_begin_held(&restore, world);
    hand.player = restore.player;
    memset(hand.data, 0xee, 2 * UNIT);
    assert_false(player_request(&hand, VMF_DISK_WRITE, 8 * MIB, 2 * UNIT));
    restore.player->n_told = 0;
    assert_true(player_request(&hand, VMF_DISK_READ, 8 * MIB, 2 * UNIT));
    assert_memory_equal(hand.data, world->content + 8 * MIB, 2 * UNIT);
    world_let_go(world);
    restore_assert_whole(&restore);
    restore_end(&restore);
    g_clear_error(&hand.error);
    g_free(hand.data);
}

/* ---- other ends ------------------------------------------------------------------------------------------------ */

static void test_cancel(void **state)
{
    World *world = *state;
    g_autofree char *path = world_path(world, "new"), *content = NULL;
    Restore restore;

    for (unsigned old = 0; old < 2; old++) {
        if (old) {
            assert_true(g_file_set_contents(path, "kept", 4, NULL));
            assert_int_equal(truncate(path, DISK_BYTES), 0);
        }
        restore_begin_held(&restore, world);
        player_wait(restore.player, 20);
        vmf_session_cancel(restore.session);
        world_let_go(world);
        assert_false(restore_finish(&restore));
        assert_true(g_error_matches(restore.error, VMF_ERROR, VMF_ERROR_CANCELLED));
        assert_false(player_is_running(restore.player));
        assert_int_equal(world_has(world, "new"), old);
        restore_end(&restore);
    }
    assert_true(g_file_get_contents(path, &content, NULL, NULL));
    assert_memory_equal(content, "kept", 4);
    world_comes_back(world, "guest.image");
}

/* As if it had died there. What has the name is whole; and the image gives it back again. */
static void test_points(void **state)
{
    static const char *const points[] = {"restore.accepted",   "restore.disks",        "restore.loaded",      "restore.start",
                                         "restore.disks.rest", "restore.disks.filled", "restore.disks.named"};
    World *world = *state;

    for (unsigned i = 0; i < G_N_ELEMENTS(points); i++) {
        Restore restore;
        world->hold_at = NULL;
        world->kill_at = points[i];
        restore_begin(&restore, world, "guest.image");
        assert_false(restore_finish(&restore));
        player_stop(restore.player, NULL);
        assert_int_equal(world_has(world, "new"), strcmp(points[i], "restore.disks.named") == 0);
        if (world_has(world, "new"))
            world_assert_content(world, "new", restore.player->model);
        restore_end(&restore);
        world_comes_back(world, "guest.image");
    }
}

/* The new disk's storage is gone after so many operations: each of them in turn. */
static void test_storage_that_goes(void **state)
{
    World *world = *state;
    bool crashed = true;

    for (uint64_t n = 0; crashed; n += 1 + n / 8) {
        VmfStorageFault fault = {.kind = VMF_STORAGE_FAULT_CRASH, .after_operations = n};
        Restore restore;
        world->hold_at = world->kill_at = NULL;
        world->faults = &fault;
        world->n_faults = 1;
        world->quiet = true;
        restore_begin(&restore, world, "guest.image");
        while (restore_statistics(&restore).outcome == VMF_OUTCOME_NONE)
            g_usleep(1000);
        crashed = restore_statistics(&restore).outcome == VMF_OUTCOME_HELD;
        if (crashed)
            restore_assert_given_up(&restore, "disk root", VMF_ERROR_IO);
        else
            assert_true(restore_finish(&restore));
        restore_end(&restore);
        world->faults = NULL;
    }
    world_remove_new(world);
    world_comes_back(world, "guest.image");
}

/* ---- passing it on --------------------------------------------------------------------------------------------- */

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

/* Moves the guest to one whose disk is @name, which does nothing there; the rest of its disk comes once the first is under way. */
static Player *move(Restore *restore, const char *name, const char *copy_disks)
{
    World *world = restore->world;
    VmfConnector *connector;
    VmfListener *listener;
    VmfParameters parameters;
    VmfStatistics statistics = {.size = sizeof(statistics)};
    pthread_t threads[2];

    world->quiet = true;
    Player *there = player_new(world, name, copy_disks != NULL);
    vmf_memory_link_new(1 << 20, &connector, &listener);
    vmf_parameters_init(&parameters);
    parameters.copy_disks = copy_disks;
    /* Whatever else this host does: */
    parameters.switchover_timeout_ns = parameters.downtime_limit_ns = 60 * UINT64_C(1000000000);
    Side source = {.session = vmf_session_new_source(restore->player->guest, connector, &parameters, NULL, NULL)};
    Side target = {.session = vmf_session_new_target(there->guest, listener, &parameters, NULL, NULL)};
    assert_int_equal(pthread_create(&threads[0], NULL, side_main, &source), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, side_main, &target), 0);
    while (statistics.round == 0 || (copy_disks && statistics.disk_sent_bytes == 0)) {
        vmf_session_get_statistics(source.session, &statistics);
        if (vmf_session_hold(restore->session) || statistics.outcome != VMF_OUTCOME_NONE)
            break;
        g_usleep(1000);
    }
    player_calm(restore->player);
    world_let_go(world);
    pthread_join(threads[0], NULL);
    if (!source.done)
        vmf_session_cancel(target.session);
    pthread_join(threads[1], NULL);
    assert_int_equal(source.done, target.done);
    g_clear_error(&restore->move_error);
    restore->move_error = source.error;
    g_clear_error(&target.error);
    vmf_session_free(source.session);
    vmf_session_free(target.session);
    vmf_connector_free(connector);
    vmf_listener_free(listener);
    return there;
}

static void test_moves_on_with_a_copy(void **state)
{
    World *world = *state;
    Restore restore;

    restore_begin_held(&restore, world);
    player_wait(restore.player, 20);
    Player *there = move(&restore, "moved", "all");
    if (restore.move_error)
        fail_msg("%s", restore.move_error->message);
    assert_true(restore_finish(&restore));
    world_assert_content(world, "moved", restore.player->at_stop);
    world_assert_content(world, "new", restore.player->at_stop);
    player_free(there);
    restore_end(&restore);
}

/* The other host finds the disk under its name: so it is not let go of before it has that. */
static void test_moves_on_with_a_shared_disk(void **state)
{
    World *world = *state;
    g_autofree char *path = world_path(world, "new");
    Restore restore;

    assert_true(g_file_set_contents(path, "", 0, NULL));
    assert_int_equal(truncate(path, DISK_BYTES), 0);
    restore_begin_held(&restore, world);
    player_wait(restore.player, 20);
    Player *there = move(&restore, "new", NULL);
    if (restore.move_error)
        fail_msg("%s", restore.move_error->message);
    assert_true(restore_finish(&restore));
    assert_false(world_has(world, "new.partial"));
    world_assert_content(world, "new", restore.player->at_stop);
    player_free(there);
    restore_end(&restore);
}

/* Whoever waits for the disk hears that it will never be whole. */
static void test_moves_on_without_a_part(void **state)
{
    World *world = *state;
    g_autofree char *path = world_path(world, "new");
    Restore restore;

    damage(world);
    assert_true(g_file_set_contents(path, "", 0, NULL));
    assert_int_equal(truncate(path, DISK_BYTES), 0);
    world->quiet = true;
    restore_begin_held(&restore, world);
    Player *there = move(&restore, "new", NULL);
    assert_true(g_error_matches(restore.move_error, VMF_ERROR, VMF_ERROR_IMAGE_PAGE));
    player_free(there);
    g_free(restore_wait_for_hold(&restore));
    assert_true(vmf_session_resolve(restore.session, false, false, NULL));
    assert_false(restore_finish(&restore));
    restore_end(&restore);
}

static void saved_meanwhile(World *world)
{
    Restore restore;
    VmfStatistics statistics = {.size = sizeof(statistics)};

    restore_begin_held(&restore, world);
    player_wait(restore.player, 20);
    g_free(world->rig.path);
    world->rig.path = world_path(world, "again");
    player_calm(restore.player);
    vmf_save_rig_start(&world->rig, restore.player->guest);
    while (statistics.status != VMF_STATUS_ACTIVE && statistics.outcome == VMF_OUTCOME_NONE) {
        vmf_session_get_statistics(world->rig.session, &statistics);
        g_usleep(1000);
    }
    world_let_go(world);
    bool saved = vmf_save_rig_finish(&world->rig);
    if (!saved && !g_error_matches(world->rig.error, VMF_ERROR, VMF_ERROR_UNSUPPORTED))
        fail_msg("%s", world->rig.error->message);
    memcpy(world->content, restore.player->at_stop, DISK_BYTES);
    restore_assert_whole(&restore);
    restore_end(&restore);
    world_remove_new(world);
    if (saved)
        world_comes_back(world, "again");
}

static void test_saved_meanwhile(void **state)
{
    saved_meanwhile(*state);
}

static void test_saved_as_it_is_now(void **state)
{
    World *world = *state;

    world->rig.options.point_in_time = true;
    saved_meanwhile(world);
}

#define world_test(test) cmocka_unit_test_setup_teardown(test, world_enter, world_leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        world_test(test_used_meanwhile),
        world_test(test_all_is_asked_for),
        world_test(test_all_is_written),
        world_test(test_layers),
        world_test(test_bitmap),
        world_test(test_damage),
        world_test(test_damage_that_is_read),
        world_test(test_read_error),
        world_test(test_hold_that_is_left),
        world_test(test_disk_that_cannot_be_written),
        world_test(test_write_that_fails),
        world_test(test_cancel),
        world_test(test_points),
        world_test(test_storage_that_goes),
        world_test(test_moves_on_with_a_copy),
        world_test(test_moves_on_with_a_shared_disk),
        world_test(test_moves_on_without_a_part),
        world_test(test_saved_meanwhile),
        world_test(test_saved_as_it_is_now),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
