/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Settles by a person's word what two hosts could not settle by themselves (docs/operations.rst).
 *
 * Where a machine here holds the guest its session does what is asked for, because nobody else may touch the guest or
 * its entry. Where the process is gone there is only the journal to be moved on, and a target to be asked first. What
 * came of it is then found out afresh, and said the same way as without any word.
 */
#include <string.h>
#include <vmferry/vmferry.h>

#include "tools/common.h"
#include "tools/dirs.h"
#include "tools/ownership-words.h"
#include "tools/report.h"

#define SETTLE_MS 8000 /* until the hold is said to stay */
#define END_MS 2000 /* in which the process of a machine that gave up its guest ends, if it does */
#define LOOK_MS 50

static const char description[] =
    "Says who has the guest of machine NAME after a handover that came to no end: what the journal here says, what the "
    "machine here "
    "holds, what the target answers, and what to type. Changes nothing without --run or --discard.\n\n"
    "Exit status: 0 it is clear who has the guest, 1 it could not be found out, 2 usage, 3 settled otherwise than "
    "asked for, 4 not "
    "clear, or not settled.";

typedef enum { REPORT, RUN, DISCARD } Action;

typedef struct {
    VmfCommon common;
    const char *name;
    char *state_dir;
    gboolean run, discard, fenced, insecure;
    Action action;
    bool gives_up; /* a guest that lacks memory: its machine ends with it */
    bool gave_up;  /* and has */
    VmfOwnership ownership;
} Resolve;

static void clear(Resolve *resolve)
{
    vmf_ownership_clear(&resolve->ownership);
    g_free(resolve->state_dir);
    vmf_common_clear(&resolve->common);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Resolve, clear)

static bool parse(Resolve *resolve, int argc, char **argv, int *exit_code)
{
    const GOptionEntry entries[] = {
        {"run", 0, 0, G_OPTION_ARG_NONE, &resolve->run, "The guest shall run here", NULL},
        {"discard", 0, 0, G_OPTION_ARG_NONE, &resolve->discard, "The guest is given up here", NULL},
        {"fenced", 0, 0, G_OPTION_ARG_NONE, &resolve->fenced, "With --run: the other host is dead, and stays dead",
         NULL},
        {"state-dir", 0, 0, G_OPTION_ARG_FILENAME, &resolve->state_dir, "Where the journal is (the machine's)", "DIR"},
        {"insecure", 0, 0, G_OPTION_ARG_NONE, &resolve->insecure, "Ask the target in plaintext off the loopback", NULL},
        G_OPTION_ENTRY_NULL};

    if (!vmf_common_parse(&resolve->common, argc, argv, "NAME", description, entries, 1, exit_code))
        return false;
    resolve->name = resolve->common.operands[0];
    resolve->action = resolve->run ? RUN : resolve->discard ? DISCARD : REPORT;
    return true;
}

static bool check(const Resolve *resolve, GError **error)
{
    const char *why = resolve->run && resolve->discard   ? "--run and --discard exclude each other"
                      : resolve->fenced && !resolve->run ? "--fenced goes with --run"
                                                         : NULL;

    if (why)
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "resolve: %s", why);
    return !why && vmf_check_machine_name(resolve->name, error);
}

static VmfConnectFlags flags(const Resolve *resolve)
{
    return resolve->insecure ? VMF_CONNECT_INSECURE : 0;
}

static bool find(Resolve *resolve, GError **error)
{
    vmf_ownership_clear(&resolve->ownership);
    return vmf_ownership_find(&resolve->ownership, resolve->name, resolve->common.runtime_dir, resolve->state_dir,
                              error);
}

static bool refuse(const Resolve *resolve, VmfErrorCode code, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, code, "machine %s: resolve: %s", resolve->name, why);
    return false;
}

/* ---- with the machine that holds it ------------------------------------------------------------------------------ */

/* A target's guest is settled as soon as it is started; its session goes on answering the source for a while. */
static bool is_settled(const Resolve *resolve, const json_t *info)
{
    const json_t *detail = json_object_get(info, "x-vmferry");
    const char *side = json_string_value(json_object_get(detail, "side"));
    bool holds = json_object_get(info, "x-vmferry-hold") != NULL;

    if (resolve->gives_up) /* and then its process ends */
        return false;
    return json_is_true(json_object_get(detail, "ended")) || (!holds && side && strcmp(side, "target") == 0);
}

/* Until the hold has ended, if only with the machine: one that waited for a guest and gave it up has nothing left to
 * do. */
static bool wait_until_settled(const Resolve *resolve, VmfClient *client)
{
    int64_t end_us = g_get_monotonic_time() + SETTLE_MS * INT64_C(1000);
    bool may_end = resolve->action == DISCARD && resolve->ownership.verdict == VMF_VERDICT_HELD_TARGET, settled = false;

    while (g_get_monotonic_time() < end_us) {
        json_t *info = vmf_client_execute(client, "query-migrate", NULL, NULL);
        bool gone = !info;

        if (!gone && !settled && is_settled(resolve, info)) {
            settled = true; /* what is said next is of the machine as it is afterwards */
            end_us = MIN(end_us, g_get_monotonic_time() + END_MS * INT64_C(1000));
        }
        json_decref(info);
        if (gone || (settled && !may_end))
            return true;
        g_usleep(LOOK_MS * 1000);
    }
    return settled;
}

static bool tell_machine(Resolve *resolve, bool fenced, GError **error)
{
    const char *action = resolve->action == RUN ? "run" : "discard";
    g_autoptr(VmfClient) client = vmf_client_open(resolve->common.runtime_dir, resolve->name, error);
    json_t *result;

    if (!client)
        return false;
    result = vmf_client_execute(client, "x-vmferry-resolve",
                                json_pack("{s:s,s:b}", "action", action, "fenced", (int)fenced), error);
    if (!result)
        return false;
    json_decref(result);
    return wait_until_settled(resolve, client) ||
           refuse(resolve, VMF_ERROR_HELD, "not settled yet; the machine goes on trying", error);
}

/* Why the target's answer to a source that wants its guest back is not enough. */
static bool refuse_run(Resolve *resolve, GError **error)
{
    const VmfOwnership *ownership = &resolve->ownership;
    const char *peer = vmf_ownership_peer(ownership);
    g_autofree char *why = NULL;

    if (ownership->insecure)
        return refuse(resolve, VMF_ERROR_INSECURE, ownership->unanswered, error);
    if (ownership->answer == VMF_ANSWER_STARTED)
        why =
            g_strdup_printf("the guest was started at %s, then died there: what is here may be older than its storage; "
                            "--fenced takes it all the same",
                            peer);
    else
        why = g_strdup_printf(
            "%s did not promise that the guest will never run there (%s); --fenced states that it is dead", peer,
            ownership->answer == VMF_ANSWER_NONE ? ownership->unanswered : vmf_answer_name(ownership->answer));
    return refuse(resolve, VMF_ERROR_HELD, why, error);
}

/*
 * Fenced is a statement about the world. A target that answers that it runs the guest has refuted it. Without it a
 * target that says "started, then died" is not asked again: its answer will not change.
 */
static bool resolve_held_source(Resolve *resolve, GError **error)
{
    if (resolve->action == DISCARD)
        return tell_machine(resolve, false, error);
    if (vmf_ownership_waits_for_storage(&resolve->ownership))
        return refuse(resolve, VMF_ERROR_HELD,
                      "another holds the lock of its storage: the guest goes on here as soon as it is free", error);
    vmf_ownership_ask(&resolve->ownership, VMF_QUESTION_INQUIRE, flags(resolve));
    if (resolve->ownership.answer == VMF_ANSWER_STARTED && !resolve->fenced)
        return refuse_run(resolve, error);
    return tell_machine(resolve, resolve->fenced && resolve->ownership.answer != VMF_ANSWER_RUNNING, error);
}

static bool resolve_held_target(Resolve *resolve, GError **error)
{
    resolve->gives_up = resolve->action == DISCARD && vmf_ownership_lacks_memory(&resolve->ownership);
    if (resolve->action == RUN && vmf_ownership_lacks_memory(&resolve->ownership))
        return refuse(resolve, VMF_ERROR_HELD, "a part of its memory cannot be had: it cannot run any more", error);
    if (resolve->action == RUN && !resolve->fenced)
        return refuse(resolve, VMF_ERROR_HELD,
                      "a target cannot ask the source, which may run the guest: --run here needs --fenced", error);
    bool told = tell_machine(resolve, resolve->fenced, error);
    resolve->gave_up = resolve->gives_up && told;
    return told;
}

/* ---- with the journal alone -------------------------------------------------------------------------------------- */

static bool move_offer(Resolve *resolve, VmfJournalState state, GError **error)
{
    return vmf_journal_set(resolve->ownership.journal, true, resolve->ownership.offer.token, state, NULL, error);
}

static bool resolve_offer(Resolve *resolve, GError **error)
{
    if (resolve->action == DISCARD)
        return move_offer(resolve, VMF_JOURNAL_GONE, error);
    vmf_ownership_ask(&resolve->ownership, VMF_QUESTION_ABORT, flags(resolve));
    switch (resolve->ownership.answer) {
    case VMF_ANSWER_RUNNING:
        return move_offer(resolve, VMF_JOURNAL_GONE, error);
    case VMF_ANSWER_NEVER:
        return move_offer(resolve, VMF_JOURNAL_BACK, error);
    default:
        return resolve->fenced ? move_offer(resolve, VMF_JOURNAL_BACK, error) : refuse_run(resolve, error);
    }
}

static bool resolve_lost(Resolve *resolve, GError **error)
{
    const VmfOwnership *ownership = &resolve->ownership;

    if (resolve->action == RUN)
        return refuse(resolve, VMF_ERROR_STATE, "its memory went with its process: there is nothing left to run here",
                      error);
    return vmf_journal_set(ownership->journal, false, ownership->arrival.token, VMF_JOURNAL_REFUSED, NULL, error);
}

static bool act(Resolve *resolve, GError **error)
{
    switch (resolve->ownership.verdict) {
    case VMF_VERDICT_HELD_SOURCE:
        return resolve_held_source(resolve, error);
    case VMF_VERDICT_HELD_TARGET:
        return resolve_held_target(resolve, error);
    case VMF_VERDICT_OFFERED:
        return resolve_offer(resolve, error);
    case VMF_VERDICT_LOST:
        return resolve_lost(resolve, error);
    case VMF_VERDICT_MOVING:
        return refuse(resolve, VMF_ERROR_HELD, "it changes hands at this moment: ask again", error);
    case VMF_VERDICT_DAMAGED:
        return refuse(resolve, VMF_ERROR_JOURNAL_DAMAGED, "a journal entry cannot be read", error);
    default:
        return true; /* nothing is open */
    }
}

/* ---- saying it --------------------------------------------------------------------------------------------------- */

static int exit_code_of(const Resolve *resolve)
{
    VmfVerdict verdict = resolve->ownership.verdict;
    bool here = verdict == VMF_VERDICT_HERE || verdict == VMF_VERDICT_ENDED;

    if (!vmf_verdict_is_clear(verdict))
        return VMF_EXIT_HELD;
    if ((resolve->action == RUN && verdict == VMF_VERDICT_GONE) || (resolve->action == DISCARD && here && !resolve->gives_up))
        return VMF_EXIT_WARNING;
    return VMF_EXIT_OK;
}

static int report(const Resolve *resolve)
{
    const VmfOwnership *ownership = &resolve->ownership;
    g_autofree char *advice = vmf_ownership_advice(ownership);
    g_autofree char *text =
        resolve->gave_up ? g_strdup_printf("%s is given up: its machine has ended, and the image is as it was", resolve->name)
                         : vmf_ownership_verdict_text(ownership);
    g_auto(GStrv) facts = vmf_ownership_facts(ownership);
    json_t *line = json_pack("{s:s,s:s}", "type", "summary", "name", resolve->name);
    int exit_code = exit_code_of(resolve);

    json_t *found = vmf_ownership_json(ownership);
    json_object_update(line, found);
    json_decref(found);
    json_object_set_new(line, "text", json_string(text));
    json_object_set_new(line, "exit_code", json_integer(exit_code));
    g_autofree char *details = g_strjoinv("\n  ", facts);
    vmf_report_line(resolve->common.json, line, "vmferry: %s\n  %s%s%s", text, details,
                    advice ? "\n  what to do: " : "", advice ? advice : "");
    return exit_code;
}

int vmf_verb_resolve(int argc, char **argv)
{
    g_auto(Resolve) resolve = {0};
    g_autoptr(GError) error = NULL, refused = NULL;
    int exit_code, refused_code = VMF_EXIT_OK;

    if (!parse(&resolve, argc, argv, &exit_code))
        return exit_code;
    if (!check(&resolve, &error) || !find(&resolve, &error))
        return vmf_common_fail(&resolve.common, error);
    if (resolve.action != REPORT && !act(&resolve, &refused))
        refused_code = vmf_common_fail(&resolve.common, refused);
    if (resolve.action != REPORT && !find(&resolve, &error))
        return vmf_common_fail(&resolve.common, error);
    vmf_ownership_ask(&resolve.ownership, VMF_QUESTION_INQUIRE, flags(&resolve));
    exit_code = report(&resolve);
    return exit_code != VMF_EXIT_HELD && refused_code != VMF_EXIT_OK ? refused_code : exit_code;
}
