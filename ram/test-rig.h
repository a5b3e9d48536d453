/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests of RAM on its way: memory of two kinds at a source and at a target in one process, a dirty log that does
 * what the test says, and, once connected, lanes, receivers and the readers of their acknowledgements over memory
 * channels.
 */
#ifndef RAM_TEST_RIG_H
#define RAM_TEST_RIG_H

#include "ram/block.h"
#include "ram/fanout.h"
#include "ram/receiver.h"
#include "ram/stream-sink.h"

#define RIG_BLOCKS 2
#define RIG_CHUNKS 6 /* of block 0, "ram", the short one not counted */
#define RIG_TAIL 5   /* pages of the short one */
#define RIG_RAM_PAGES (RIG_CHUNKS * VMF_CHUNK_PAGES + RIG_TAIL)
#define RIG_ROM_PAGES 40 /* block 1, "rom" */
#define RIG_LANES_MAX 4
#define RIG_WORDS ((RIG_RAM_PAGES + 63) / 64)

typedef struct {
    pthread_mutex_t lock;
    uint64_t words[RIG_BLOCKS][RIG_WORDS];
    unsigned n_starts, n_stops, n_clears;
    bool good_clears; /* every one lay in a chunk and began at a word */
} VmfRigLog;

typedef struct VmfRig VmfRig;

typedef struct {
    VmfRig *rig;
    unsigned index;
    VmfChannel *here, *there; /* the outermost filters */
    VmfRecordWriter *writer, *answers;
    VmfStreamSink sink;
    VmfRecordReader *reader, *return_path;
    VmfReceiver receiver;
    pthread_t receiver_thread, return_thread;
    GError *receiver_error;
    GArray *acks; /* VmfAck, as they came; read it once the lane has ended */
} VmfRigLane;

struct VmfRig {
    VmfRamBlock *from[RIG_BLOCKS], *to[RIG_BLOCKS];
    VmfRigLog log;
    VmfRamSave *save;
    GString *mended; /* what was said of chunks sent again, a line each */

    VmfRamLoad *load;
    unsigned n_lanes;
    VmfRigLane lanes[RIG_LANES_MAX];
    VmfFanout *fanout;
    VmfChannelWrap wrap; /* around the source's ends; may be set before vmf_rig_connect() */
    void *wrap_opaque;
    unsigned n_threads; /* as vmf_fanout_new() has it; likewise */
};

VmfRig *vmf_rig_new(void);
/* Whatever is still connected is cut. */
void vmf_rig_free(VmfRig *rig);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfRig, vmf_rig_free)

/* Writes a page at the source as its guest would: words made from @value, or zeros for 0; then the log has it. */
void vmf_rig_write(VmfRig *rig, unsigned block, uint64_t page, uint32_t value);
/* The same, and the log misses it. */
void vmf_rig_write_unseen(VmfRig *rig, unsigned block, uint64_t page, uint32_t value);
void vmf_rig_write_range(VmfRig *rig, unsigned block, uint64_t first_page, uint64_t n_pages, uint32_t value);
bool vmf_rig_log_has(VmfRig *rig, unsigned block, uint64_t page);
uint8_t *vmf_rig_page(VmfRig *rig, unsigned block, uint64_t page);

/* Makes rig->save and begins it: the log runs, all that was touched is to be sent. */
void vmf_rig_begin(VmfRig *rig, unsigned n_lanes, bool acknowledged);

/* Begins, and connects @n_lanes lanes to a target whose blocks are empty. */
void vmf_rig_connect(VmfRig *rig, unsigned n_lanes);
/* One round; then waits until all of it is acknowledged, and harvests. */
bool vmf_rig_round(VmfRig *rig, GError **error);
/* END_MARK everywhere. */
bool vmf_rig_end_marks(VmfRig *rig, GError **error);
/* The last round, END_MARK everywhere, and the end of all threads. */
bool vmf_rig_end(VmfRig *rig, GError **error);

/* What SWITCHOVER would say of RAM. To be cleared with vmf_switchover_clear(). */
VmfSwitchover vmf_rig_summary(VmfRig *rig);
/* The first page that differs, "ram page 7", or NULL. Newly allocated. */
char *vmf_rig_difference(VmfRig *rig);

#endif
