/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What crashes leave of persistent bitmaps: never a clean bit for a block that was changed. Crashes of the host, on a
 * simulated storage that loses what was not synced, at each operation; and of the process, at random moments.
 */
#include "stream/test-storage-rig.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/disk-private.h"
#include "block/test-pass.h"
#include "stream/storage-fault.h"

#define DISK_BYTES (64ull * MIB)
#define GRANULE 65536u
#define N_GRANULES (DISK_BYTES / GRANULE)
#define SEEDS 6u
#define KILLS 30u

static VmfDisk *open_disk(const char *directory)
{
    g_autofree char *uri = uri_at(directory, "disk");
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = DISK_BYTES, .buffered = true};
    g_autoptr(GError) error = NULL;
    VmfDisk *disk = vmf_disk_open("root", &options, &error);

    if (!disk)
        fail_msg("%s", error->message);
    return disk;
}

static void acquire(VmfDisk *disk)
{
    g_autoptr(GError) error = NULL;

    assert_good(vmf_disk_acquire(disk, &error), error);
}

static void on_done(VmfDiskRequest *request, const GError *error)
{
    *(bool *)request->opaque = error == NULL;
}

static bool write_at(VmfDisk *disk, uint64_t offset, uint64_t length)
{
    g_autofree uint8_t *data = g_malloc(length);
    struct iovec iov = {data, length};
    bool good = false;
    VmfDiskRequest request = {.operation = VMF_DISK_WRITE,
                              .offset = offset,
                              .length = length,
                              .iov = &iov,
                              .n_iov = 1,
                              .done = on_done,
                              .opaque = &good};

    memset(data, g_random_int_range(1, 256), length);
    vmf_disk_submit(disk, &request);
    vmf_disk_drain(disk);
    return good;
}

static bool add(VmfDisk *disk, const char *name)
{
    VmfBitmapOptions options = {
        .size = sizeof(options), .name = name, .granularity_bytes = GRANULE, .persistent = true};

    return vmf_disk_add_bitmap(disk, &options, NULL);
}

static bool clean(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->bitmaps->admin);
    bool done = vmf_bitmaps_clean(disk->bitmaps, NULL);
    pthread_mutex_unlock(&disk->bitmaps->admin);
    return done;
}

/* ---- the host goes down ------------------------------------------------------------------------------------------ */

typedef struct {
    char *directory, *path, *kept; /* kept: another name of the file that the bitmaps are in */
    VmfDisk *disk;
    VmfStorageFault crash;
    VmfStorage *storage; /* of the latest file */
    GPtrArray *ended;    /* storages */
    uint64_t operations; /* of those before it */
    bool down;
    bool recording;
    bool changed[N_GRANULES];
} World;

/* They are asked when their user has let them go. */
static void keep_storage(void *opaque, VmfStorage *below)
{
    World *world = opaque;

    g_ptr_array_add(world->ended, below);
}

/* All files of one run share one count of operations. */
static VmfStorage *wrap(VmfStorage *storage, void *opaque, GError **error)
{
    static const PassHooks hooks = {.free = keep_storage};
    World *world = opaque;
    VmfStorageFault crash = world->crash;

    world->operations += world->storage ? vmf_storage_fault_operations(world->storage) : 0;
    crash.after_operations =
        crash.after_operations > world->operations ? crash.after_operations - world->operations : 0;
    world->storage = vmf_storage_fault_new(storage, &crash, 1, error);
    return pass_new(world->storage, &hooks, world);
}

static bool is_down(World *world)
{
    world->down = world->down || (world->storage && vmf_storage_fault_has_crashed(world->storage));
    return world->down;
}

static void keep(const World *world)
{
    unlink(world->kept);
    (void)!link(world->path, world->kept);
}

static void note(World *world, uint64_t offset, uint64_t length)
{
    for (uint64_t g = offset / GRANULE; g <= (offset + length - 1) / GRANULE; g++)
        world->changed[g] |= world->recording;
}

/* A host that goes down ahead of the write does not make it; this process does, and puts back what gives that away. */
static void write_while_up(World *world, uint64_t offset, uint64_t length)
{
    g_autofree char *path = g_build_filename(world->directory, "disk", NULL);
    struct stat before;

    assert_int_equal(stat(path, &before), 0);
    write_at(world->disk, offset, length);
    if (!is_down(world))
        note(world, offset, length);
    else
        utimensat(AT_FDCWD, path, (struct timespec[2]){before.st_atim, before.st_mtim}, 0);
}

static void step(World *world, GRand *random)
{
    uint64_t length = 512ull * (uint64_t)g_rand_int_range(random, 1, 256);
    uint64_t offset = 512ull * (uint64_t)g_rand_int_range(random, 0, (gint32)((DISK_BYTES - length) / 512));
    int what = g_rand_int_range(random, 0, 20);

    if (what < 11) {
        write_while_up(world, offset, length);
    } else if (what < 14) {
        clean(world->disk);
    } else if (what < 15) { /* what is clean is so from when it was asked for */
        memset(world->changed, 0, sizeof(world->changed));
        vmf_disk_clear_bitmap(world->disk, "b", NULL);
    } else if (what < 16) {
        vmf_bitmaps_set_aside(world->disk->bitmaps, "b", NULL);
        clean(world->disk);
        vmf_bitmaps_end_aside(world->disk->bitmaps, "b", true);
    } else if (what < 18) {
        bool done = vmf_disk_enable_bitmap(world->disk, "b", !world->recording, NULL);
        if (done && !is_down(world))
            world->recording = !world->recording;
    } else if (what < 19) {
        if (!add(world->disk, "neighbour"))
            vmf_disk_remove_bitmap(world->disk, "neighbour", NULL);
    } else if (vmf_disk_set_bitmap(world->disk, "b", &(VmfBitmapExtent){offset, length}, 1, NULL) && !is_down(world)) {
        bool was = world->recording;
        world->recording = true;
        note(world, offset, length);
        world->recording = was;
    }
    if (!is_down(world))
        keep(world);
}

/* After the crash: what is there must be dirty wherever it was changed, or say that it is not to be trusted. */
static void check(World *world)
{
    g_autoptr(VmfDisk) disk = open_disk(world->directory);
    VmfBitmapInfo info = {.size = sizeof(info)};

    unlink(world->path);
    assert_int_equal(rename(world->kept, world->path), 0);
    acquire(disk);
    assert_true(vmf_disk_list_bitmaps(disk, &info, 1) >= 1);
    assert_string_equal(info.name, "b");
    if (info.inconsistent) /* sectors are old or new: nothing is damaged */
        fail_msg("seed %u, crash at operation %u: %s", world->crash.seed, (unsigned)world->crash.after_operations,
                 info.problem);
    for (uint64_t g = 0; g < N_GRANULES; g++) {
        uint64_t offset, length;
        if (world->changed[g] &&
            !(vmf_disk_next_dirty(disk, "b", g * GRANULE, &offset, &length, NULL) && length && offset == g * GRANULE))
            fail_msg("seed %u, crash at operation %u: granule %u was changed and is clean", world->crash.seed,
                     (unsigned)world->crash.after_operations, (unsigned)g);
    }
    assert_true(vmf_disk_remove_bitmap(disk, "b", NULL));
    unlink(world->path);
}

/* False: nothing has crashed, it was too late. */
static bool run_world(const char *directory, uint32_t seed, uint64_t after)
{
    World world = {.directory = (char *)directory,
                   .path = g_build_filename(directory, "disk.bitmaps", NULL),
                   .kept = g_build_filename(directory, "kept", NULL),
                   .crash = {.kind = VMF_STORAGE_FAULT_CRASH,
                             .after_operations = after,
                             .seed = seed * 7919 + (uint32_t)after,
                             .lose_unflushed = true},
                   .recording = true};
    g_autoptr(GRand) random = g_rand_new_with_seed(seed);

    world.ended = g_ptr_array_new_with_free_func((GDestroyNotify)vmf_storage_free);
    unlink(world.path);
    world.disk = open_disk(directory);
    acquire(world.disk);
    assert_true(add(world.disk, "b"));
    assert_true(vmf_disk_release(world.disk, NULL));
    keep(&world);
    vmf_bitmaps_set_wrap(world.disk->bitmaps, wrap, &world);
    acquire(world.disk);
    for (unsigned i = 0; i < 60 && !is_down(&world); i++)
        step(&world, random);
    bool crashed = world.down;
    vmf_disk_free(world.disk);
    g_ptr_array_unref(world.ended);
    if (crashed)
        check(&world);
    g_free(world.path);
    g_free(world.kept);
    return crashed;
}

static void test_host_that_goes_down(void **state)
{
    unsigned n = 0;

    for (uint32_t seed = 1; seed <= SEEDS; seed++)
        for (uint64_t after = 0; run_world(*state, seed, after); after += 1 + after / 16)
            n++;
    assert_true(n > SEEDS * 20);
}

/* ---- the process is killed --------------------------------------------------------------------------------------- */

/* Writes until it is killed; says that it has begun. */
static void child_writes(const char *directory, uint32_t seed, int said)
{
    VmfDisk *disk = open_disk(directory);
    g_autoptr(GRand) random = g_rand_new_with_seed(seed);

    acquire(disk);
    add(disk, "b"); /* the first time */
    vmf_disk_clear_bitmap(disk, "b", NULL);
    g_random_set_seed(seed);
    (void)!write(said, "x", 1);
    for (unsigned i = 0;; i++) {
        write_at(disk, 512ull * (uint64_t)g_rand_int_range(random, 0, (gint32)(DISK_BYTES / 512 - 8)), 4096);
        if (i % 16 == 7)
            clean(disk);
        if (i % 64 == 9 && !add(disk, "neighbour"))
            vmf_disk_remove_bitmap(disk, "neighbour", NULL);
    }
}

/* The exit status: 0 if every block that is not as it was is dirty. */
static int child_checks(const char *directory, const uint8_t *before)
{
    g_autofree char *path = g_build_filename(directory, "disk", NULL), *now = NULL;
    g_autoptr(VmfDisk) disk = open_disk(directory);
    uint64_t offset, length;
    unsigned n_changed = 0;
    gsize size;

    acquire(disk);
    if (!g_file_get_contents(path, &now, &size, NULL) || size != DISK_BYTES)
        return 2;
    for (uint64_t g = 0; g < N_GRANULES; g++) {
        if (memcmp(before + g * GRANULE, now + g * GRANULE, GRANULE) == 0)
            continue;
        n_changed++;
        if (!vmf_disk_next_dirty(disk, "b", g * GRANULE, &offset, &length, NULL) || length == 0 ||
            offset != g * GRANULE)
            return 3;
    }
    return n_changed > 0 ? 0 : 4;
}

static void kill_one(const char *directory, uint32_t seed, uint32_t after_us)
{
    g_autofree char *path = g_build_filename(directory, "disk", NULL), *before = NULL;
    int ends[2], status;
    char c;

    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    assert_true(g_file_get_contents(path, &before, NULL, NULL));
    pid_t pid = fork();
    if (pid == 0) {
        child_writes(directory, seed, ends[1]);
        _exit(1);
    }
    assert_int_equal(read(ends[0], &c, 1), 1);
    g_usleep(after_us);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    close(ends[0]);
    close(ends[1]);
    pid = fork();
    if (pid == 0)
        _exit(child_checks(directory, (const uint8_t *)before));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 4))
        fail_msg("seed %u, killed after %u us: %d", seed, after_us, status);
}

static void test_process_that_is_killed(void **state)
{
    g_autofree char *path = g_build_filename(*state, "disk", NULL);
    g_autoptr(GRand) random = g_rand_new_with_seed(11);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
    close(fd);
    for (unsigned i = 0; i < KILLS; i++)
        kill_one(*state, 100 + i, (uint32_t)g_rand_int_range(random, 0, 60000));
}

static int set_up(void **state)
{
    *state = directory_new(g_get_tmp_dir());
    return 0;
}

static int tear_down(void **state)
{
    directory_remove(*state);
    return 0;
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_process_that_is_killed), /* forks: while there are no threads */
        rig_test(test_host_that_goes_down),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
