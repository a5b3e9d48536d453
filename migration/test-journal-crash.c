/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a crash, or a disk that fails, leaves of the journal: the old state or the new one, at every operation, and
 * never a third. */
#include "migration/test-journal-files.h"

#include <vmferry/error.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "migration/journal-entry.h"

#define SEEDS 40

static const uint8_t TOKEN[16] = {1, 2, 3};
static const uint8_t PEER[16] = {9};

/* A side's life: what is begun, and what it becomes. */
typedef struct {
    bool is_source;
    VmfJournalState states[4]; /* up to NONE */
} Life;

static const Life lives[] = {
    {true, {VMF_JOURNAL_OFFERED, VMF_JOURNAL_GONE}},
    {true, {VMF_JOURNAL_OFFERED, VMF_JOURNAL_BACK}},
    {false, {VMF_JOURNAL_READY, VMF_JOURNAL_STARTED, VMF_JOURNAL_CONFIRMED}},
    {false, {VMF_JOURNAL_READY, VMF_JOURNAL_REFUSED}},
    {false, {VMF_JOURNAL_REFUSED}},
};

static VmfJournalEntry entry_of(const Life *life)
{
    VmfJournalEntry entry = {
        .is_source = life->is_source, .state = life->states[0], .machine = "web", .peer = "tcp:b:1"};

    memcpy(entry.token, TOKEN, sizeof(TOKEN));
    /* Long enough that a torn slot has something to lose in every block. */
    memset(entry.peer_host, 'h', sizeof(entry.peer_host) - 1);
    return entry;
}

typedef struct {
    bool opened;
    uint8_t id[16];
    VmfJournalState durable; /* the last state that was reported as done */
    VmfJournalState tried;   /* the state that was being written, or the same */
} Told;

/* Lives until something fails. Frees its journal, as a process that dies does. */
static Told live(Disk *disk, const Life *life)
{
    Told told = {0};
    g_autoptr(VmfJournal) journal = vmf_journal_open_on(&disk_files, disk, "disk", NULL);

    if (!journal)
        return told;
    told.opened = true;
    vmf_journal_id(journal, told.id);
    for (unsigned i = 0; i < G_N_ELEMENTS(life->states) && life->states[i]; i++) {
        VmfJournalEntry entry = entry_of(life);
        told.tried = life->states[i];
        bool done = i == 0 ? vmf_journal_begin(journal, &entry, NULL)
                           : vmf_journal_set(journal, life->is_source, TOKEN, life->states[i], PEER, NULL);
        if (!done)
            return told;
        told.durable = told.tried;
    }
    return told;
}

/* After the reboot: what is found is one of the two states that may be there. Returns false otherwise. */
static bool holds(Disk *disk, const Life *life, const Told *told)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open_on(&disk_files, disk, "disk", &error);
    VmfJournalEntry entry;
    uint8_t id[16];
    bool alive;

    if (!journal || !vmf_journal_read(journal, life->is_source, TOKEN, &entry, &alive, &error))
        return false;
    vmf_journal_id(journal, id);
    if (alive || (told->opened && memcmp(id, told->id, 16) != 0))
        return false;
    if (entry.state != VMF_JOURNAL_NONE && strcmp(entry.machine, "web") != 0)
        return false;
    return entry.state == told->durable || entry.state == told->tried;
}

static unsigned operations_of(const Life *life)
{
    Disk *disk = disk_new(1);
    Told told = live(disk, life);

    assert_true(told.opened && told.durable == told.tried);
    unsigned operations = disk->operations;
    disk_free(disk);
    return operations;
}

/* How many crashes left something that may not be. */
static unsigned crash_everywhere(bool skip_syncs)
{
    unsigned wrong = 0;

    for (size_t l = 0; l < G_N_ELEMENTS(lives); l++) {
        unsigned operations = operations_of(&lives[l]);
        for (unsigned at = 1; at <= operations + 1; at++)
            for (unsigned kind = 0; kind < CRASH_N; kind++)
                for (unsigned seed = 0; seed < (kind == CRASH_TORN ? SEEDS : 1); seed++) {
                    Disk *disk = disk_new(seed);
                    disk->stop_at = at;
                    disk->skip_syncs = skip_syncs;
                    Told told = live(disk, &lives[l]);
                    disk_crash(disk, kind);
                    wrong += !holds(disk, &lives[l], &told);
                    disk_free(disk);
                }
    }
    return wrong;
}

static void test_crash_at_every_operation(void **state)
{
    assert_int_equal(crash_everywhere(false), 0);
}

/* The test above would find a journal that does not sync. */
static void test_a_skipped_sync_is_found(void **state)
{
    assert_true(crash_everywhere(true) > 0);
}

/*
 * One operation fails, and the machine lives on: the call says so, what is read is the former state, the same change
 * can be tried again, and a crash instead leaves one of the two.
 */
static void test_failure_at_every_operation(void **state)
{
    static const int codes[] = {-ENOSPC, -EIO};

    for (size_t l = 0; l < G_N_ELEMENTS(lives); l++)
        for (unsigned c = 0; c < G_N_ELEMENTS(codes); c++)
            for (unsigned at = 1; at <= operations_of(&lives[l]); at++)
                for (unsigned kind = 0; kind < CRASH_N; kind++) {
                    Disk *disk = disk_new(at);
                    disk->fail_at = at;
                    disk->fail_with = codes[c];
                    Told told = live(disk, &lives[l]);
                    if (kind != CRASH_LOST)
                        assert_true(holds(disk, &lives[l], &told)); /* what other processes see */
                    disk_crash(disk, kind);
                    assert_true(holds(disk, &lives[l], &told));
                    disk_free(disk);
                }
}

/* The journal whose write failed, without a crash: former state, and the next attempt counts. */
static void test_try_again(void **state)
{
    for (unsigned at = 1; at <= 2; at++) {
        Disk *disk = disk_new(at);
        g_autoptr(GError) error = NULL;
        VmfJournal *journal = vmf_journal_open_on(&disk_files, disk, "disk", NULL);
        VmfJournalEntry entry = entry_of(&lives[2]);

        assert_true(vmf_journal_begin(journal, &entry, NULL));
        disk->fail_at = disk->operations + at;
        disk->fail_with = -ENOSPC;
        assert_false(vmf_journal_set(journal, false, TOKEN, VMF_JOURNAL_STARTED, NULL, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_JOURNAL));
        assert_non_null(strstr(error->message, "No space left"));
        assert_true(vmf_journal_read(journal, false, TOKEN, &entry, NULL, NULL));
        assert_int_equal(entry.state, VMF_JOURNAL_READY);
        assert_true(vmf_journal_set(journal, false, TOKEN, VMF_JOURNAL_REFUSED, NULL, NULL));
        vmf_journal_free(journal);
        disk_crash(disk, CRASH_LOST);
        journal = vmf_journal_open_on(&disk_files, disk, "disk", NULL);
        assert_true(vmf_journal_read(journal, false, TOKEN, &entry, NULL, NULL));
        assert_int_equal(entry.state, VMF_JOURNAL_REFUSED);
        vmf_journal_free(journal);
        disk_free(disk);
    }
}

/*
 * A change of which nobody knows what is durable: while its owner lives all hear the former state, and when it is gone what
 * it wrote last, which is made durable first. The sync that failed has made the disk forget that there was anything to write.
 */
static void test_in_flux(void **state)
{
    Disk *disk = disk_new(7);
    VmfJournal *owner = vmf_journal_open_on(&disk_files, disk, "disk", NULL);
    VmfJournal *other = vmf_journal_open_on(&disk_files, disk, "disk", NULL);
    VmfJournalEntry entry = entry_of(&lives[2]);
    bool alive;

    assert_true(vmf_journal_begin(owner, &entry, NULL));
    disk->stop_at = disk->operations + 2; /* written, not synced, and nothing works any more */
    assert_false(vmf_journal_set(owner, false, TOKEN, VMF_JOURNAL_STARTED, NULL, NULL));
    disk->stop_at = 0;
    assert_true(vmf_journal_read(owner, false, TOKEN, &entry, &alive, NULL));
    assert_true(alive && entry.state == VMF_JOURNAL_READY);
    assert_true(vmf_journal_read(other, false, TOKEN, &entry, &alive, NULL));
    assert_true(alive && entry.state == VMF_JOURNAL_READY);
    vmf_journal_free(owner);
    assert_true(vmf_journal_read(other, false, TOKEN, &entry, &alive, NULL));
    assert_true(!alive && entry.state == VMF_JOURNAL_STARTED);
    vmf_journal_free(other);
    disk_crash(disk, CRASH_LOST);
    other = vmf_journal_open_on(&disk_files, disk, "disk", NULL);
    assert_true(vmf_journal_read(other, false, TOKEN, &entry, NULL, NULL));
    assert_int_equal(entry.state, VMF_JOURNAL_STARTED);
    vmf_journal_free(other);
    disk_free(disk);
}

/* A reader makes durable what it reports, also where the writer died before its sync. */
static void test_what_was_read_stays(void **state)
{
    Disk *disk = disk_new(3);
    VmfJournal *writer = vmf_journal_open_on(&disk_files, disk, "disk", NULL);
    VmfJournal *reader = vmf_journal_open_on(&disk_files, disk, "disk", NULL);
    VmfJournalEntry entry = entry_of(&lives[0]);
    VmfJournalFile *file = NULL;
    uint8_t slot[VMF_JOURNAL_SLOT_SIZE];
    char name[VMF_JOURNAL_NAME_SIZE];

    assert_true(vmf_journal_begin(writer, &entry, NULL));
    vmf_journal_name_of(true, TOKEN, name);
    vmf_journal_free(writer);
    entry.state = VMF_JOURNAL_GONE;
    vmf_journal_slot_encode(&entry, 2, slot);
    assert_int_equal(disk_open(disk, name, true, &file), 0);
    assert_int_equal(disk_write(disk, file, sizeof(slot), slot, sizeof(slot)), 0);
    disk_close(disk, file);
    assert_true(vmf_journal_read(reader, true, TOKEN, &entry, NULL, NULL));
    assert_int_equal(entry.state, VMF_JOURNAL_GONE);
    vmf_journal_free(reader);
    disk_crash(disk, CRASH_LOST);
    reader = vmf_journal_open_on(&disk_files, disk, "disk", NULL);
    assert_true(vmf_journal_read(reader, true, TOKEN, &entry, NULL, NULL));
    assert_int_equal(entry.state, VMF_JOURNAL_GONE);
    vmf_journal_free(reader);
    disk_free(disk);
}

/* The owner's sync, with another process that reads the entry just before it, and whose first operation fails. */
static struct {
    VmfJournal *reader;
    bool has_read;
} beside;

static int sync_beside_a_reader(void *opaque, VmfJournalFile *file)
{
    Disk *disk = opaque;
    VmfJournalEntry entry;

    if (beside.reader) {
        VmfJournal *reader = g_steal_pointer(&beside.reader);
        disk->fail_at = disk->operations + 1;
        disk->fail_with = -EIO;
        beside.has_read = true;
        if (vmf_journal_read(reader, false, TOKEN, &entry, NULL, NULL))
            assert_int_equal(entry.state, VMF_JOURNAL_READY);
        disk->fail_at = 0;
    }
    return disk_sync(disk, file);
}

/* A reader must not be the one whose sync fails over what the owner has written: the owner's own would then see nothing of it. */
static void test_a_reader_takes_nothing_along(void **state)
{
    VmfJournalFiles files = disk_files;
    Disk *disk = disk_new(5);
    VmfJournal *owner, *other = vmf_journal_open_on(&disk_files, disk, "disk", NULL);
    VmfJournalEntry entry = entry_of(&lives[2]);

    files.sync = sync_beside_a_reader;
    owner = vmf_journal_open_on(&files, disk, "disk", NULL);
    assert_true(vmf_journal_begin(owner, &entry, NULL));
    beside.reader = other;
    assert_true(vmf_journal_set(owner, false, TOKEN, VMF_JOURNAL_REFUSED, NULL, NULL));
    assert_true(beside.has_read);
    vmf_journal_free(owner);
    vmf_journal_free(other);
    disk_crash(disk, CRASH_LOST);
    other = vmf_journal_open_on(&disk_files, disk, "disk", NULL);
    assert_true(vmf_journal_read(other, false, TOKEN, &entry, NULL, NULL));
    assert_int_equal(entry.state, VMF_JOURNAL_REFUSED);
    vmf_journal_free(other);
    disk_free(disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crash_at_every_operation),
        cmocka_unit_test(test_a_skipped_sync_is_found),
        cmocka_unit_test(test_failure_at_every_operation),
        cmocka_unit_test(test_try_again),
        cmocka_unit_test(test_in_flux),
        cmocka_unit_test(test_what_was_read_stays),
        cmocka_unit_test(test_a_reader_takes_nothing_along),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
