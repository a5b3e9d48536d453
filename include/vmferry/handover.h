/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Asking a target what became of a guest that was offered to it (docs/handover.rst): for a source whose session has ended, and for
 * people's tools after a crash. A session asks by itself while it runs.
 */
#ifndef VMFERRY_HANDOVER_H
#define VMFERRY_HANDOVER_H

#include <vmferry/channel.h>
#include <vmferry/journal.h>

G_BEGIN_DECLS

typedef enum {
    VMF_QUESTION_QUERY,   /* RUN was sent: what became of it? A target that holds the guest starts it */
    VMF_QUESTION_ABORT,   /* it shall never start there, unless it has */
    VMF_QUESTION_INQUIRE, /* how is it? Changes nothing */
    VMF_QUESTION_CONFIRM, /* no question: the source has written down that the guest is gone; what started(T) says may be forgotten */
    VMF_QUESTION_N
} VmfQuestion;

typedef enum {
    VMF_ANSWER_NONE,    /* nobody answered, or somebody whose word does not count */
    VMF_ANSWER_RUNNING, /* started there, and its process lives */
    VMF_ANSWER_STARTED, /* started there, and its process is no more */
    VMF_ANSWER_NEVER,   /* will never start there: safe to run here */
    VMF_ANSWER_HELD,    /* loaded there, waiting for a decision */
    VMF_ANSWER_UNKNOWN, /* never heard of (to INQUIRE only) */
    VMF_ANSWER_N
} VmfAnswer;

const char *vmf_answer_name(VmfAnswer answer); /* "running" */

/*
 * Opens a channel of its own to the target and asks. @peer_id: only an answer from this state directory counts (zeros: from any, which
 * serves INQUIRE alone). Waits at most @timeout_ns. VMF_ANSWER_NONE sets @error, for what went wrong or whose word it was.
 */
VmfAnswer vmf_handover_ask(VmfConnector *connector, VmfQuestion question, const uint8_t token[16], const uint8_t peer_id[16],
                           int64_t timeout_ns, GError **error);

G_END_DECLS
#endif
