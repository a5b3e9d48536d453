/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A target that is driven by hand: it takes a real source's stream, places pages in memory of its own and answers as a good target
 * does, until it comes to the point at which a test plants something.
 */
#ifndef TESTS_FORGE_TARGET_H
#define TESTS_FORGE_TARGET_H

#include <pthread.h>

#include <vmferry/vmferry.h>

#include "ram/receiver.h"
#include "stream/static-data.h"

typedef enum {
    FAKE_CONNECTED,     /* nothing was read yet */
    FAKE_VERDICT,       /* static data was read */
    FAKE_PAGE_CHANNELS, /* PAGE_CHANNELS was read */
    FAKE_JOIN,          /* the preamble of a page channel was read */
    FAKE_PAGES,         /* the first PAGES was placed */
    FAKE_STANDS,        /* a record was read, and stands() is true */
    FAKE_SWITCHOVER,    /* SWITCHOVER was read */
    FAKE_RUN,           /* RUN was read */
    FAKE_RAN,           /* RUNNING was sent */
    FAKE_NOWHERE
} FakePoint;

typedef struct FakeTarget {
    VmfConnector *connector; /* for the source */
    VmfListener *listener;
    pthread_t thread;

    FakePoint point; /* where @plant is called */
    bool instead;    /* of the good answer; otherwise ahead of it */
    void (*plant)(struct FakeTarget *target);
    unsigned page_channels;     /* offered in VERDICT */
    uint64_t features_withheld; /* from VERDICT */
    bool damage;                /* sums in acknowledgements are wrong */
    bool (*stands)(void *opaque); /* whether the guest does; NULL: never */
    void *opaque;
    _Atomic bool planted;
    bool over; /* set by a plant: answer nothing more */

    VmfChannel *main;
    VmfRecordReader *reader;
    VmfRecordWriter *writer;
    VmfChannel *page;
    VmfRecordWriter *page_writer; /* NULL until FAKE_JOIN */
    VmfStaticData *data;
    GPtrArray *blocks; /* VmfRamBlock */
    VmfRamLoad *load;
    VmfReceiver receiver;
    XXH3_state_t *device_sum;
    VmfReady ready; /* as it will be sent; the plant at FAKE_SWITCHOVER may spoil it */
    uint8_t token[VMF_TOKEN_SIZE];
    bool aborted; /* ABORT was read */
} FakeTarget;

/* @capacity: octets under way in each direction of a channel before its writer waits; 0: the usual. */
FakeTarget *fake_target_new(size_t capacity, FakePoint point, bool instead, void (*plant)(FakeTarget *target));
/* Begins to wait for the source. */
void fake_target_start(FakeTarget *target);
/* Waits for its end: the source is done. Returns whether the point was met. */
bool fake_target_finish(FakeTarget *target);
void fake_target_free(FakeTarget *target);

/* Reads what comes and forgets it, until the source closes. */
void fake_target_drain(FakeTarget *target);
/* Reads nothing any more, until the source closes. */
void fake_target_go_deaf(FakeTarget *target);

#endif
