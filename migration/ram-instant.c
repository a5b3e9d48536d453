/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/ram-instant.h"

#include <inttypes.h>

#include <vmferry/error.h>

#include "ram/audit.h"
#include "ram/block.h"
#include "ram/capture.h"

#define BUFFER_SHARE 8                    /* of the guest's memory, one part in so many ... */
#define BUFFER_MOST (UINT64_C(256) << 20) /* ... and no more bytes than that */

#define CATCH_UPS 3 /* with the log, ahead of the stop */

typedef struct {
    VmfRamSource *ram;
    unsigned index;
    pthread_t thread;
    bool started;
} Worker;

struct VmfRamInstant {
    bool kernel_writes;
    VmfRamBlock **blocks;
    VmfCapture *capture;
    VmfLaneConfig *lanes;
    unsigned n_lanes;         /* made so far */
    VmfDigestTable **digests; /* by block, of memory at the instant; NULL: not asked for */
    _Atomic bool failed;      /* nobody has to go on writing */
    pthread_mutex_t lock;     /* of error */
    GError *error;            /* the first */
};

void vmf_ram_instant_attach(VmfRamSource *ram, bool kernel_writes)
{
    ram->instant = g_new0(VmfRamInstant, 1);
    ram->instant->kernel_writes = kernel_writes;
    pthread_mutex_init(&ram->instant->lock, NULL);
}

/* ---- set-up ----------------------------------------------------------------------------------------------------- */

static uint64_t buffer_bytes(const VmfRamSave *save)
{
    uint64_t total = 0;

    for (unsigned b = 0; b < save->n_blocks; b++)
        total += vmf_ram_block_size(save->blocks[b].block);
    return MIN(total / BUFFER_SHARE, BUFFER_MOST);
}

static bool make_capture(VmfRamSource *ram, GError **error)
{
    VmfRamInstant *instant = ram->instant;
    const VmfRamSave *save = ram->save;
    VmfCaptureConfig config = {
        .n_blocks = save->n_blocks,
        .buffer_bytes = buffer_bytes(save),
        .cancelled = &ram->session->cancelled,
        .kernel_writes = instant->kernel_writes,
    };

    instant->blocks = g_new0(VmfRamBlock *, save->n_blocks + 1);
    for (unsigned b = 0; b < save->n_blocks; b++)
        instant->blocks[b] = save->blocks[b].block;
    config.blocks = instant->blocks;
    instant->capture = vmf_capture_new(&config, error);
    return instant->capture != NULL;
}

static bool make_lanes(VmfRamSource *ram, GError **error)
{
    VmfRamInstant *instant = ram->instant;

    instant->lanes = g_new0(VmfLaneConfig, ram->n_lanes);
    while (instant->n_lanes < ram->n_lanes) {
        VmfLaneConfig *lane = &instant->lanes[instant->n_lanes];
        if (!ram->ways->lane(ram->ways_opaque, ram->save, instant->n_lanes, lane, error))
            return false;
        instant->n_lanes++;
    }
    return true;
}

/* The log first: what is written after the capture's first look at memory is then in it. */
static bool instant_setup(void *opaque, VmfSaveStream *stream, GError **error)
{
    VmfRamSource *ram = opaque;

    if (!vmf_ram_save_begin(ram->save, error) || !make_capture(ram, error))
        return false;
    if (ram->ways->begin)
        ram->ways->begin(ram->ways_opaque, ram->save);
    return make_lanes(ram, error);
}

static void instant_cleanup(void *opaque)
{
    VmfRamSource *ram = opaque;
    VmfRamInstant *instant = ram->instant;

    if (!instant)
        return;
    for (unsigned i = 0; i < instant->n_lanes; i++)
        vmf_page_sink_free(&instant->lanes[i].sink);
    vmf_capture_free(instant->capture);
    if (ram->save)
        vmf_ram_save_end(ram->save);
    for (unsigned b = 0; instant->digests && b < ram->save->n_blocks; b++)
        vmf_digest_table_free(instant->digests[b]);
    g_free(instant->digests);
    g_clear_error(&instant->error);
    g_free(instant->blocks);
    g_free(instant->lanes);
    pthread_mutex_destroy(&instant->lock);
    g_clear_pointer(&ram->instant, g_free);
}

/* ---- the instant ------------------------------------------------------------------------------------------------ */

typedef struct {
    VmfRamSource *ram;
    unsigned block;
} Touched;

static void report(void *opaque, uint64_t first_word, const uint64_t *words, size_t n_words)
{
    const Touched *touched = opaque;

    vmf_dirty_bitmap_or_words(touched->ram->save->blocks[touched->block].dirty, first_word, words, n_words);
    vmf_capture_touched(touched->ram->instant->capture, touched->block, first_word, words, n_words);
}

/* The log is never cleared: the last harvest, that of the stopped guest, has all that was written. */
static bool harvest(VmfRamSource *ram, GError **error)
{
    const VmfRamSaveConfig *config = &ram->save->config;

    for (unsigned b = 0; ram->save->log_started && b < ram->save->n_blocks; b++) {
        Touched touched = {ram, b};
        if (!config->log->harvest(config->log_opaque, b, report, &touched, error)) {
            g_prefix_error(error, "dirty log %s: ", config->log->name);
            return false;
        }
    }
    return true;
}

/* A guest that touches new memory has touched much of it by the end of the first pass, and little while that is caught
 * up with. */
bool vmf_ram_instant_arm(VmfRamSource *ram, GError **error)
{
    VmfCapture *capture = ram->instant->capture;

    if (!vmf_capture_arm(capture, error))
        return false;
    for (unsigned i = 0; i < CATCH_UPS; i++)
        if (!harvest(ram, error) || !vmf_capture_arm_again(capture, error))
            return false;
    vmf_capture_hurry(capture);
    return true;
}

static bool instant_pending_exact(void *opaque, VmfPending *pending, GError **error)
{
    VmfRamSource *ram = opaque;

    if (!harvest(ram, error))
        return false;
    pending->precopy_bytes += vmf_ram_save_pending_bytes(ram->save);
    return true;
}

static void instant_pending_estimate(void *opaque, VmfPending *pending)
{
    VmfRamSource *ram = opaque;

    if (ram->save)
        pending->precopy_bytes += vmf_ram_save_pending_bytes(ram->save);
}

static bool instant_complete(void *opaque, VmfSaveStream *stream, GError **error)
{
    return vmf_capture_freeze(((VmfRamSource *)opaque)->instant->capture, error);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static void keep_first_error(VmfRamInstant *instant, GError *error)
{
    pthread_mutex_lock(&instant->lock);
    if (instant->error)
        g_error_free(error);
    else
        instant->error = error;
    pthread_mutex_unlock(&instant->lock);
    atomic_store(&instant->failed, true);
}

/* Not behind the guest, unlike the lanes of rounds: it may wait for a page that is being read here. */
static void *worker_main(void *opaque)
{
    Worker *worker = opaque;
    VmfRamInstant *instant = worker->ram->instant;
    g_auto(VmfPageSource) source = {NULL, NULL};
    GError *error = NULL;

    vmf_capture_source(instant->capture, worker->ram->save->scan, &source);
    if (!vmf_page_copy(&source, &instant->lanes[worker->index].sink, &instant->failed, &error))
        keep_first_error(instant, error);
    return NULL;
}

static void start_worker(Worker *worker)
{
    int failed = pthread_create(&worker->thread, NULL, worker_main, worker);

    worker->started = failed == 0;
    if (failed)
        keep_first_error(worker->ram->instant, g_error_new(VMF_ERROR, VMF_ERROR_MEMORY, "page channel %u: thread: %s",
                                                           worker->index, g_strerror(failed)));
}

static bool close_counts(VmfRamSave *save, GError **error)
{
    for (unsigned b = 0; b < save->n_blocks; b++) {
        VmfRamSaveBlock *own = &save->blocks[b];
        own->hole = vmf_ram_block_n_pages(own->block) - own->data - own->zero;
    }
    save->first_pass_bytes = save->payload_bytes;
    return vmf_ram_save_check_counts(save, error);
}

bool vmf_ram_instant_write(VmfRamSource *ram, GError **error)
{
    VmfRamInstant *instant = ram->instant;
    g_autofree Worker *workers = g_new0(Worker, instant->n_lanes);

    for (unsigned i = 0; i < instant->n_lanes; i++) {
        workers[i] = (Worker){.ram = ram, .index = i};
        start_worker(&workers[i]);
    }
    for (unsigned i = 0; i < instant->n_lanes; i++)
        if (workers[i].started)
            pthread_join(workers[i].thread, NULL);
    if (!instant->error)
        return close_counts(ram->save, error);
    g_propagate_error(error, g_error_copy(instant->error));
    return false;
}

/* ---- audit ------------------------------------------------------------------------------------------------------ */

bool vmf_ram_instant_hash(VmfRamSource *ram, const _Atomic bool *cancel, GError **error)
{
    VmfRamInstant *instant = ram->instant;
    unsigned n_blocks = ram->save->n_blocks;

    instant->digests = g_new0(VmfDigestTable *, n_blocks + 1);
    for (unsigned b = 0; b < n_blocks; b++) {
        instant->digests[b] = vmf_digest_table_new(vmf_ram_block_n_pages(instant->blocks[b]), error);
        if (!instant->digests[b])
            return false;
    }
    return vmf_audit_take(instant->blocks, instant->digests, n_blocks, ram->save->scan, cancel, error);
}

char *vmf_ram_instant_audit(VmfRamSource *ram, uint64_t *n_different)
{
    unsigned n_blocks = ram->save->n_blocks;
    g_autofree VmfAuditBlock *written = g_new0(VmfAuditBlock, n_blocks + 1);
    VmfVerifyResult result;

    for (unsigned b = 0; b < n_blocks; b++)
        written[b] = (VmfAuditBlock){ram->save->blocks[b].block, ram->save->blocks[b].digests};
    vmf_audit_compare(written, ram->instant->digests, n_blocks, &result);
    *n_different = result.pages_different;
    return result.pages_different > 0 ? vmf_audit_describe(written, &result) : NULL;
}

char *vmf_ram_instant_describe(VmfRamSource *ram)
{
    VmfCaptureStatistics s;

    vmf_capture_statistics(ram->instant->capture, &s);
    return g_strdup_printf(
        "memory was protected %u times over, %" PRIu64 " pages of it in the pause, in %.2f ms; the guest "
        "wrote %" PRIu64 " pages ahead of their turn, and waited for that %.2f ms at most (%.2f ms at p99)",
        s.n_passes, s.n_rearmed, (double)s.freeze_ns / 1e6, s.n_copied, (double)s.write_max_ns / 1e6,
        (double)s.write_p99_ns / 1e6);
}

/* ---- handlers --------------------------------------------------------------------------------------------------- */

const VmfSaveHandlers *vmf_ram_instant_handlers(void)
{
    static const VmfSaveHandlers handlers = {
        .size = sizeof(VmfSaveHandlers),
        .save_prepare = vmf_ram_source_prepare,
        .save_setup = instant_setup,
        .pending_estimate = instant_pending_estimate,
        .pending_exact = instant_pending_exact,
        .save_complete = instant_complete,
        .save_cleanup = instant_cleanup,
    };

    return &handlers;
}
