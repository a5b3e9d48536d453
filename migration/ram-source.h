/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* RAM as an owner of state at the source: the save handlers over ram/, and the ways its pages take. */
#ifndef MIGRATION_RAM_SOURCE_H
#define MIGRATION_RAM_SOURCE_H

#include "migration/session.h"
#include "ram/fanout.h"
#include "ram/stream-sink.h"

/* The ways out, one a lane. */
typedef struct {
    /* In save_setup, once it is known which pages go at first. NULL: that is of no interest. */
    void (*begin)(void *opaque, const VmfRamSave *save);
    /* Then, for each lane: fills in where it leads. The sink is taken. */
    bool (*lane)(void *opaque, VmfRamSave *save, unsigned index, VmfLaneConfig *lane, GError **error);
    /* After the last page. NULL: nothing is left to say. */
    bool (*end)(void *opaque, GError **error);
} VmfRamWays;

typedef struct {
    VmfSession *session;
    VmfRamSave *save;  /* NULL until attached */
    VmfFanout *fanout; /* NULL until set up */
    const VmfRamWays *ways;
    void *ways_opaque;
    unsigned n_lanes;
    VmfStreamSink *streams; /* n_lanes of them; NULL: pages do not go over streams */
    bool hints;
    uint32_t epoch;
    struct VmfRamInstant *instant; /* ram-instant.h; NULL: pages go in rounds */
} VmfRamSource;

const VmfSaveHandlers *vmf_ram_source_handlers(void);
/* save_prepare, over a VmfRamSource: a guest that runs has to have a dirty log. */
bool vmf_ram_source_prepare(void *ram, GError **error);

/* Before save_setup: the ways to take. */
bool vmf_ram_source_attach(VmfRamSource *ram, const VmfRamWays *ways, void *opaque, unsigned n_lanes, bool acknowledged,
                           GError **error);
/* The same for PAGES records. The writers are borrowed. */
bool vmf_ram_source_attach_streams(VmfRamSource *ram, VmfRecordWriter *const *writers, unsigned n_lanes, uint32_t epoch,
                                   bool acknowledged, bool hints, GError **error);
void vmf_ram_source_clear(VmfRamSource *ram);

/* An ACK record from the channel of lane @lane. */
bool vmf_ram_source_acknowledged(VmfRamSource *ram, const VmfRecord *record, bool swap, unsigned lane, GError **error);

/* What SWITCHOVER says of RAM. @message->blocks is newly allocated. */
void vmf_ram_source_summarize(const VmfRamSource *ram, VmfSwitchover *message);

#endif
