/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <glib.h>

#include "ram/latency.h"

static void of_nothing_all_is_zero(void **state)
{
    VmfLatency latency = {0};

    assert_int_equal(vmf_latency_quantile_ns(&latency, 500), 0);
    assert_int_equal(latency.max_ns, 0);
}

static void short_ones_are_exact(void **state)
{
    VmfLatency latency = {0};

    for (uint64_t ns = 0; ns < 8; ns++)
        vmf_latency_add(&latency, ns);
    for (unsigned i = 1; i <= 8; i++)
        assert_int_equal(vmf_latency_quantile_ns(&latency, i * 125), i - 1);
}

static void a_quantile_is_at_most_an_eighth_too_long(void **state)
{
    static const uint64_t some[] = {8, 15, 16, 17, 999, 4096, 1000000, UINT32_MAX, UINT64_C(1) << 40, UINT64_MAX};

    for (unsigned i = 0; i < G_N_ELEMENTS(some); i++) {
        VmfLatency latency = {0};

        vmf_latency_add(&latency, some[i]);
        vmf_latency_add(&latency, UINT64_MAX);
        uint64_t median = vmf_latency_quantile_ns(&latency, 500);
        assert_true(median >= some[i] && median - some[i] <= some[i] / 8);
    }
}

static void none_is_above_the_longest(void **state)
{
    VmfLatency latency = {0};

    vmf_latency_add(&latency, 1000001);
    assert_int_equal(vmf_latency_quantile_ns(&latency, 500), 1000001);
    assert_int_equal(vmf_latency_quantile_ns(&latency, 1000), 1000001);
    assert_int_equal(latency.max_ns, 1000001);
}

static void a_rare_one_is_seen_where_it_belongs(void **state)
{
    VmfLatency latency = {0};

    for (unsigned i = 0; i < 98; i++)
        vmf_latency_add(&latency, 1000);
    for (unsigned i = 0; i < 2; i++)
        vmf_latency_add(&latency, 50000);
    assert_in_range(vmf_latency_quantile_ns(&latency, 500), 1000, 1125);
    assert_in_range(vmf_latency_quantile_ns(&latency, 980), 1000, 1125);
    assert_in_range(vmf_latency_quantile_ns(&latency, 990), 50000, 50000);
    assert_int_equal(latency.n, 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_nothing_all_is_zero),
        cmocka_unit_test(short_ones_are_exact),
        cmocka_unit_test(a_quantile_is_at_most_an_eighth_too_long),
        cmocka_unit_test(none_is_above_the_longest),
        cmocka_unit_test(a_rare_one_is_seen_where_it_belongs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
