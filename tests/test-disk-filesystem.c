/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A filesystem of this host's kernel on a disk of the engine, written while the disk is copied, moved, backed up or
 * saved: what comes out is a filesystem that a checker finds clean, with the files that were put into it.
 *
 * The kernel's ext4 is the guest: its device is the VmfDisk (tests/fuse-disk.h), which goes from the source's to the
 * target's at the handover, while the mount, which is the guest's memory, stays. Whoever uses the mount is a process of
 * its own: one that serves a device and waits for it cannot be ended.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vmferry/backup.h>
#include <vmferry/vmferry.h>

#include "tests/fuse-disk.h"
#include "tests/world.h"

#define MIB (1u << 20)
#define DISK_BYTES (64 * MIB)
#define FILES 48u
#define FILE_MOST 100000u
#define LONG_NS (60 * UINT64_C(1000000000))

/* Shared with the process that writes files. */
typedef struct {
    atomic_bool quit;
    _Atomic uint64_t written;
    _Atomic uint32_t begun[FILES], durable[FILES]; /* by file: versions; 0: there is none */
} Files;

typedef struct {
    char *folder;
    VmfFuseDisk *fuse;
    Files *files;
    int files_fd;
    pid_t user; /* the process that writes files */
} World;

/* ---- one side ---------------------------------------------------------------------------------------------------- */

typedef struct {
    World *world;
    VmfDisk *disk;
    VmfGuest *guest;
} Side;

static bool stop(void *opaque, GError **error)
{
    const Side *side = opaque;

    if (vmf_fuse_disk_used(side->world->fuse) == side->disk)
        vmf_fuse_disk_hold(side->world->fuse);
    vmf_disk_drain(side->disk);
    return true;
}

static bool start(void *opaque, GError **error)
{
    const Side *side = opaque;

    vmf_fuse_disk_use(side->world->fuse, side->disk);
    return true;
}

static bool is_running(void *opaque)
{
    const Side *side = opaque;

    return vmf_fuse_disk_used(side->world->fuse) == side->disk;
}

static bool release(void *opaque, GError **error)
{
    const Side *side = opaque;

    return vmf_disk_release(side->disk, error);
}

static bool acquire(void *opaque, GError **error)
{
    const Side *side = opaque;

    return vmf_disk_acquire(side->disk, error);
}

/* Nobody writes the memory of such a guest. */
static bool log_start(void *opaque, GError **error)
{
    return true;
}

static void log_stop(void *opaque)
{
}

static bool log_harvest(void *opaque, unsigned block, void (*report)(void *, uint64_t, const uint64_t *, size_t),
                        void *report_opaque, GError **error)
{
    return true;
}

static void log_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
}

static char *path_of(const World *world, const char *name)
{
    return g_build_filename(world->folder, name, NULL);
}

static void side_init(Side *side, World *world, const char *name, bool incoming)
{
    static const VmfGuestOps ops = {.size = sizeof(ops),
                                    .stop = stop,
                                    .start = start,
                                    .is_running = is_running,
                                    .storage_release = release,
                                    .storage_acquire = acquire};
    static const VmfDirtyLogOps log_ops = {.size = sizeof(log_ops),
                                           .name = "none",
                                           .start = log_start,
                                           .stop = log_stop,
                                           .harvest = log_harvest,
                                           .clear = log_clear};
    static const uint8_t uuid[16] = {1};
    g_autofree char *path = path_of(world, name), *uri = g_strconcat("file:", path, NULL);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .incoming = incoming};
    VmfRamBlock *ram = vmf_ram_block_new("ram", 2 * MIB, VMF_RAM_MEMFD, 0, 0, NULL);

    assert_non_null(ram);
    *side = (Side){.world = world, .disk = vmf_disk_open("root", &options, NULL)};
    assert_non_null(side->disk);
    side->guest = vmf_guest_new("test", uuid, &ops, side);
    assert_true(vmf_guest_add_ram(side->guest, ram, NULL, NULL));
    vmf_guest_set_dirty_log(side->guest, &log_ops, NULL);
    assert_true(vmf_guest_add_disk(side->guest, "root", &vmf_disk_guest_ops, side->disk, NULL));
}

static void side_clear(Side *side)
{
    vmf_guest_free(side->guest);
    vmf_disk_free(side->disk);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

/* What version @version of file @file holds: each octet follows from both, and its length too. */
static uint8_t *file_content(uint32_t file, uint32_t version, size_t *length)
{
    uint32_t state = (file * 2654435761u) ^ (version * 40503u) ^ 0x9e3779b9u;
    uint8_t *content = g_malloc(FILE_MOST + 16);

    *length = 8 + (state >> 3) % FILE_MOST;
    memcpy(content, &file, 4);
    memcpy(content + 4, &version, 4);
    for (size_t i = 8; i < *length; i++) {
        state = state * 1664525u + 1013904223u;
        content[i] = (uint8_t)(state >> 24);
    }
    return content;
}

static void sync_path(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fsync(fd) < 0)
        g_error("%s: sync: %s", path, g_strerror(errno));
    close(fd);
}

/* Anew under another name, durably, then it takes its name, durably: at any moment one whole version is there. */
static void write_file(const char *folder, uint32_t file, uint32_t version)
{
    g_autofree char *name = g_strdup_printf("%s/f%u", folder, file), *other = g_strconcat(name, ".new", NULL);
    size_t length;
    g_autofree uint8_t *content = file_content(file, version, &length);
    int fd = open(other, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || write(fd, content, length) != (ssize_t)length || fsync(fd) < 0)
        g_error("%s: write: %s", other, g_strerror(errno));
    close(fd);
    if (rename(other, name) < 0)
        g_error("%s: rename: %s", name, g_strerror(errno));
    sync_path(folder);
}

static void unmount(const char *where)
{
    for (unsigned i = 0; i < 3000 && umount(where) < 0; i++) {
        g_assert(errno == EBUSY);
        g_usleep(10000);
    }
}

/* The process that mounts the device, writes files until it is told to quit, and unmounts it. */
static int use_filesystem(const char *folder, int files_fd)
{
    Files *files = mmap(NULL, sizeof(Files), PROT_READ | PROT_WRITE, MAP_SHARED, files_fd, 0);
    g_autofree char *device = g_build_filename(folder, "device", NULL), *where = g_build_filename(folder, "mount", NULL),
                    *into = g_build_filename(where, "files", NULL);
    g_autoptr(GRand) random = g_rand_new_with_seed(9);

    g_assert(files != MAP_FAILED);
    vmf_mount_ext4(device, where);
    g_assert(g_mkdir(into, 0700) == 0);
    while (!files->quit) {
        uint32_t file = (uint32_t)g_rand_int_range(random, 0, FILES), version = files->begun[file] + 1;
        files->begun[file] = version;
        write_file(into, file, version);
        files->durable[file] = version;
        files->written++;
        g_usleep(1000);
    }
    unmount(where);
    return 0;
}

static void begin_to_use(World *world)
{
    world->files_fd = memfd_create("files", 0);
    assert_true(world->files_fd >= 0 && ftruncate(world->files_fd, sizeof(Files)) == 0);
    world->files = mmap(NULL, sizeof(Files), PROT_READ | PROT_WRITE, MAP_SHARED, world->files_fd, 0);
    assert_true(world->files != MAP_FAILED);
    g_autofree char *fd = g_strdup_printf("%d", world->files_fd);
    world->user = fork();
    if (world->user == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/proc/self/exe", "files", world->folder, fd, NULL);
        _exit(127);
    }
    assert_true(world->user > 0);
}

static void wait_for_files(World *world, uint64_t more)
{
    for (uint64_t until = world->files->written + more; world->files->written < until; g_usleep(1000))
        assert_int_equal(waitpid(world->user, NULL, WNOHANG), 0);
}

typedef struct {
    uint32_t least[FILES], most[FILES];
} Versions;

/* Those that are there at any rate, and those that may be. */
static void note(const World *world, uint32_t *least, uint32_t *most)
{
    for (unsigned i = 0; i < FILES; i++) {
        if (least)
            least[i] = world->files->durable[i];
        if (most)
            most[i] = world->files->begun[i];
    }
}

static void check_file(const char *folder, uint32_t file, uint32_t least, uint32_t most)
{
    g_autofree char *name = g_strdup_printf("%s/f%u", folder, file), *found = NULL;
    gsize n_found;
    uint32_t version = 0;
    size_t length;

    if (!g_file_get_contents(name, &found, &n_found, NULL)) {
        assert_int_equal(least, 0);
        return;
    }
    assert_true(n_found >= 8);
    memcpy(&version, found + 4, 4);
    if (version < MAX(least, 1) || version > most)
        fail_msg("file %u: version %u, expected %u to %u", file, version, least, most);
    g_autofree uint8_t *content = file_content(file, version, &length);
    assert_int_equal(n_found, length);
    assert_memory_equal(found, content, length);
}

/* ---- filesystems ------------------------------------------------------------------------------------------------- */

static char *program(const char *name)
{
    g_autofree char *there = g_strconcat("/usr/sbin/", name, NULL), *older = g_strconcat("/sbin/", name, NULL);
    char *found = g_find_program_in_path(name);

    if (!found && g_file_test(there, G_FILE_TEST_IS_EXECUTABLE))
        found = g_steal_pointer(&there);
    if (!found && g_file_test(older, G_FILE_TEST_IS_EXECUTABLE))
        found = g_steal_pointer(&older);
    return found;
}

static void run_program(const char *name, const char *options, const char *path)
{
    g_autofree char *found = program(name), *said = NULL, *complained = NULL;
    const char *argv[] = {found, options, path, NULL};
    g_autoptr(GError) error = NULL;
    int status;

    if (!g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_DEFAULT, NULL, NULL, &said, &complained, &status, &error))
        fail_msg("%s: %s", name, error->message);
    if (!g_spawn_check_wait_status(status, NULL))
        fail_msg("%s %s: status 0x%x: %s%s", name, options, (unsigned)status, said, complained);
}

/* @crashed: as after a power cut; mounting it plays the journal back. Then it is clean, and so are its files. */
static void check_filesystem(const World *world, const char *name, bool crashed, const Versions *versions)
{
    g_autofree char *image = path_of(world, name), *where = path_of(world, "check"), *folder = path_of(world, "check/files");

    if (!crashed)
        run_program("e2fsck", "-fn", image);
    vmf_mount_ext4(image, where);
    for (uint32_t file = 0; file < FILES; file++)
        check_file(folder, file, versions->least[file], versions->most[file]);
    unmount(where);
    run_program("e2fsck", "-fn", image);
}

/* ---- the stage --------------------------------------------------------------------------------------------------- */

static char *problem(void)
{
    static const char *const names[] = {"mkfs.ext4", "e2fsck"};

    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *found = program(names[i]);
        if (!found)
            return g_strdup_printf("%s is not installed", names[i]);
    }
    if (unshare(CLONE_NEWNS) < 0 || mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return g_strdup_printf("mounts of its own: %s", g_strerror(errno));
    return vmf_fuse_disk_problem();
}

static void make_filesystem(World *world, Side *source)
{
    g_autofree char *image = path_of(world, "disk"), *device = path_of(world, "device"), *where = path_of(world, "mount"),
                    *check = path_of(world, "check");

    assert_true(g_file_set_contents(image, "", 0, NULL) && g_file_set_contents(device, "", 0, NULL));
    assert_int_equal(truncate(image, DISK_BYTES) | g_mkdir(where, 0700) | g_mkdir(check, 0700), 0);
    run_program("mkfs.ext4", "-qF", image);
    side_init(source, world, "disk", false);
    assert_true(vmf_disk_acquire(source->disk, NULL));
    world->fuse = vmf_fuse_disk_new(device, DISK_BYTES);
    vmf_fuse_disk_use(world->fuse, source->disk);
    begin_to_use(world);
}

static void begin(World *world, Side *source)
{
    *world = (World){.folder = g_dir_make_tmp("vmferry-XXXXXX", NULL)};
    make_filesystem(world, source);
    wait_for_files(world, 2 * FILES);
}

/* The filesystem is unmounted, as when a guest shuts down. */
static void shut_down(World *world, Side *now)
{
    int status;

    world->files->quit = true;
    assert_int_equal(waitpid(world->user, &status, 0), world->user);
    assert_int_equal(status, 0);
    vmf_fuse_disk_free(world->fuse);
    assert_true(vmf_disk_release(now->disk, NULL));
}

static void end(World *world)
{
    const char *const argv[] = {"rm", "-rf", "--one-file-system", world->folder, NULL};

    g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL, NULL);
    munmap(world->files, sizeof(Files));
    close(world->files_fd);
    g_free(world->folder);
}

/* ---- moved ------------------------------------------------------------------------------------------------------- */

static void moves(bool mirror)
{
    World world;
    Side source, target;
    Versions versions;
    VmfTrip trip;

    begin(&world, &source);
    side_init(&target, &world, "copy", true);
    vmf_trip_init(&trip);
    trip.source_parameters.copy_disks = "all";
    trip.source_parameters.verify_disks = true;
    trip.source_parameters.mirror_disks = mirror;
    trip.source_parameters.minimum_rounds = 4;
    trip.source_parameters.downtime_limit_ns = LONG_NS / 10;
    trip.source_parameters.switchover_timeout_ns = LONG_NS;
    if (!vmf_trip_run(&trip, source.guest, target.guest))
        fail_msg("%s%s; %s", trip.events, trip.source_error ? trip.source_error->message : "",
                 trip.target_error ? trip.target_error->message : "");
    assert_ptr_equal(vmf_fuse_disk_used(world.fuse), target.disk);
    wait_for_files(&world, FILES); /* it goes on there */
    assert_int_equal(vmf_fuse_disk_failures(world.fuse), 0);
    shut_down(&world, &target);
    note(&world, versions.least, versions.most);
    check_filesystem(&world, "copy", false, &versions);
    vmf_trip_clear(&trip);
    side_clear(&source);
    side_clear(&target);
    end(&world);
}

static void test_moves_while_it_is_written(void **state)
{
    moves(false);
}

static void test_moves_mirrored(void **state)
{
    moves(true);
}

/* ---- at one moment ----------------------------------------------------------------------------------------------- */

static void test_backup(void **state)
{
    g_autoptr(GError) error = NULL;
    VmfBackup *backup;
    World world;
    Side source;
    Versions versions, now;

    begin(&world, &source);
    g_autofree char *path = path_of(&world, "backup"), *uri = g_strconcat("file:", path, NULL);
    VmfBackupOptions options = {.size = sizeof(options), .target = uri, .bytes_per_second = 20 * MIB};
    note(&world, versions.least, NULL);
    backup = vmf_backup_begin(source.disk, &options, &error);
    note(&world, NULL, versions.most);
    wait_for_files(&world, FILES);
    if (!backup || !vmf_backup_wait(backup, &error))
        fail_msg("%s", error->message);
    vmf_backup_free(backup);
    shut_down(&world, &source);
    check_filesystem(&world, "backup", true, &versions);
    note(&world, now.least, now.most);
    check_filesystem(&world, "disk", false, &now);
    side_clear(&source);
    end(&world);
}

static void run_session(VmfSession *session)
{
    g_autoptr(GError) error = NULL;

    if (!vmf_session_run(session, &error))
        fail_msg("%s", error->message);
}

/* Whether this host can save so. */
static bool save(World *world, Side *source, bool point_in_time)
{
    g_autofree char *path = path_of(world, "image"), *uri = g_strconcat("file:", path, NULL);
    VmfSaveOptions options = {.size = sizeof(options), .uri = uri, .resume = true, .point_in_time = point_in_time};
    g_autoptr(GError) error = NULL;
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    parameters.copy_disks = "all";
    parameters.downtime_limit_ns = LONG_NS / 10;
    g_autoptr(VmfSession) session = vmf_session_new_save(source->guest, &options, &parameters, NULL, NULL);
    if (vmf_session_run(session, &error))
        return true;
    if (!point_in_time || !g_error_matches(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED))
        fail_msg("%s", error->message);
    print_message("%s\n", error->message);
    return false;
}

static void restore(World *world, Side *target)
{
    g_autofree char *path = path_of(world, "image"), *uri = g_strconcat("file:", path, NULL);
    VmfRestoreOptions options = {.size = sizeof(options), .uri = uri, .paused = true};
    VmfParameters parameters;

    vmf_parameters_init(&parameters);
    g_autoptr(VmfSession) session = vmf_session_new_restore(target->guest, &options, &parameters, NULL, NULL);
    run_session(session);
    assert_true(vmf_disk_release(target->disk, NULL));
}

static void saved_and_restored(bool point_in_time)
{
    World world;
    Side source, target;
    Versions versions, now;

    begin(&world, &source);
    note(&world, versions.least, NULL);
    bool saved = save(&world, &source, point_in_time);
    note(&world, NULL, versions.most);
    wait_for_files(&world, FILES);
    shut_down(&world, &source);
    note(&world, now.least, now.most);
    check_filesystem(&world, "disk", false, &now);
    if (saved) {
        side_init(&target, &world, "restored", true);
        restore(&world, &target);
        check_filesystem(&world, "restored", true, &versions);
        side_clear(&target);
    }
    side_clear(&source);
    end(&world);
    if (!saved)
        skip();
}

static void test_point_in_time_save(void **state)
{
    saved_and_restored(true);
}

static void test_live_save(void **state)
{
    saved_and_restored(false);
}

int main(int argc, char **argv)
{
    if (argc == 3)
        return use_filesystem(argv[1], atoi(argv[2]));
    const struct CMUnitTest unit_tests[] = {
        cmocka_unit_test(test_moves_while_it_is_written),
        cmocka_unit_test(test_moves_mirrored),
        cmocka_unit_test(test_backup),
        cmocka_unit_test(test_point_in_time_save),
        cmocka_unit_test(test_live_save),
    };
    g_autofree char *why = problem();

    if (why) {
        fprintf(stderr, "no filesystem on a disk of the engine: %s\n", why);
        return 77;
    }
    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
