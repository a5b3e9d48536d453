/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One page channel at the target: places its records in order and acknowledges them. With no page channels the main channel has a
 * receiver too, fed by whoever reads it.
 */
#ifndef RAM_RECEIVER_H
#define RAM_RECEIVER_H

#include "ram/ram-load.h"

#define VMF_ACK_BYTES (512u << 10) /* an eighth of the usual bound on what is unacknowledged */
#define VMF_ACK_DELAY_NS 5000000
#define VMF_ACK_CHUNKS 512 /* at most so many in one acknowledgement */

typedef struct {
    VmfRamLoad *load;
    VmfPageSink sink;        /* where its pages go */
    VmfFreshReader fresh;    /* how they get there */
    VmfRecordReader *reader; /* borrowed */
    VmfRecordWriter *writer; /* borrowed; NULL: nothing is acknowledged */
    unsigned channel;
    uint32_t epoch;
    uint64_t sequence;       /* of the next record */
    uint64_t acknowledged;   /* sequence of the last acknowledgement */
    uint64_t unacknowledged_bytes;
    int64_t oldest_ns;       /* when the first unacknowledged record came */
    GArray *touched;         /* VmfAckEntry, since the last acknowledgement */
    bool ended;              /* END_MARK was read */
    _Atomic uint64_t bytes;  /* received in records of pages */
} VmfReceiver;

void vmf_receiver_init(VmfReceiver *receiver, VmfRamLoad *load, VmfRecordReader *reader, VmfRecordWriter *writer, unsigned channel,
                       uint32_t epoch);
void vmf_receiver_clear(VmfReceiver *receiver);

/* Acknowledges what has waited long enough while the channel is quiet; returns when there is something to read. Before each read. */
bool vmf_receiver_wait(VmfReceiver *receiver, GError **error);

/* Acts on PAGES, HINT or END_MARK; other records are VMF_ERROR_RECORD_ORDER. */
bool vmf_receiver_take(VmfReceiver *receiver, const VmfRecord *record, GError **error);

/* Tells the source that the channel is joined, then reads until END_MARK. */
bool vmf_receiver_run(VmfReceiver *receiver, GError **error);

#endif
