/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/ownership.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <vmferry/error.h>

#include "tools/dirs.h"
#include "tools/machine-status.h"

#define ASK_NS (INT64_C(3) * 1000000000)

const char *vmf_verdict_word(VmfVerdict verdict)
{
    static const char *const words[VMF_VERDICT_N] = {
#define X(code, word) [code] = word,
        VMF_VERDICTS(X)
#undef X
    };

    return words[verdict];
}

bool vmf_verdict_is_clear(VmfVerdict verdict)
{
    return verdict <= VMF_VERDICT_ENDED;
}

void vmf_ownership_clear(VmfOwnership *ownership)
{
    g_clear_pointer(&ownership->state_dir, g_free);
    g_clear_pointer(&ownership->journal, vmf_journal_free);
    g_clear_pointer(&ownership->machine, json_decref);
    g_clear_pointer(&ownership->unanswered, g_free);
}

static const char *string(const json_t *object, const char *member)
{
    const char *value = json_string_value(json_object_get(object, member));

    return value ? value : "";
}

const json_t *vmf_ownership_migration(const VmfOwnership *ownership)
{
    const json_t *migration = json_object_get(ownership->machine, "migration");

    return json_is_object(migration) ? migration : NULL;
}

const char *vmf_ownership_peer(const VmfOwnership *ownership)
{
    return *ownership->offer.peer_host ? ownership->offer.peer_host : ownership->offer.peer;
}

/* ---- finding out ------------------------------------------------------------------------------------------------- */

/* A machine that does not answer is not one that is not there. */
static bool find_machine(VmfOwnership *ownership, const char *runtime_dir, GError **error)
{
    GError *why = NULL;
    g_autoptr(VmfClient) client = vmf_client_open(runtime_dir, ownership->name, &why);

    if (!client && g_error_matches(why, VMF_ERROR, VMF_ERROR_STATE)) {
        g_error_free(why);
        return true;
    }
    if (client)
        ownership->machine = vmf_machine_status(client, &why);
    if (!ownership->machine)
        g_propagate_error(error, why);
    return ownership->machine != NULL;
}

/* A directory that is not there says nothing, and asking does not make one. */
static bool open_journal(VmfOwnership *ownership, GError **error)
{
    struct stat st;

    if (stat(ownership->state_dir, &st) < 0 && errno == ENOENT)
        return true;
    ownership->journal = vmf_journal_open(ownership->state_dir, error);
    return ownership->journal != NULL;
}

/* The list is newest first. */
static void take_newest(VmfOwnership *ownership, const GArray *entries)
{
    for (guint i = 0; i < entries->len; i++) {
        const VmfJournalEntry *entry = &g_array_index(entries, VmfJournalEntry, i);
        VmfJournalEntry *newest = entry->is_source ? &ownership->offer : &ownership->arrival;

        if (newest->state == VMF_JOURNAL_NONE && strcmp(entry->machine, ownership->name) == 0)
            *newest = *entry;
    }
}

static bool read_journal(VmfOwnership *ownership, GError **error)
{
    const VmfJournalEntry *arrival = &ownership->arrival;
    g_autoptr(GArray) entries = NULL;
    VmfJournalEntry entry;

    if (!open_journal(ownership, error))
        return false;
    if (!ownership->journal)
        return true;
    entries = vmf_journal_list(ownership->journal, &ownership->n_damaged, error);
    if (!entries)
        return false;
    take_newest(ownership, entries);
    return arrival->state == VMF_JOURNAL_NONE ||
           vmf_journal_read(ownership->journal, false, arrival->token, &entry, &ownership->arrival_alive, error);
}

/* ---- what follows from it ---------------------------------------------------------------------------------------- */

static VmfVerdict verdict_of_entries(const VmfOwnership *ownership)
{
    const VmfJournalEntry *offer = &ownership->offer, *arrival = &ownership->arrival;
    bool arrived_last =
        arrival->state != VMF_JOURNAL_NONE && (offer->state == VMF_JOURNAL_NONE || arrival->time_ns > offer->time_ns);

    if (ownership->n_damaged > 0)
        return VMF_VERDICT_DAMAGED;
    if (arrived_last && arrival->state == VMF_JOURNAL_READY)
        return ownership->arrival_alive ? VMF_VERDICT_MOVING : VMF_VERDICT_LOST;
    if (arrived_last && arrival->state != VMF_JOURNAL_REFUSED)
        return VMF_VERDICT_ENDED;
    if (offer->state == VMF_JOURNAL_BACK)
        return VMF_VERDICT_ENDED;
    return offer->state == VMF_JOURNAL_GONE ? VMF_VERDICT_GONE : VMF_VERDICT_UNKNOWN;
}

static VmfVerdict verdict_of_machine(const VmfOwnership *ownership)
{
    const char *status = string(ownership->machine, "status");

    if (strcmp(status, "inmigrate") == 0)
        return VMF_VERDICT_AWAITED;
    if (strcmp(status, "finish-migrate") == 0)
        return VMF_VERDICT_MOVING;
    return strcmp(status, "postmigrate") == 0 ? VMF_VERDICT_GONE : VMF_VERDICT_HERE;
}

static VmfVerdict verdict(const VmfOwnership *ownership)
{
    const json_t *migration = vmf_ownership_migration(ownership);
    bool is_source = strcmp(string(migration, "side"), "source") == 0;
    bool runs = migration && !json_is_true(json_object_get(migration, "ended"));

    if (json_is_string(json_object_get(migration, "hold_reason")))
        return is_source ? VMF_VERDICT_HELD_SOURCE : VMF_VERDICT_HELD_TARGET;
    if (ownership->offer.state == VMF_JOURNAL_OFFERED)
        return is_source && runs ? VMF_VERDICT_MOVING : VMF_VERDICT_OFFERED;
    return ownership->machine ? verdict_of_machine(ownership) : verdict_of_entries(ownership);
}

bool vmf_ownership_find(VmfOwnership *ownership, const char *name, const char *runtime_dir, const char *state_dir,
                        GError **error)
{
    const char *own = NULL;

    *ownership = (VmfOwnership){.name = name};
    if (!find_machine(ownership, runtime_dir, error))
        return false;
    if (!state_dir)
        own = json_string_value(json_object_get(ownership->machine, "state_dir"));
    ownership->state_dir = own ? g_strdup(own) : vmf_state_dir(state_dir);
    if (!read_journal(ownership, error))
        return false;
    ownership->verdict = verdict(ownership);
    return true;
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

/* A descriptor was another process's, and a command is not run again at a journal's word. */
static bool can_be_opened_again(const char *uri)
{
    return g_str_has_prefix(uri, "tcp:") || g_str_has_prefix(uri, "unix:");
}

void vmf_ownership_ask(VmfOwnership *ownership, VmfQuestion question, VmfConnectFlags flags)
{
    const VmfJournalEntry *offer = &ownership->offer;
    g_autoptr(VmfConnector) connector = NULL;
    g_autoptr(GError) error = NULL;

    if (offer->state != VMF_JOURNAL_OFFERED)
        return;
    g_clear_pointer(&ownership->unanswered, g_free);
    ownership->asked = true;
    ownership->answer = VMF_ANSWER_NONE;
    if (!can_be_opened_again(offer->peer))
        g_set_error(&error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "'%s' cannot be opened again", offer->peer);
    else
        connector = vmf_connector_new(offer->peer, flags, &error);
    if (connector)
        ownership->answer = vmf_handover_ask(connector, question, offer->token, offer->peer_id, ASK_NS, &error);
    ownership->insecure = g_error_matches(error, VMF_ERROR, VMF_ERROR_INSECURE);
    if (ownership->answer == VMF_ANSWER_NONE)
        ownership->unanswered = g_strdup(error ? error->message : "no answer");
}
