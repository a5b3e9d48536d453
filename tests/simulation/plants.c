/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/simulation/plants.h"

#include <string.h>

const Plant no_plant = {.name = "none", .what = "nothing"};

const Plant plants[] = {
    {"started-unsynced", "the target's disk lies about started(T)", .unsynced = VMF_JOURNAL_STARTED},
    {"refused-unsynced", "the target's disk lies about refused(T)", .unsynced = VMF_JOURNAL_REFUSED},
    {"offered-unsynced", "the source's disk lies about offered(T)", .unsynced = VMF_JOURNAL_OFFERED},
    {"names-unsynced", "the directory is never synced", .directory_unsynced = true},
    {"never-unwritten", "NEVER is answered and refused(T) is not written", .unwritten = VMF_JOURNAL_REFUSED},
    {"back-after-run", "the source takes its guest back when the link breaks after RUN", .has_source_cell = true,
     .source_state = VMF_SOURCE_COMMITTING, .source_event = VMF_SOURCE_EV_LOST,
     .source_cell = {VMF_SOURCE_RETURNING, VMF_SOURCE_DO_ABORT_AND_RETURN}},
    {"discard-after-ready", "the target discards when the link breaks after READY", .has_target_cell = true,
     .target_state = VMF_TARGET_READY, .target_event = VMF_TARGET_EV_LOST, .target_cell = {VMF_TARGET_DEAD, VMF_TARGET_DO_DISCARD}},
    {"enter-before-journal", "the target starts the guest, then writes started(T)", .enter_before_journal = true},
    {"any-directory", "an answer counts from whomever it comes", .any_directory = true},
    {"no-retake", "the source goes on without its storage", .no_retake = true},
    {"started-is-never", "STARTED is taken for NEVER", .started_is_never = true},
    {"abort-forgotten", "ABORT of an unknown token is answered and not written down", .forget_abort = true},
    {"end-unwritten", "END is sent although gone(T) could not be written", .end_unwritten = true},
};
const unsigned n_plants = sizeof(plants) / sizeof(plants[0]);

const Plant *plant_named(const char *name)
{
    for (unsigned i = 0; i < n_plants; i++)
        if (strcmp(plants[i].name, name) == 0)
            return &plants[i];
    return NULL;
}
