/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* RAM as an owner of state at the source: the save handlers over ram/, and the page channels they send through. */
#ifndef MIGRATION_RAM_SOURCE_H
#define MIGRATION_RAM_SOURCE_H

#include "migration/session.h"
#include "ram/fanout.h"

typedef struct {
    VmfSession *session;
    VmfRamSave *save;  /* NULL until attached */
    VmfFanout *fanout; /* NULL until set up */
    VmfRecordWriter **writers;
    unsigned n_lanes;
    uint32_t epoch;
} VmfRamSource;

const VmfSaveHandlers *vmf_ram_source_handlers(void);

/* Before save_setup: the lanes to send through. @writers is copied; the writers are borrowed. */
bool vmf_ram_source_attach(VmfRamSource *ram, VmfRecordWriter *const *writers, unsigned n_lanes, uint32_t epoch, bool acknowledged,
                           bool hints, GError **error);
void vmf_ram_source_clear(VmfRamSource *ram);

/* An ACK record from the channel of lane @lane. */
bool vmf_ram_source_acknowledged(VmfRamSource *ram, const VmfRecord *record, bool swap, unsigned lane, GError **error);

/* What SWITCHOVER says of RAM. @message->blocks is newly allocated. */
void vmf_ram_source_summarize(const VmfRamSource *ram, VmfSwitchover *message);

#endif
