/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/ownership-words.h"

#include <string.h>

static const char *string(const json_t *object, const char *member)
{
    const char *value = json_string_value(json_object_get(object, member));

    return value ? value : "";
}

static const char *hold_reason(const VmfOwnership *ownership)
{
    return string(vmf_ownership_migration(ownership), "hold_reason");
}

/* ---- the verdict ------------------------------------------------------------------------------------------------- */

static char *ended_text(const VmfOwnership *ownership)
{
    bool arrived = ownership->offer.state != VMF_JOURNAL_BACK || ownership->arrival.time_ns > ownership->offer.time_ns;

    return g_strdup_printf("%s was %s here last, and its process has ended: it runs nowhere, as far as this host knows",
                           ownership->name, arrived ? "started" : "taken back");
}

char *vmf_ownership_verdict_text(const VmfOwnership *o)
{
    switch (o->verdict) {
    case VMF_VERDICT_UNKNOWN:
        return g_strdup_printf("nothing of %s is open here", o->name);
    case VMF_VERDICT_HERE:
        return g_strdup_printf("%s is here, %s", o->name, string(o->machine, "status"));
    case VMF_VERDICT_AWAITED:
        return g_strdup_printf("%s is awaited here", o->name);
    case VMF_VERDICT_GONE:
        return g_strdup_printf("%s is gone from here: it is the target's", o->name);
    case VMF_VERDICT_ENDED:
        return ended_text(o);
    case VMF_VERDICT_MOVING:
        return g_strdup_printf("%s changes hands at this moment", o->name);
    case VMF_VERDICT_HELD_SOURCE:
    case VMF_VERDICT_HELD_TARGET:
        return g_strdup_printf("%s is held here, stopped: %s", o->name, hold_reason(o));
    case VMF_VERDICT_OFFERED:
        return g_strdup_printf("%s was offered to %s, and what became of it is not written down here", o->name,
                               vmf_ownership_peer(o));
    case VMF_VERDICT_LOST:
        return g_strdup_printf(
            "%s came here and was not started when its process ended: its memory is gone, and the source waits to "
            "hear that it never ran here",
            o->name);
    default:
        return g_strdup_printf("%u journal entries here cannot be read: what they say of %s, if anything, is not known",
                               o->n_damaged, o->name);
    }
}

/* ---- what to type ------------------------------------------------------------------------------------------------ */

/* It is the source's again, and stands for want of its storage alone. */
bool vmf_ownership_waits_for_storage(const VmfOwnership *o)
{
    return o->verdict == VMF_VERDICT_HELD_SOURCE &&
           strcmp(string(vmf_ownership_migration(o), "hold_id"), "handover.storage") == 0;
}

/* It was restored here, and a part of its memory cannot be had. */
bool vmf_ownership_lacks_memory(const VmfOwnership *o)
{
    return o->verdict == VMF_VERDICT_HELD_TARGET && strcmp(string(vmf_ownership_migration(o), "hold_id"), "restore.held") == 0;
}

static char *storage_advice(const VmfOwnership *o)
{
    return g_strdup_printf(
        "find out who holds the lock %s (fuser, /proc/locks): the guest goes on here by itself as soon as it is free",
        string(o->machine, "lock"));
}

/* Of an offer, by what the target says. @kept: the guest's memory is still here. */
static char *offer_advice(const VmfOwnership *o, bool kept)
{
    const char *name = o->name, *peer = vmf_ownership_peer(o);
    const char *again = kept ? "goes on here" : "may be started anew here";

    switch (o->answer) {
    case VMF_ANSWER_RUNNING:
        return g_strdup_printf("it runs at %s: 'vmferry resolve %s --discard' writes that down here", peer, name);
    case VMF_ANSWER_NEVER:
        return g_strdup_printf("it will never run at %s: after 'vmferry resolve %s --run' it %s", peer, name, again);
    case VMF_ANSWER_UNKNOWN:
        return g_strdup_printf("%s has never had it: 'vmferry resolve %s --run' makes it promise that, and then it %s",
                               peer, name, again);
    case VMF_ANSWER_HELD:
        return g_strdup_printf(
            "%s holds it, whole and stopped: 'vmferry resolve %s --run' takes it back, and it %s; to run it there "
            "instead, type 'vmferry resolve %s --run --fenced' there and 'vmferry resolve %s --discard' here",
            peer, name, again, name, name);
    case VMF_ANSWER_STARTED:
        return g_strdup_printf("it ran at %s and its process there died: what is here may be older than its storage "
                               "and what its peers saw. "
                               "To let it be %s's, 'vmferry resolve %s --discard', and start it there anew; to go on "
                               "with what is here all "
                               "the same, 'vmferry resolve %s --run --fenced'",
                               peer, peer, name, name);
    default:
        if (o->insecure)
            return g_strdup("type it again with --insecure: the target was not asked");
        return g_strdup_printf(
            "nobody at %s answers: any 'vmferry run NAME --incoming %s' over the state directory there does. If that "
            "host "
            "is dead and stays dead, 'vmferry resolve %s --run --fenced'; if the guest was seen to run there, "
            "'vmferry resolve %s --discard'",
            peer, *o->offer.peer ? o->offer.peer : "URI", name, name);
    }
}

char *vmf_ownership_advice(const VmfOwnership *o)
{
    const char *name = o->name;

    switch (o->verdict) {
    case VMF_VERDICT_GONE:
        return o->machine ? g_strdup_printf("'vmferry quit %s' ends the machine that it left", name) : NULL;
    case VMF_VERDICT_ENDED:
        return g_strdup_printf("'vmferry run %s' starts it anew from its storage, as after any crash", name);
    case VMF_VERDICT_MOVING:
        return g_strdup("ask again in a moment");
    case VMF_VERDICT_HELD_SOURCE:
        if (vmf_ownership_waits_for_storage(o))
            return storage_advice(o);
        return offer_advice(o, true);
    case VMF_VERDICT_OFFERED:
        return offer_advice(o, false);
    case VMF_VERDICT_HELD_TARGET:
        if (vmf_ownership_lacks_memory(o))
            return g_strdup_printf("'vmferry resolve %s --discard' gives up what it did since it was restored; the image is as it was: "
                                   "'vmferry verify' says what is wrong with it",
                                   name);
        return g_strdup_printf(
            "'vmferry resolve %s' at the source says whether it runs there. Where it does, 'vmferry resolve %s "
            "--discard' "
            "here; where the source is dead and stays dead, 'vmferry resolve %s --run --fenced' here",
            name, name, name);
    case VMF_VERDICT_LOST:
        return g_strdup_printf(
            "any 'vmferry run NAME --incoming URI' over this state directory, at the old address, tells the source; "
            "'vmferry resolve %s --discard' writes down here that it will never run from this copy",
            name);
    case VMF_VERDICT_DAMAGED:
        return g_strdup_printf(
            "see with 'vmferry resolve %s' at the other host, and remove the damaged file under %s once it is known "
            "who has the guest",
            name, o->state_dir);
    default:
        return NULL;
    }
}

/* ---- what was found ---------------------------------------------------------------------------------------------- */

static char *time_text(int64_t time_ns)
{
    g_autoptr(GDateTime) time = g_date_time_new_from_unix_local(time_ns / 1000000000);

    return time ? g_date_time_format(time, "%Y-%m-%d %H:%M:%S") : g_strdup("?");
}

static void add_entry(GPtrArray *facts, const VmfJournalEntry *entry, bool alive)
{
    g_autofree char *time = time_text(entry->time_ns);
    const char *peer = *entry->peer_host ? entry->peer_host : *entry->peer ? entry->peer : "a peer without a name";

    if (entry->state != VMF_JOURNAL_NONE)
        g_ptr_array_add(facts, g_strdup_printf("journal: %s, %s %s%s%s%s, %s", vmf_journal_state_name(entry->state),
                                               entry->is_source ? "out to" : "in from", peer, *entry->peer ? " (" : "",
                                               entry->peer, *entry->peer ? ")" : "", time));
    if (!entry->is_source && entry->state == VMF_JOURNAL_READY && !alive)
        g_ptr_array_add(facts, g_strdup("journal: the process that had it ready has ended"));
}

static char *machine_fact(const VmfOwnership *o)
{
    const char *lock = string(o->machine, "lock");
    bool held = json_is_true(json_object_get(o->machine, "lock_held"));

    if (!o->machine)
        return g_strdup_printf("machine: none of the name %s runs here", o->name);
    return g_strdup_printf("machine: %s at %s, pid %d%s%s%s", string(o->machine, "status"),
                           string(o->machine, "host_name"), (int)json_integer_value(json_object_get(o->machine, "pid")),
                           *lock ? ", storage lock " : "", lock,
                           !*lock ? ""
                           : held ? " (held)"
                                  : " (not held)");
}

static const char *answer_text(VmfAnswer answer)
{
    static const char *const texts[VMF_ANSWER_N] = {
        [VMF_ANSWER_RUNNING] = "it was started there, and its process lives",
        [VMF_ANSWER_STARTED] = "it was started there, and then its process died",
        [VMF_ANSWER_NEVER] = "it was never started there and never will be",
        [VMF_ANSWER_HELD] = "it is there, whole and stopped, waiting for a decision",
        [VMF_ANSWER_UNKNOWN] = "its journal has nothing of it",
    };

    return texts[answer];
}

char **vmf_ownership_facts(const VmfOwnership *o)
{
    GPtrArray *facts = g_ptr_array_new();

    add_entry(facts, &o->offer, true);
    add_entry(facts, &o->arrival, o->arrival_alive);
    if (o->n_damaged > 0)
        g_ptr_array_add(facts, g_strdup_printf("journal: %u entries in %s cannot be read", o->n_damaged, o->state_dir));
    if (facts->len == 0)
        g_ptr_array_add(facts, g_strdup_printf("journal: no entry of %s in %s", o->name, o->state_dir));
    g_ptr_array_add(facts, machine_fact(o));
    if (o->asked)
        g_ptr_array_add(facts, o->answer == VMF_ANSWER_NONE ? g_strdup_printf("target: no answer: %s", o->unanswered)
                                                            : g_strdup_printf("target: %s", answer_text(o->answer)));
    g_ptr_array_add(facts, NULL);
    return (char **)g_ptr_array_free(facts, FALSE);
}

/* ---- for programs ------------------------------------------------------------------------------------------------ */

static json_t *entry_json(const VmfJournalEntry *entry)
{
    char token[33];

    if (entry->state == VMF_JOURNAL_NONE)
        return json_null();
    for (unsigned i = 0; i < sizeof(entry->token); i++)
        g_snprintf(token + 2 * i, 3, "%02x", entry->token[i]);
    return json_pack("{s:s,s:s,s:s,s:s,s:I}", "state", vmf_journal_state_name(entry->state), "token", token, "peer",
                     entry->peer, "peer_host", entry->peer_host, "time_ns", (json_int_t)entry->time_ns);
}

json_t *vmf_ownership_json(const VmfOwnership *o)
{
    g_autofree char *text = vmf_ownership_verdict_text(o), *advice = vmf_ownership_advice(o);
    const char *status = json_string_value(json_object_get(o->machine, "status"));
    const char *hold = json_string_value(json_object_get(vmf_ownership_migration(o), "hold_reason"));

    return json_pack("{s:s,s:b,s:s,s:s?,s:s,s:o,s:o,s:i,s:s?,s:s?,s:s?,s:s?,s:s?}", "verdict",
                     vmf_verdict_word(o->verdict), "clear", vmf_verdict_is_clear(o->verdict), "text", text, "advice",
                     advice, "state_dir", o->state_dir, "offer", entry_json(&o->offer), "arrival",
                     entry_json(&o->arrival), "damaged_entries", (int)o->n_damaged, "status", status, "hold_reason",
                     hold, "hold_id", json_string_value(json_object_get(vmf_ownership_migration(o), "hold_id")),
                     "answer", o->asked ? vmf_answer_name(o->answer) : NULL, "unanswered", o->unanswered);
}
