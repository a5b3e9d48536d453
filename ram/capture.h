/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The memory of a guest as it was at one instant, read while the guest runs on.
 *
 *     capture = vmf_capture_new(blocks); the dirty log is recording by now, and is not cleared until freeze
 *     vmf_capture_arm(capture)           the guest runs
 *     any number of times: harvest the log into vmf_capture_touched(), vmf_capture_arm_again(capture)
 *     vmf_capture_hurry(capture); stop the guest
 *     harvest the log into vmf_capture_touched()
 *     vmf_capture_freeze(capture)        the instant
 *     start the guest
 *     each of some threads: vmf_capture_source(), vmf_page_copy()
 *     vmf_capture_free(capture)
 */
#ifndef RAM_CAPTURE_H
#define RAM_CAPTURE_H

#include "ram/bitmap.h"
#include "ram/page-scan.h"
#include "ram/page-source.h"

typedef struct VmfCapture VmfCapture;

typedef struct {
    VmfRamBlock *const *blocks; /* outlive the capture; nothing of them is discarded while it lasts */
    unsigned n_blocks;
    uint64_t buffer_bytes; /* for pages that the guest writes before they were read; at least 4 MiB are used */
    const _Atomic bool *cancelled; /* once it is true, arming ends with VMF_ERROR_CANCELLED; NULL: never */
    bool kernel_writes;    /* the kernel writes guest memory, as KVM does: refuse where the host cannot let that wait */
} VmfCaptureConfig;

/*
 * Watches the blocks. VMF_ERROR_UNSUPPORTED: this host cannot, or they are watched already (by a dirty log that uses
 * userfaultfd too, or as their guest is still being restored).
 */
VmfCapture *vmf_capture_new(const VmfCaptureConfig *config, GError **error);

/*
 * Takes write access away from all that is there, in several passes, each for what was written during the one before,
 * until passes bring no more. The guest runs, and waits for a moment at its first write to a page in each pass.
 */
bool vmf_capture_arm(VmfCapture *capture, GError **error);

/* The same for what touched() has reported, and for what was written since, alone. */
bool vmf_capture_arm_again(VmfCapture *capture, GError **error);

/*
 * It is about to be stopped: from now on its writes wait no longer than they have to, since it may have some to do
 * before it stands.
 */
void vmf_capture_hurry(VmfCapture *capture);

/*
 * Once it is armed; the last time the guest stands. Pages that were written since the log was started, as a harvest of
 * the log reports them for block @block.
 */
void vmf_capture_touched(VmfCapture *capture, unsigned block, uint64_t first_word, const uint64_t *words,
                         size_t n_words);

/*
 * The guest stands, and may go on when this returns: the capture is of this instant. False: there is none, and the
 * guest may go on as well.
 */
bool vmf_capture_freeze(VmfCapture *capture, GError **error);

/* After freeze: the pages of the block that may not be zeros. */
const VmfDirtyBitmap *vmf_capture_pages(const VmfCapture *capture, unsigned block);

/*
 * After freeze, a source for one thread, any number of them: together they push each chunk that has such pages once,
 * digests included. A batch's pages do not change before it is released, which is when the guest can write them again
 * (unless they were copied), so a sink does not keep it long. Freed ahead of the capture.
 */
void vmf_capture_source(VmfCapture *capture, const VmfPageScan *scan, VmfPageSource *source);

/* At any moment, once the sources are freed: the guest's memory is as it ever was, and nobody waits. */
void vmf_capture_free(VmfCapture *capture);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfCapture, vmf_capture_free)

typedef struct {
    unsigned n_passes;  /* of arming, while the guest ran */
    uint64_t n_pages;   /* that the capture is of */
    uint64_t n_noted;   /* writes ahead of the instant that waited to be noted */
    uint64_t n_rearmed; /* pages, at the instant */
    uint64_t freeze_ns; /* what freeze took */
    uint64_t n_copied;  /* pages, for writes after it */
    uint64_t buffer_peak_bytes;
    uint64_t n_full;       /* writes that waited for room in the buffer */
    unsigned n_assembled;  /* chunks that were pushed from a copy */
    unsigned n_places;     /* chunks of memory that these copies were made in */
    uint64_t write_p50_ns; /* how long writes after the instant waited: fault read to page writable */
    uint64_t write_p99_ns;
    uint64_t write_max_ns;
} VmfCaptureStatistics;

/* Any thread. */
void vmf_capture_statistics(VmfCapture *capture, VmfCaptureStatistics *out);

#endif
