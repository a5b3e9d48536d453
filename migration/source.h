/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The source's side of one migration, shared by its phases: source.c (set-up), precopy.c (rounds), switchover.c (handover). */
#ifndef MIGRATION_SOURCE_H
#define MIGRATION_SOURCE_H

#include "migration/compatibility.h"
#include "migration/disk-source.h"
#include "migration/exchange.h"
#include "migration/return-path.h"
#include "migration/watchdog.h"

typedef struct {
    VmfChannel *channel; /* the outermost filter; owned */
    VmfChannel *count;   /* a filter within it */
    VmfRecordWriter *writer;
} VmfSourceChannel;

typedef struct VmfSource VmfSource;

/*
 * Where a guest goes: over a stream (source-stream.c), or into an image (image-save.c). Calls come from the session's thread, in this
 * order, each at most once but begin_round and gather; close is always the last.
 */
typedef struct {
    /* Ahead of all that follows: who owns RAM, over &source->ram. NULL: vmf_ram_source_handlers(). */
    const VmfSaveHandlers *(*ram_handlers)(void);
    /* Likewise, where some are to go along: who owns source->disks. NULL: vmf_disk_source_owner(). */
    VmfOwner (*disk_owner)(VmfSource *source);
    /* Reaches it, sets source->format, says what the guest is (static data); source->main.writer is where records go from then on. */
    bool (*open)(VmfSource *source, GError **error);
    /* In place of all that follows: would it take the guest? NULL: nobody is there to be asked, and dry_run was refused. */
    bool (*preflight)(VmfSource *source, GError **error);
    /* It takes the guest: the ways of its pages are attached to source->ram, if it has RAM. */
    bool (*attach)(VmfSource *source, GError **error);
    /* In place of rounds and handover, once the owners are set up. False: the exchange's state says where the guest is. NULL:
     * vmf_source_precopy(), vmf_source_switchover(). */
    bool (*proceed)(VmfSource *source, GError **error);
    /* NULL: rounds need no announcement. */
    bool (*begin_round)(VmfSource *source, uint64_t pending_bytes, GError **error);
    /* The guest stands still from now on: the last pass comes. NULL: that makes no difference. */
    void (*last_pass)(VmfSource *source);
    /* Pages and sections are sent. False: the exchange's state says where the guest is. */
    bool (*finish)(VmfSource *source, GError **error);
    /* Octets and channels. Any thread, under the session's lock, from attach to close. */
    void (*gather)(const VmfSource *source, VmfStatistics *statistics);
    /* Whatever was reached; also after a failed open, and when open was not called. Clears source->ram. */
    void (*close)(VmfSource *source);
} VmfDestination;
extern const VmfDestination vmf_destination_stream;

struct VmfSource {
    VmfSession *session;
    const VmfDestination *destination;
    void *place; /* the destination's */
    VmfStreamFormat format;
    GArray *owners;
    VmfRamSource ram;
    VmfDiskSource disks;
    VmfStaticData *static_data;
    VmfSourceChannel main;
    int claim;        /* of what stands where a stream is kept (block/claim.h); -1: nothing does */
    GPtrArray *pages; /* VmfSourceChannel */
    VmfReturnPath *return_path; /* NULL: one-way */
    XXH3_state_t *device_sum;
    uint64_t static_sum;
    uint64_t features;   /* in force */
    uint32_t channels_allowed;
    uint8_t token[VMF_TOKEN_SIZE];

    VmfSourceExchange exchange;
    VmfSwitchover offer;     /* as it was sent, to compare READY with */
    bool has_entry;          /* the journal's, of this token */
    bool question_due;       /* the exchange wants to ask */
    VmfQuestion question;
    GError *why;             /* the first reason why the guest does not move */
    int64_t offered_ns, run_ns;
    VmfWatchdog *watchdog;
    uint64_t octets_seen; /* the watchdog's: when anything got through last */
    int64_t octets_seen_ns;
    int64_t cancelled_ns; /* likewise: when it saw the cancel */
    bool was_running;    /* the guest ran when it was stopped */
    bool logging;        /* save_setup was reached */
    int64_t started_ns;  /* the session */
    _Atomic int64_t begun_ns;   /* accepted, all channels open */
    _Atomic int64_t stopped_ns; /* the stop was asked for */
    pthread_mutex_t throttle_lock;
    _Atomic unsigned throttle_percent; /* as decided; written by the session's thread, under the lock */
    bool throttle_is_eased;            /* under the lock: none is in force for now */
    uint64_t sent_before_round;
    int64_t round_ns;              /* how long the latest round took to send */
    bool throttle_is_new;          /* its effect has not been told yet; dirty_before_throttle: what it was measured against */
    uint64_t dirty_before_throttle;
};

static inline const VmfGuestOps *vmf_source_guest_ops(const VmfSource *source)
{
    return vmf_guest_ops(source->session->guest);
}

/* vmf_source_run() with another destination than a stream. */
bool vmf_source_run_to(VmfSession *session, const VmfDestination *destination, void *place, GError **error);
bool vmf_source_random_bytes(void *out, size_t length, GError **error);
/* Makes source->static_data. */
void vmf_source_describe(VmfSource *source, uint64_t features, uint32_t page_channels);
/* Queues image header, machine header and static data on the main channel; sets source->static_sum. */
bool vmf_source_send_static_data(VmfSource *source, GError **error);
/* Payload a second, lately: acknowledged, or where nobody acknowledges, taken. 0: not known. Any thread. */
uint64_t vmf_source_rate(const VmfSource *source);

/*
 * A guest that was restored while it ran may have disks of which a part is still in the image. It is not passed on before they are whole:
 * *@whole says whether, false that they never will be; the second call waits.
 */
bool vmf_source_disks_are_whole(VmfSource *source, bool *whole, GError **error);
bool vmf_source_await_disks(VmfSource *source, GError **error);
/* The live rounds, until the policy says stop and the disks are whole. */
bool vmf_source_precopy(VmfSource *source, GError **error);
/* Slows the guest, or lets it go. Session thread. */
void vmf_source_throttle(VmfSource *source, unsigned percent);
/* Lets it go for now, or slows it again by what is decided. Any thread until clean-up. */
void vmf_source_ease(VmfSource *source, bool eased);
/* Asks every owner what is left. @exact: after gathering what is new. */
bool vmf_source_pending(VmfSource *source, bool exact, VmfPending *pending, GError **error);

/*
 * From the stop to the end. False: the exchange's state says where the guest is (BACK: here and as it was; HELD: nobody knows).
 */
bool vmf_source_switchover(VmfSource *source, GError **error);

/* Stops the guest, unless it was stopped for this already. */
bool vmf_source_stop_guest(VmfSource *source, GError **error);
/* After it: what every owner has left, and the sections. Nothing is limited in its rate from then on. */
bool vmf_source_send_the_rest(VmfSource *source, GError **error);
/* source-stream.c. Where a stream is kept is nobody's disk: ahead of all that is written, and of its taking the name. */
bool vmf_source_claim(VmfSource *source, GError **error);
bool vmf_source_finish_stream(VmfSource *source, GError **error);
/* A failure after the stop, and before anybody else may have the guest: it goes on here, if it did. Returns false. */
bool vmf_source_fail_stopped(VmfSource *source);
void vmf_source_set_verified(VmfSource *source, VmfVerified verified);

/* ---- source-handover.c: the exchange over this session's channels, guest and journal ---------------------------------------- */

void vmf_source_handover_init(VmfSource *source);
void vmf_source_handover_clear(VmfSource *source);
/* Writes the offer down, while the guest still runs. */
bool vmf_source_promise(VmfSource *source, GError **error);
/* From SWITCHOVER until the guest is the target's (true), or this side's, or left held. */
bool vmf_source_hand_over(VmfSource *source, GError **error);
/* What SWITCHOVER says, but for the RAM blocks. */
void vmf_source_fill_switchover(const VmfSource *source, VmfSwitchover *message);
bool vmf_source_send_switchover(VmfSource *source, VmfSwitchover *message, GError **error);
bool vmf_source_check_token(const VmfSource *source, uint32_t type, const uint8_t token[VMF_TOKEN_SIZE], GError **error);
/* Hashes memory again, until *@cancel (NULL: to the end). *@difference: what is not what was sent, in words (owned by the caller);
 * NULL: nothing. */
bool vmf_source_audit(VmfSource *source, const _Atomic bool *cancel, char **difference, GError **error);

void vmf_source_note_ns(VmfSource *source, size_t offset, uint64_t ns);
#define VMF_NOTE_NS(source, member, ns) vmf_source_note_ns(source, offsetof(VmfStatistics, member), ns)

/* For the watchdog: whether every limit is kept. */
bool vmf_source_look(void *source, GError **why);
/* When READY has to be here at the latest, a full audit aside: counted from the stop, for it is the guest that waits. */
int64_t vmf_source_stop_deadline(const VmfSource *source);

/* Tells the target that the guest stays here, as far as it can be told. */
void vmf_source_tell_abort(VmfSource *source);

/* A channel's failure, in the peer's words where it said some. Returns false. */
bool vmf_source_explain(VmfSource *source, GError **error);

#endif
