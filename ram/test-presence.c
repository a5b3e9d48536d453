/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/presence.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#include <vmferry/error.h>

typedef struct {
    _Atomic unsigned n_inside, n_calls;
    _Atomic bool may_return;
} Filler;

static bool pending(void *opaque, unsigned block, VmfDirtyBitmap *out, GError **error)
{
    atomic_fetch_add(&((Filler *)opaque)->n_calls, 1);
    vmf_dirty_bitmap_set_range(out, block, 2);
    return true;
}

/* Chunk 7 cannot be had; of the others it comes when it may. */
static bool ensure(void *opaque, unsigned block, uint64_t chunk, GError **error)
{
    Filler *filler = opaque;

    atomic_fetch_add(&filler->n_calls, 1);
    if (chunk == 7) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_PAGE, "chunk 7");
        return false;
    }
    atomic_fetch_add(&filler->n_inside, 1);
    while (!atomic_load(&filler->may_return))
        usleep(100);
    atomic_fetch_sub(&filler->n_inside, 1);
    return true;
}

static const VmfPresenceOps ops = {.pending = pending, .ensure = ensure};

static void test_nothing_is_on_its_way(void **state)
{
    g_autoptr(VmfDirtyBitmap) bitmap = vmf_dirty_bitmap_new(100, NULL);

    assert_true(vmf_presence_pending(NULL, 3, bitmap, NULL));
    assert_true(vmf_presence_ensure(NULL, 3, 7, NULL));
    assert_int_equal(vmf_dirty_bitmap_count(bitmap), 0);
}

static void test_calls(void **state)
{
    g_autoptr(VmfDirtyBitmap) bitmap = vmf_dirty_bitmap_new(100, NULL);
    g_autoptr(GError) error = NULL;
    Filler filler = {.may_return = true};
    g_autoptr(VmfPresence) presence = vmf_presence_new(&ops, &filler);

    assert_true(vmf_presence_pending(presence, 3, bitmap, NULL));
    assert_int_equal(vmf_dirty_bitmap_count(bitmap), 2);
    assert_true(vmf_dirty_bitmap_test(bitmap, 3));
    assert_true(vmf_presence_ensure(presence, 0, 6, NULL));
    assert_false(vmf_presence_ensure(presence, 0, 7, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IMAGE_PAGE));
}

static void test_closed(void **state)
{
    g_autoptr(VmfDirtyBitmap) bitmap = vmf_dirty_bitmap_new(100, NULL);
    g_autoptr(GError) why = g_error_new(VMF_ERROR, VMF_ERROR_CUT, "gone");

    for (unsigned whole = 0; whole < 2; whole++) {
        Filler filler = {.may_return = true};
        g_autoptr(VmfPresence) presence = vmf_presence_new(&ops, &filler), other = vmf_presence_ref(presence);
        for (unsigned i = 0; i < 2; i++) {
            g_autoptr(GError) error = NULL;
            vmf_presence_close(presence, whole ? NULL : why); /* the second time changes nothing */
            assert_int_equal(vmf_presence_pending(other, 3, bitmap, whole ? NULL : &error), whole);
            g_clear_error(&error);
            assert_int_equal(vmf_presence_ensure(other, 0, 7, whole ? NULL : &error), whole);
            assert_true(whole || g_error_matches(error, VMF_ERROR, VMF_ERROR_CUT));
        }
        assert_int_equal(filler.n_calls, 0);
    }
    assert_int_equal(vmf_dirty_bitmap_count(bitmap), 0);
}

static void *ensure_main(void *presence)
{
    assert_true(vmf_presence_ensure(presence, 0, 1, NULL));
    return NULL;
}

typedef struct {
    VmfPresence *presence;
    _Atomic bool closed;
} Closing;

static void *close_main(void *opaque)
{
    Closing *closing = opaque;

    vmf_presence_close(closing->presence, NULL);
    closing->closed = true;
    return NULL;
}

/* Who closes may free what stands behind the ops: so it waits for the calls that have not returned. */
static void test_close_waits(void **state)
{
    Filler filler = {0};
    g_autoptr(VmfPresence) presence = vmf_presence_new(&ops, &filler);
    Closing closing = {.presence = presence};
    pthread_t ensurer, closer;

    assert_int_equal(pthread_create(&ensurer, NULL, ensure_main, presence), 0);
    while (!atomic_load(&filler.n_inside))
        usleep(100);
    assert_int_equal(pthread_create(&closer, NULL, close_main, &closing), 0);
    while (!vmf_presence_ensure(presence, 0, 7, NULL)) /* until calls are let in no longer: all is there, it is told */
        usleep(100);
    assert_false(closing.closed);
    filler.may_return = true;
    pthread_join(ensurer, NULL);
    pthread_join(closer, NULL);
    assert_true(closing.closed);
    assert_int_equal(filler.n_inside, 0);
}

int main(void)
{
    static const struct CMUnitTest group[] = {
        cmocka_unit_test(test_nothing_is_on_its_way),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_closed),
        cmocka_unit_test(test_close_waits),
    };

    return cmocka_run_group_tests(group, NULL, NULL);
}
