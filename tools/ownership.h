/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who has a guest, as far as it can be told from this host: the journal in the state directory, the machine that runs
 * here, and the target's answer to a question. Finding out changes nothing.
 */
#ifndef VMFERRY_TOOLS_OWNERSHIP_H
#define VMFERRY_TOOLS_OWNERSHIP_H

#include <jansson.h>
#include <vmferry/handover.h>

#define VMF_VERDICTS(X)                                                                                                \
    X(VMF_VERDICT_UNKNOWN, "unknown") /* nothing of it is written down here, and no machine of its name runs */        \
    X(VMF_VERDICT_HERE, "here")       /* a machine here has it, running or paused */                                   \
    X(VMF_VERDICT_AWAITED, "awaited") /* a machine here waits for it */                                                \
    X(VMF_VERDICT_GONE, "gone")       /* it is the peer's */                                                           \
    X(VMF_VERDICT_ENDED, "ended")     /* it was this host's last, and its process has ended */                         \
    X(VMF_VERDICT_MOVING, "moving")   /* it changes hands at this moment */                                            \
    X(VMF_VERDICT_HELD_SOURCE, "held-source") /* a machine here offered it and holds it */                             \
    X(VMF_VERDICT_HELD_TARGET, "held-target") /* it came here, and is not started */                                   \
    X(VMF_VERDICT_OFFERED, "offered")         /* it was offered to the peer, and no process here can say more */       \
    X(VMF_VERDICT_LOST, "lost")               /* it came here and was never started; its process has ended */          \
    X(VMF_VERDICT_DAMAGED, "damaged")         /* an entry of the journal cannot be read */
typedef enum {
#define X(code, word) code,
    VMF_VERDICTS(X)
#undef X
        VMF_VERDICT_N
} VmfVerdict;
const char *vmf_verdict_word(VmfVerdict verdict);
/* Whether somebody has to decide something, or wait. */
bool vmf_verdict_is_clear(VmfVerdict verdict);

typedef struct {
    const char *name;
    char *state_dir;
    VmfJournal *journal;     /* NULL: there is no such directory */
    VmfJournalEntry offer;   /* the newest of the source's entries, VMF_JOURNAL_NONE: none */
    VmfJournalEntry arrival; /* the newest of the target's, likewise */
    bool arrival_alive;      /* the process that began it lives */
    unsigned n_damaged;
    json_t *machine; /* vmf_machine_status(); NULL: no machine of this name runs here */
    VmfVerdict verdict;
    bool asked; /* the target, about the offer */
    VmfAnswer answer;
    bool insecure;    /* it was not asked, for want of VMF_CONNECT_INSECURE */
    char *unanswered; /* why there is no answer */
} VmfOwnership;

/* Fills in all but the answer. @state_dir as given by --state-dir: NULL is the machine's own, or the default. */
bool vmf_ownership_find(VmfOwnership *ownership, const char *name, const char *runtime_dir, const char *state_dir,
                        GError **error);
void vmf_ownership_clear(VmfOwnership *ownership);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(VmfOwnership, vmf_ownership_clear)

/* Asks the target of the offer; does nothing where there is none to ask about. */
void vmf_ownership_ask(VmfOwnership *ownership, VmfQuestion question, VmfConnectFlags flags);

/* The machine's x-vmferry, or NULL. */
const json_t *vmf_ownership_migration(const VmfOwnership *ownership);
/* The peer of the offer, as people know it. */
const char *vmf_ownership_peer(const VmfOwnership *ownership);

#endif
