/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults that are planted to see them found: data that the world's callbacks follow, and tables of states with one cell changed. The engine
 * has no branch for any of them.
 */
#ifndef SIMULATION_PLANTS_H
#define SIMULATION_PLANTS_H

#include "migration/exchange.h"

typedef struct {
    const char *name, *what;
    /* The disk says "durable" of what it has only heard, in the write of one state, or for every name. */
    VmfJournalState unsynced;
    bool directory_unsynced;
    VmfJournalState unwritten; /* the journal says that it wrote this state, and did not */
    bool enter_before_journal; /* first instruction, then started(T) */
    bool any_directory;        /* an answer counts from whomever it comes */
    bool no_retake;            /* the source says that it has its storage, and has not asked */
    bool started_is_never;
    bool forget_abort;         /* ABORT of an unknown token: NEVER, and nothing is written */
    bool end_unwritten;        /* END although gone(T) could not be written */
    /* One cell of a table. */
    bool has_source_cell, has_target_cell;
    VmfSourceState source_state;
    VmfSourceEvent source_event;
    VmfSourceCell source_cell;
    VmfTargetState target_state;
    VmfTargetEvent target_event;
    VmfTargetCell target_cell;
} Plant;

extern const Plant no_plant;
extern const Plant plants[];
extern const unsigned n_plants;
/* NULL: there is none of that name. */
const Plant *plant_named(const char *name);

#endif
