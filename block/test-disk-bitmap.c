/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream/test-storage-rig.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/disk-private.h"
#include "block/test-pass.h"
#include "stream/storage-fault.h"

#define SECTORS (8u * MIB / 512 + 1) /* an odd size: the last granule of each bitmap is short */
#define DISK_BYTES (SECTORS * 512ull)

typedef struct {
    char *directory;
    VmfDisk *disk;
} Rig;

static VmfDisk *open_disk(const Rig *rig)
{
    g_autofree char *uri = uri_at(rig->directory, "disk");
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .create_bytes = DISK_BYTES};
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

static int set_up(void **state)
{
    Rig *rig = g_new0(Rig, 1);

    rig->directory = directory_new(g_get_tmp_dir());
    rig->disk = open_disk(rig);
    acquire(rig->disk);
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    vmf_disk_free(rig->disk);
    directory_remove(rig->directory);
    g_free(rig);
    return 0;
}

/* ---- doing ------------------------------------------------------------------------------------------------------- */

typedef struct {
    VmfDiskRequest request;
    struct iovec iov;
    int code;
} Work;

static void on_done(VmfDiskRequest *request, const GError *error)
{
    ((Work *)request->opaque)->code = error ? error->code : 0;
}

static int run(VmfDisk *disk, VmfDiskOperation operation, uint64_t offset, uint64_t length)
{
    g_autofree uint8_t *data = g_malloc0(length + 1);
    Work work = {.iov = {data, length}, .code = -1};

    work.request = (VmfDiskRequest){.operation = operation,
                                    .offset = offset,
                                    .length = length,
                                    .iov = &work.iov,
                                    .n_iov = operation <= VMF_DISK_WRITE,
                                    .done = on_done,
                                    .opaque = &work};
    vmf_disk_submit(disk, &work.request);
    vmf_disk_drain(disk);
    return work.code;
}

static bool try_add(VmfDisk *disk, const char *name, uint32_t granularity, bool persistent, GError **error)
{
    VmfBitmapOptions options = {
        .size = sizeof(options), .name = name, .granularity_bytes = granularity, .persistent = persistent};

    return vmf_disk_add_bitmap(disk, &options, error);
}

static void add(VmfDisk *disk, const char *name, uint32_t granularity, bool persistent)
{
    g_autoptr(GError) error = NULL;

    assert_good(try_add(disk, name, granularity, persistent, &error), error);
}

static VmfBitmapInfo info_of(VmfDisk *disk, const char *name)
{
    VmfBitmapInfo infos[VMF_DISK_BITMAPS_MAX];

    for (unsigned i = 0; i < G_N_ELEMENTS(infos); i++)
        infos[i].size = sizeof(infos[i]);
    for (unsigned n = vmf_disk_list_bitmaps(disk, infos, G_N_ELEMENTS(infos)); n-- > 0;)
        if (strcmp(infos[n].name, name) == 0)
            return infos[n];
    return (VmfBitmapInfo){0};
}

static bool is_dirty(VmfDisk *disk, const char *name, uint64_t at)
{
    uint64_t offset, length;

    assert_true(vmf_disk_next_dirty(disk, name, at, &offset, &length, NULL));
    return length > 0 && offset == at;
}

static bool try_clean(VmfDisk *disk)
{
    pthread_mutex_lock(&disk->bitmaps->admin);
    bool done = vmf_bitmaps_clean(disk->bitmaps, NULL);
    pthread_mutex_unlock(&disk->bitmaps->admin);
    return done;
}

static void clean(VmfDisk *disk)
{
    assert_true(try_clean(disk));
}

static bool has_intent(const VmfDisk *disk, unsigned region)
{
    return disk->bitmaps->intents[0] >> region & 1;
}

/* ---- 10,000 operations against a model --------------------------------------------------------------------------- */

enum { N_STEPS = 10000, N_NAMES = 6 };

typedef struct {
    bool there, recording, persistent;
    uint32_t granularity;
    uint8_t sectors[SECTORS]; /* of 512 bytes */
} Model;

static const char *const names[N_NAMES] = {"a", "b", "c d", "\xc3\xbc", "e", "f"};

static void model_set(Model *model, uint64_t offset, uint64_t length)
{
    for (uint64_t at = offset / model->granularity * model->granularity; at < offset + length; at += model->granularity)
        for (uint64_t s = at / 512; s < (at + model->granularity) / 512 && s < SECTORS; s++)
            model->sectors[s] = 1;
}

static void model_merge(Model *model, const Model *from)
{
    for (unsigned s = 0; s < SECTORS; s++)
        if (from->sectors[s])
            model_set(model, s * 512ull, 512);
}

static void check_model(VmfDisk *disk, const Model *model, const char *name)
{
    static uint8_t found[SECTORS];
    uint64_t offset, length;
    GError *error = NULL;

    if (!model->there) {
        assert_false(vmf_disk_next_dirty(disk, name, 0, &offset, &length, &error));
        assert_error(error, VMF_ERROR_USAGE);
        return;
    }
    memset(found, 0, sizeof(found));
    for (uint64_t at = 0; vmf_disk_next_dirty(disk, name, at, &offset, &length, &error) && length > 0;
         at = offset + length)
        memset(found + offset / 512, 1, length / 512);
    assert_null(error);
    assert_memory_equal(found, model->sectors, SECTORS);
    VmfBitmapInfo info = info_of(disk, name);
    assert_int_equal(info.granularity_bytes, model->granularity);
    assert_true(info.recording == model->recording && info.persistent == model->persistent && !info.inconsistent);
}

static void step_add(VmfDisk *disk, Model *model, const char *name, GRand *random)
{
    uint32_t granularity = 512u << g_rand_int_range(random, 0, 18);
    VmfBitmapOptions options = {.size = sizeof(options),
                                .name = name,
                                .granularity_bytes = granularity,
                                .persistent = g_rand_int_range(random, 0, 3) == 0,
                                .disabled = g_rand_boolean(random)};

    assert_int_equal(vmf_disk_add_bitmap(disk, &options, NULL), !model->there);
    if (model->there)
        return;
    model->there = true;
    model->recording = !options.disabled;
    model->persistent = options.persistent;
    model->granularity = granularity;
    memset(model->sectors, 0, SECTORS);
}

static void step_write(VmfDisk *disk, Model *models, GRand *random)
{
    static const VmfDiskOperation operations[] = {VMF_DISK_WRITE, VMF_DISK_ZERO, VMF_DISK_DISCARD, VMF_DISK_READ};
    VmfDiskOperation operation = operations[g_rand_int_range(random, 0, G_N_ELEMENTS(operations))];
    uint64_t length = 512ull * (uint64_t)g_rand_int_range(random, 0, 300);
    uint64_t offset = 512ull * (uint64_t)g_rand_int_range(random, 0, (gint32)(SECTORS - length / 512 + 1));

    assert_int_equal(run(disk, operation, offset, length), 0);
    for (unsigned i = 0; i < N_NAMES && length > 0 && operation != VMF_DISK_READ; i++)
        if (models[i].there && models[i].recording)
            model_set(&models[i], offset, length);
}

static void step_set(VmfDisk *disk, Model *model, const char *name, GRand *random)
{
    uint64_t length = (uint64_t)g_rand_int_range(random, 0, 100000),
             offset = (uint64_t)g_rand_int_range(random, 0, (gint32)(DISK_BYTES - length));

    assert_int_equal(vmf_disk_set_bitmap(disk, name, &(VmfBitmapExtent){offset, length}, 1, NULL), model->there);
    if (model->there && length > 0)
        model_set(model, offset, length);
}

static void step_merge(VmfDisk *disk, Model *models, unsigned target, GRand *random)
{
    unsigned one = (unsigned)g_rand_int_range(random, 0, N_NAMES), two = (unsigned)g_rand_int_range(random, 0, N_NAMES);
    const char *sources[] = {names[one], names[two]};
    bool can = models[target].there && models[one].there && models[two].there;

    assert_int_equal(vmf_disk_merge_bitmaps(disk, names[target], sources, 2, NULL), can);
    if (can) {
        model_merge(&models[target], &models[one]);
        model_merge(&models[target], &models[two]);
    }
}

static void step(VmfDisk *disk, Model *models, GRand *random)
{
    unsigned i = (unsigned)g_rand_int_range(random, 0, N_NAMES);
    Model *model = &models[i];
    int what = g_rand_int_range(random, 0, 100);

    if (what < 40) {
        step_write(disk, models, random);
    } else if (what < 50) {
        step_add(disk, model, names[i], random);
    } else if (what < 55) {
        assert_int_equal(vmf_disk_remove_bitmap(disk, names[i], NULL), model->there);
        model->there = false;
    } else if (what < 65) {
        assert_int_equal(vmf_disk_clear_bitmap(disk, names[i], NULL), model->there);
        memset(model->sectors, 0, SECTORS);
    } else if (what < 80) {
        bool wanted = g_rand_boolean(random);
        assert_int_equal(vmf_disk_enable_bitmap(disk, names[i], wanted, NULL), model->there);
        model->recording = wanted;
    } else if (what < 88) {
        step_merge(disk, models, i, random);
    } else if (what < 96) {
        step_set(disk, model, names[i], random);
    } else if (what < 98) { /* what is persistent comes from its file again */
        assert_true(vmf_disk_release(disk, NULL));
        acquire(disk);
    } else {
        clean(disk);
    }
}

static void test_operations_against_a_model(void **state)
{
    const Rig *rig = *state;
    g_autoptr(GRand) random = g_rand_new_with_seed(20);
    g_autofree Model *models = g_new0(Model, N_NAMES);

    for (unsigned i = 0; i < N_STEPS; i++) {
        unsigned which = i % N_NAMES;

        step(rig->disk, models, random);
        if (i % 8 == 0)
            check_model(rig->disk, &models[which], names[which]);
    }
    for (unsigned i = 0; i < N_NAMES; i++)
        check_model(rig->disk, &models[i], names[i]);
}

/* ---- many threads, and a log of what they write ------------------------------------------------------------------ */

enum { N_WRITERS = 4, N_WRITES = 400 };

typedef struct {
    VmfDisk *disk;
    VmfDiskDirty *logged;
    uint32_t seed;
} Writer;

static void *writer_main(void *opaque)
{
    Writer *writer = opaque;
    g_autoptr(GRand) random = g_rand_new_with_seed(writer->seed);

    for (unsigned i = 0; i < N_WRITES; i++) {
        uint64_t offset = 512ull * (uint64_t)g_rand_int_range(random, 0, SECTORS - 8);

        assert_int_equal(run(writer->disk, i % 3 ? VMF_DISK_WRITE : VMF_DISK_ZERO, offset, 4096), 0);
        vmf_disk_dirty_mark(writer->logged, offset, 4096);
    }
    return NULL;
}

/* While they write, the bitmap is set aside and merged, cleaned, and its neighbours come and go. */
static void disturb(VmfDisk *disk, unsigned round)
{
    add(disk, "neighbour", 4096, round % 2);
    assert_true(vmf_bitmaps_set_aside(disk->bitmaps, "b", NULL));
    assert_false(vmf_disk_clear_bitmap(disk, "b", NULL));
    clean(disk);
    vmf_bitmaps_end_aside(disk->bitmaps, "b", true);
    assert_true(vmf_disk_remove_bitmap(disk, "neighbour", NULL));
}

static void assert_superset(VmfDisk *disk, const char *name, VmfDiskDirty *logged)
{
    for (uint64_t granule = 0; granule < vmf_disk_dirty_granules(logged); granule++)
        assert_true(!vmf_disk_dirty_is_set(logged, granule) || is_dirty(disk, name, granule * VMF_DISK_GRANULE_BYTES));
}

static void test_no_write_is_missed(void **state)
{
    const Rig *rig = *state;
    g_autoptr(VmfDiskDirty) logged = vmf_disk_dirty_new(DISK_BYTES, NULL);
    Writer writers[N_WRITERS];
    pthread_t threads[N_WRITERS];

    add(rig->disk, "b", 65536, true);
    for (unsigned i = 0; i < N_WRITERS; i++) {
        writers[i] = (Writer){rig->disk, logged, 7 + i};
        assert_int_equal(pthread_create(&threads[i], NULL, writer_main, &writers[i]), 0);
    }
    for (unsigned round = 0; round < 20; round++)
        disturb(rig->disk, round);
    for (unsigned i = 0; i < N_WRITERS; i++)
        pthread_join(threads[i], NULL);
    assert_superset(rig->disk, "b", logged);
    assert_true(vmf_disk_release(rig->disk, NULL));
    acquire(rig->disk);
    assert_superset(rig->disk, "b", logged);
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

static void test_what_cannot_be(void **state)
{
    const Rig *rig = *state;
    g_autofree char *long_name = g_strnfill(256, 'n'), *longest = g_strnfill(255, 'n');
    GError *error = NULL;
    const struct {
        const char *name;
        uint32_t granularity;
    } bad[] = {{"", 0}, {long_name, 0}, {"a\n", 0}, {"\xff", 0}, {"a", 256}, {"a", 3 * 512}, {"a", 128u << 20}};

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        assert_false(try_add(rig->disk, bad[i].name, bad[i].granularity, false, &error));
        assert_error(error, VMF_ERROR_USAGE);
    }
    add(rig->disk, longest, 512, true);
    add(rig->disk, "coarse", 64u << 20, true);
    assert_false(try_add(rig->disk, "coarse", 0, false, &error));
    assert_error(error, VMF_ERROR_USAGE);
    assert_false(vmf_disk_set_bitmap(rig->disk, "coarse", &(VmfBitmapExtent){DISK_BYTES, 1}, 1, &error));
    assert_error(error, VMF_ERROR_USAGE);
    for (unsigned i = 2; i < VMF_DISK_BITMAPS_MAX; i++) {
        g_autofree char *name = g_strdup_printf("%u", i);
        add(rig->disk, name, 65536, false);
    }
    assert_false(try_add(rig->disk, "one more", 0, false, &error));
    assert_error(error, VMF_ERROR_USAGE);
    assert_true(vmf_disk_release(rig->disk, NULL));
    assert_true(vmf_disk_remove_bitmap(rig->disk, "9", NULL));
    assert_false(try_add(rig->disk, "p", 0, true, &error));
    assert_error(error, VMF_ERROR_STATE);
    acquire(rig->disk);
    assert_true(info_of(rig->disk, longest).persistent && info_of(rig->disk, "8").granularity_bytes == 65536);
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

static char *file_of(const Rig *rig)
{
    return g_build_filename(rig->directory, "disk.bitmaps", NULL);
}

/* Two bitmaps, one of which records; stored. Returns the file. */
static char *stored(const Rig *rig, gsize *length)
{
    g_autofree char *path = file_of(rig);
    char *content = NULL;

    add(rig->disk, "records", 4096, true);
    add(rig->disk, "rests", 512, true);
    assert_int_equal(run(rig->disk, VMF_DISK_WRITE, MIB, 8192), 0);
    assert_true(vmf_disk_enable_bitmap(rig->disk, "rests", false, NULL));
    assert_true(vmf_disk_release(rig->disk, NULL));
    assert_true(g_file_get_contents(path, &content, length, NULL));
    return content;
}

static void test_stored_and_read(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = file_of(rig), *content = NULL;
    gsize length;

    content = stored(rig, &length);
    acquire(rig->disk);
    assert_int_equal(info_of(rig->disk, "records").dirty_bytes, 8192);
    assert_int_equal(info_of(rig->disk, "rests").dirty_bytes, 8192);
    assert_true(info_of(rig->disk, "records").recording && !info_of(rig->disk, "rests").recording);
    assert_int_equal(run(rig->disk, VMF_DISK_WRITE, 0, 512), 0);
    assert_true(is_dirty(rig->disk, "records", 0) && !is_dirty(rig->disk, "rests", 0));
    assert_true(vmf_disk_remove_bitmap(rig->disk, "records", NULL));
    assert_true(vmf_disk_remove_bitmap(rig->disk, "rests", NULL));
    assert_int_equal(access(path, F_OK), -1);
}

/* Whoever writes the disk without recording it. */
static void test_foreign_write_is_noticed(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = g_build_filename(rig->directory, "disk", NULL), *content = NULL;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1}};
    uint64_t offset;
    gsize length;
    GError *error = NULL;

    content = stored(rig, &length);
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    acquire(rig->disk);
    assert_true(info_of(rig->disk, "records").inconsistent && !info_of(rig->disk, "rests").inconsistent);
    assert_false(vmf_disk_next_dirty(rig->disk, "records", 0, &offset, &offset, &error));
    assert_error(error, VMF_ERROR_BITMAP);
    assert_false(vmf_disk_merge_bitmaps(rig->disk, "rests", (const char *[]){"records"}, 1, &error));
    assert_error(error, VMF_ERROR_BITMAP);
    assert_true(vmf_disk_release(rig->disk, NULL)); /* once inconsistent, it stays so */
    acquire(rig->disk);
    assert_true(info_of(rig->disk, "records").inconsistent);
    assert_true(vmf_disk_clear_bitmap(rig->disk, "records", NULL));
    assert_true(vmf_disk_release(rig->disk, NULL));
    acquire(rig->disk);
    assert_true(!info_of(rig->disk, "records").inconsistent && info_of(rig->disk, "records").dirty_bytes == 0);
}

/* What is damaged is never taken for clean: every sector, one octet of it. */
static void test_damage_is_never_clean(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = file_of(rig), *good = NULL;
    g_autoptr(GRand) random = g_rand_new_with_seed(3);
    unsigned n_whole = 0, n_one = 0;
    gsize length;

    good = stored(rig, &length);
    for (gsize sector = 0; sector < length / 512; sector++) {
        g_autofree char *bad = g_memdup2(good, length), *problem = NULL;

        bad[sector * 512 + (gsize)g_rand_int_range(random, 0, 512)] ^= (char)(1 << g_rand_int_range(random, 0, 8));
        assert_true(g_file_set_contents(path, bad, (gssize)length, NULL));
        acquire(rig->disk);
        problem = vmf_disk_bitmaps_problem(rig->disk);
        VmfBitmapInfo records = info_of(rig->disk, "records"), rests = info_of(rig->disk, "rests");
        if (problem) {
            assert_true(!records.name[0] && !rests.name[0]);
            assert_false(try_add(rig->disk, "x", 0, true, NULL));
            n_whole++;
        } else {
            assert_true(records.inconsistent || rests.inconsistent);
            assert_true(records.inconsistent || records.dirty_bytes == 8192);
            assert_true(rests.inconsistent || rests.dirty_bytes == 8192);
            n_one++;
        }
        assert_true(vmf_disk_release(rig->disk, NULL));
    }
    assert_int_equal(n_whole, 3); /* header, two entries */
    assert_int_equal(n_one, length / 512 - 3);
    for (gsize cut = 0; cut < length; cut += 511) {
        g_autofree char *problem = NULL;
        assert_true(g_file_set_contents(path, good, (gssize)cut, NULL));
        acquire(rig->disk);
        problem = vmf_disk_bitmaps_problem(rig->disk);
        assert_non_null(problem);
        assert_true(vmf_disk_release(rig->disk, NULL));
    }
}

/* What it is about once, the path, and what to do. */
static void assert_told_once(const GError *error, const char *path)
{
    static const char prefix[] = "disk root: bitmaps: ";

    assert_non_null(error);
    if (!g_error_matches(error, VMF_ERROR, VMF_ERROR_BITMAP_FILE) || !g_str_has_prefix(error->message, prefix) ||
        strstr(error->message + 1, prefix) || !strstr(error->message, path) || !*vmf_error_hint(error))
        fail_msg("%s: %s", vmf_error_id(error), error->message);
}

/* A file that cannot be opened would go on saying that all is as it was. */
static void test_file_that_cannot_be_opened(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = file_of(rig);
    GError *error = NULL;

    assert_true(vmf_disk_release(rig->disk, NULL));
    assert_int_equal(mkdir(path, 0700), 0);
    assert_false(vmf_disk_acquire(rig->disk, &error));
    assert_told_once(error, path);
    g_clear_error(&error);
    assert_int_equal(rmdir(path), 0);
    acquire(rig->disk);
}

/* Nor one that would say again what cannot be trusted. */
static void test_damaged_file_that_cannot_be_written_anew(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = file_of(rig), *partial = g_strconcat(path, ".partial", NULL), *content = NULL;
    g_autoptr(GError) error = NULL;
    gsize length;

    content = stored(rig, &length);
    content[length - 100] ^= 1; /* of the last bits */
    assert_true(g_file_set_contents(path, content, (gssize)length, NULL));
    assert_int_equal(mkdir(partial, 0700), 0);
    assert_false(vmf_disk_acquire(rig->disk, &error));
    assert_told_once(error, partial);
    assert_int_equal(rmdir(partial), 0);
    acquire(rig->disk);
}

static void test_file_that_is_damaged_as_a_whole(void **state)
{
    const Rig *rig = *state;
    g_autofree char *path = file_of(rig), *content = NULL;
    g_autoptr(GError) error = NULL;
    gsize length;

    content = stored(rig, &length);
    content[20] ^= 1;
    assert_true(g_file_set_contents(path, content, (gssize)length, NULL));
    acquire(rig->disk);
    assert_false(try_add(rig->disk, "x", 0, true, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_BITMAP_FILE) && strstr(error->message, path));
    assert_true(vmf_disk_release(rig->disk, NULL));
    assert_int_equal(unlink(path), 0); /* as the hint says */
    acquire(rig->disk);
    assert_true(try_add(rig->disk, "x", 0, true, NULL));
}

/* ---- faults of the file ------------------------------------------------------------------------------------------ */

static VmfStorage *put_fault(VmfStorage *storage, void *opaque, GError **error)
{
    return vmf_storage_fault_new(storage, opaque, 1, error);
}

/* The guest does not hear of it; the file is gone, and that is stated. */
static void test_file_that_cannot_be_written_is_given_up(void **state)
{
    const Rig *rig = *state;
    VmfStorageFault bad = {.kind = VMF_STORAGE_FAULT_ERROR,
                           .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_WRITE) | VMF_STORAGE_FAULT_ON(VMF_REQUEST_FLUSH),
                           .length = G_MAXUINT32};
    g_autofree char *path = file_of(rig), *content = NULL, *problem = NULL;
    gsize length;

    content = stored(rig, &length);
    vmf_bitmaps_set_wrap(rig->disk->bitmaps, put_fault, &bad);
    acquire(rig->disk);
    assert_int_equal(run(rig->disk, VMF_DISK_WRITE, 0, 512), 0);
    assert_int_equal(access(path, F_OK), -1);
    problem = vmf_disk_bitmaps_problem(rig->disk);
    assert_non_null(problem);
    assert_true(is_dirty(rig->disk, "records", 0) && is_dirty(rig->disk, "records", MIB));
    assert_false(info_of(rig->disk, "records").persistent);
    assert_false(try_add(rig->disk, "more", 0, true, NULL));
    assert_true(vmf_disk_remove_bitmap(rig->disk, "records", NULL));
}

/* A file that cannot be removed: a directory has its name. It is open, and under another name meanwhile. */
static void take_name_away(const Rig *rig)
{
    g_autofree char *path = file_of(rig), *kept = g_strconcat(path, ".kept", NULL);

    assert_int_equal(rename(path, kept), 0);
    assert_int_equal(mkdir(path, 0700), 0);
}

static void give_name_back(const Rig *rig)
{
    g_autofree char *path = file_of(rig), *kept = g_strconcat(path, ".kept", NULL);

    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rename(kept, path), 0);
}

/* Admin held, so that nobody else did so meanwhile; no more when it returns. */
static void clean_twice(VmfDisk *disk)
{
    assert_true(vmf_bitmaps_clean(disk->bitmaps, NULL) && vmf_bitmaps_clean(disk->bitmaps, NULL));
    pthread_mutex_unlock(&disk->bitmaps->admin);
}

/* Bits that the file did not take are not forgotten when it takes the next thing. */
static void test_failed_write_of_bits_is_made_again(void **state)
{
    const Rig *rig = *state;
    VmfBitmapHeader header;

    vmf_bitmap_header_init(&header, DISK_BYTES);
    header.n_bitmaps = 1;
    VmfStorageFault once = {.kind = VMF_STORAGE_FAULT_ERROR,
                            .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_WRITE),
                            .times = 1,
                            .offset = vmf_bitmap_file_bits(&header) * VMF_BITMAP_SECTOR,
                            .length = VMF_BITMAP_SECTOR};
    add(rig->disk, "b", 512, true);
    assert_true(vmf_disk_release(rig->disk, NULL));
    vmf_bitmaps_set_wrap(rig->disk->bitmaps, put_fault, &once);
    acquire(rig->disk);
    pthread_mutex_lock(&rig->disk->bitmaps->admin);
    assert_int_equal(run(rig->disk, VMF_DISK_WRITE, 0, 512), 0);
    take_name_away(rig);
    assert_false(vmf_bitmaps_clean(rig->disk->bitmaps, NULL));
    assert_int_equal(run(rig->disk, VMF_DISK_WRITE, 5 * MIB, 512), 0);
    assert_true(has_intent(rig->disk, 0));
    clean_twice(rig->disk);
    assert_false(has_intent(rig->disk, 0));
    g_autofree char *problem = vmf_disk_bitmaps_problem(rig->disk);
    give_name_back(rig);
    assert_true(vmf_disk_release(rig->disk, NULL));
    acquire(rig->disk);
    assert_true(is_dirty(rig->disk, "b", 0) && is_dirty(rig->disk, "b", 5 * MIB));
    assert_int_equal(info_of(rig->disk, "b").dirty_bytes, 1024);
    assert_null(problem);
}

/* What was written ahead of a sync that failed may not be there, and none that comes later says so again. */
static void test_failed_sync_of_bits_is_made_again(void **state)
{
    const Rig *rig = *state;
    VmfStorageFault once = {
        .kind = VMF_STORAGE_FAULT_ERROR, .on = VMF_STORAGE_FAULT_ON(VMF_REQUEST_FLUSH), .times = 1, .length = G_MAXUINT32};
    g_autofree char *path = file_of(rig), *kept = g_strconcat(path, ".kept", NULL), *crashed = NULL;
    gsize length;

    add(rig->disk, "b", 512, true);
    assert_int_equal(run(rig->disk, VMF_DISK_WRITE, 0, 512), 0);
    assert_true(g_file_get_contents(path, &crashed, &length, NULL)); /* an intent, and no bits */
    assert_true(vmf_disk_release(rig->disk, NULL));
    assert_true(g_file_set_contents(path, crashed, (gssize)length, NULL));
    vmf_bitmaps_set_wrap(rig->disk->bitmaps, put_fault, &once);
    acquire(rig->disk);
    pthread_mutex_lock(&rig->disk->bitmaps->admin);
    take_name_away(rig);
    assert_false(vmf_bitmaps_clean(rig->disk->bitmaps, NULL));
    int fd = open(kept, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, crashed, length, 0), length); /* what it had written is lost */
    close(fd);
    assert_int_equal(run(rig->disk, VMF_DISK_WRITE, 5 * MIB, 512), 0);
    clean_twice(rig->disk);
    assert_false(has_intent(rig->disk, 0));
    give_name_back(rig);
    assert_true(vmf_disk_release(rig->disk, NULL));
    acquire(rig->disk);
    assert_true(is_dirty(rig->disk, "b", 0) && is_dirty(rig->disk, "b", 5 * MIB));
}

/* The next file cannot take the name, and what has it cannot be removed. */
static VmfStorage *put_commit_fault(VmfStorage *storage, void *opaque, GError **error)
{
    const VmfStorageFault bad = {.kind = VMF_STORAGE_FAULT_ERROR, .on = VMF_STORAGE_FAULT_ON_COMMIT, .length = G_MAXUINT32};

    take_name_away(opaque);
    return vmf_storage_fault_new(storage, &bad, 1, error);
}

/* Which of two files has the name is not known: no write passes until there is one that has all. */
static void test_no_write_passes_without_a_file(void **state)
{
    Rig *rig = *state;

    add(rig->disk, "b", 512, true);
    vmf_bitmaps_set_wrap(rig->disk->bitmaps, put_commit_fault, rig);
    assert_false(try_add(rig->disk, "c", 512, true, NULL));
    assert_true(run(rig->disk, VMF_DISK_WRITE, 0, 512) > 0);
    assert_true(run(rig->disk, VMF_DISK_WRITE, 0, 512) > 0);
    pthread_mutex_lock(&rig->disk->bitmaps->admin); /* nobody else opens a file meanwhile */
    vmf_bitmaps_set_wrap(rig->disk->bitmaps, NULL, NULL);
    pthread_mutex_unlock(&rig->disk->bitmaps->admin);
    assert_false(try_clean(rig->disk));
    give_name_back(rig);
    assert_true(try_clean(rig->disk));
    assert_int_equal(run(rig->disk, VMF_DISK_WRITE, 5 * MIB, 512), 0);
    assert_true(vmf_disk_release(rig->disk, NULL));
    acquire(rig->disk);
    assert_true(is_dirty(rig->disk, "b", 5 * MIB));
}

static void test_new_file_that_cannot_be_written_changes_nothing(void **state)
{
    const Rig *rig = *state;
    VmfStorageFault full = {.kind = VMF_STORAGE_FAULT_FULL, .after_bytes = 700};
    g_autofree char *path = file_of(rig);
    GError *error = NULL;

    add(rig->disk, "old", 4096, true);
    vmf_bitmaps_set_wrap(rig->disk->bitmaps, put_fault, &full);
    assert_false(try_add(rig->disk, "new", 4096, true, &error));
    assert_error(error, VMF_ERROR_NO_SPACE);
    assert_false(vmf_disk_enable_bitmap(rig->disk, "old", false, &error));
    assert_error(error, VMF_ERROR_NO_SPACE);
    assert_true(info_of(rig->disk, "old").recording && !info_of(rig->disk, "new").name[0]);
    vmf_bitmaps_set_wrap(rig->disk->bitmaps, NULL, NULL);
    assert_int_equal(run(rig->disk, VMF_DISK_WRITE, 0, 512), 0);
    assert_true(vmf_disk_release(rig->disk, NULL));
    acquire(rig->disk);
    assert_true(is_dirty(rig->disk, "old", 0) && info_of(rig->disk, "old").recording);
}

/* ---- what a clean file must still say ---------------------------------------------------------------------------- */

/* The bit was cleared while the write was under way, and is set again when it has ended: until then the intent says it.
 */
static void test_intent_stays_while_a_write_is_under_way(void **state)
{
    const Rig *rig = *state;

    add(rig->disk, "b", 65536, true);
    vmf_bitmaps_mark(rig->disk->bitmaps, 5 * MIB, 512, VMF_BITMAPS_BEGINS);
    assert_true(vmf_bitmaps_commit(rig->disk->bitmaps, NULL));
    assert_true(vmf_disk_clear_bitmap(rig->disk, "b", NULL));
    clean(rig->disk);
    assert_true(has_intent(rig->disk, 1));
    vmf_bitmaps_mark(rig->disk->bitmaps, 5 * MIB, 512, VMF_BITMAPS_ENDS);
    clean(rig->disk);
    assert_false(has_intent(rig->disk, 1));
    assert_true(is_dirty(rig->disk, "b", 5 * MIB));
}

/* What was under way when the first bitmap came has left no intent: it gets one. */
static void test_write_under_way_when_the_bitmap_came(void **state)
{
    const Rig *rig = *state;

    vmf_bitmaps_mark(rig->disk->bitmaps, 5 * MIB, 512, VMF_BITMAPS_BEGINS);
    add(rig->disk, "b", 65536, true);
    assert_true(has_intent(rig->disk, 1) && !has_intent(rig->disk, 0));
    vmf_bitmaps_mark(rig->disk->bitmaps, 5 * MIB, 512, VMF_BITMAPS_ENDS);
}

static void write_at_flush(void *opaque)
{
    VmfDisk *disk = *(VmfDisk **)opaque;

    *(VmfDisk **)opaque = NULL;
    if (disk)
        assert_int_equal(run(disk, VMF_DISK_WRITE, 5 * MIB, 512), 0);
}

/* @opaque: a VmfDisk * that is written at the next sync; NULL: nothing. */
static VmfStorage *put_pass(VmfStorage *storage, void *opaque, GError **error)
{
    static const PassHooks hooks = {.flush = write_at_flush};

    return pass_new(storage, &hooks, opaque);
}

/* A write comes and goes while the bits are being synced: they do not have it, so the intent stays. */
static void test_intent_of_a_write_during_the_cleaning_stays(void **state)
{
    const Rig *rig = *state;
    static VmfDisk *writes; /* the file is synced at its end too */

    vmf_bitmaps_set_wrap(rig->disk->bitmaps, put_pass, &writes);
    add(rig->disk, "b", 65536, true);
    assert_int_equal(run(rig->disk, VMF_DISK_WRITE, 4 * MIB, 512), 0);
    writes = rig->disk;
    clean(rig->disk);
    assert_null(writes);
    assert_true(has_intent(rig->disk, 1));
    clean(rig->disk);
    assert_false(has_intent(rig->disk, 1));
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        rig_test(test_operations_against_a_model),
        rig_test(test_no_write_is_missed),
        rig_test(test_what_cannot_be),
        rig_test(test_stored_and_read),
        rig_test(test_foreign_write_is_noticed),
        rig_test(test_damage_is_never_clean),
        rig_test(test_file_that_cannot_be_opened),
        rig_test(test_damaged_file_that_cannot_be_written_anew),
        rig_test(test_file_that_is_damaged_as_a_whole),
        rig_test(test_file_that_cannot_be_written_is_given_up),
        rig_test(test_failed_write_of_bits_is_made_again),
        rig_test(test_failed_sync_of_bits_is_made_again),
        rig_test(test_no_write_passes_without_a_file),
        rig_test(test_new_file_that_cannot_be_written_changes_nothing),
        rig_test(test_intent_stays_while_a_write_is_under_way),
        rig_test(test_write_under_way_when_the_bitmap_came),
        rig_test(test_intent_of_a_write_during_the_cleaning_stays),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
