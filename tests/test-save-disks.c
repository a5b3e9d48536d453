/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks in images, octet by octet: a writer stands for the guest, keeps a model of its disk, and keeps a copy of that
 * at each stop. What an image gives back has to be that copy, whatever was written before, since and meanwhile.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include <vmferry/vmferry.h>

#include "block/disk.h"
#include "stream/clock.h"
#include "tests/save-rig.h"

#define MIB (1u << 20)
#define DISK_BYTES (6 * MIB + 512)
#define WRITE_MOST 65536u
/* So much longer than the writer takes to fill a request it waits then: a save that copies as slowly, under a sanitizer or on a busy host,
 * keeps up with it. */
#define PAUSE_FACTOR 200

typedef struct {
    VmfSaveRig rig;
    VmfGuest *guest;
    VmfDisk *disk;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopped, busy, over, ended; /* ended: the request */
    bool failed;
    uint64_t writes, area_bytes; /* area: of the disk's start, where it writes */
    uint8_t *model, *at_stop, *data;
    int64_t copy_ns; /* the writer's: how long it took to fill what it wrote last */
    GRand *rand;
} World;

/* ---- the guest ------------------------------------------------------------------------------------------------- */

static bool stop(void *opaque, GError **error)
{
    World *world = opaque;

    pthread_mutex_lock(&world->lock);
    world->stopped = true;
    while (world->busy)
        pthread_cond_wait(&world->changed, &world->lock);
    memcpy(world->at_stop, world->model, DISK_BYTES);
    pthread_mutex_unlock(&world->lock);
    return true;
}

static bool start(void *opaque, GError **error)
{
    World *world = opaque;

    pthread_mutex_lock(&world->lock);
    world->stopped = false;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->lock);
    return true;
}

static bool is_running(void *opaque)
{
    World *world = opaque;

    pthread_mutex_lock(&world->lock);
    bool running = !world->stopped;
    pthread_mutex_unlock(&world->lock);
    return running;
}

static void on_done(VmfDiskRequest *request, const GError *error)
{
    World *world = request->opaque;

    pthread_mutex_lock(&world->lock);
    world->failed |= error != NULL;
    world->ended = true;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->lock);
}

/* One request, and what it makes of the model. */
static void write_somewhere(World *world)
{
    pthread_mutex_lock(&world->lock);
    uint64_t area = world->area_bytes;
    pthread_mutex_unlock(&world->lock);
    uint64_t offset = (uint64_t)g_rand_int_range(world->rand, 0, (int)(area / 512)) * 512;
    uint64_t most = MIN(WRITE_MOST, area - offset) / 512;
    uint64_t length = (uint64_t)g_rand_int_range(world->rand, 1, (int)most + 1) * 512;
    bool zero = g_rand_int_range(world->rand, 0, 5) == 0;
    struct iovec iov = {world->data, length};
    VmfDiskRequest request = {.operation = zero ? VMF_DISK_ZERO : VMF_DISK_WRITE,
                              .offset = offset,
                              .length = length,
                              .iov = zero ? NULL : &iov,
                              .n_iov = zero ? 0 : 1,
                              .done = on_done,
                              .opaque = world};

    int64_t began_ns = vmf_now_ns();
    memset(world->data, zero ? 0 : (int)(world->writes % 255) + 1, length);
    world->copy_ns = vmf_now_ns() - began_ns;
    vmf_disk_submit(world->disk, &request);
    pthread_mutex_lock(&world->lock);
    while (!world->ended)
        pthread_cond_wait(&world->changed, &world->lock);
    world->ended = false;
    memcpy(world->model + offset, world->data, length);
    world->writes++;
    pthread_mutex_unlock(&world->lock);
}

static bool may_write(World *world)
{
    pthread_mutex_lock(&world->lock);
    while (world->stopped && !world->over)
        pthread_cond_wait(&world->changed, &world->lock);
    world->busy = !world->over;
    pthread_mutex_unlock(&world->lock);
    return world->busy;
}

static void *writer(void *opaque)
{
    World *world = opaque;

    while (may_write(world)) {
        write_somewhere(world);
        pthread_mutex_lock(&world->lock);
        world->busy = false;
        pthread_cond_broadcast(&world->changed);
        pthread_mutex_unlock(&world->lock);
        g_usleep(MAX(100, (gulong)(world->copy_ns * PAUSE_FACTOR / 1000)));
    }
    return NULL;
}

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

/* ---- making and unmaking --------------------------------------------------------------------------------------- */

static char *path_of(const World *world, const char *name)
{
    return g_build_filename(world->rig.folder, name, NULL);
}

static VmfDisk *open_disk(const World *world, const char *name, bool incoming)
{
    g_autofree char *path = path_of(world, name), *uri = g_strconcat("file:", path, NULL);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .buffered = true};

    options.incoming = incoming;
    options.create_bytes = incoming ? 0 : DISK_BYTES;
    VmfDisk *disk = vmf_disk_open("root", &options, NULL);
    assert_non_null(disk);
    return disk;
}

static VmfGuest *new_guest(World *world, VmfDisk *disk)
{
    static const VmfGuestOps ops = {
        .size = sizeof(VmfGuestOps), .stop = stop, .start = start, .is_running = is_running};
    static const uint8_t uuid[16] = {1};
    VmfGuest *guest = vmf_guest_new("test", uuid, &ops, world);
    VmfRamBlock *ram = vmf_ram_block_new("ram", 2 * MIB, VMF_RAM_MEMFD, 0, 0, NULL);

    assert_non_null(ram);
    memset(vmf_ram_block_host(ram), 0x5a, MIB);
    assert_true(vmf_guest_add_ram(guest, ram, NULL, NULL));
    vmf_guest_set_dirty_log(guest, &log_ops, NULL);
    assert_true(vmf_guest_add_disk(guest, "root", &vmf_disk_guest_ops, disk, NULL));
    return guest;
}

static void wait_for_writes(World *world, uint64_t more)
{
    pthread_mutex_lock(&world->lock);
    for (uint64_t until = world->writes + more; world->writes < until;)
        pthread_cond_wait(&world->changed, &world->lock);
    pthread_mutex_unlock(&world->lock);
}

static int enter(void **state)
{
    World *world = *state = g_new0(World, 1);

    vmf_save_rig_init(&world->rig);
    world->rig.parameters.copy_disks = "all";
    world->rig.parameters.downtime_limit_ns = 60 * UINT64_C(1000000000); /* storage may be slow to sync */
    world->rig.options.resume = true;
    world->model = g_malloc0(DISK_BYTES);
    world->at_stop = g_malloc0(DISK_BYTES);
    world->data = g_malloc0(WRITE_MOST);
    world->rand = g_rand_new_with_seed(17);
    world->area_bytes = DISK_BYTES;
    pthread_mutex_init(&world->lock, NULL);
    pthread_cond_init(&world->changed, NULL);
    world->disk = open_disk(world, "disk", false);
    assert_true(vmf_disk_acquire(world->disk, NULL));
    world->guest = new_guest(world, world->disk);
    assert_int_equal(pthread_create(&world->thread, NULL, writer, world), 0);
    wait_for_writes(world, 200);
    return 0;
}

/* The disk is what its writer knows: no write was lost. */
static int leave(void **state)
{
    World *world = *state;
    g_autofree char *path = path_of(world, "disk");
    g_autofree char *content = NULL;

    pthread_mutex_lock(&world->lock);
    world->over = true;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->lock);
    pthread_join(world->thread, NULL);
    assert_false(world->failed);
    vmf_guest_free(world->guest);
    vmf_disk_free(world->disk);
    assert_true(g_file_get_contents(path, &content, NULL, NULL));
    assert_memory_equal(content, world->model, DISK_BYTES);
    vmf_save_rig_clear(&world->rig);
    pthread_cond_destroy(&world->changed);
    pthread_mutex_destroy(&world->lock);
    g_rand_free(world->rand);
    g_free(world->model);
    g_free(world->at_stop);
    g_free(world->data);
    g_free(world);
    return 0;
}

/* ---- saving and restoring -------------------------------------------------------------------------------------- */

/* Whether there was such a save; false: this host has none. */
static bool save(World *world)
{
    if (vmf_save_rig_run(&world->rig, world->guest))
        return true;
    if (!g_error_matches(world->rig.error, VMF_ERROR, VMF_ERROR_UNSUPPORTED))
        fail_msg("%s", world->rig.error->message);
    print_message("%s\n", world->rig.error->message);
    return false;
}

static bool restore(World *world, const char *image, const char *fault, GError **error)
{
    g_autofree char *path = path_of(world, image), *uri = g_strconcat("file:", path, NULL);
    VmfRestoreOptions options = {.size = sizeof(options), .uri = uri, .paused = true};
    World other = {.rig = world->rig, .at_stop = g_malloc(DISK_BYTES), .model = world->at_stop, .stopped = true};
    VmfParameters parameters;

    pthread_mutex_init(&other.lock, NULL);
    pthread_cond_init(&other.changed, NULL);
    vmf_parameters_init(&parameters);
    VmfDisk *disk = open_disk(world, "new", true);
    VmfGuest *guest = new_guest(&other, disk);
    g_autoptr(VmfSession) session = vmf_session_new_restore(guest, &options, &parameters, NULL, NULL);
    if (fault)
        vmf_session_cancel(session);
    bool done = vmf_session_run(session, error);
    vmf_guest_free(guest);
    vmf_disk_free(disk);
    pthread_cond_destroy(&other.changed);
    pthread_mutex_destroy(&other.lock);
    g_free(other.at_stop);
    return done;
}

/* What comes back of @image is @expected. */
static void comes_back(World *world, const char *image, const uint8_t *expected)
{
    g_autofree char *path = path_of(world, "new");
    g_autofree char *content = NULL;
    GError *error = NULL;
    size_t length;

    if (!restore(world, image, NULL, &error))
        fail_msg("%s: %s", image, error->message);
    assert_true(g_file_get_contents(path, &content, &length, NULL));
    assert_int_equal(length, DISK_BYTES);
    for (size_t i = 0; i < DISK_BYTES; i++)
        if ((uint8_t)content[i] != expected[i])
            fail_msg("%s: octet %zu is %u, it was %u", image, i, (uint8_t)content[i], expected[i]);
    unlink(path);
}

static void use_image(World *world, const char *name)
{
    g_free(world->rig.path);
    world->rig.path = path_of(world, name);
}

static void test_live(void **state)
{
    World *world = *state;

    world->rig.parameters.verify_disks = true;
    world->rig.parameters.minimum_rounds = 3;
    if (!save(world))
        skip();
    g_autofree uint8_t *then = g_memdup2(world->at_stop, DISK_BYTES);
    wait_for_writes(world, 100);
    comes_back(world, "guest.image", then);
}

static void test_stopped(void **state)
{
    World *world = *state;

    world->rig.options.stop_first = true;
    if (!save(world))
        skip();
    g_autofree uint8_t *then = g_memdup2(world->at_stop, DISK_BYTES);
    wait_for_writes(world, 100);
    comes_back(world, "guest.image", then);
}

/* Slowly, so that all of it is written again meanwhile. */
static void point_in_time(World *world)
{
    world->rig.options.point_in_time = true;
    world->rig.parameters.max_bandwidth = 16 * MIB;
    world->rig.parameters.verify_disks = false;
}

static void test_point_in_time(void **state)
{
    World *world = *state;

    point_in_time(world);
    if (!save(world))
        skip();
    g_autofree uint8_t *then = g_memdup2(world->at_stop, DISK_BYTES);
    wait_for_writes(world, 100);
    comes_back(world, "guest.image", then);
    assert_int_equal(world->rig.statistics.disk_total_bytes, DISK_BYTES);
    assert_int_equal(world->rig.statistics.disk_remaining_bytes, 0);
}

/* A layer, one more at a point in time, and what is made of them. */
static void test_layers(void **state)
{
    World *world = *state;
    g_autofree char *first = g_strdup_printf("file:%s", world->rig.path), *second = path_of(world, "second");
    g_autofree char *parent = g_strconcat("file:", second, NULL), *flat = path_of(world, "flat");
    g_autofree char *flat_uri = g_strconcat("file:", flat, NULL), *rebased = path_of(world, "rebased");
    g_autofree char *rebased_uri = g_strconcat("file:", rebased, NULL), *stream = path_of(world, "stream");
    g_autofree char *stream_uri = g_strconcat("file:", stream, NULL);
    g_autoptr(GError) error = NULL;
    VmfDiffOptions options = {.read = true};
    VmfDiffResult difference;

    if (!save(world))
        skip();
    g_autofree uint8_t *then = g_memdup2(world->at_stop, DISK_BYTES);
    wait_for_writes(world, 20);
    use_image(world, "second");
    world->rig.options.parent = first;
    assert_true(save(world));
    g_autofree uint8_t *later = g_memdup2(world->at_stop, DISK_BYTES);
    comes_back(world, "guest.image", then);
    comes_back(world, "second", later);

    VmfImage *base = vmf_image_open(first, NULL, NULL), *layer = vmf_image_open(parent, NULL, NULL);
    assert_true(vmf_image_flatten(layer, flat_uri, NULL, NULL));
    assert_true(vmf_image_rebase(layer, base, rebased_uri, NULL, NULL));
    comes_back(world, "flat", later);
    comes_back(world, "rebased", later);
    VmfImage *whole = vmf_image_open(flat_uri, NULL, NULL);
    assert_true(vmf_image_diff(layer, whole, &options, &difference, NULL));
    assert_int_equal(difference.pages_different, 0);
    assert_true(vmf_image_diff(base, layer, &options, &difference, NULL));
    assert_true(difference.pages_different > 0);
    assert_false(vmf_image_to_stream(whole, stream_uri, NULL, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED) && strstr(error->message, "root"));
    vmf_image_close(base);
    vmf_image_close(layer);
    vmf_image_close(whole);

    point_in_time(world);
    use_image(world, "third");
    world->rig.options.parent = parent;
    if (save(world)) {
        g_autofree uint8_t *last = g_memdup2(world->at_stop, DISK_BYTES);
        comes_back(world, "third", last);
    }
}

/* ---- faults ---------------------------------------------------------------------------------------------------- */

/* In each way of saving: the old image is what it was, and the guest goes on. */
static void fails(World *world, VmfErrorCode code)
{
    vmf_save_rig_put_old(&world->rig);
    g_autofree char *old = NULL, *found = NULL;
    assert_true(g_file_get_contents(world->rig.path, &old, NULL, NULL));
    assert_false(vmf_save_rig_run(&world->rig, world->guest));
    if (!g_error_matches(world->rig.error, VMF_ERROR, code))
        fail_msg("%s", world->rig.error->message);
    assert_true(g_file_get_contents(world->rig.path, &found, NULL, NULL));
    assert_string_equal(found, old);
    assert_true(is_running(world));
    wait_for_writes(world, 50);
}

static void test_full_storage(void **state)
{
    static const VmfStorageFault full = {.kind = VMF_STORAGE_FAULT_FULL, .after_bytes = 3 * MIB};
    World *world = *state;

    world->rig.faults = &full;
    world->rig.n_faults = 1;
    fails(world, VMF_ERROR_NO_SPACE);
    point_in_time(world);
    if (world->rig.error && g_error_matches(world->rig.error, VMF_ERROR, VMF_ERROR_NO_SPACE))
        fails(world, VMF_ERROR_NO_SPACE);
}

static VmfStorage *unreadable(VmfStorage *storage, void *opaque, GError **error)
{
    static const VmfStorageFault fault = {.kind = VMF_STORAGE_FAULT_ERROR,
                                          .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_READ),
                                          .offset = 4 * MIB,
                                          .length = MIB};

    return vmf_storage_fault_new(storage, &fault, 1, error);
}

/* A part of the guest's disk cannot be read: the guest hears nothing of it. */
static void test_disk_that_cannot_be_read(void **state)
{
    World *world = *state;

    assert_true(stop(world, NULL) && vmf_disk_release(world->disk, NULL));
    vmf_disk_set_wrap(world->disk, unreadable, NULL);
    assert_true(vmf_disk_acquire(world->disk, NULL) && start(world, NULL));
    fails(world, VMF_ERROR_IO);
    point_in_time(world);
    vmf_save_rig_put_old(&world->rig);
    assert_false(vmf_save_rig_run(&world->rig, world->guest));
    assert_true(g_error_matches(world->rig.error, VMF_ERROR, VMF_ERROR_IO) ||
                g_error_matches(world->rig.error, VMF_ERROR, VMF_ERROR_UNSUPPORTED));
    wait_for_writes(world, 50);
}

static void cancel_on_the_way(World *world)
{
    VmfStatistics statistics = {.size = sizeof(statistics)};

    vmf_save_rig_put_old(&world->rig);
    vmf_save_rig_start(&world->rig, world->guest);
    while (statistics.disk_sent_bytes == 0 && statistics.status != VMF_STATUS_FAILED) {
        g_usleep(1000);
        vmf_session_get_statistics(world->rig.session, &statistics);
    }
    vmf_session_cancel(world->rig.session);
    assert_false(vmf_save_rig_finish(&world->rig));
    if (g_error_matches(world->rig.error, VMF_ERROR, VMF_ERROR_UNSUPPORTED))
        return;
    assert_true(g_error_matches(world->rig.error, VMF_ERROR, VMF_ERROR_CANCELLED));
    assert_true(is_running(world));
    wait_for_writes(world, 50);
}

static void test_cancel(void **state)
{
    World *world = *state;

    world->rig.parameters.max_bandwidth = 512 << 10;
    cancel_on_the_way(world);
    point_in_time(world);
    world->rig.parameters.max_bandwidth = 512 << 10;
    cancel_on_the_way(world);
    world->rig.parameters.max_bandwidth = 0;
    if (save(world))
        comes_back(world, "guest.image", world->at_stop);
}

/* What a guest writes is copied at once, whatever the rate: it keeps away from the rest. */
static void write_the_first_bytes_only(World *world)
{
    pthread_mutex_lock(&world->lock);
    world->area_bytes = WRITE_MOST;
    pthread_mutex_unlock(&world->lock);
    wait_for_writes(world, 2);
}

/* A backup has the disk's gate: there is one at a time. */
static void test_backup_under_way(void **state)
{
    World *world = *state;
    g_autofree char *path = path_of(world, "backup"), *uri = g_strconcat("file:", path, NULL);
    VmfBackupOptions options = {.size = sizeof(options), .target = uri, .buffered = true, .bytes_per_second = MIB / 16};

    point_in_time(world);
    if (!save(world))
        skip();
    write_the_first_bytes_only(world);
    VmfBackup *backup = vmf_backup_begin(world->disk, &options, NULL);
    assert_non_null(backup);
    fails(world, VMF_ERROR_STATE);
    vmf_backup_free(backup);
    assert_true(save(world));
}

static void test_what_was_there_comes_back(void **state)
{
    World *world = *state;
    g_autofree char *path = path_of(world, "new");
    g_autofree char *content = NULL;
    g_autoptr(GError) error = NULL;

    if (!save(world))
        skip();
    assert_true(g_file_set_contents(path, "kept", 4, NULL));
    assert_int_equal(truncate(path, DISK_BYTES), 0);
    assert_false(restore(world, "guest.image", "cancel", &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_CANCELLED));
    assert_true(g_file_get_contents(path, &content, NULL, NULL));
    assert_memory_equal(content, "kept", 4);
    comes_back(world, "guest.image", world->at_stop);
}

#define world_test(test) cmocka_unit_test_setup_teardown(test, enter, leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        world_test(test_live),
        world_test(test_stopped),
        world_test(test_point_in_time),
        world_test(test_layers),
        world_test(test_full_storage),
        world_test(test_disk_that_cannot_be_read),
        world_test(test_cancel),
        world_test(test_backup_under_way),
        world_test(test_what_was_there_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
