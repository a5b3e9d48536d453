/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sinks that stand between a lane and an image: they see what passes, and hand it on. Each takes the sink behind it. */
#ifndef MIGRATION_IMAGE_LANE_H
#define MIGRATION_IMAGE_LANE_H

#include "migration/session.h"
#include "ram/page-sink.h"
#include "ram/ram-save.h"

/* Enters digests and counts in @save. @sink is replaced. */
void vmf_image_lane_enter(VmfPageSink *sink, VmfRamSave *save);

/* The same where each page goes once: it is pending in @save until then. */
void vmf_image_lane_enter_once(VmfPageSink *sink, VmfRamSave *save);

/*
 * Waits for the session's bandwidth, and ends once the session is cancelled or has run out of time: storage knows of
 * neither. @passed gets the bytes of data that went on. @sink is replaced.
 */
void vmf_image_lane_gate(VmfPageSink *sink, VmfSession *session, _Atomic uint64_t *passed);
/* The same where somebody waits for batches to be released: each waits for bandwidth after it, with nothing in hand. */
void vmf_image_lane_gate_behind(VmfPageSink *sink, VmfSession *session, _Atomic uint64_t *passed);
/* The same where whoever pushes keeps to the bandwidth. */
void vmf_image_lane_gate_paid(VmfPageSink *sink, VmfSession *session, _Atomic uint64_t *passed);

#endif
