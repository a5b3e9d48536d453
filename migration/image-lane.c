/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/image-lane.h"

#include "stream/filter-rate.h"

/* ---- what both have --------------------------------------------------------------------------------------------- */

typedef struct {
    VmfPageSink behind;
    VmfRamSave *save;
    VmfSession *session;
    _Atomic uint64_t *passed;
} Stage;

static void *stage_reserve(void *opaque, unsigned block_index, uint64_t chunk)
{
    return vmf_page_sink_reserve(&((Stage *)opaque)->behind, block_index, chunk);
}

static bool stage_flush(void *opaque, GError **error)
{
    return vmf_page_sink_flush(&((Stage *)opaque)->behind, error);
}

static void stage_free(void *opaque)
{
    Stage *stage = opaque;

    vmf_page_sink_free(&stage->behind);
    g_free(stage);
}

static Stage *put_before(VmfPageSink *sink, const VmfPageSinkOps *ops)
{
    Stage *stage = g_new0(Stage, 1);

    stage->behind = *sink;
    *sink = (VmfPageSink){ops, stage};
    return stage;
}

/* ---- entering --------------------------------------------------------------------------------------------------- */

static bool enter_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    Stage *stage = opaque;

    vmf_ram_save_enter(stage->save, batch);
    return vmf_page_sink_push(&stage->behind, batch, error);
}

static const VmfPageSinkOps enter_ops = {
    .size = sizeof(VmfPageSinkOps),
    .reserve = stage_reserve,
    .push = enter_push,
    .flush = stage_flush,
    .free = stage_free,
};

void vmf_image_lane_enter(VmfPageSink *sink, VmfRamSave *save)
{
    put_before(sink, &enter_ops)->save = save;
}

static bool enter_once_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    Stage *stage = opaque;
    VmfPageSet taken;

    vmf_dirty_bitmap_take_chunk(stage->save->blocks[batch->block_index].dirty, batch->chunk, &taken);
    return enter_push(opaque, batch, error);
}

static const VmfPageSinkOps enter_once_ops = {
    .size = sizeof(VmfPageSinkOps),
    .reserve = stage_reserve,
    .push = enter_once_push,
    .flush = stage_flush,
    .free = stage_free,
};

void vmf_image_lane_enter_once(VmfPageSink *sink, VmfRamSave *save)
{
    put_before(sink, &enter_once_ops)->save = save;
}

/* ---- the gate --------------------------------------------------------------------------------------------------- */

/* Bandwidth comes in pieces, and a cancel in between. */
static bool wait_for_bandwidth(Stage *stage, uint64_t bytes, GError **error)
{
    do {
        if (!vmf_session_check_cancelled(stage->session, error))
            return false;
        bytes -= bytes > 0 ? vmf_rate_limit_take(stage->session->rate, bytes) : 0;
    } while (bytes > 0);
    return true;
}

static bool gate_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    Stage *stage = opaque;
    uint64_t bytes = (uint64_t)vmf_page_set_count(&batch->data) * VMF_PAGE_SIZE;

    if (!wait_for_bandwidth(stage, bytes, error)) {
        vmf_page_batch_release(batch);
        return false;
    }
    atomic_fetch_add(stage->passed, bytes);
    return vmf_page_sink_push(&stage->behind, batch, error);
}

static const VmfPageSinkOps gate_ops = {
    .size = sizeof(VmfPageSinkOps),
    .reserve = stage_reserve,
    .push = gate_push,
    .flush = stage_flush,
    .free = stage_free,
};

static void put_gate(VmfPageSink *sink, const VmfPageSinkOps *ops, VmfSession *session, _Atomic uint64_t *passed)
{
    Stage *stage = put_before(sink, ops);

    stage->session = session;
    stage->passed = passed;
}

void vmf_image_lane_gate(VmfPageSink *sink, VmfSession *session, _Atomic uint64_t *passed)
{
    put_gate(sink, &gate_ops, session, passed);
}

/* ---- the gate behind -------------------------------------------------------------------------------------------- */

static bool gate_behind_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    Stage *stage = opaque;
    uint64_t bytes = (uint64_t)vmf_page_set_count(&batch->data) * VMF_PAGE_SIZE;

    if (!vmf_session_check_cancelled(stage->session, error)) {
        vmf_page_batch_release(batch);
        return false;
    }
    if (!vmf_page_sink_push(&stage->behind, batch, error))
        return false;
    atomic_fetch_add(stage->passed, bytes);
    if (atomic_load(&stage->session->max_bandwidth) > 0 && !vmf_page_sink_flush(&stage->behind, error))
        return false;
    return wait_for_bandwidth(stage, bytes, error);
}

static const VmfPageSinkOps gate_behind_ops = {
    .size = sizeof(VmfPageSinkOps),
    .reserve = stage_reserve,
    .push = gate_behind_push,
    .flush = stage_flush,
    .free = stage_free,
};

void vmf_image_lane_gate_behind(VmfPageSink *sink, VmfSession *session, _Atomic uint64_t *passed)
{
    put_gate(sink, &gate_behind_ops, session, passed);
}

/* ---- the gate of those who pay themselves ----------------------------------------------------------------------- */

static bool gate_paid_push(void *opaque, VmfPageBatch *batch, GError **error)
{
    Stage *stage = opaque;
    uint64_t bytes = (uint64_t)vmf_page_set_count(&batch->data) * VMF_PAGE_SIZE;

    if (!vmf_session_check_cancelled(stage->session, error)) {
        vmf_page_batch_release(batch);
        return false;
    }
    atomic_fetch_add(stage->passed, bytes);
    return vmf_page_sink_push(&stage->behind, batch, error);
}

static const VmfPageSinkOps gate_paid_ops = {
    .size = sizeof(VmfPageSinkOps),
    .reserve = stage_reserve,
    .push = gate_paid_push,
    .flush = stage_flush,
    .free = stage_free,
};

void vmf_image_lane_gate_paid(VmfPageSink *sink, VmfSession *session, _Atomic uint64_t *passed)
{
    put_gate(sink, &gate_paid_ops, session, passed);
}
