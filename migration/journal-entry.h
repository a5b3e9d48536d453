/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* docs/journal-format.rst in C: what the files of a state directory hold, without a file. */
#ifndef MIGRATION_JOURNAL_ENTRY_H
#define MIGRATION_JOURNAL_ENTRY_H

#include <vmferry/journal.h>

#include <assert.h>
#include <stddef.h>

#define VMF_JOURNAL_VERSION 1
#define VMF_JOURNAL_SLOT_SIZE 4096
#define VMF_JOURNAL_FILE_SIZE (2 * VMF_JOURNAL_SLOT_SIZE)
#define VMF_JOURNAL_FIXED_SIZE 96 /* of a slot: all ahead of the strings */
#define VMF_JOURNAL_ID_FILE_SIZE 64
#define VMF_JOURNAL_NAME_SIZE (32 + sizeof(".source"))

static_assert(VMF_JOURNAL_FIXED_SIZE + VMF_JOURNAL_MACHINE_MAX + VMF_JOURNAL_PEER_MAX + VMF_JOURNAL_HOST_MAX + 4 <=
                  VMF_JOURNAL_SLOT_SIZE,
              "an entry fits a slot");

/* "00112233…ff.source" */
void vmf_journal_name_of(bool is_source, const uint8_t token[16], char name[VMF_JOURNAL_NAME_SIZE]);
/* False: not the name of an entry. */
bool vmf_journal_name_parse(const char *name, bool *is_source, uint8_t token[16]);

/* Whether an entry may go from @from to @to: docs/journal-format.rst. From NONE: whether it may begin so. */
bool vmf_journal_may_become(bool is_source, VmfJournalState from, VmfJournalState to);

/* A state and strings that the format can hold; VMF_ERROR_USAGE. */
bool vmf_journal_entry_check(const VmfJournalEntry *entry, GError **error);

/* @entry passed the check. */
void vmf_journal_slot_encode(const VmfJournalEntry *entry, uint64_t sequence, uint8_t out[VMF_JOURNAL_SLOT_SIZE]);

/*
 * The newest valid slot of a whole file of @size octets. False, with VMF_ERROR_JOURNAL_DAMAGED: nobody may guess what
 * it said.
 */
bool vmf_journal_file_decode(const uint8_t *data, size_t size, VmfJournalEntry *entry, uint64_t *sequence,
                             unsigned *slot, GError **error);

void vmf_journal_id_encode(const uint8_t id[16], uint8_t out[VMF_JOURNAL_ID_FILE_SIZE]);
bool vmf_journal_id_decode(const uint8_t *data, size_t size, uint8_t id[16], GError **error);

#endif
