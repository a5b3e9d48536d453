/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Save handlers: one table for each owner of state. The migration loop knows these callbacks and nothing else of RAM, disks or
 * devices. Devices that are plain structs need no handlers: see device-state.h.
 *
 * Order of calls on the source, each on the session's thread:
 *
 *   save_prepare, save_setup, [save_ahead], { pending_estimate | pending_exact | save_iterate }*, [guest stops], quiesce,
 *   save_complete, save_cleanup
 *
 * and on the target:
 *
 *   load_setup, static_data_done, load_state*, load_cleanup
 *
 * A callback that is NULL is skipped. save_cleanup (load_cleanup) is called exactly once for each handler whose save_prepare
 * (load_setup) was called or skipped, on success and on failure alike; the failing handler's too.
 */
#ifndef VMFERRY_HANDLERS_H
#define VMFERRY_HANDLERS_H

#include <vmferry/guest.h>

G_BEGIN_DECLS

/* The writer of one section; valid during the callback that got it. */
typedef struct VmfSaveStream VmfSaveStream;

/* Appends bytes to the section that is being written. They are framed into SECTION records of at most 1 MiB. */
bool vmf_save_bytes(VmfSaveStream *stream, const void *data, size_t length, GError **error);
/* True once the session is cancelled or failing: a long callback should return soon (with VMF_ERROR_CANCELLED). Any thread. */
bool vmf_save_is_cancelled(VmfSaveStream *stream);

/* What is left to send, added to by each handler. */
typedef struct {
    uint64_t precopy_bytes; /* can be sent while the guest runs */
    uint64_t stop_bytes;    /* can be sent only once it is stopped */
    uint64_t state_ns;      /* time to read (source) and load (target) state that does not depend on bandwidth */
} VmfPending;

/* What a version 2 stream does not carry: handlers supply a default or refuse. */
typedef enum {
    VMF_MISSING_STATIC_END = 1 << 0, /* inferred */
    VMF_MISSING_FEATURES = 1 << 1,
    VMF_MISSING_PROPERTIES = 1 << 2,
} VmfMissing;

struct VmfSaveHandlers {
    size_t size; /* sizeof(VmfSaveHandlers) */

    /* Before anything is sent; may refuse the migration. No guest state may change in a way the guest notices. */
    bool (*save_prepare)(void *opaque, GError **error);

    /* After the target accepted the static data. May write the section's start. */
    bool (*save_setup)(void *opaque, VmfSaveStream *stream, GError **error);

    /* One round: sends what was pending when it was called. The guest runs. Returns when the round is sent or cancelled. */
    bool (*save_iterate)(void *opaque, VmfSaveStream *stream, GError **error);

    /* Adds to @pending what the handler knows without work. Between rounds; also from statistics while one runs. */
    void (*pending_estimate)(void *opaque, VmfPending *pending);

    /* The same after gathering what is new (harvesting a dirty log). Called before each decision about the stop, and after it. */
    bool (*pending_exact)(void *opaque, VmfPending *pending, GError **error);

    /* The guest has just been stopped: read what can only be read now, into memory. Inside the downtime. */
    bool (*quiesce)(void *opaque, GError **error);

    /* Sends all that is left. Inside the downtime. */
    bool (*save_complete)(void *opaque, VmfSaveStream *stream, GError **error);

    /* Frees what the callbacks above made; called whatever happened. */
    void (*save_cleanup)(void *opaque);

    /*
     * Source: false, this handler takes no part in this migration (none of the others is called); asked first. Target: false, the source
     * may leave its section out.
     */
    bool (*is_active)(void *opaque);

    /* Before the first record of the stream is acted on. */
    bool (*load_setup)(void *opaque, GError **error);

    /* All static data is known; @missing says what this version of the stream did not carry. */
    bool (*static_data_done)(void *opaque, VmfMissing missing, GError **error);

    /* One SECTION record's content. @data is the peer's word: check all of it. @last on the section's last record. */
    bool (*load_state)(void *opaque, uint32_t version, const uint8_t *data, size_t length, bool last, GError **error);

    /* After the handover or a failure. */
    void (*load_cleanup)(void *opaque);

    /*
     * Once, in the first round, ahead of every save_iterate: of an owner whose state is large and changes slowly, and is better
     * sent while nothing waits for it. Sends until about @leave_bytes are pending, which is what the owners without this callback
     * have; from then on all are sent in turns, and end together.
     */
    bool (*save_ahead)(void *opaque, VmfSaveStream *stream, uint64_t leave_bytes, GError **error);
};

G_END_DECLS
#endif
