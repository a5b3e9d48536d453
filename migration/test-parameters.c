/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Parameters: what is in force when nothing is said, what is refused, and structs of other sizes than ours. */
#include "migration/ops.h"
#include "migration/parameters.h"

#include <vmferry/error.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void test_defaults(void **state)
{
    VmfParameters p;

    vmf_parameters_init(&p);
    assert_int_equal(p.size, sizeof(p));
    assert_int_equal(p.channels, 2);
    assert_int_equal(p.downtime_limit_ns, 20000000);
    assert_int_equal(p.max_bandwidth, 0);
    assert_int_equal(p.switchover_timeout_ns, 2000000000);
    assert_int_equal(p.timeout_ns, 0);
    assert_int_equal(p.audit, VMF_AUDIT_AFTER);
    assert_int_equal(p.stream_version, 3);
    assert_int_equal(p.minimum_rounds, 0);
    assert_int_equal(p.throttle_maximum, 99);
    assert_false(p.dry_run);
    assert_false(p.pause_before_switchover);
    assert_ptr_equal(p.policy, &vmf_policy_default);
    assert_true(vmf_parameters_check(&p, NULL));
}

#define REFUSED(change)                                                                                                \
    do {                                                                                                               \
        g_autoptr(GError) error = NULL;                                                                                \
        VmfParameters p;                                                                                               \
        vmf_parameters_init(&p);                                                                                       \
        change;                                                                                                        \
        assert_false(vmf_parameters_check(&p, &error));                                                                \
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));                                               \
        assert_true(g_str_has_prefix(error->message, "parameters: "));                                                 \
    } while (0)

#define ACCEPTED(change)                                                                                               \
    do {                                                                                                               \
        VmfParameters p;                                                                                               \
        vmf_parameters_init(&p);                                                                                       \
        change;                                                                                                        \
        assert_true(vmf_parameters_check(&p, NULL));                                                                   \
    } while (0)

static void test_ranges(void **state)
{
    REFUSED(p.channels = 0);
    ACCEPTED(p.channels = 1);
    ACCEPTED(p.channels = VMF_CHANNELS_MAX);
    REFUSED(p.channels = VMF_CHANNELS_MAX + 1);
    REFUSED(p.downtime_limit_ns = 0);
    ACCEPTED(p.downtime_limit_ns = VMF_DOWNTIME_LIMIT_MAX_NS);
    REFUSED(p.downtime_limit_ns = VMF_DOWNTIME_LIMIT_MAX_NS + 1);
    REFUSED(p.switchover_timeout_ns = 0);
    REFUSED(p.switchover_timeout_ns = UINT64_MAX);
    REFUSED(p.audit = VMF_AUDIT_N);
    REFUSED(p.audit = -1);
    REFUSED(p.stream_version = 1);
    ACCEPTED(p.stream_version = 2);
    REFUSED(p.stream_version = 4);
    ACCEPTED(p.throttle_maximum = 0);
    REFUSED(p.throttle_maximum = 100);
    ACCEPTED(p.minimum_rounds = VMF_MINIMUM_ROUNDS_MAX);
    REFUSED(p.minimum_rounds = VMF_MINIMUM_ROUNDS_MAX + 1);
    ACCEPTED(p.max_bandwidth = UINT64_MAX);
    ACCEPTED(p.timeout_ns = UINT64_MAX);
}

static void test_pointers(void **state)
{
    static const VmfPolicyOps undecided = {.size = sizeof(undecided)};
    static const VmfPolicyOps too_small = {.size = VMF_SIZE_UP_TO(VmfPolicyOps, destroy),
                                           .decide = (void *)test_defaults};
    g_autofree char *long_name = g_strnfill(VMF_HOST_NAME_MAX + 1, 'h');

    REFUSED(p.policy = &undecided);
    REFUSED(p.policy = &too_small);
    ACCEPTED(p.policy = NULL);
    REFUSED(p.host_name = long_name);
    REFUSED(p.host_name = "\xff");
    REFUSED(p.host_name = "a\nb");
    REFUSED(p.host_name = "a\x1b[2J");
    REFUSED(p.host_name = "a\x7f");
    ACCEPTED(p.host_name = "\xc3\xa4");
    ACCEPTED(p.host_name = long_name + 1);
}

static void test_copy_fills_in(void **state)
{
    VmfParameters theirs, own;

    vmf_parameters_init(&theirs);
    theirs.policy = NULL;
    theirs.host_name = NULL;
    theirs.channels = 7;
    assert_true(vmf_parameters_copy(&own, &theirs, NULL));
    assert_int_equal(own.channels, 7);
    assert_ptr_equal(own.policy, &vmf_policy_default);
    assert_string_equal(own.host_name, "");
}

/* A caller that was compiled with a larger struct than ours, and one with less than any release had. */
static void test_other_sizes(void **state)
{
    struct {
        VmfParameters known;
        uint64_t later;
    } larger;
    VmfParameters own;

    memset(&larger, 0xee, sizeof(larger));
    vmf_parameters_init_sized(&larger.known, sizeof(larger));
    assert_int_equal(larger.known.size, sizeof(larger));
    assert_int_equal(larger.later, 0);
    larger.later = 1;
    assert_true(vmf_parameters_copy(&own, &larger.known, NULL));
    assert_int_equal(own.size, sizeof(own));

    REFUSED(p.size = 0);
    REFUSED(p.size = offsetof(VmfParameters, fault_opaque));
}

/* Initialising a smaller struct writes nothing behind it. */
static void test_init_stays_inside(void **state)
{
    union {
        VmfParameters parameters;
        uint8_t bytes[sizeof(VmfParameters)];
    } u;
    size_t small = offsetof(VmfParameters, throttle_maximum);

    memset(u.bytes, 0xee, sizeof(u.bytes));
    vmf_parameters_init_sized(&u.parameters, small);
    assert_int_equal(u.parameters.size, small);
    assert_int_equal(u.parameters.channels, 2);
    for (size_t i = small; i < sizeof(u.bytes); i++)
        assert_int_equal(u.bytes[i], 0xee);
}

int main(void)
{
    static const struct CMUnitTest group[] = {
        cmocka_unit_test(test_defaults),    cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_pointers),    cmocka_unit_test(test_copy_fills_in),
        cmocka_unit_test(test_other_sizes), cmocka_unit_test(test_init_stays_inside),
    };

    return cmocka_run_group_tests(group, NULL, NULL);
}
