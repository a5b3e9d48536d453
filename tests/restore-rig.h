/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A guest that forged images (forge-image.h) can be restored into, and what becomes of it. */
#ifndef TESTS_RESTORE_RIG_H
#define TESTS_RESTORE_RIG_H

#include <vmferry/restore.h>

#include "tests/image-rig.h"

#define PAGE 4096u

typedef struct Guest Guest;

typedef struct {
    Guest *guest;
    GString *loaded;
} Section;

struct Guest {
    VmfGuest *guest;
    bool running, locked, may_lock;
    unsigned n_starts, n_stops, n_cleanups;
    Section sections[2]; /* cpu 0 and timer 0 */
    char *disk_identity, *disk_mark;
    char *next_mark;     /* what the disk's is once its lock is taken; NULL: as before */
    GString *events, *statuses;
    bool leaves_lost_memory; /* what its memory_lost says */
    void (*started)(Guest *guest, void *opaque); /* from within start; may be NULL */
    void (*stopped)(Guest *guest, void *opaque); /* from within the first stop; likewise */
    void *opaque;
};

/* As the images have it; images with an odd seed have a disk. */
Guest *guest_new(VmfRamBackend backend, VmfRamFlags flags, uint32_t ram_pages, bool has_disk);
Guest *fitting_guest(void); /* with a disk */
void guest_free(Guest *guest);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Guest, guest_free)
extern const VmfDiskOps guest_disk_ops; /* for another disk */

/* One restore. Its address is the fault_opaque of its parameters. */
typedef struct {
    VmfRestoreOptions options;
    VmfParameters parameters;
    VmfStatistics statistics;
    char **incompatibilities;
    _Atomic(VmfSession *) session; /* the last; others may use it until the trial is run again or cleared */
    bool cancelled;                /* before it begins */
} Trial;
void trial_init(Trial *trial, const char *uri);
void trial_clear(Trial *trial);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Trial, trial_clear)
bool trial_run(Trial *trial, Guest *guest, GError **error);

uint64_t pages_of(const ForgeImage *image); /* that are not zeros */
void assert_memory(Guest *guest, const ForgeImage *image);
/* Nothing of it is left: not a byte of memory, no lock, and it does not run. */
void assert_nothing(Guest *guest);
void assert_refused(Trial *trial, Guest *guest, const char *id, const char *words);
void assert_restored(Trial *trial, Guest *guest, const ForgeImage *image);

#endif
