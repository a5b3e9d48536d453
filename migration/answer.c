/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Answers for tokens of the past, from the journal alone: after a crash, a reboot, or in another process over the same directory. */
#include <string.h>

#include <vmferry/error.h>

#include "migration/exchange.h"

static VmfAnswer refuse_entry(VmfJournal *journal, const uint8_t token[16], GError **error)
{
    bool durable = vmf_journal_set(journal, false, token, VMF_JOURNAL_REFUSED, NULL, error);

    return durable ? VMF_ANSWER_NEVER : VMF_ANSWER_NONE;
}

/* Nothing is known of it: written down, so that a SWITCHOVER that is still under way finds it. */
static VmfAnswer refuse_unknown(VmfJournal *journal, const uint8_t token[16], GError **error)
{
    VmfJournalEntry entry = {.is_source = false, .state = VMF_JOURNAL_REFUSED};

    memcpy(entry.token, token, sizeof(entry.token));
    if (!vmf_journal_begin(journal, &entry, error))
        return VMF_ANSWER_NONE;
    vmf_journal_release(journal, false, token);
    return VMF_ANSWER_NEVER;
}

VmfAnswer vmf_journal_answer(VmfJournal *journal, VmfQuestion question, const uint8_t token[16], GError **error)
{
    bool asks_only = question == VMF_QUESTION_INQUIRE || question == VMF_QUESTION_CONFIRM, alive;
    VmfJournalEntry entry;

    if (!vmf_journal_read(journal, false, token, &entry, &alive, error))
        return VMF_ANSWER_NONE;
    switch (entry.state) {
    case VMF_JOURNAL_STARTED:
        if (question == VMF_QUESTION_CONFIRM && !vmf_journal_set(journal, false, token, VMF_JOURNAL_CONFIRMED, NULL, error))
            return VMF_ANSWER_NONE;
        return alive ? VMF_ANSWER_RUNNING : VMF_ANSWER_STARTED;
    case VMF_JOURNAL_CONFIRMED:
        return alive ? VMF_ANSWER_RUNNING : VMF_ANSWER_STARTED;
    case VMF_JOURNAL_REFUSED:
        return VMF_ANSWER_NEVER;
    case VMF_JOURNAL_READY:
        if (alive)
            return VMF_ANSWER_HELD;
        return asks_only ? VMF_ANSWER_UNKNOWN : refuse_entry(journal, token, error);
    case VMF_JOURNAL_NONE:
        return asks_only ? VMF_ANSWER_UNKNOWN : refuse_unknown(journal, token, error);
    default:
        g_set_error(error, VMF_ERROR, VMF_ERROR_INTERNAL, "journal: a target's entry says %s", vmf_journal_state_name(entry.state));
        return VMF_ANSWER_NONE;
    }
}
