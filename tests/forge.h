/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A peer that is driven by hand: the source of a small guest, which writes a whole good stream a step at a time and whatever a test
 * plants in between; and the target session that has to cope with it.
 */
#ifndef TESTS_FORGE_H
#define TESTS_FORGE_H

#include <pthread.h>

#include <vmferry/vmferry.h>

#include "ram/digest-table.h"
#include "stream/header.h"
#include "stream/message.h"
#include "stream/static-data.h"

/* ---- the guest at the target ----------------------------------------------------------------------------------------------- */

#define FORGE_PAGE 4096u
#define FORGE_RAM_PAGES 515u /* the second chunk is short */
#define FORGE_ROM_PAGES 2u
#define FORGE_BLOCKS 2u
#define FORGE_CHANNELS 2u

typedef struct {
    VmfGuest *guest;
    _Atomic bool running;
    bool refuse_start;
    unsigned setups, cleanups;
} ForgeGuest;

/* ---- the target ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    ForgeGuest guest;
    VmfConnector *connector;
    VmfListener *listener;
    VmfSession *session;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    GString *events; /* "id: text" a line */
    unsigned n_events;
    bool done;
    GError *error;
    VmfStatistics statistics; /* once finished */
} ForgeTarget;

/* A session that waits on a memory link. */
ForgeTarget *forge_target_new(void);
/* The same with other limits on a peer (migration/session.h); 0: as they are. */
ForgeTarget *forge_target_new_with(int64_t handshake_ns, int64_t silence_ns);
/* Waits until there were @n events. */
void forge_target_await_events(ForgeTarget *target, unsigned n);
/* Waits for the session's end, after cancelling it if asked to. */
void forge_target_finish(ForgeTarget *target, bool cancel);
/* The memory is all zero. */
bool forge_target_is_empty(const ForgeTarget *target);
void forge_target_free(ForgeTarget *target);

/* ---- the source ------------------------------------------------------------------------------------------------------------ */

/* In the order in which a good stream has them. */
typedef enum {
    FORGE_IMAGE,
    FORGE_MACHINE,
    FORGE_STATIC, /* host, properties, blocks, sections */
    FORGE_FEATURES,
    FORGE_STATIC_END,
    FORGE_VERDICT, /* is read */
    FORGE_PAGE_CHANNELS,
    FORGE_ROUND,
    FORGE_PAGES,
    FORGE_STATE,
    FORGE_END_MARK,
    FORGE_SWITCHOVER,
    FORGE_READY, /* is read */
    FORGE_RUN,
    FORGE_RUNNING, /* is read */
    FORGE_END,
    FORGE_STEPS
} ForgeStep;

typedef struct {
    VmfChannel *channel;
    VmfStreamFormat format;
    VmfRecordWriter *writer;
    VmfRecordReader *reader;
    VmfStaticData *data; /* may be edited before it is written */
    VmfSwitchover switchover; /* filled in by what is written; may be edited before FORGE_SWITCHOVER is */
    bool summing;             /* static data is not over */
    XXH3_state_t *device_sum;
    uint64_t sequence; /* of the next PAGES */
    unsigned n_pages;  /* page channels announced; 0: pages travel on the main channel */
    VmfChannel *page[FORGE_CHANNELS];
    VmfRecordWriter *page_writer[FORGE_CHANNELS]; /* NULL: not joined. All pages go over the first */
    VmfDigestTable *digests[FORGE_BLOCKS];
    char *told; /* the id of the complaint that the target sent; "" none */
} ForgeSource;

/* A connection to the target; NULL after half a minute of trying. */
VmfChannel *forge_open(ForgeTarget *target);
ForgeSource *forge_source_new(ForgeTarget *target, VmfStreamFormat format);
void forge_source_free(ForgeSource *source);

/* What a page channel of this session says first. */
VmfPreamble forge_preamble(unsigned channel);
/* Opens a page channel and says so; whether the target took it is its answer: true after an ACK, false when it closes. */
bool forge_join(ForgeSource *source, ForgeTarget *target, const VmfPreamble *preamble);

/* Does one step as a good source would. False when the target has gone or has complained. */
bool forge_step(ForgeSource *source, ForgeStep step);
/* All of them. */
bool forge_all(ForgeSource *source);
/* Reads until the target has answered the static data. */
bool forge_await_verdict(ForgeSource *source);
/* Reads until the target closes, noting what it complains of. */
void forge_drain(ForgeSource *source);

/* Any record, any octets, any header; what cannot be sent is not. */
void forge_record(ForgeSource *source, uint32_t type, const void *body, size_t length);
void forge_octets(ForgeSource *source, const void *octets, size_t length);
void forge_header(ForgeSource *source, uint32_t type, uint32_t length, uint32_t checked);
/* PAGES with this meta and as much payload as it says, not counted anywhere. */
void forge_pages(ForgeSource *source, const VmfWirePages *meta, unsigned n_payload);
/* No more will come. */
void forge_close(ForgeSource *source);

/* ---- a fault in a good stream ---------------------------------------------------------------------------------------------- */

typedef enum { FORGE_BEFORE, FORGE_INSTEAD, FORGE_AFTER } ForgeWhen;

typedef struct {
    const char *name;
    unsigned versions; /* bit 2, bit 3 */
    ForgeWhen when;
    ForgeStep step;
    void (*plant)(ForgeSource *s);
    const char *id; /* of the error that is to come of it */
} ForgeRow;

#define FORGE_PLANT(name, ...)                                                                                                  \
    static void name(ForgeSource *s)                                                                                            \
    {                                                                                                                           \
        __VA_ARGS__;                                                                                                            \
    }

/* All steps with the row's fault among them, as far as the target lets it. */
void forge_play(ForgeSource *source, const ForgeRow *row);

#endif
