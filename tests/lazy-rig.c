/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/lazy-rig.h"

#define STRIPE (UNIT / 2)
#define GROUP (4 * UNIT)

/* ---- the guest ------------------------------------------------------------------------------------------------- */

bool player_stop(void *opaque, GError **error)
{
    Player *player = opaque;

    pthread_mutex_lock(&player->lock);
    player->stopped = true;
    for (unsigned i = 0; i < THREADS; i++)
        while (player->hands[i].busy)
            pthread_cond_wait(&player->changed, &player->lock);
    memcpy(player->at_stop, player->model, DISK_BYTES);
    pthread_mutex_unlock(&player->lock);
    return true;
}

bool player_start(void *opaque, GError **error)
{
    Player *player = opaque;

    pthread_mutex_lock(&player->lock);
    player->stopped = false;
    pthread_cond_broadcast(&player->changed);
    pthread_mutex_unlock(&player->lock);
    return true;
}

bool player_is_running(void *opaque)
{
    Player *player = opaque;

    pthread_mutex_lock(&player->lock);
    bool running = !player->stopped;
    pthread_mutex_unlock(&player->lock);
    return running;
}

static void disk_lost(void *opaque)
{
    Player *player = opaque;

    pthread_mutex_lock(&player->lock);
    assert_false(player->disk_lost);
    player->disk_lost = true;
    pthread_mutex_unlock(&player->lock);
}

static bool storage_release(void *opaque, GError **error)
{
    return vmf_disk_release(((Player *)opaque)->disk, error);
}

static bool storage_acquire(void *opaque, GError **error)
{
    return vmf_disk_acquire(((Player *)opaque)->disk, error);
}

static void on_done(VmfDiskRequest *request, const GError *error)
{
    Hand *hand = request->opaque;
    Player *player = hand->player;

    pthread_mutex_lock(&player->lock);
    hand->ended = true;
    g_clear_error(&hand->error);
    hand->error = error ? g_error_copy(error) : NULL;
    player->n_told += error && !player->disk_lost && !player->over;
    pthread_cond_broadcast(&player->changed);
    pthread_mutex_unlock(&player->lock);
}

bool player_request(Hand *hand, VmfDiskOperation operation, uint64_t offset, uint64_t length)
{
    struct iovec iov = {hand->data, length};
    bool has_data = operation <= VMF_DISK_WRITE;
    VmfDiskRequest r = {.operation = operation,
                        .offset = offset,
                        .length = length,
                        .iov = has_data ? &iov : NULL,
                        .n_iov = has_data,
                        .done = on_done,
                        .opaque = hand};

    vmf_disk_submit(hand->player->disk, &r);
    pthread_mutex_lock(&hand->player->lock);
    while (!hand->ended)
        pthread_cond_wait(&hand->player->changed, &hand->player->lock);
    hand->ended = false;
    bool good = !hand->error;
    pthread_mutex_unlock(&hand->player->lock);
    return good;
}

/*
 * Groups of four units in turn: of one, two threads have half of each unit, so that each finds the other's beside its
 * own; of the next a third one has all, so that it covers some units as a whole. Nobody asks for what is near the end.
 */
static void choose(Hand *hand, uint64_t *offset, uint64_t *length)
{
    unsigned n_groups = DISK_BYTES / GROUP - 6, whole = hand->number == 2, size = whole ? GROUP : STRIPE;
    uint64_t group = (uint64_t)g_rand_int_range(hand->rand, 0, (int)(n_groups / 2)) * 2 + whole, begin = group * GROUP;

    if (!whole)
        begin += (uint64_t)g_rand_int_range(hand->rand, 0, GROUP / UNIT) * UNIT + hand->number * STRIPE;
    if (whole && g_rand_int_range(hand->rand, 0, 8) == 0) /* the last sectors */
        begin = DISK_BYTES / UNIT * UNIT, size = DISK_BYTES - (uint32_t)begin;
    unsigned n = size / 512, first = (unsigned)g_rand_int_range(hand->rand, 0, (int)n);
    *offset = begin + first * 512;
    *length = (uint64_t)g_rand_int_range(hand->rand, 1, (int)(n - first) + 1) * 512;
    if (whole && g_rand_int_range(hand->rand, 0, 2)) {
        *offset = begin;
        *length = size;
    }
}

static void read_and_compare(Hand *hand, uint64_t offset, uint64_t length)
{
    Player *player = hand->player;

    if (!player_request(hand, VMF_DISK_READ, offset, length))
        return;
    if (memcmp(hand->data, player->model + offset, length) != 0) {
        pthread_mutex_lock(&player->lock);
        player->wrong = true;
        pthread_mutex_unlock(&player->lock);
    }
}

void player_change(Hand *hand, VmfDiskOperation operation, uint64_t offset, uint64_t length)
{
    memset(hand->data, operation == VMF_DISK_WRITE ? (int)(hand->n % 255) + 1 : 0, length);
    if (player_request(hand, operation, offset, length))
        memcpy(hand->player->model + offset, hand->data, length);
}

static void do_something(Hand *hand)
{
    static const VmfDiskOperation operations[] = {VMF_DISK_READ, VMF_DISK_READ, VMF_DISK_READ,    VMF_DISK_WRITE,
                                                  VMF_DISK_WRITE, VMF_DISK_ZERO, VMF_DISK_DISCARD, VMF_DISK_FLUSH};
    VmfDiskOperation operation = operations[g_rand_int_range(hand->rand, 0, G_N_ELEMENTS(operations))];
    uint64_t offset, length;

    choose(hand, &offset, &length);
    if (operation == VMF_DISK_READ)
        read_and_compare(hand, offset, length);
    else if (operation == VMF_DISK_FLUSH)
        player_request(hand, operation, 0, 0);
    else
        player_change(hand, operation, offset, length);
}

static bool may_go_on(Hand *hand)
{
    Player *player = hand->player;

    pthread_mutex_lock(&player->lock);
    hand->busy = false;
    hand->n++;
    pthread_cond_broadcast(&player->changed);
    while ((player->stopped || player->quiet) && !player->over)
        pthread_cond_wait(&player->changed, &player->lock);
    hand->busy = !player->over;
    pthread_mutex_unlock(&player->lock);
    return hand->busy;
}

static void *hand_main(void *opaque)
{
    Hand *hand = opaque;

    while (may_go_on(hand)) {
        do_something(hand);
        g_usleep(100);
    }
    return NULL;
}

/* Each of them. */
void player_wait(Player *player, uint64_t more)
{
    uint64_t until[THREADS];

    pthread_mutex_lock(&player->lock);
    for (unsigned i = 0; i < THREADS; i++)
        until[i] = player->hands[i].n + more;
    for (unsigned i = 0; i < THREADS; i++)
        while (!player->quiet && player->hands[i].n < until[i] && !player->disk_lost)
            pthread_cond_wait(&player->changed, &player->lock);
    pthread_mutex_unlock(&player->lock);
}

/* From here on it runs, and does nothing. */
void player_calm(Player *player)
{
    pthread_mutex_lock(&player->lock);
    player->quiet = true;
    for (unsigned i = 0; i < THREADS; i++)
        while (player->hands[i].busy)
            pthread_cond_wait(&player->changed, &player->lock);
    pthread_mutex_unlock(&player->lock);
}

/* ---- making and unmaking --------------------------------------------------------------------------------------- */

/* Nobody writes this guest's memory. */
static bool log_start(void *opaque, GError **error)
{
    return true;
}

static void log_stop(void *opaque)
{
}

static bool log_harvest(void *opaque, unsigned block, void (*report)(void *, uint64_t, const uint64_t *, size_t), void *report_opaque,
                        GError **error)
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

char *world_path(const World *world, const char *name)
{
    return g_build_filename(world->rig.folder, name, NULL);
}

bool world_has(const World *world, const char *name)
{
    g_autofree char *path = world_path(world, name);

    return g_file_test(path, G_FILE_TEST_EXISTS);
}

static VmfStorage *put_faults(VmfStorage *storage, void *opaque, GError **error)
{
    World *world = opaque;

    if (world->faults)
        storage = vmf_storage_fault_new(storage, world->faults, world->n_faults, error);
    return world->storage = storage;
}

static VmfDisk *open_disk(World *world, const char *name, bool incoming)
{
    g_autofree char *path = world_path(world, name), *uri = g_strconcat("file:", path, NULL);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .buffered = true};

    options.incoming = incoming;
    options.create_bytes = incoming ? 0 : DISK_BYTES;
    VmfDisk *disk = vmf_disk_open("root", &options, NULL);
    assert_non_null(disk);
    vmf_disk_set_wrap(disk, put_faults, world);
    return disk;
}

Player *player_new(World *world, const char *disk, bool incoming)
{
    static const VmfGuestOps ops = {.size = sizeof(VmfGuestOps),
                                    .stop = player_stop,
                                    .start = player_start,
                                    .is_running = player_is_running,
                                    .storage_release = storage_release,
                                    .storage_acquire = storage_acquire,
                                    .disk_lost = disk_lost};
    static const uint8_t uuid[16] = {1};
    Player *player = g_new0(Player, 1);
    VmfRamBlock *ram = vmf_ram_block_new("ram", 2 * MIB, VMF_RAM_MEMFD, 0, 0, NULL);

    player->world = world;
    player->stopped = true;
    player->quiet = world->quiet;
    player->model = g_memdup2(world->content, DISK_BYTES);
    player->at_stop = g_malloc(DISK_BYTES);
    pthread_mutex_init(&player->lock, NULL);
    pthread_cond_init(&player->changed, NULL);
    player->disk = open_disk(world, disk, incoming);
    player->guest = vmf_guest_new("test", uuid, &ops, player);
    assert_non_null(ram);
    assert_true(vmf_guest_add_ram(player->guest, ram, NULL, NULL));
    vmf_guest_set_dirty_log(player->guest, &log_ops, NULL);
    assert_true(vmf_guest_add_disk(player->guest, "root", &vmf_disk_guest_ops, player->disk, NULL));
    for (unsigned i = 0; i < THREADS; i++) {
        Hand *hand = &player->hands[i];
        *hand = (Hand){.player = player, .number = i, .rand = g_rand_new_with_seed(i + 1), .data = g_malloc(GROUP)};
        assert_int_equal(pthread_create(&hand->thread, NULL, hand_main, hand), 0);
    }
    return player;
}

/* Nothing that it read was wrong, and nothing failed that it would have heard of. */
void player_free(Player *player)
{
    pthread_mutex_lock(&player->lock);
    player->over = true;
    pthread_cond_broadcast(&player->changed);
    pthread_mutex_unlock(&player->lock);
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(player->hands[i].thread, NULL);
        g_rand_free(player->hands[i].rand);
        g_clear_error(&player->hands[i].error);
        g_free(player->hands[i].data);
    }
    assert_false(player->wrong);
    assert_int_equal(player->n_told, 0);
    vmf_guest_free(player->guest);
    vmf_disk_free(player->disk);
    pthread_cond_destroy(&player->changed);
    pthread_mutex_destroy(&player->lock);
    g_free(player->at_stop);
    g_free(player->model);
    g_free(player);
}

/* Two pages of three hold something, each something else; a stretch in the middle is a hole. */
static void make_content(World *world)
{
    for (uint64_t at = 0; at < DISK_BYTES; at += 4096)
        if (at / 4096 % 3 && (at < 4 * MIB || at >= 5 * MIB))
            for (uint64_t i = at; i < MIN(at + 4096, DISK_BYTES); i++)
                world->content[i] = (uint8_t)(i / 4096 * 7 + i % 4096 / 16 + 1);
    for (uint64_t at = 0; at + 8 <= DISK_BYTES; at += 4096)
        if (world->content[at])
            memcpy(world->content + at, &at, 8); /* so that a page can be found in the image */
}

static void save_image(World *world)
{
    g_autofree char *path = world_path(world, "disk");

    assert_true(g_file_set_contents(path, (const char *)world->content, DISK_BYTES, NULL));
    world->quiet = true;
    Player *player = player_new(world, "disk", false);
    world->quiet = false;
    assert_true(vmf_disk_acquire(player->disk, NULL) && player_start(player, NULL));
    memset(vmf_ram_block_host(vmf_guest_ram(player->guest, 0)), 0x5a, MIB);
    world->rig.parameters.copy_disks = "all";
    world->rig.parameters.downtime_limit_ns = 60 * UINT64_C(1000000000); /* storage may be slow to sync */
    world->rig.options.resume = true;
    if (!vmf_save_rig_run(&world->rig, player->guest))
        fail_msg("%s", world->rig.error->message);
    player_free(player);
}

int world_enter(void **state)
{
    World *world = *state = g_new0(World, 1);

    vmf_save_rig_init(&world->rig);
    world->content = g_malloc0(DISK_BYTES);
    pthread_mutex_init(&world->lock, NULL);
    pthread_cond_init(&world->changed, NULL);
    make_content(world);
    save_image(world);
    return 0;
}

int world_leave(void **state)
{
    World *world = *state;

    vmf_save_rig_clear(&world->rig);
    pthread_cond_destroy(&world->changed);
    pthread_mutex_destroy(&world->lock);
    g_free(world->content);
    g_free(world);
    return 0;
}

/* ---- restoring ------------------------------------------------------------------------------------------------- */

static bool on_point(void *opaque, const char *point)
{
    World *world = opaque;

    if (g_strcmp0(point, world->hold_at) == 0) {
        pthread_mutex_lock(&world->lock);
        world->held = true;
        pthread_cond_broadcast(&world->changed);
        while (!world->go)
            pthread_cond_wait(&world->changed, &world->lock);
        pthread_mutex_unlock(&world->lock);
    }
    return g_strcmp0(point, world->kill_at) == 0;
}

static void *restore_main(void *opaque)
{
    Restore *restore = opaque;

    restore->done = vmf_session_run(restore->session, &restore->error);
    return NULL;
}

void restore_begin(Restore *restore, World *world, const char *image)
{
    g_autofree char *path = world_path(world, image), *uri = g_strconcat("file:", path, NULL);
    VmfRestoreOptions options = {.size = sizeof(options), .uri = uri, .mode = VMF_RESTORE_LAZY};
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    parameters.fault = on_point;
    parameters.fault_opaque = world;
    world->held = world->go = false;
    *restore = (Restore){.world = world, .player = player_new(world, "new", true)};
    restore->session = vmf_session_new_restore(restore->player->guest, &options, &parameters, NULL, NULL);
    assert_int_equal(pthread_create(&restore->thread, NULL, restore_main, restore), 0);
}

/* The guest runs, its memory is there, and of its disk only what it asks for. */
void restore_begin_held(Restore *restore, World *world)
{
    world->hold_at = "restore.disks.rest";
    restore_begin(restore, world, "guest.image");
    pthread_mutex_lock(&world->lock);
    while (!world->held)
        pthread_cond_wait(&world->changed, &world->lock);
    pthread_mutex_unlock(&world->lock);
}

void world_let_go(World *world)
{
    pthread_mutex_lock(&world->lock);
    world->go = true;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->lock);
}

VmfStatistics restore_statistics(const Restore *restore)
{
    VmfStatistics statistics = {.size = sizeof(statistics)};

    vmf_session_get_statistics(restore->session, &statistics);
    return statistics;
}

/* The session's end. */
bool restore_finish(Restore *restore)
{
    pthread_join(restore->thread, NULL);
    return restore->done;
}

void restore_end(Restore *restore)
{
    vmf_session_free(restore->session);
    player_free(restore->player);
    g_clear_error(&restore->error);
    g_clear_error(&restore->move_error);
}

void world_assert_content(const World *world, const char *name, const uint8_t *expected)
{
    g_autofree char *path = world_path(world, name);
    g_autofree char *found = NULL;
    size_t length;

    assert_true(g_file_get_contents(path, &found, &length, NULL));
    assert_int_equal(length, DISK_BYTES);
    for (size_t i = 0; i < DISK_BYTES; i++)
        if ((uint8_t)found[i] != expected[i])
            fail_msg("%s: octet %zu is %u, it was %u", name, i, (uint8_t)found[i], expected[i]);
}

/* It has come to its end, and the guest's disk is what it made of it. */
void restore_assert_whole(Restore *restore)
{
    World *world = restore->world;

    if (!restore_finish(restore))
        fail_msg("%s", restore->error->message);
    player_wait(restore->player, 20);
    player_stop(restore->player, NULL);
    VmfStatistics statistics = restore_statistics(restore);
    assert_int_equal(statistics.disk_total_bytes, DISK_BYTES);
    assert_int_equal(statistics.disk_remaining_bytes, 0);
    assert_false(world_has(world, "new.partial"));
    world_assert_content(world, "new", restore->player->model);
}

void world_remove_new(World *world)
{
    g_autofree char *path = world_path(world, "new"), *partial = world_path(world, "new.partial");

    unlink(path);
    unlink(partial);
}

/* Once more, from the beginning. */
void world_comes_back(World *world, const char *image)
{
    Restore restore;

    world->hold_at = world->kill_at = NULL;
    world->faults = NULL;
    world->quiet = false;
    restore_begin(&restore, world, image);
    restore_assert_whole(&restore);
    restore_end(&restore);
    world_remove_new(world);
}

char *restore_wait_for_hold(Restore *restore)
{
    char *hold;

    while (!(hold = vmf_session_hold(restore->session)))
        g_usleep(1000);
    return hold;
}

/* The guest stands, and stays so; nothing of it that is not whole has a name. */
void restore_assert_given_up(Restore *restore, const char *words, VmfErrorCode code)
{
    g_autofree char *hold = restore_wait_for_hold(restore);

    if (!strstr(hold, words) || !strstr(hold, "a part of a disk cannot be had"))
        fail_msg("%s", hold);
    assert_false(player_is_running(restore->player));
    assert_true(restore->player->disk_lost);
    assert_int_equal(restore_statistics(restore).outcome, VMF_OUTCOME_HELD);
    assert_false(world_has(restore->world, "new"));
    assert_true(world_has(restore->world, "new.partial"));
    assert_true(vmf_session_resolve(restore->session, false, false, NULL));
    assert_false(restore_finish(restore));
    if (!g_error_matches(restore->error, VMF_ERROR, code))
        fail_msg("%s", restore->error->message);
    assert_false(world_has(restore->world, "new"));
}
