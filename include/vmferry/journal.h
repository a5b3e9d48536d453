/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The handover's journal: what each side must still know after a crash or a reboot (docs/handover.rst, docs/journal-format.rst).
 *
 * A state directory holds a random id and one small file for each side of each migration. Any number of processes may use one
 * directory. Every call that changes an entry is durable when it returns true. Any thread; the journal has a lock of its own.
 */
#ifndef VMFERRY_JOURNAL_H
#define VMFERRY_JOURNAL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

G_BEGIN_DECLS

typedef struct VmfJournal VmfJournal;

typedef enum {
    VMF_JOURNAL_NONE,    /* there is no entry */
    VMF_JOURNAL_OFFERED, /* source: the peer may have the guest */
    VMF_JOURNAL_BACK,    /* source: the guest is ours again */
    VMF_JOURNAL_GONE,    /* source: the guest is the peer's */
    VMF_JOURNAL_READY,     /* target: loaded; not started, so far */
    VMF_JOURNAL_STARTED,   /* target: ours, whatever came after */
    VMF_JOURNAL_REFUSED,   /* target: will never be started here */
    VMF_JOURNAL_CONFIRMED, /* target: started, and the source knows it */
    VMF_JOURNAL_N
} VmfJournalState;

const char *vmf_journal_state_name(VmfJournalState state); /* "offered" */

#define VMF_JOURNAL_MACHINE_MAX 255
#define VMF_JOURNAL_PEER_MAX 1023
#define VMF_JOURNAL_HOST_MAX 255

typedef struct {
    bool is_source;
    VmfJournalState state;
    uint8_t token[16];
    uint8_t uuid[16];     /* the machine's */
    uint8_t peer_id[16];  /* source: id of the target's state directory; zeros: it has not said */
    int64_t time_ns;      /* CLOCK_REALTIME of the last write */
    char machine[VMF_JOURNAL_MACHINE_MAX + 1]; /* the embedder's name for the guest */
    char peer[VMF_JOURNAL_PEER_MAX + 1];       /* source: URI of the target; else "" */
    char peer_host[VMF_JOURNAL_HOST_MAX + 1];  /* what the peer calls itself; "" */
} VmfJournalEntry;

/* Opens @directory, made with mode 0700 if it is not there, and gives it its id, durably. */
VmfJournal *vmf_journal_open(const char *directory, GError **error);
void vmf_journal_free(VmfJournal *journal);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfJournal, vmf_journal_free)
void vmf_journal_id(const VmfJournal *journal, uint8_t id[16]);

/*
 * Begins the entry @entry->token of one side, in state OFFERED, READY or REFUSED: the file is made, preallocated and synced, its
 * directory too. Fails with VMF_ERROR_STATE if there is an entry of that token and side already. The entry is locked until it is
 * released, or the process (and every child that it forked and that did not exec) ends. @entry->time_ns is not looked at.
 */
bool vmf_journal_begin(VmfJournal *journal, const VmfJournalEntry *entry, GError **error);

/*
 * Moves an entry on; the state that it has may be set again. @peer_id may be NULL: as it was. An entry that was not begun here, or
 * was released, is locked for the length of the call; VMF_ERROR_STATE when another process has it, when there is none, or when it may
 * not go to @state. On any other error it is unknown which of the two states a crash would leave.
 */
bool vmf_journal_set(VmfJournal *journal, bool is_source, const uint8_t token[16], VmfJournalState state, const uint8_t *peer_id,
                     GError **error);

/* Ends the lock of vmf_journal_begin(). Nothing happens where there is none. */
void vmf_journal_release(VmfJournal *journal, bool is_source, const uint8_t token[16]);

/*
 * Reads an entry. state VMF_JOURNAL_NONE: there is none. *@alive (may be NULL): the process that began it lives, this one included.
 * @token may lie in @entry. False: the entry is there and cannot be read; nobody may guess what it said.
 */
bool vmf_journal_read(VmfJournal *journal, bool is_source, const uint8_t token[16], VmfJournalEntry *entry, bool *alive, GError **error);

/* All entries that can be read, newest first: an array of VmfJournalEntry. *@n_damaged (may be NULL) counts the others. */
GArray *vmf_journal_list(VmfJournal *journal, unsigned *n_damaged, GError **error);

/*
 * The source entry of @machine that counts: the newest one in state OFFERED, otherwise the newest; state VMF_JOURNAL_NONE: none. For
 * "may it run here?": OFFERED means no, and so does false: an entry that cannot be read may be the offer.
 */
bool vmf_journal_find_offer(VmfJournal *journal, const char *machine, VmfJournalEntry *entry, GError **error);

/* Deletes entries in state BACK, GONE, REFUSED or CONFIRMED that nobody has locked, beyond the newest @keep of these states. */
void vmf_journal_prune(VmfJournal *journal, unsigned keep);

G_END_DECLS
#endif
