/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The journal (docs/journal-format.rst).
 *
 * Theory of operation. A file appears under its final name only when it is whole: it is made under another name,
 * synced, and then published, so a name that is there means that its content was once complete, and content that cannot
 * be read is damage, never "nothing". An entry's state is kept twice, in two slots. A change overwrites the slot that
 * is not needed, syncs, and only then brings the other slot up to date, without waiting for it: at every instant one
 * slot holds a state that is durable, and an entry at rest has two copies. So two copies of one state are durable; of two
 * states the older one is, and the newer one may be.
 *
 * What a call reports has to outlast a crash from then on, also where another process wrote it a moment ago and has not
 * synced it yet. So whoever reads an entry syncs its name; of the content it believes what the slots say is durable, and
 * syncs nothing: a sync that fails for a reader could take the owner's unsynced change with it, and the owner's own sync
 * would then report success for what no disk has.
 *
 * Only the holder of an entry's lock changes or syncs it. That is the process that began it; when it has released it, or is
 * dead, any other for the length of one call.
 */
#include <vmferry/error.h>
#include <vmferry/journal.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "migration/journal-entry.h"
#include "migration/journal-files.h"

#define ID_NAME "id"
#define NEW_PREFIX "new-" /* files that are being made; what a crash left of them is removed by vmf_journal_prune() */
#define TRIES 4

/* An entry that is locked by us. */
typedef struct {
    VmfJournalFile *file;
    VmfJournalEntry entry;  /* its durable state */
    uint64_t sequence;      /* of that state */
    uint64_t last_sequence; /* the highest that was ever written, successfully or not */
    unsigned slot;          /* where that state is durable */
} Held;

/* What a file says. */
typedef struct {
    VmfJournalEntry entry, older; /* the newest state; where the slots are in flux, the one before */
    uint64_t sequence;
    unsigned slot;
    bool in_flux; /* both slots are whole, and they differ */
    uint8_t data[VMF_JOURNAL_FILE_SIZE + 1];
} Content;

struct VmfJournal {
    const VmfJournalFiles *files;
    void *opaque;
    char *name; /* for messages */
    uint8_t id[16];
    pthread_mutex_t lock; /* of all below, and of every call of the table */
    GPtrArray *held;      /* of Held: begun here and not released */
};

typedef enum { FOUND, ABSENT, FAILED } Found;

static bool fail(const VmfJournal *journal, const char *file, const char *operation, int result, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_JOURNAL, "journal: %s/%s: %s: %s", journal->name, file, operation,
                g_strerror(-result));
    return false;
}

static Found failed(const VmfJournal *journal, const char *file, const char *operation, int result, GError **error)
{
    fail(journal, file, operation, result, error);
    return FAILED;
}

static bool fail_state(const VmfJournal *journal, const char *file, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "journal: %s/%s: %s", journal->name, file, why);
    return false;
}

/* ---- making and reading files ----------------------------------------------------------------------------------- */

static int make_new_once(VmfJournal *journal, const char *name, const uint8_t *content, size_t size,
                         VmfJournalFile **file)
{
    const VmfJournalFiles *files = journal->files;
    char temporary[sizeof(NEW_PREFIX) + 16];
    uint64_t number;
    int result = files->random(journal->opaque, &number, sizeof(number));

    if (result != 0)
        return result;
    g_snprintf(temporary, sizeof(temporary), NEW_PREFIX "%016" G_GINT64_MODIFIER "x", number);
    result = files->create(journal->opaque, temporary, size, file);
    if (result != 0)
        return result == -EEXIST ? -EAGAIN : result;
    result = files->write(journal->opaque, *file, 0, content, size);
    if (result == 0)
        result = files->sync(journal->opaque, *file);
    if (result == 0)
        result = files->publish(journal->opaque, temporary, name);
    if (result == 0)
        return 0;
    files->remove(journal->opaque, temporary);
    files->close(journal->opaque, *file);
    /* -ENOENT: another process took the unfinished file for a leftover, in the instant before it was locked. */
    return result == -ENOENT ? -EAGAIN : result;
}

/* Makes @name with @content, durable but for the name, and locked. -EEXIST. */
static int make_new(VmfJournal *journal, const char *name, const uint8_t *content, size_t size, VmfJournalFile **file)
{
    int result = -EAGAIN;

    for (unsigned i = 0; i < TRIES && result == -EAGAIN; i++)
        result = make_new_once(journal, name, content, size, file);
    return result;
}

/*
 * Reads a file as it was at some instant of this call. @data has room for one octet more than the file may have, so that
 * a longer one is told. What changes while it is read is read again.
 */
static int read_steady(VmfJournal *journal, VmfJournalFile *file, uint8_t *data, size_t room, size_t *size)
{
    const VmfJournalFiles *files = journal->files;
    g_autofree uint8_t *before = g_malloc(room);
    size_t size_before = 0;
    int result = files->read(journal->opaque, file, before, room, &size_before);

    for (unsigned i = 0; result == 0 && i < TRIES; i++) {
        result = files->read(journal->opaque, file, data, room, size);
        if (result != 0 || (*size == size_before && memcmp(data, before, *size) == 0))
            return result;
        memcpy(before, data, *size);
        size_before = *size;
    }
    return result != 0 ? result : -EBUSY;
}

static bool entry_fits(const VmfJournalEntry *entry, bool is_source, const uint8_t token[16])
{
    return entry->is_source == is_source && memcmp(entry->token, token, 16) == 0;
}

/* The process that made the entry may have died, or wait, between the two: its name is there and no crash has to leave it. */
static bool name_is_durable(VmfJournal *journal, const char *name, GError **error)
{
    int result = journal->files->sync_directory(journal->opaque);

    return result == 0 || fail(journal, name, "sync of the directory", result, error);
}

static bool decode_older(const Content *content, VmfJournalEntry *older)
{
    const size_t half = VMF_JOURNAL_SLOT_SIZE;
    uint8_t rest[VMF_JOURNAL_FILE_SIZE];
    uint64_t sequence;
    unsigned slot;

    if (memcmp(content->data, content->data + half, half) == 0)
        return false;
    memcpy(rest, content->data, sizeof(rest));
    memset(rest + content->slot * half, 0, half);
    return vmf_journal_file_decode(rest, sizeof(rest), older, &sequence, &slot, NULL);
}

static Found load(VmfJournal *journal, VmfJournalFile *file, const char *name, bool is_source, const uint8_t token[16],
                  Content *content, GError **error)
{
    size_t size = 0;
    int result = read_steady(journal, file, content->data, sizeof(content->data), &size);

    if (result == -ENOENT) /* removed since it was opened */
        return ABSENT;
    if (result != 0)
        return failed(journal, name, "read", result, error);
    if (!vmf_journal_file_decode(content->data, size, &content->entry, &content->sequence, &content->slot, error)) {
        g_prefix_error(error, "journal: %s/%s: ", journal->name, name);
        return FAILED;
    }
    content->in_flux = decode_older(content, &content->older);
    if (entry_fits(&content->entry, is_source, token))
        return name_is_durable(journal, name, error) ? FOUND : FAILED;
    g_set_error(error, VMF_ERROR, VMF_ERROR_JOURNAL_DAMAGED,
                "journal: %s/%s: read: it is the entry of another token or side", journal->name, name);
    return FAILED;
}

/*
 * Under the lock: makes the newest state durable. Who wrote it may have died over a sync that failed, and no later sync
 * knows of that: each sees to what was written since. So it is written again, the same octets, which are there
 * afterwards whatever part of them a crash lets through.
 */
static bool settle(VmfJournal *journal, VmfJournalFile *file, const char *name, const Content *content, GError **error)
{
    const VmfJournalFiles *files = journal->files;
    const size_t half = VMF_JOURNAL_SLOT_SIZE;
    const uint8_t *newest = content->data + content->slot * half;

    if (!content->in_flux)
        return true;
    int result = files->write(journal->opaque, file, content->slot * half, newest, half);
    if (result == 0)
        result = files->sync(journal->opaque, file);
    if (result != 0)
        return fail(journal, name, vmf_journal_state_name(content->entry.state), result, error);
    files->write(journal->opaque, file, !content->slot * half, newest, half);
    return true;
}

/* Opens and locks an entry that its owner released, or left when it died, and settles it. Not FOUND: *@file is closed. */
static Found take_over(VmfJournal *journal, const char *name, bool is_source, const uint8_t token[16],
                       VmfJournalFile **file, Content *content, GError **error)
{
    Found found = FAILED;
    int result = journal->files->open(journal->opaque, name, true, file);

    if (result == -ENOENT)
        return ABSENT;
    if (result != 0)
        return failed(journal, name, "open", result, error);
    result = journal->files->lock(journal->opaque, *file);
    if (result == -EAGAIN)
        fail_state(journal, name, "it is in the hands of another process, which lives", error);
    else if (result != 0)
        fail(journal, name, "lock", result, error);
    else
        found = load(journal, *file, name, is_source, token, content, error);
    if (found == FOUND && !settle(journal, *file, name, content, error))
        found = FAILED;
    if (found != FOUND)
        journal->files->close(journal->opaque, *file);
    return found;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static bool make_id(VmfJournal *journal, GError **error)
{
    uint8_t id[16], content[VMF_JOURNAL_ID_FILE_SIZE];
    VmfJournalFile *file;
    int result = journal->files->random(journal->opaque, id, sizeof(id));

    if (result == 0) {
        vmf_journal_id_encode(id, content);
        result = make_new(journal, ID_NAME, content, sizeof(content), &file);
    }
    if (result == 0)
        journal->files->close(journal->opaque, file);
    /* Another process was faster: the directory has one id, and it is that one. */
    return result == 0 || result == -EEXIST || fail(journal, ID_NAME, "make", result, error);
}

static Found read_id(VmfJournal *journal, GError **error)
{
    uint8_t data[VMF_JOURNAL_ID_FILE_SIZE + 1];
    VmfJournalFile *file;
    size_t size = 0;
    int result = journal->files->open(journal->opaque, ID_NAME, false, &file);

    if (result == -ENOENT)
        return ABSENT;
    if (result == 0) {
        result = read_steady(journal, file, data, sizeof(data), &size);
        journal->files->close(journal->opaque, file);
    }
    if (result != 0)
        return failed(journal, ID_NAME, "read", result, error);
    if (vmf_journal_id_decode(data, size, journal->id, error))
        return FOUND;
    g_prefix_error(error, "journal: %s/%s: ", journal->name, ID_NAME);
    return FAILED;
}

/* An id that was told to somebody must be there after a crash, so its name is synced by everybody who reads it, not by
 * its maker alone. */
static bool find_id(VmfJournal *journal, GError **error)
{
    Found found = read_id(journal, error);

    if (found == ABSENT) {
        if (!make_id(journal, error))
            return false;
        found = read_id(journal, error);
        if (found == ABSENT)
            return fail(journal, ID_NAME, "read", -ENOENT, error);
    }
    if (found == FAILED)
        return false;
    int result = journal->files->sync_directory(journal->opaque);
    return result == 0 || fail(journal, ID_NAME, "sync of the directory", result, error);
}

VmfJournal *vmf_journal_open_on(const VmfJournalFiles *files, void *opaque, const char *name, GError **error)
{
    g_autoptr(VmfJournal) journal = g_new0(VmfJournal, 1);

    journal->files = files;
    journal->opaque = opaque;
    journal->name = g_strdup(name);
    journal->held = g_ptr_array_new();
    pthread_mutex_init(&journal->lock, NULL);
    return find_id(journal, error) ? g_steal_pointer(&journal) : NULL;
}

VmfJournal *vmf_journal_open(const char *directory, GError **error)
{
    void *opened = vmf_journal_directory_open(directory, error);

    return opened ? vmf_journal_open_on(&vmf_journal_posix_files, opened, directory, error) : NULL;
}

static void held_free(VmfJournal *journal, Held *held)
{
    journal->files->close(journal->opaque, held->file);
    g_free(held);
}

void vmf_journal_free(VmfJournal *journal)
{
    if (!journal)
        return;
    for (guint i = 0; i < journal->held->len; i++)
        held_free(journal, g_ptr_array_index(journal->held, i));
    g_ptr_array_unref(journal->held);
    if (journal->files->free)
        journal->files->free(journal->opaque);
    pthread_mutex_destroy(&journal->lock);
    g_free(journal->name);
    g_free(journal);
}

void vmf_journal_id(const VmfJournal *journal, uint8_t id[16])
{
    memcpy(id, journal->id, 16);
}

/* ---- changing --------------------------------------------------------------------------------------------------- */

static bool find_held(const VmfJournal *journal, bool is_source, const uint8_t token[16], guint *at)
{
    for (*at = 0; *at < journal->held->len; ++*at)
        if (entry_fits(&((const Held *)g_ptr_array_index(journal->held, *at))->entry, is_source, token))
            return true;
    return false;
}

/* The name is there, but its durability is unknown: without it there was no beginning. */
static bool take_back_name(VmfJournal *journal, const char *name, int result, GError **error)
{
    journal->files->remove(journal->opaque, name);
    journal->files->sync_directory(journal->opaque);
    return fail(journal, name, "sync of the directory", result, error);
}

static bool begin(VmfJournal *journal, const VmfJournalEntry *entry, const char *name, GError **error)
{
    g_autofree Held *held = g_new0(Held, 1);
    uint8_t content[VMF_JOURNAL_FILE_SIZE];

    held->entry = *entry;
    held->entry.time_ns = journal->files->time_ns(journal->opaque);
    held->sequence = held->last_sequence = 1;
    vmf_journal_slot_encode(&held->entry, 1, content);
    memcpy(content + VMF_JOURNAL_SLOT_SIZE, content, VMF_JOURNAL_SLOT_SIZE);
    int result = make_new(journal, name, content, sizeof(content), &held->file);
    if (result == -EEXIST)
        return fail_state(journal, name, "begin: there is an entry of this token", error);
    if (result != 0)
        return fail(journal, name, "begin", result, error);
    result = journal->files->sync_directory(journal->opaque);
    if (result != 0) {
        take_back_name(journal, name, result, error);
        journal->files->close(journal->opaque, held->file);
        return false;
    }
    g_ptr_array_add(journal->held, g_steal_pointer(&held));
    return true;
}

bool vmf_journal_begin(VmfJournal *journal, const VmfJournalEntry *entry, GError **error)
{
    char name[VMF_JOURNAL_NAME_SIZE];

    vmf_journal_name_of(entry->is_source, entry->token, name);
    if (!vmf_journal_entry_check(entry, error))
        return false;
    if (!vmf_journal_may_become(entry->is_source, VMF_JOURNAL_NONE, entry->state))
        return fail_state(journal, name, "begin: not a state to begin with", error);
    pthread_mutex_lock(&journal->lock);
    bool done = begin(journal, entry, name, error);
    pthread_mutex_unlock(&journal->lock);
    return done;
}

/*
 * A failure leaves the slot as it is, and nobody knows what of it is durable. While we have the lock others go by the
 * other slot, which is durable, and the next attempt overwrites this one. Afterwards whoever takes the lock settles it.
 */
static bool write_state(VmfJournal *journal, const char *name, Held *held, const VmfJournalEntry *next, GError **error)
{
    const VmfJournalFiles *files = journal->files;
    uint8_t slot[VMF_JOURNAL_SLOT_SIZE];
    unsigned where = !held->slot;

    vmf_journal_slot_encode(next, ++held->last_sequence, slot);
    int result = files->write(journal->opaque, held->file, where * sizeof(slot), slot, sizeof(slot));
    if (result == 0)
        result = files->sync(journal->opaque, held->file);
    if (result != 0)
        return fail(journal, name, vmf_journal_state_name(next->state), result, error);
    held->entry = *next;
    held->sequence = held->last_sequence;
    held->slot = where;
    /* The second copy need not be durable at any time. Without it others who ask hear the former state as long as we live. */
    result = -EIO;
    for (unsigned i = 0; i < TRIES && result != 0; i++)
        result = files->write(journal->opaque, held->file, !where * sizeof(slot), slot, sizeof(slot));
    return true;
}

static bool move_on(VmfJournal *journal, const char *name, Held *held, VmfJournalState state, const uint8_t *peer_id,
                    GError **error)
{
    VmfJournalEntry next = held->entry;

    if (!vmf_journal_may_become(next.is_source, next.state, state)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_STATE, "journal: %s/%s: from %s to %s: never", journal->name, name,
                    vmf_journal_state_name(next.state), vmf_journal_state_name(state));
        return false;
    }
    next.state = state;
    next.time_ns = journal->files->time_ns(journal->opaque);
    if (peer_id)
        memcpy(next.peer_id, peer_id, sizeof(next.peer_id));
    return write_state(journal, name, held, &next, error);
}

/* Somebody else's entry, or one that we released: locked for this one change, and read under the lock. */
static bool set_other(VmfJournal *journal, const char *name, bool is_source, const uint8_t token[16],
                      VmfJournalState state, const uint8_t *peer_id, GError **error)
{
    Held held = {0};
    Content content;
    Found found = take_over(journal, name, is_source, token, &held.file, &content, error);

    if (found == ABSENT)
        return fail_state(journal, name, "there is no such entry", error);
    if (found == FAILED)
        return false;
    held.entry = content.entry;
    held.sequence = held.last_sequence = content.sequence;
    held.slot = content.slot;
    bool done = move_on(journal, name, &held, state, peer_id, error);
    journal->files->close(journal->opaque, held.file);
    return done;
}

bool vmf_journal_set(VmfJournal *journal, bool is_source, const uint8_t token[16], VmfJournalState state,
                     const uint8_t *peer_id, GError **error)
{
    char name[VMF_JOURNAL_NAME_SIZE];
    guint at;

    vmf_journal_name_of(is_source, token, name);
    pthread_mutex_lock(&journal->lock);
    bool done = find_held(journal, is_source, token, &at)
                    ? move_on(journal, name, g_ptr_array_index(journal->held, at), state, peer_id, error)
                    : set_other(journal, name, is_source, token, state, peer_id, error);
    pthread_mutex_unlock(&journal->lock);
    return done;
}

void vmf_journal_release(VmfJournal *journal, bool is_source, const uint8_t token[16])
{
    guint at;

    pthread_mutex_lock(&journal->lock);
    if (find_held(journal, is_source, token, &at))
        held_free(journal, g_ptr_array_remove_index_fast(journal->held, at));
    pthread_mutex_unlock(&journal->lock);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/*
 * Where the slots are in flux: the owner lives, and will be heard of again, so what it has for certain is what counts;
 * or it is dead, and what it wrote last is settled first.
 */
static Found read_file(VmfJournal *journal, const char *name, bool is_source, const uint8_t token[16],
                       VmfJournalEntry *entry, bool *alive, GError **error)
{
    VmfJournalFile *file;
    Content content;
    int result = journal->files->open(journal->opaque, name, false, &file);

    if (result == -ENOENT)
        return ABSENT;
    if (result != 0)
        return failed(journal, name, "open", result, error);
    /* The lock is looked at first: an owner that dies in between leaves the state that is read after it. */
    int locked = journal->files->is_locked(journal->opaque, file);
    Found found = locked < 0 ? failed(journal, name, "lock", locked, error)
                             : load(journal, file, name, is_source, token, &content, error);
    journal->files->close(journal->opaque, file);
    if (found == FOUND && content.in_flux && !locked) {
        found = take_over(journal, name, is_source, token, &file, &content, error);
        if (found == FOUND)
            journal->files->close(journal->opaque, file);
    }
    if (found != FOUND)
        return found;
    *entry = content.in_flux && locked ? content.older : content.entry;
    *alive = locked > 0;
    return FOUND;
}

static Found read_entry(VmfJournal *journal, bool is_source, const uint8_t token[16], VmfJournalEntry *entry,
                        bool *alive, GError **error)
{
    char name[VMF_JOURNAL_NAME_SIZE];
    bool lives = true;
    Found found = FOUND;
    guint at;

    vmf_journal_name_of(is_source, token, name);
    if (find_held(journal, is_source, token, &at))
        *entry = ((const Held *)g_ptr_array_index(journal->held, at))->entry;
    else
        found = read_file(journal, name, is_source, token, entry, &lives, error);
    if (found == FOUND && alive)
        *alive = lives;
    return found;
}

bool vmf_journal_read(VmfJournal *journal, bool is_source, const uint8_t token[16], VmfJournalEntry *entry, bool *alive,
                      GError **error)
{
    VmfJournalEntry none = {.is_source = is_source, .state = VMF_JOURNAL_NONE};

    memcpy(none.token, token, sizeof(none.token)); /* @token may lie in @entry */
    *entry = none;
    if (alive)
        *alive = false;
    pthread_mutex_lock(&journal->lock);
    Found found = read_entry(journal, is_source, none.token, entry, alive, error);
    pthread_mutex_unlock(&journal->lock);
    return found != FAILED;
}

/* Newest first; entries of one instant in the order of their tokens, so that everybody sees one order. */
static int compare_entries(const void *a, const void *b)
{
    const VmfJournalEntry *x = a, *y = b;

    if (x->time_ns != y->time_ns)
        return x->time_ns < y->time_ns ? 1 : -1;
    int tokens = memcmp(x->token, y->token, 16);
    return tokens != 0 ? tokens : (int)y->is_source - (int)x->is_source;
}

/* NULL when the directory cannot be read. @first_damage (may be NULL) gets what is wrong with the first entry that
 * cannot be read. */
static GArray *list(VmfJournal *journal, bool sources_only, unsigned *n_damaged, GError **first_damage, GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GArray) entries = g_array_new(false, false, sizeof(VmfJournalEntry));
    int result = journal->files->list(journal->opaque, names);

    *n_damaged = 0;
    if (result != 0) {
        fail(journal, ".", "list", result, error);
        return NULL;
    }
    for (guint i = 0; i < names->len; i++) {
        g_autoptr(GError) damage = NULL;
        VmfJournalEntry entry;
        uint8_t token[16];
        bool is_source;
        if (!vmf_journal_name_parse(g_ptr_array_index(names, i), &is_source, token) || (sources_only && !is_source))
            continue;
        Found found = read_entry(journal, is_source, token, &entry, NULL, &damage);
        if (found == FOUND)
            g_array_append_val(entries, entry);
        else if (found == FAILED && (*n_damaged)++ == 0 && first_damage)
            *first_damage = g_steal_pointer(&damage);
    }
    g_array_sort(entries, compare_entries);
    return g_steal_pointer(&entries);
}

GArray *vmf_journal_list(VmfJournal *journal, unsigned *n_damaged, GError **error)
{
    unsigned count;

    pthread_mutex_lock(&journal->lock);
    GArray *entries = list(journal, false, &count, NULL, error);
    pthread_mutex_unlock(&journal->lock);
    if (n_damaged)
        *n_damaged = count;
    return entries;
}

bool vmf_journal_find_offer(VmfJournal *journal, const char *machine, VmfJournalEntry *entry, GError **error)
{
    g_autoptr(GError) damage = NULL;
    const VmfJournalEntry *best = NULL;
    unsigned n_damaged;

    *entry = (VmfJournalEntry){.is_source = true, .state = VMF_JOURNAL_NONE};
    pthread_mutex_lock(&journal->lock);
    g_autoptr(GArray) entries = list(journal, true, &n_damaged, &damage, error);
    pthread_mutex_unlock(&journal->lock);
    if (!entries)
        return false;
    for (guint i = 0; i < entries->len; i++) {
        const VmfJournalEntry *one = &g_array_index(entries, VmfJournalEntry, i);
        if (strcmp(one->machine, machine) == 0 &&
            (!best || (one->state == VMF_JOURNAL_OFFERED && best->state != one->state)))
            best = one;
    }
    if (n_damaged > 0 && !(best && best->state == VMF_JOURNAL_OFFERED)) {
        g_propagate_error(error, g_steal_pointer(&damage));
        return false;
    }
    if (best)
        *entry = *best;
    return true;
}

/* ---- forgetting ------------------------------------------------------------------------------------------------- */

/*
 * STARTED is kept until it is CONFIRMED: the source may still ask. OFFERED and READY have no outcome. A forgotten
 * REFUSED is refused again when somebody asks.
 */
static bool may_be_forgotten(VmfJournalState state)
{
    return state == VMF_JOURNAL_BACK || state == VMF_JOURNAL_GONE || state == VMF_JOURNAL_REFUSED ||
           state == VMF_JOURNAL_CONFIRMED;
}

/* Removes what nobody has locked and, read under the lock, may still go. */
static void forget(VmfJournal *journal, const char *name, bool is_source, const uint8_t token[16])
{
    VmfJournalFile *file;
    Content content;

    if (take_over(journal, name, is_source, token, &file, &content, NULL) != FOUND)
        return;
    if (may_be_forgotten(content.entry.state))
        journal->files->remove(journal->opaque, name);
    journal->files->close(journal->opaque, file);
}

static void remove_leftovers(VmfJournal *journal)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);

    journal->files->list(journal->opaque, names);
    for (guint i = 0; i < names->len; i++) {
        const char *name = g_ptr_array_index(names, i);
        VmfJournalFile *file;
        if (!g_str_has_prefix(name, NEW_PREFIX) || journal->files->open(journal->opaque, name, true, &file) != 0)
            continue;
        if (journal->files->lock(journal->opaque, file) == 0) /* its maker is dead */
            journal->files->remove(journal->opaque, name);
        journal->files->close(journal->opaque, file);
    }
}

void vmf_journal_prune(VmfJournal *journal, unsigned keep)
{
    unsigned n_damaged;

    pthread_mutex_lock(&journal->lock);
    remove_leftovers(journal);
    g_autoptr(GArray) entries = list(journal, false, &n_damaged, NULL, NULL);
    for (guint i = 0; entries && i < entries->len; i++) {
        const VmfJournalEntry *entry = &g_array_index(entries, VmfJournalEntry, i);
        char name[VMF_JOURNAL_NAME_SIZE];
        if (!may_be_forgotten(entry->state))
            continue;
        if (keep > 0) {
            keep--;
            continue;
        }
        vmf_journal_name_of(entry->is_source, entry->token, name);
        forget(journal, name, entry->is_source, entry->token);
    }
    pthread_mutex_unlock(&journal->lock);
}
