/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The journal on real files: states, damage, full disks, several processes. */
#include "migration/journal-files.h"

#include <vmferry/error.h>

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "migration/journal-entry.h"

#define assert_journal(call) assert_no_error_in(call, &error)
#define assert_no_error_in(call, errorp)                                                                               \
    do {                                                                                                               \
        if (!(call))                                                                                                   \
            fail_msg("%s: %s", #call, *(errorp) ? (*(errorp))->message : "no error");                                  \
        assert_null(*(errorp));                                                                                        \
    } while (0)
#define assert_refused(call, wanted)                                                                                   \
    do {                                                                                                               \
        assert_false(call);                                                                                            \
        assert_non_null(error);                                                                                        \
        if (!g_error_matches(error, VMF_ERROR, wanted))                                                                \
            fail_msg("%s: %s", vmf_error_id(error), error->message);                                                   \
        g_clear_error(&error);                                                                                         \
    } while (0)

static const uint8_t PEER[16] = {7, 7, 7};

static int make_directory(void **state)
{
    *state = g_dir_make_tmp("journal-XXXXXX", NULL);
    return *state ? 0 : -1;
}

static int remove_directory(void **state)
{
    g_autoptr(GDir) directory = g_dir_open(*state, 0, NULL);

    for (const char *name; directory && (name = g_dir_read_name(directory));) {
        g_autofree char *path = g_build_filename(*state, name, NULL);
        remove(path);
    }
    rmdir(*state);
    g_free(*state);
    return 0;
}

static VmfJournalEntry entry_of(uint8_t number, VmfJournalState state)
{
    VmfJournalEntry entry = {
        .is_source = state <= VMF_JOURNAL_GONE, .state = state, .machine = "web", .token = {number, 0xab}};

    g_strlcpy(entry.peer, "tcp:host-b:4444", sizeof(entry.peer));
    g_strlcpy(entry.peer_host, "host-b", sizeof(entry.peer_host));
    memset(entry.uuid, 0x55, sizeof(entry.uuid));
    return entry;
}

static char *path_of(const char *directory, const VmfJournalEntry *entry)
{
    char name[VMF_JOURNAL_NAME_SIZE];

    vmf_journal_name_of(entry->is_source, entry->token, name);
    return g_build_filename(directory, name, NULL);
}

static VmfJournalState state_now(VmfJournal *journal, const VmfJournalEntry *entry, bool *alive)
{
    g_autoptr(GError) error = NULL;
    VmfJournalEntry found;

    assert_journal(vmf_journal_read(journal, entry->is_source, entry->token, &found, alive, &error));
    return found.state;
}

/* ---- states ----------------------------------------------------------------------------------------------------- */

/* The reachable states of one side, each with a way there. */
static const VmfJournalState ways[][4] = {
    {VMF_JOURNAL_OFFERED},
    {VMF_JOURNAL_OFFERED, VMF_JOURNAL_BACK},
    {VMF_JOURNAL_OFFERED, VMF_JOURNAL_GONE},
    {VMF_JOURNAL_READY},
    {VMF_JOURNAL_READY, VMF_JOURNAL_STARTED},
    {VMF_JOURNAL_READY, VMF_JOURNAL_REFUSED},
    {VMF_JOURNAL_REFUSED},
    {VMF_JOURNAL_READY, VMF_JOURNAL_STARTED, VMF_JOURNAL_CONFIRMED},
};

static VmfJournalState walk(VmfJournal *journal, uint8_t number, const VmfJournalState *way)
{
    g_autoptr(GError) error = NULL;
    VmfJournalEntry entry = entry_of(number, way[0]);
    unsigned i = 1;

    assert_journal(vmf_journal_begin(journal, &entry, &error));
    for (; i < 4 && way[i]; i++)
        assert_journal(vmf_journal_set(journal, entry.is_source, entry.token, way[i], NULL, &error));
    assert_int_equal(state_now(journal, &entry, NULL), way[i - 1]);
    return way[i - 1];
}

/* docs/journal-format.rst, written down a second time. */
static bool is_allowed(VmfJournalState from, VmfJournalState to)
{
    static const char *const pairs[] = {"offered back", "offered gone", "ready started", "ready refused",
                                        "started confirmed"};
    g_autofree char *pair = g_strdup_printf("%s %s", vmf_journal_state_name(from), vmf_journal_state_name(to));

    for (size_t i = 0; i < G_N_ELEMENTS(pairs); i++)
        if (strcmp(pair, pairs[i]) == 0)
            return true;
    return from == to;
}

static void test_every_transition(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    uint8_t number = 0;

    for (unsigned held = 0; held < 2; held++)
        for (size_t w = 0; w < G_N_ELEMENTS(ways); w++)
            for (VmfJournalState to = VMF_JOURNAL_NONE; to < VMF_JOURNAL_N; to++) {
                VmfJournalState from = walk(journal, ++number, ways[w]);
                VmfJournalEntry entry = entry_of(number, from);
                if (!held)
                    vmf_journal_release(journal, entry.is_source, entry.token);
                bool allowed = is_allowed(from, to);
                if (allowed)
                    assert_journal(vmf_journal_set(journal, entry.is_source, entry.token, to, PEER, &error));
                else
                    assert_refused(vmf_journal_set(journal, entry.is_source, entry.token, to, PEER, &error),
                                   VMF_ERROR_STATE);
                VmfJournalEntry found;
                assert_journal(vmf_journal_read(journal, entry.is_source, entry.token, &found, NULL, &error));
                assert_int_equal(found.state, allowed ? to : from);
                assert_int_equal(memcmp(found.peer_id, PEER, 16) == 0, allowed);
            }
}

static void test_begin(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);

    assert_non_null(journal);
    for (VmfJournalState s = VMF_JOURNAL_NONE; s <= VMF_JOURNAL_N; s++) {
        VmfJournalEntry entry = entry_of(1, s);
        if (s == VMF_JOURNAL_OFFERED || s == VMF_JOURNAL_READY)
            assert_journal(vmf_journal_begin(journal, &entry, &error));
        else {
            assert_false(vmf_journal_begin(journal, &entry, &error)); /* REFUSED: there is an entry by now */
            g_clear_error(&error);
        }
    }
    VmfJournalEntry entry = entry_of(1, VMF_JOURNAL_OFFERED);
    assert_refused(vmf_journal_begin(journal, &entry, &error), VMF_ERROR_STATE);
    vmf_journal_release(journal, true, entry.token);
    assert_refused(vmf_journal_begin(journal, &entry, &error), VMF_ERROR_STATE);
    entry.token[0] = 2;
    assert_refused(vmf_journal_set(journal, true, entry.token, VMF_JOURNAL_GONE, NULL, &error), VMF_ERROR_STATE);
    memset(entry.machine, 'x', sizeof(entry.machine));
    assert_refused(vmf_journal_begin(journal, &entry, &error), VMF_ERROR_USAGE);
    assert_int_equal(state_now(journal, &entry, NULL), VMF_JOURNAL_NONE);
}

/* All that was written is there for another journal over the directory; the two sides of a token are two entries. */
static void test_content(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    VmfJournalEntry source = entry_of(1, VMF_JOURNAL_OFFERED), target = entry_of(1, VMF_JOURNAL_READY), found;
    bool alive = false;

    memset(source.machine, 'm', sizeof(source.machine) - 1);
    memset(source.peer, '\n', sizeof(source.peer) - 1); /* any octet but zero */
    memset(source.peer_host, 0xff, sizeof(source.peer_host) - 1);
    assert_journal(vmf_journal_begin(journal, &source, &error));
    assert_journal(vmf_journal_begin(journal, &target, &error));
    g_autoptr(VmfJournal) other = vmf_journal_open(*state, &error);
    assert_journal(vmf_journal_read(other, true, source.token, &found, &alive, &error));
    assert_true(alive);
    assert_true(found.is_source && found.state == VMF_JOURNAL_OFFERED && found.time_ns > 0);
    assert_memory_equal(found.token, source.token, 16);
    assert_memory_equal(found.uuid, source.uuid, 16);
    assert_string_equal(found.machine, source.machine);
    assert_string_equal(found.peer, source.peer);
    assert_string_equal(found.peer_host, source.peer_host);
    assert_int_equal(state_now(other, &target, NULL), VMF_JOURNAL_READY);
    /* What lives in one hand is not changed by another. */
    assert_refused(vmf_journal_set(other, true, source.token, VMF_JOURNAL_GONE, NULL, &error), VMF_ERROR_STATE);
    vmf_journal_release(journal, true, source.token);
    vmf_journal_release(journal, true, source.token);
    assert_int_equal(state_now(other, &source, &alive), VMF_JOURNAL_OFFERED);
    assert_false(alive);
    assert_journal(vmf_journal_set(other, true, source.token, VMF_JOURNAL_GONE, PEER, &error));
    assert_int_equal(state_now(journal, &source, &alive), VMF_JOURNAL_GONE);
    assert_false(alive);
}

/* ---- damage ----------------------------------------------------------------------------------------------------- */

/* The file as begin and one change leave it, and the slots of the next change. */
typedef struct {
    VmfJournalEntry entry;
    uint8_t before[VMF_JOURNAL_FILE_SIZE];
    uint8_t slot[VMF_JOURNAL_SLOT_SIZE];
} Change;

static Change change_new(void)
{
    Change change = {.entry = entry_of(1, VMF_JOURNAL_READY)};

    memset(change.entry.peer, 'p', sizeof(change.entry.peer) - 1);
    vmf_journal_slot_encode(&change.entry, 5, change.before);
    memcpy(change.before + VMF_JOURNAL_SLOT_SIZE, change.before, VMF_JOURNAL_SLOT_SIZE);
    change.entry.state = VMF_JOURNAL_STARTED;
    change.entry.time_ns = 12345;
    vmf_journal_slot_encode(&change.entry, 6, change.slot);
    return change;
}

static VmfJournalState decoded(const uint8_t *file)
{
    g_autoptr(GError) error = NULL;
    VmfJournalEntry entry;
    uint64_t sequence;
    unsigned slot;

    assert_journal(vmf_journal_file_decode(file, VMF_JOURNAL_FILE_SIZE, &entry, &sequence, &slot, &error));
    assert_int_equal(sequence, entry.state == VMF_JOURNAL_STARTED ? 6 : 5);
    return entry.state;
}

/* A write cut after any octet, from either end, in either slot: the former state, or the new one where all that differs
 * was written. */
static void test_torn_at_every_octet(void **state)
{
    Change change = change_new();

    for (unsigned slot = 0; slot < 2; slot++)
        for (size_t n = 0; n <= VMF_JOURNAL_SLOT_SIZE; n++) {
            uint8_t file[VMF_JOURNAL_FILE_SIZE];
            size_t at = slot * VMF_JOURNAL_SLOT_SIZE;
            memcpy(file, change.before, sizeof(file));
            memcpy(file + at, change.slot, n);
            bool whole = memcmp(file + at, change.slot, VMF_JOURNAL_SLOT_SIZE) == 0;
            assert_int_equal(decoded(file), whole ? VMF_JOURNAL_STARTED : VMF_JOURNAL_READY);
            memcpy(file, change.before, sizeof(file));
            memcpy(file + at + n, change.slot + n, VMF_JOURNAL_SLOT_SIZE - n);
            whole = memcmp(file + at, change.slot, VMF_JOURNAL_SLOT_SIZE) == 0;
            assert_int_equal(decoded(file), whole ? VMF_JOURNAL_STARTED : VMF_JOURNAL_READY);
        }
}

/* Any octet changed at rest: both copies hold the state, so it is still known. */
static void test_rot_of_one_copy(void **state)
{
    Change change = change_new();

    for (size_t n = 0; n < sizeof(change.before); n++) {
        change.before[n] ^= 0x10;
        assert_int_equal(decoded(change.before), VMF_JOURNAL_READY);
        change.before[n] ^= 0x10;
    }
}

/* Bit by bit, independent of the engine's. */
static void put_crc(uint8_t *slot)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < VMF_JOURNAL_SLOT_SIZE - 4; i++) {
        crc ^= slot[i];
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    crc = ~crc;
    for (unsigned i = 0; i < 4; i++)
        slot[VMF_JOURNAL_SLOT_SIZE - 4 + i] = (uint8_t)(crc >> 8 * i);
}

/* Every field set to what it may not be, under a right CRC: refused as a whole, even though the other slot is good. */
static void test_hostile_slots(void **state)
{
    /* offset, new value of that octet */
    static const struct {
        size_t at;
        uint8_t value;
    } faults[] = {
        {0, 'X'},  {8, 2},
        {12, 0},   {12, 3},
        {12, 1}, /* magic, version, side; source with a target's state */
        {24, 0},   {24, 3},
        {24, 8},   {27, 1}, /* state */
        {29, 1},   {31, 4},
        {33, 1},   {28, 200}, /* lengths beyond a bound, or beyond the string */
        {34, 1},   {39, 1},
        {96, 0},   {96 + 3 + 1023 + 6 + 1, 1}, /* reserved, a zero in a name, octets after the strings */
        {4091, 1},
    };
    g_autoptr(GError) error = NULL;
    VmfJournalEntry entry;
    uint64_t sequence;
    unsigned slot;

    for (size_t i = 0; i < G_N_ELEMENTS(faults); i++) {
        Change change = change_new();
        memcpy(change.before + VMF_JOURNAL_SLOT_SIZE, change.slot, VMF_JOURNAL_SLOT_SIZE);
        change.before[VMF_JOURNAL_SLOT_SIZE + faults[i].at] = faults[i].value;
        put_crc(change.before + VMF_JOURNAL_SLOT_SIZE);
        if (vmf_journal_file_decode(change.before, sizeof(change.before), &entry, &sequence, &slot, &error))
            fail_msg("octet %zu = %u was taken", faults[i].at, faults[i].value);
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_JOURNAL_DAMAGED));
        g_clear_error(&error);
    }
    Change change = change_new();
    vmf_journal_slot_encode(&change.entry, 5, change.before);
    assert_refused(vmf_journal_file_decode(change.before, sizeof(change.before), &entry, &sequence, &slot, &error),
                   VMF_ERROR_JOURNAL_DAMAGED); /* two states of one number */
    vmf_journal_slot_encode(&change.entry, 0, change.before);
    assert_refused(vmf_journal_file_decode(change.before, sizeof(change.before), &entry, &sequence, &slot, &error),
                   VMF_ERROR_JOURNAL_DAMAGED);
}

/* On the disk as well: an entry at rest survives the loss of either block, after its beginning and after each change. */
static void test_two_copies(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    VmfJournalEntry entry = entry_of(1, VMF_JOURNAL_READY);
    g_autofree char *path = path_of(*state, &entry);

    assert_journal(vmf_journal_begin(journal, &entry, &error));
    for (unsigned i = 0; i < 3; i++) {
        g_autofree char *content = NULL;
        gsize size;
        if (i > 0)
            assert_journal(vmf_journal_set(journal, false, entry.token, VMF_JOURNAL_STARTED, NULL, &error));
        assert_true(g_file_get_contents(path, &content, &size, NULL));
        assert_int_equal(size, VMF_JOURNAL_FILE_SIZE);
        for (unsigned slot = 0; slot < 2; slot++) {
            g_autofree uint8_t *damaged = g_memdup2(content, size);
            VmfJournalEntry found;
            uint64_t sequence;
            unsigned left;
            memset(damaged + slot * VMF_JOURNAL_SLOT_SIZE, 0xff, VMF_JOURNAL_SLOT_SIZE);
            assert_journal(vmf_journal_file_decode(damaged, size, &found, &sequence, &left, &error));
            assert_int_equal(found.state, i > 0 ? VMF_JOURNAL_STARTED : VMF_JOURNAL_READY);
            assert_int_equal(sequence, i + 1);
            assert_int_equal(left, !slot);
        }
    }
}

static void write_file(const char *path, const void *content, size_t size)
{
    assert_true(g_file_set_contents(path, content, (gssize)size, NULL));
}

/* Files that are not what was written: an error wherever they matter, never "there is none". */
static void test_damaged_files(void **state)
{
    static const size_t sizes[] = {0, 1, 4096, 8191, 8193, 100000};
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    VmfJournalEntry entry = entry_of(1, VMF_JOURNAL_OFFERED), found;
    g_autofree char *path = path_of(*state, &entry);
    unsigned n_damaged;

    for (size_t i = 0; i <= G_N_ELEMENTS(sizes); i++) {
        g_autofree uint8_t *content = g_malloc0(100000);
        /* The last time: the right size, all zeros. */
        write_file(path, content, i < G_N_ELEMENTS(sizes) ? sizes[i] : VMF_JOURNAL_FILE_SIZE);
        assert_refused(vmf_journal_read(journal, true, entry.token, &found, NULL, &error), VMF_ERROR_JOURNAL_DAMAGED);
        assert_refused(vmf_journal_set(journal, true, entry.token, VMF_JOURNAL_BACK, NULL, &error),
                       VMF_ERROR_JOURNAL_DAMAGED);
        assert_refused(vmf_journal_find_offer(journal, "web", &found, &error), VMF_ERROR_JOURNAL_DAMAGED);
        assert_refused(vmf_journal_begin(journal, &entry, &error), VMF_ERROR_STATE);
        g_autoptr(GArray) all = vmf_journal_list(journal, &n_damaged, &error);
        assert_non_null(all);
        assert_true(all->len == 0 && n_damaged == 1);
        vmf_journal_prune(journal, 0);
        assert_true(g_file_test(path, G_FILE_TEST_EXISTS));
    }
    /* Another token's entry, under this name. */
    VmfJournalEntry other = entry_of(2, VMF_JOURNAL_OFFERED);
    uint8_t content[VMF_JOURNAL_FILE_SIZE];
    vmf_journal_slot_encode(&other, 1, content);
    vmf_journal_slot_encode(&other, 2, content + VMF_JOURNAL_SLOT_SIZE);
    write_file(path, content, sizeof(content));
    assert_refused(vmf_journal_read(journal, true, entry.token, &found, NULL, &error), VMF_ERROR_JOURNAL_DAMAGED);
    /* Not a file at all: nobody waits for a FIFO's writer, and no link is followed. */
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_refused(vmf_journal_read(journal, true, entry.token, &found, NULL, &error), VMF_ERROR_JOURNAL);
    unlink(path);
    assert_int_equal(symlink("id", path), 0);
    assert_refused(vmf_journal_read(journal, true, entry.token, &found, NULL, &error), VMF_ERROR_JOURNAL);
}

static void test_damaged_id(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(*state, "id", NULL);
    g_autofree char *content = NULL;
    gsize size;

    vmf_journal_free(vmf_journal_open(*state, &error));
    assert_true(g_file_get_contents(path, &content, &size, NULL));
    assert_int_equal(size, VMF_JOURNAL_ID_FILE_SIZE);
    for (gsize i = 0; i < size; i++) {
        content[i] ^= 0x40;
        write_file(path, content, size);
        assert_refused(vmf_journal_open(*state, &error), VMF_ERROR_JOURNAL_DAMAGED);
        content[i] ^= 0x40;
        write_file(path, content, i);
        assert_refused(vmf_journal_open(*state, &error), VMF_ERROR_JOURNAL_DAMAGED);
    }
    write_file(path, content, size);
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    assert_non_null(journal);
}

/* A directory that was emptied under a process: what is written there is durable for nobody, so it fails. */
static void test_file_removed_under_us(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    VmfJournalEntry entry = entry_of(1, VMF_JOURNAL_READY);
    g_autofree char *path = path_of(*state, &entry);

    assert_journal(vmf_journal_begin(journal, &entry, &error));
    assert_int_equal(unlink(path), 0);
    assert_refused(vmf_journal_set(journal, false, entry.token, VMF_JOURNAL_STARTED, NULL, &error), VMF_ERROR_JOURNAL);
}

static void test_directories(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *deep = g_build_filename(*state, "a", "b", NULL), *a = g_build_filename(*state, "a", NULL);
    g_autofree char *file = g_build_filename(*state, "file", NULL),
                    *open_to_all = g_build_filename(*state, "all", NULL);
    g_autofree char *id = g_build_filename(deep, "id", NULL);
    struct stat status;

    VmfJournal *journal = vmf_journal_open(deep, &error);
    assert_non_null(journal);
    vmf_journal_free(journal);
    assert_int_equal(stat(deep, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0700);
    assert_int_equal(stat(id, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    write_file(file, "x", 1);
    assert_refused(vmf_journal_open(file, &error), VMF_ERROR_JOURNAL);
    assert_int_equal(mkdir(open_to_all, 0700), 0);
    assert_int_equal(chmod(open_to_all, 0777), 0);
    assert_refused(vmf_journal_open(open_to_all, &error), VMF_ERROR_JOURNAL);
    unlink(id);
    rmdir(deep);
    rmdir(a);
}

/* ---- lists ------------------------------------------------------------------------------------------------------ */

static void test_find_offer(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    VmfJournalEntry found, other = entry_of(9, VMF_JOURNAL_OFFERED);

    assert_journal(vmf_journal_find_offer(journal, "web", &found, &error));
    assert_int_equal(found.state, VMF_JOURNAL_NONE);
    walk(journal, 1, ways[2]);
    g_strlcpy(other.machine, "db", sizeof(other.machine));
    assert_journal(vmf_journal_begin(journal, &other, &error));
    walk(journal, 2, ways[4]); /* a target's */
    assert_journal(vmf_journal_find_offer(journal, "web", &found, &error));
    assert_int_equal(found.state, VMF_JOURNAL_GONE);
    walk(journal, 3, ways[0]);
    assert_journal(vmf_journal_find_offer(journal, "web", &found, &error));
    assert_true(found.state == VMF_JOURNAL_OFFERED && found.token[0] == 3);
    walk(journal, 4, ways[1]); /* newer, but there is still an offer without an outcome: clocks go wrong */
    assert_journal(vmf_journal_find_offer(journal, "web", &found, &error));
    assert_true(found.state == VMF_JOURNAL_OFFERED && found.token[0] == 3);
    assert_journal(vmf_journal_set(journal, true, found.token, VMF_JOURNAL_BACK, NULL, &error));
    assert_journal(vmf_journal_find_offer(journal, "web", &found, &error));
    assert_int_equal(found.state, VMF_JOURNAL_BACK);
}

static void test_list_and_prune(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    g_autofree char *leftover = g_build_filename(*state, "new-0123456789abcdef", NULL);
    g_autofree char *stranger = g_build_filename(*state, "lost+found", NULL);
    unsigned n_damaged = 1;

    write_file(leftover, "x", 1);
    write_file(stranger, "x", 1);
    for (uint8_t i = 0; i < 32; i++) {
        VmfJournalState last = walk(journal, i, ways[i % 8]);
        if (i % 16 < 12)
            vmf_journal_release(journal, last <= VMF_JOURNAL_GONE, (const uint8_t[16]){i, 0xab});
    }
    g_autoptr(GArray) all = vmf_journal_list(journal, &n_damaged, &error);
    assert_true(all && all->len == 32 && n_damaged == 0);
    for (guint i = 0; i < 32; i++)
        assert_int_equal(g_array_index(all, VmfJournalEntry, i).token[0], 31 - i);
    vmf_journal_prune(journal, 5);
    assert_false(g_file_test(leftover, G_FILE_TEST_EXISTS));
    assert_true(g_file_test(stranger, G_FILE_TEST_EXISTS));
    g_autoptr(GArray) left = vmf_journal_list(journal, NULL, &error);
    unsigned next = 0, kept = 5;
    for (guint i = 0; i < 32; i++) {
        uint8_t number = (uint8_t)(31 - i);
        unsigned way = number % 8;
        bool open_end = way == 0 || way == 3 || way == 4, in_use = number % 16 >= 12;
        if (!open_end && !in_use && kept == 0)
            continue;
        kept -= !open_end && kept > 0;
        assert_int_equal(g_array_index(left, VmfJournalEntry, next++).token[0], number);
    }
    assert_int_equal(left->len, next);
}

/* ---- processes -------------------------------------------------------------------------------------------------- */

static void *open_journal(void *directory)
{
    return vmf_journal_open(directory, NULL);
}

/* Several processes and threads open one new directory: one id. */
static void test_racing_opens(void **state)
{
    for (unsigned round = 0; round < 10; round++) {
        g_autofree char *directory = g_strdup_printf("%s/%u", (char *)*state, round),
                        *id = g_build_filename(directory, "id", NULL);
        uint8_t ids[4][16];
        int go[2], answer[4][2];
        pid_t children[4];
        assert_int_equal(pipe(go), 0);
        for (unsigned i = 0; i < 4; i++) {
            assert_int_equal(pipe(answer[i]), 0);
            children[i] = fork();
            if (children[i] == 0) {
                char c;
                uint8_t mine[16] = {0};
                close(go[1]);
                if (read(go[0], &c, 1) == 0) {
                    VmfJournal *journal = open_journal(directory);
                    if (journal)
                        vmf_journal_id(journal, mine);
                }
                _exit(write(answer[i][1], mine, 16) != 16);
            }
        }
        close(go[0]);
        close(go[1]);
        for (unsigned i = 0; i < 4; i++) {
            assert_int_equal(read(answer[i][0], ids[i], 16), 16);
            close(answer[i][0]);
            close(answer[i][1]);
            assert_int_equal(waitpid(children[i], NULL, 0), children[i]);
            assert_memory_equal(ids[i], ids[0], 16);
        }
        assert_memory_not_equal(ids[0], ((const uint8_t[16]){0}), 16);
        g_autoptr(GDir) open_directory = g_dir_open(directory, 0, NULL);
        assert_string_equal(g_dir_read_name(open_directory), "id"); /* and no leftovers */
        assert_null(g_dir_read_name(open_directory));
        unlink(id);
        rmdir(directory);
    }
}

/* One process begins an entry; another sees that it lives, cannot change it, and can once the first is dead. */
static void test_lock_of_a_process(void **state)
{
    g_autoptr(GError) error = NULL;
    VmfJournalEntry entry = entry_of(1, VMF_JOURNAL_READY);
    int begun[2];
    bool alive = false;

    assert_int_equal(pipe(begun), 0);
    pid_t child = fork();
    if (child == 0) {
        VmfJournal *journal = open_journal(*state);
        if (journal && vmf_journal_begin(journal, &entry, NULL) && write(begun[1], "x", 1) == 1)
            pause();
        _exit(1);
    }
    close(begun[1]);
    char c;
    assert_int_equal(read(begun[0], &c, 1), 1);
    close(begun[0]);
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    for (unsigned i = 0; i < 3; i++) { /* asking takes nothing */
        assert_int_equal(state_now(journal, &entry, &alive), VMF_JOURNAL_READY);
        assert_true(alive);
    }
    assert_refused(vmf_journal_set(journal, false, entry.token, VMF_JOURNAL_REFUSED, NULL, &error), VMF_ERROR_STATE);
    assert_refused(vmf_journal_begin(journal, &entry, &error), VMF_ERROR_STATE);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(state_now(journal, &entry, &alive), VMF_JOURNAL_READY);
    assert_false(alive);
    assert_journal(vmf_journal_set(journal, false, entry.token, VMF_JOURNAL_REFUSED, NULL, &error));
    assert_int_equal(state_now(journal, &entry, &alive), VMF_JOURNAL_REFUSED);
}

/* Two processes begin one token at once, many times: one of them has it. And nobody ever reads half an entry. */
static void test_racing_begins(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    pid_t children[2];
    int won = 0;

    for (unsigned i = 0; i < 2; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            VmfJournal *mine = open_journal(*state);
            int n = 0;
            for (uint8_t t = 0; t < 50; t++) {
                VmfJournalEntry entry = entry_of(t, VMF_JOURNAL_READY);
                n += vmf_journal_begin(mine, &entry, NULL);
            }
            _exit(n);
        }
    }
    for (unsigned i = 0; i < 2;) {
        for (uint8_t t = 0; t < 50; t++) {
            VmfJournalEntry entry = entry_of(t, VMF_JOURNAL_READY);
            VmfJournalState found = state_now(journal, &entry, NULL);
            assert_true(found == VMF_JOURNAL_NONE || found == VMF_JOURNAL_READY);
        }
        int status;
        if (waitpid(children[i], &status, WNOHANG) == children[i]) {
            assert_true(WIFEXITED(status));
            won += WEXITSTATUS(status);
            i++;
        }
    }
    assert_int_equal(won, 50);
}

static void *walk_in_thread(void *journal)
{
    VmfJournalEntry entry = entry_of(1, VMF_JOURNAL_READY);

    for (unsigned i = 0; i < 100; i++)
        if (!vmf_journal_set(journal, false, entry.token, VMF_JOURNAL_READY, PEER, NULL))
            return journal;
    return NULL;
}

static void test_threads(void **state)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmfJournal) journal = vmf_journal_open(*state, &error);
    VmfJournalEntry entry = entry_of(1, VMF_JOURNAL_READY);
    pthread_t threads[2];
    void *failed;

    assert_journal(vmf_journal_begin(journal, &entry, &error));
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, walk_in_thread, journal), 0);
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(state_now(journal, &entry, NULL), VMF_JOURNAL_READY);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
}

/*
 * A directory that fills up: begin fails and leaves nothing, and entries that were begun can still be moved on, since
 * all the room they need is theirs. In a mount namespace of a child: 0 good, 77 not possible here, a line number
 * otherwise.
 */
static int on_a_full_disk(const char *directory)
{
#define must(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return __LINE__ % 70 + 1;                                                                                  \
    } while (0)
    g_autoptr(GError) error = NULL;
    VmfJournalEntry entry = entry_of(1, VMF_JOURNAL_READY), last = entry;

    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", directory, "tmpfs", 0, "size=40k,mode=0700") != 0)
        return 77;
    VmfJournal *journal = vmf_journal_open(directory, &error);
    must(journal);
    while (vmf_journal_begin(journal, &entry, &error)) {
        last = entry;
        must(++entry.token[0] < 20);
    }
    must(entry.token[0] > 2);
    must(g_error_matches(error, VMF_ERROR, VMF_ERROR_JOURNAL) && strstr(error->message, "No space left"));
    g_autoptr(GArray) all = vmf_journal_list(journal, NULL, NULL);
    must(all && all->len == entry.token[0] - 1u);
    g_autofree char *filler = g_build_filename(directory, "filler", NULL);
    int fd = open(filler, O_WRONLY | O_CREAT, 0600);
    while (fd >= 0 && write(fd, filler, 1) == 1)
        ;
    must(vmf_journal_set(journal, false, last.token, VMF_JOURNAL_STARTED, PEER, NULL));
    must(vmf_journal_set(journal, false, last.token, VMF_JOURNAL_CONFIRMED, PEER, NULL));
    must(vmf_journal_read(journal, false, last.token, &last, NULL, NULL) && last.state == VMF_JOURNAL_CONFIRMED);
    vmf_journal_free(journal);
    return 0;
#undef must
}

static void test_full_disk(void **state)
{
    int status;
    pid_t child = fork();

    if (child == 0)
        _exit(on_a_full_disk(*state));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

#define test(name) cmocka_unit_test_setup_teardown(name, make_directory, remove_directory)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_every_transition),
        test(test_begin),
        test(test_content),
        cmocka_unit_test(test_torn_at_every_octet),
        cmocka_unit_test(test_rot_of_one_copy),
        cmocka_unit_test(test_hostile_slots),
        test(test_two_copies),
        test(test_damaged_files),
        test(test_damaged_id),
        test(test_file_removed_under_us),
        test(test_directories),
        test(test_find_offer),
        test(test_list_and_prune),
        test(test_racing_opens),
        test(test_lock_of_a_process),
        test(test_racing_begins),
        test(test_threads),
        test(test_full_disk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
