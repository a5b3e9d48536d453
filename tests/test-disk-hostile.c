/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a target makes of EXTENT, BASE and DISK_SYNC records, good and bad, one at a time: the owner of copied disks is fed by
 * hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <string.h>

#include <vmferry/block.h>
#include <vmferry/error.h>

#include "migration/disk-target.h"
#include "migration/session.h"

#define KIB (1ull << 10)
#define GRANULE ((uint64_t)VMF_GRANULE_BYTES)
#define SIZE (20 * GRANULE + 512)

static const VmfStreamFormat format = {.version = 3};
static const VmfStreamFormat swapped = {.version = 3, .swap = true};

typedef struct {
    char *directory, *path;
    VmfDisk *disk;
    bool with_base; /* of which the next stream says that it is there */
    VmfGuest *guest;
    VmfSession *session;
    VmfStaticData *theirs;
    VmfDiskTarget *target;
    VmfOwner owner;
    VmfChannel *here, *there;
    VmfRecordWriter *writer, *answers;
    VmfRecordReader *reader, *return_path;
    uint8_t *data;
    GError *error;
} World;

static bool guest_stop(void *opaque, GError **error)
{
    return true;
}

static bool guest_is_running(void *opaque)
{
    return false;
}

static VmfGuest *new_guest(VmfDisk *disk)
{
    static const VmfGuestOps ops = {
        .size = sizeof(ops), .stop = guest_stop, .start = guest_stop, .is_running = guest_is_running};
    static const uint8_t uuid[16] = {1};
    VmfGuest *guest = vmf_guest_new("test", uuid, &ops, NULL);

    assert_true(vmf_guest_add_disk(guest, "root", &vmf_disk_guest_ops, disk, NULL));
    return guest;
}

static void begin(World *world, VmfStreamFormat as)
{
    VmfStaticDisk shared = {.name = (char *)"shared", .size = SIZE, .sector_bytes = 512};
    VmfStaticDisk copied = {.name = (char *)"root", .size = SIZE, .sector_bytes = 512, .flags = VMF_WIRE_DISK_COPIED};

    vmf_channel_memory_pair(8 << 20, &world->here, &world->there);
    world->writer = vmf_record_writer_new(world->here, as);
    world->return_path = vmf_record_reader_new(world->here, as);
    world->answers = vmf_record_writer_new(world->there, as);
    world->reader = vmf_record_reader_new(world->there, as);
    world->theirs = vmf_static_data_new();
    world->theirs->features_offered = VMF_FEATURE_DISKS | VMF_FEATURE_MIRROR;
    vmf_static_data_add_disk(world->theirs, &shared);
    vmf_static_data_add_disk(world->theirs, &copied);
    world->theirs->features_required = VMF_FEATURE_DISKS | (world->with_base ? VMF_FEATURE_BASES : 0);
    world->target = vmf_disk_target_new(world->session);
    world->owner = vmf_disk_target_owner(world->target);
    vmf_disk_target_begin(world->target, world->theirs, as.swap, world->answers);
    if (!world->owner.handlers->load_setup(world->owner.opaque, &world->error))
        fail_msg("%s", world->error->message);
}

static void end(World *world, bool ours)
{
    world->owner.records->settled(world->owner.opaque, ours, true);
    vmf_disk_target_free(world->target);
    vmf_static_data_free(world->theirs);
    vmf_record_writer_free(world->writer);
    vmf_record_writer_free(world->answers);
    vmf_record_reader_free(world->reader);
    vmf_record_reader_free(world->return_path);
    vmf_channel_free(world->here);
    vmf_channel_free(world->there);
    g_clear_error(&world->error);
}

static int set_up(void **state)
{
    World *world = g_new0(World, 1);
    VmfParameters parameters;

    world->directory = g_dir_make_tmp("vmferry-XXXXXX", NULL);
    world->path = g_build_filename(world->directory, "root", NULL);
    g_autofree char *uri = g_strconcat("file:", world->path, NULL);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .incoming = true};
    world->disk = vmf_disk_open("root", &options, NULL);
    world->guest = new_guest(world->disk);
    vmf_parameters_init(&parameters);
    world->session = vmf_session_new(world->guest, &parameters, NULL, NULL);
    world->data = g_malloc(VMF_EXTENT_DATA_MAX + 512);
    for (unsigned i = 0; i < VMF_EXTENT_DATA_MAX + 512; i++)
        world->data[i] = (uint8_t)(i / 7 + i % 251);
    *state = world;
    return 0;
}

static int tear_down(void **state)
{
    World *world = *state;
    g_autofree char *partial = g_strconcat(world->path, ".partial", NULL),
                    *bitmaps = g_strconcat(world->path, ".bitmaps", NULL);

    vmf_session_free(world->session);
    vmf_guest_free(world->guest);
    vmf_disk_free(world->disk);
    g_unlink(world->path);
    g_unlink(partial);
    g_unlink(bitmaps);
    g_rmdir(world->directory);
    g_free(world->path);
    g_free(world->directory);
    g_free(world->data);
    g_free(world);
    return 0;
}

/* What the owner says of the next record. */
static bool take(World *world)
{
    VmfRecord record;
    bool taken = false;

    g_clear_error(&world->error);
    assert_true(vmf_record_read(world->reader, &record, NULL));
    bool good = world->owner.records->record(world->owner.opaque, world->reader, &record, &taken, &world->error);
    assert_true(taken);
    return good;
}

static bool send_extent(World *world, uint32_t disk, uint32_t flags, uint64_t offset, uint64_t length, size_t payload)
{
    VmfWireExtent extent = {disk, flags, offset, length};

    assert_true(vmf_record_write_extent(world->writer, &extent, world->data, payload, NULL));
    assert_true(vmf_record_flush(world->writer, NULL));
    return take(world);
}

static bool data(World *world, uint64_t offset, uint64_t length, bool first)
{
    return send_extent(world, 1, first ? VMF_EXTENT_FIRST : 0, offset, length, length);
}

static bool zeros(World *world, uint64_t offset, uint64_t length, bool first)
{
    return send_extent(world, 1, VMF_EXTENT_IS_ZERO | (first ? VMF_EXTENT_FIRST : 0), offset, length, 0);
}

static bool mirrored(World *world, uint64_t offset, uint64_t length)
{
    return send_extent(world, 1, VMF_EXTENT_MIRRORED, offset, length, length);
}

/* The answer to what was mirrored. */
static void answered(World *world, uint64_t number)
{
    VmfRecord record;
    uint64_t found;

    assert_true(vmf_record_read(world->return_path, &record, NULL));
    assert_int_equal(record.type, VMF_RECORD_MIRRORED);
    assert_true(vmf_u64_decode(&record, world->return_path->format.swap, &found, NULL));
    assert_int_equal(found, number);
}

/* The sums that are right are those of a proof that has seen the same. */
static bool sync_as(World *world, uint32_t flags, uint64_t sum)
{
    static const uint32_t indexes[] = {1};
    VmfDiskSync message = {.cookie = 5, .flags = flags, .n_disks = 1, .disks = indexes, .sums = &sum};

    assert_true(vmf_disk_sync_send(world->writer, VMF_RECORD_DISK_SYNC, &message, NULL));
    return take(world);
}

static void refused(World *world, bool good, VmfErrorCode code)
{
    if (good)
        fail_msg("it was taken");
    if (!g_error_matches(world->error, VMF_ERROR, (int)code))
        fail_msg("another error: %s", world->error->message);
}

static uint64_t sum_of(const World *world, const uint8_t *content)
{
    VmfDiskProof proof;

    assert_true(vmf_disk_proof_init(&proof, "root", SIZE, NULL));
    for (uint64_t at = 0; at < SIZE; at += GRANULE)
        vmf_disk_proof_set(&proof, at, content + at, MIN(GRANULE, SIZE - at));
    uint64_t sum = vmf_disk_proof_sum(&proof);
    vmf_disk_proof_clear(&proof);
    return sum;
}

/* Data, zeros, data that becomes zeros and the other way, the tail; then it is the disk, and the file says so. */
static void arrives(World *world, VmfStreamFormat as)
{
    g_autofree uint8_t *expected = NULL;
    g_autofree char *found = NULL;
    VmfRecord record;
    gsize length;
    void *memory = NULL;

    assert_int_equal(posix_memalign(&memory, 4096, SIZE), 0);
    memset(memory, 0, SIZE);
    begin(world, as);
    assert_true(data(world, 0, 16 * GRANULE, true) && zeros(world, 16 * GRANULE, 4 * GRANULE, true) &&
                data(world, 20 * GRANULE, 512, true));
    assert_true(zeros(world, 2 * GRANULE, 3 * GRANULE, false) && data(world, 17 * GRANULE, GRANULE, false));
    memcpy(memory, world->data, 16 * GRANULE);
    memset((char *)memory + 2 * GRANULE, 0, 3 * GRANULE);
    memcpy((char *)memory + 17 * GRANULE, world->data, GRANULE);
    memcpy((char *)memory + 20 * GRANULE, world->data, 512);
    if (!sync_as(world, VMF_DISK_SYNC_LAST | VMF_DISK_SYNC_VERIFY, sum_of(world, memory)))
        fail_msg("%s", world->error->message);
    assert_true(vmf_record_read(world->return_path, &record, NULL));
    assert_int_equal(record.type, VMF_RECORD_DISK_SYNCED);
    assert_false(g_file_test(world->path, G_FILE_TEST_EXISTS));
    assert_true(world->owner.records->arrived(world->owner.opaque, NULL));
    end(world, true);
    assert_true(g_file_get_contents(world->path, &found, &length, NULL));
    assert_int_equal(length, SIZE);
    assert_memory_equal(found, memory, SIZE);
    free(memory);
}

static void test_it_arrives(void **state)
{
    arrives(*state, format);
}

static void test_it_arrives_in_the_other_order(void **state)
{
    arrives(*state, swapped);
}

static void test_ranges(void **state)
{
    static const struct {
        uint32_t disk, flags;
        uint64_t offset, length;
        size_t payload;
        VmfErrorCode code;
    } bad[] = {
        {0, 1, 0, GRANULE, GRANULE, VMF_ERROR_DISK_RANGE}, /* it is shared */
        {2, 1, 0, GRANULE, GRANULE, VMF_ERROR_DISK_RANGE}, /* there is none */
        {UINT32_MAX, 3, 0, GRANULE, 0, VMF_ERROR_DISK_RANGE},
        {1, 3, 0, 0, 0, VMF_ERROR_DISK_RANGE},                  /* of nothing */
        {1, 3, 21 * GRANULE, GRANULE, 0, VMF_ERROR_DISK_RANGE}, /* past the end */
        {1, 3, 20 * GRANULE, GRANULE, 0, VMF_ERROR_DISK_RANGE},
        {1, 3, UINT64_MAX - GRANULE + 1, 2 * GRANULE, 0, VMF_ERROR_DISK_RANGE}, /* around it */
        {1, 3, GRANULE, UINT64_MAX - GRANULE + 1, 0, VMF_ERROR_DISK_RANGE},
        {1, 3, 512, GRANULE - 512, 0, VMF_ERROR_DISK_RANGE}, /* parts of granules */
        {1, 3, 0, 512, 0, VMF_ERROR_DISK_RANGE},
        {1, 1, 0, 512, 512, VMF_ERROR_DISK_RANGE},
        {1, 1, 0, 17 * GRANULE, VMF_EXTENT_DATA_MAX, VMF_ERROR_DISK_RANGE}, /* too long */
        {1, 1, 0, GRANULE, 0, VMF_ERROR_RECORD_BODY},                       /* the payload is another */
        {1, 1, 0, GRANULE, 2 * GRANULE, VMF_ERROR_RECORD_BODY},
        {1, 3, 0, GRANULE, GRANULE, VMF_ERROR_RECORD_BODY},
        {1, 8, 0, GRANULE, GRANULE, VMF_ERROR_RECORD_BODY}, /* unknown flags */
        {1, 4, 0, 512, 512, VMF_ERROR_DISK_COUNTS}, /* mirrored, never named */
        {1, 5, 0, 512, 512, VMF_ERROR_DISK_COUNTS}, /* and for the first time */
        {1, 4, 256, 512, 512, VMF_ERROR_DISK_RANGE}, /* parts of sectors */
        {1, 4, 0, 256, 256, VMF_ERROR_DISK_RANGE},
        {1, 4, SIZE, 512, 512, VMF_ERROR_DISK_RANGE},
        {1, 6, UINT64_MAX - 511, 1024, 0, VMF_ERROR_DISK_RANGE},
        {1, 4, 0, VMF_EXTENT_DATA_MAX + 512, VMF_EXTENT_DATA_MAX + 512, VMF_ERROR_DISK_RANGE},
        {1, 4, 0, 1024, 512, VMF_ERROR_RECORD_BODY},
        {1, 6, 0, 512, 512, VMF_ERROR_RECORD_BODY},
        {0, 4, 0, 512, 512, VMF_ERROR_DISK_RANGE},
        {1, 0, 0, GRANULE, GRANULE, VMF_ERROR_DISK_COUNTS}, /* never named */
        {1, 2, 0, GRANULE, 0, VMF_ERROR_DISK_COUNTS},
    };
    World *world = *state;

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        begin(world, format);
        refused(world, send_extent(world, bad[i].disk, bad[i].flags, bad[i].offset, bad[i].length, bad[i].payload),
                bad[i].code);
        end(world, false);
        assert_false(g_file_test(world->path, G_FILE_TEST_EXISTS));
    }
}

/* Parts of granules, in data and in zeros; the sum is of them too, and what the storage has is what it is then. */
static void mirrored_arrives(World *world, VmfStreamFormat as)
{
    VmfDiskProof proof;
    VmfRecord record;

    begin(world, as);
    assert_true(vmf_disk_proof_init(&proof, "root", SIZE, NULL));
    assert_true(data(world, 0, 16 * GRANULE, true) && zeros(world, 16 * GRANULE, SIZE - 16 * GRANULE, true));
    vmf_disk_proof_set(&proof, 0, world->data, 16 * GRANULE);
    vmf_disk_proof_set(&proof, 16 * GRANULE, NULL, SIZE - 16 * GRANULE);
    uint64_t without = vmf_disk_proof_sum(&proof);
    assert_true(mirrored(world, 512, 1024));
    answered(world, 0);
    assert_true(mirrored(world, SIZE - 512, 512));
    answered(world, 1);
    assert_true(send_extent(world, 1, VMF_EXTENT_MIRRORED | VMF_EXTENT_IS_ZERO, GRANULE - 512, 1024, 0));
    answered(world, 2);
    vmf_disk_proof_mirror(&proof, 0, 512, world->data, 1024);
    vmf_disk_proof_mirror(&proof, 1, SIZE - 512, world->data, 512);
    uint64_t two = vmf_disk_proof_sum(&proof);
    vmf_disk_proof_mirror(&proof, 2, GRANULE - 512, NULL, 1024);
    uint64_t three = vmf_disk_proof_sum(&proof);
    assert_true(without != two && two != three);
    if (!sync_as(world, VMF_DISK_SYNC_LAST | VMF_DISK_SYNC_VERIFY, three))
        fail_msg("%s", world->error->message);
    assert_true(vmf_record_read(world->return_path, &record, NULL));
    assert_int_equal(record.type, VMF_RECORD_DISK_SYNCED);
    vmf_disk_proof_clear(&proof);
    end(world, false);
}

static void test_mirrored_arrives(void **state)
{
    mirrored_arrives(*state, format);
    mirrored_arrives(*state, swapped);
}

/* Without a piece, with one at another place, of another content, or in another order, the sum is another. */
static void test_mirrored_is_in_the_sum(void **state)
{
    World *world = *state;

    for (unsigned fault = 0; fault < 5; fault++) {
        VmfDiskProof proof;

        begin(world, format);
        assert_true(vmf_disk_proof_init(&proof, "root", SIZE, NULL));
        assert_true(zeros(world, 0, SIZE, true) && mirrored(world, 0, 512) && mirrored(world, 512, 1024));
        vmf_disk_proof_set(&proof, 0, NULL, SIZE);
        vmf_disk_proof_mirror(&proof, fault == 4, fault == 1 ? 1024 : 0, world->data + (fault == 2 ? 1 : 0), 512);
        if (fault != 3)
            vmf_disk_proof_mirror(&proof, fault != 4, 512, world->data, 1024);
        uint64_t sum = vmf_disk_proof_sum(&proof);
        if (fault == 0 && !sync_as(world, 0, sum))
            fail_msg("%s", world->error->message);
        else if (fault > 0)
            refused(world, sync_as(world, 0, sum), VMF_ERROR_DISK_SUM);
        vmf_disk_proof_clear(&proof);
        end(world, false);
    }
}

/* Who did not offer it does not do it. */
static void test_mirrored_without_the_feature(void **state)
{
    World *world = *state;

    begin(world, format);
    world->theirs->features_offered = VMF_FEATURE_DISKS;
    assert_true(zeros(world, 0, SIZE, true));
    refused(world, mirrored(world, 0, 512), VMF_ERROR_RECORD_BODY);
    end(world, false);
}

static void test_overlaps(void **state)
{
    World *world = *state;

    begin(world, format);
    assert_true(data(world, 0, 4 * GRANULE, true));
    refused(world, data(world, 0, GRANULE, true), VMF_ERROR_DISK_COUNTS);
    end(world, false);
    begin(world, format);
    assert_true(data(world, 0, 4 * GRANULE, true));
    refused(world, zeros(world, 3 * GRANULE, 2 * GRANULE, true), VMF_ERROR_DISK_COUNTS);
    end(world, false);
    begin(world, format);
    assert_true(zeros(world, 0, 4 * GRANULE, true));
    refused(world, data(world, 3 * GRANULE, 2 * GRANULE, false), VMF_ERROR_DISK_COUNTS);
    end(world, false);
}

static void test_syncs(void **state)
{
    World *world = *state;

    begin(world, format);
    assert_true(zeros(world, 0, SIZE, true));
    refused(world, sync_as(world, 0, 1), VMF_ERROR_DISK_SUM);
    end(world, false);
    begin(world, format);
    assert_true(zeros(world, 0, SIZE - 512, true));
    refused(world, sync_as(world, VMF_DISK_SYNC_LAST, 0), VMF_ERROR_DISK_COUNTS);
    end(world, false);
    begin(world, format);
    refused(world, sync_as(world, VMF_DISK_SYNC_VERIFY, 0), VMF_ERROR_RECORD_BODY);
    end(world, false);
    begin(world, format);
    refused(world, sync_as(world, VMF_DISK_SYNC_WRITTEN | VMF_DISK_SYNC_LAST, 0), VMF_ERROR_RECORD_BODY);
    end(world, false);
    begin(world, format);
    assert_true(zeros(world, 0, SIZE, true) && sync_as(world, VMF_DISK_SYNC_LAST, 0));
    refused(world, sync_as(world, 0, 0), VMF_ERROR_RECORD_ORDER);
    refused(world, zeros(world, 0, GRANULE, false), VMF_ERROR_RECORD_ORDER);
    end(world, false);
    begin(world, format);
    assert_true(zeros(world, 0, SIZE, true) && sync_as(world, 0, 0));
    assert_false(world->owner.records->arrived(world->owner.opaque, &world->error));
    end(world, false);
    assert_false(g_file_test(world->path, G_FILE_TEST_EXISTS));
}

/* What the storage has is not what it was given: somebody else writes there. */
static void test_verify_finds_what_the_storage_lost(void **state)
{
    World *world = *state;
    g_autofree char *partial = g_strconcat(world->path, ".partial", NULL);

    begin(world, format);
    assert_true(data(world, 0, GRANULE, true) && zeros(world, GRANULE, SIZE - GRANULE, true));
    g_autofree uint8_t *content = g_malloc0(SIZE + 4096);
    uint8_t *aligned = content + (4096 - (uintptr_t)content % 4096);
    memcpy(aligned, world->data, GRANULE);
    uint64_t sum = sum_of(world, aligned);
    assert_true(sync_as(world, 0, sum));
    FILE *file = fopen(partial, "r+e");
    assert_non_null(file);
    assert_int_equal(fseek(file, 9 * (long)GRANULE + 77, SEEK_SET), 0);
    assert_int_equal(fputc('x', file), 'x');
    assert_int_equal(fclose(file), 0);
    refused(world, sync_as(world, VMF_DISK_SYNC_LAST | VMF_DISK_SYNC_VERIFY, sum), VMF_ERROR_DISK_AUDIT);
    end(world, false);
}

/* ---- bases ------------------------------------------------------------------------------------------------------- */

/* Data in the first half of it, then zeros, then the last sector. */
static uint8_t *make_base(World *world)
{
    uint8_t *content = g_malloc0(SIZE);

    memcpy(content, world->data, 10 * GRANULE);
    memcpy(content + 20 * GRANULE, world->data, 512);
    assert_true(g_file_set_contents(world->path, (char *)content, SIZE, NULL));
    world->with_base = true;
    return content;
}

static bool send_base(World *world, const VmfDiskBase *base)
{
    assert_true(vmf_disk_base_send(world->writer, base, NULL));
    assert_true(vmf_record_flush(world->writer, NULL));
    return take(world);
}

/* What @content has there. */
static bool base(World *world, const uint8_t *content, uint64_t offset, uint64_t length)
{
    uint64_t digests[32];
    VmfDiskBase message = {.disk = 1, .offset = offset, .length = length, .digests = digests};
    VmfDiskProof proof;

    assert_true(vmf_disk_proof_init(&proof, "root", SIZE, NULL));
    message.n_digests = (uint32_t)((length - 1) / GRANULE + 1);
    for (uint32_t i = 0; i < message.n_digests; i++)
        digests[i] = vmf_disk_proof_digest_of(&proof, content + offset + i * GRANULE,
                                              MIN(GRANULE, length - i * GRANULE));
    vmf_disk_proof_clear(&proof);
    return send_base(world, &message);
}

static bool zero_base(World *world, uint64_t offset, uint64_t length)
{
    return send_base(world, &(VmfDiskBase){.disk = 1, .is_zero = true, .offset = offset, .length = length});
}

static void onto_a_base(World *world, VmfStreamFormat as)
{
    g_autofree uint8_t *content = make_base(world);
    g_autofree char *found = NULL, *partial = g_strconcat(world->path, ".partial", NULL);
    gsize length;

    begin(world, as);
    assert_true(base(world, content, 0, 3 * GRANULE) && base(world, content, 8 * GRANULE, 4 * GRANULE) &&
                zero_base(world, 13 * GRANULE, 2 * GRANULE) && base(world, content, 20 * GRANULE, 512));
    assert_true(g_file_test(world->path, G_FILE_TEST_EXISTS));
    assert_true(data(world, 3 * GRANULE, 5 * GRANULE, true));
    assert_true(!g_file_test(world->path, G_FILE_TEST_EXISTS) && g_file_test(partial, G_FILE_TEST_EXISTS));
    assert_true(zeros(world, 12 * GRANULE, GRANULE, true) && data(world, 15 * GRANULE, 5 * GRANULE, true) &&
                zeros(world, 0, GRANULE, false) && data(world, 13 * GRANULE, GRANULE, false));
    memcpy(content + 3 * GRANULE, world->data, 5 * GRANULE);
    memcpy(content + 15 * GRANULE, world->data, 5 * GRANULE);
    memset(content, 0, GRANULE);
    memcpy(content + 13 * GRANULE, world->data, GRANULE);
    if (!sync_as(world, VMF_DISK_SYNC_LAST | VMF_DISK_SYNC_VERIFY, sum_of(world, content)))
        fail_msg("%s", world->error->message);
    assert_true(world->owner.records->arrived(world->owner.opaque, NULL));
    end(world, true);
    assert_true(g_file_get_contents(world->path, &found, &length, NULL));
    assert_int_equal(length, SIZE);
    assert_memory_equal(found, content, SIZE);
    assert_false(g_file_test(partial, G_FILE_TEST_EXISTS));
}

static void test_onto_a_base(void **state)
{
    onto_a_base(*state, format);
}

static void test_onto_a_base_in_the_other_order(void **state)
{
    onto_a_base(*state, swapped);
}

static void test_bad_bases(void **state)
{
    static uint64_t digests[VMF_BASE_GRANULES_MAX + 1];
    static const struct {
        VmfDiskBase base;
        VmfErrorCode code;
    } bad[] = {
        {{0, true, 0, GRANULE, 0, NULL}, VMF_ERROR_DISK_RANGE}, /* it is shared */
        {{2, true, 0, GRANULE, 0, NULL}, VMF_ERROR_DISK_RANGE},
        {{1, true, 0, 0, 0, NULL}, VMF_ERROR_DISK_RANGE},
        {{1, true, 0, 512, 0, NULL}, VMF_ERROR_DISK_RANGE},
        {{1, true, 512, GRANULE, 0, NULL}, VMF_ERROR_DISK_RANGE},
        {{1, true, 20 * GRANULE, GRANULE, 0, NULL}, VMF_ERROR_DISK_RANGE}, /* past the end */
        {{1, true, UINT64_MAX - GRANULE + 1, 2 * GRANULE, 0, NULL}, VMF_ERROR_DISK_RANGE},
        {{1, false, 0, GRANULE, 0, NULL}, VMF_ERROR_RECORD_BODY}, /* without a digest, or with too many */
        {{1, false, 0, GRANULE, 2, digests}, VMF_ERROR_RECORD_BODY},
        {{1, true, 10 * GRANULE, GRANULE, 1, digests}, VMF_ERROR_RECORD_BODY},
        {{1, false, 0, SIZE, VMF_BASE_GRANULES_MAX + 1, digests}, VMF_ERROR_RECORD_BODY},
        {{1, false, 0, GRANULE, 1, digests}, VMF_ERROR_DISK_BASE}, /* there is data */
        {{1, true, 9 * GRANULE, 2 * GRANULE, 0, NULL}, VMF_ERROR_DISK_BASE},
        {{1, true, 20 * GRANULE, 512, 0, NULL}, VMF_ERROR_DISK_BASE},
    };
    World *world = *state;
    g_autofree uint8_t *content = make_base(world);
    g_autofree char *after = NULL;

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        begin(world, format);
        refused(world, send_base(world, &bad[i].base), bad[i].code);
        end(world, false);
    }
    assert_true(g_file_get_contents(world->path, &after, NULL, NULL));
    assert_memory_equal(after, content, SIZE);
}

static void test_bases_out_of_order(void **state)
{
    World *world = *state;
    g_autofree uint8_t *content = make_base(world);

    begin(world, format);
    assert_true(base(world, content, 0, 4 * GRANULE));
    refused(world, base(world, content, 3 * GRANULE, GRANULE), VMF_ERROR_DISK_COUNTS);
    end(world, false);
    begin(world, format);
    assert_true(base(world, content, 0, 4 * GRANULE));
    refused(world, data(world, 3 * GRANULE, 2 * GRANULE, true), VMF_ERROR_DISK_COUNTS);
    end(world, false);
    begin(world, format);
    assert_true(base(world, content, 0, SIZE) && sync_as(world, VMF_DISK_SYNC_LAST, sum_of(world, content)));
    refused(world, base(world, content, 0, GRANULE), VMF_ERROR_RECORD_ORDER);
    end(world, false);
    assert_true(g_file_test(world->path, G_FILE_TEST_EXISTS)); /* nothing of it was changed */
    begin(world, format);
    assert_true(base(world, content, 0, 4 * GRANULE) && data(world, 4 * GRANULE, GRANULE, true));
    refused(world, base(world, content, 5 * GRANULE, GRANULE), VMF_ERROR_RECORD_ORDER);
    end(world, false);
    begin(world, format); /* what is left of that */
    assert_true(base(world, content, 0, 4 * GRANULE));
    refused(world, sync_as(world, VMF_DISK_SYNC_LAST, 1), VMF_ERROR_DISK_SUM);
    end(world, false);
    world->with_base = false;
    begin(world, format);
    refused(world, zero_base(world, 0, GRANULE), VMF_ERROR_RECORD_ORDER);
    end(world, false);
}

#define world_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest unit_tests[] = {
        world_test(test_it_arrives), world_test(test_it_arrives_in_the_other_order),
        world_test(test_ranges),     world_test(test_overlaps),
        world_test(test_mirrored_arrives),
        world_test(test_mirrored_is_in_the_sum),
        world_test(test_mirrored_without_the_feature),
        world_test(test_syncs),      world_test(test_verify_finds_what_the_storage_lost),
        world_test(test_onto_a_base), world_test(test_onto_a_base_in_the_other_order),
        world_test(test_bad_bases),  world_test(test_bases_out_of_order),
    };

    return cmocka_run_group_tests(unit_tests, NULL, NULL);
}
