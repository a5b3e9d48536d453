/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Words and transitions, all of them. */
#include "migration/status.h"

#include <vmferry/error.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

/* A row for each status, a column for each that may follow, in the order of VMF_STATUSES: written out once more, as a
 * picture. */
static const char *const matrix[VMF_STATUS_N] = {
    /*       none setup active pre-switchover device postcopy-active completed failed cancelling cancelled */
    /* none */ ".S........",
    /* setup */ "..A...CFc.",
    /* active */ "...PD..Fc.",
    /* pre-switchover */ "..A....Fc.",
    /* device */ ".....LCFc.",
    /* postcopy-active */ "......CFc.",
    /* completed */ "..........",
    /* failed */ "..........",
    /* cancelling */ ".......F.X",
    /* cancelled */ "..........",
};

static void test_every_transition(void **state)
{
    for (unsigned from = 0; from < VMF_STATUS_N; from++) {
        assert_int_equal(strlen(matrix[from]), VMF_STATUS_N);
        for (unsigned to = 0; to < VMF_STATUS_N; to++)
            assert_int_equal(vmf_status_may(from, to), matrix[from][to] != '.');
    }
}

static void test_out_of_range(void **state)
{
    for (unsigned i = 0; i <= VMF_STATUS_N; i++) {
        assert_false(vmf_status_may(VMF_STATUS_N, i));
        assert_false(vmf_status_may(i, VMF_STATUS_N));
        assert_false(vmf_status_may(-1, i));
        assert_false(vmf_status_may(i, -1));
    }
    assert_false(vmf_status_is_final(VMF_STATUS_N));
    assert_string_equal(vmf_status_word(VMF_STATUS_N), "unknown");
    assert_string_equal(vmf_status_word(-1), "unknown");
    assert_string_equal(vmf_outcome_word(VMF_OUTCOME_N), "unknown");
    assert_string_equal(vmf_verified_word(VMF_VERIFIED_N), "unknown");
    assert_string_equal(vmf_audit_name(VMF_AUDIT_N), "unknown");
}

/* Every status can be reached, and from every one a final status: no session is stuck. */
static void test_every_status_ends(void **state)
{
    unsigned reached = 1u << VMF_STATUS_NONE, ends = 0;

    for (unsigned pass = 0; pass < VMF_STATUS_N; pass++) {
        for (unsigned from = 0; from < VMF_STATUS_N; from++) {
            if (vmf_status_is_final(from))
                ends |= 1u << from;
            for (unsigned to = 0; to < VMF_STATUS_N; to++) {
                if (vmf_status_may(from, to) && (reached & 1u << from))
                    reached |= 1u << to;
                if (vmf_status_may(from, to) && (ends & 1u << to))
                    ends |= 1u << from;
            }
        }
    }
    assert_int_equal(reached, (1u << VMF_STATUS_N) - 1);
    assert_int_equal(ends, (1u << VMF_STATUS_N) - 1);
}

static void test_words(void **state)
{
    static const char *const statuses[] = {"none",      "setup",  "active",     "pre-switchover", "device",
                                           "postcopy-active", "completed", "failed", "cancelling", "cancelled"};
    static const char *const outcomes[] = {"none", "completed",    "failed",           "cancelled",
                                           "held", "preflight-ok", "preflight-refused"};
    static const char *const verified[] = {"off", "transport", "full", "not-applicable", "failed"};

    for (unsigned i = 0; i < VMF_STATUS_N; i++)
        assert_string_equal(vmf_status_word(i), statuses[i]);
    for (unsigned i = 0; i < VMF_OUTCOME_N; i++)
        assert_string_equal(vmf_outcome_word(i), outcomes[i]);
    for (unsigned i = 0; i < VMF_VERIFIED_N; i++)
        assert_string_equal(vmf_verified_word(i), verified[i]);
}

static void test_audit_parse(void **state)
{
    static const char *const wrong[] = {"", "afterwards", "AFTER", "full", NULL};
    VmfAudit audit;

    for (unsigned i = 0; i < VMF_AUDIT_N; i++) {
        assert_true(vmf_audit_parse(vmf_audit_name(i), &audit, NULL));
        assert_int_equal(audit, i);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(GError) error = NULL;

        assert_false(vmf_audit_parse(wrong[i], &audit, &error));
        assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
    }
}

int main(void)
{
    static const struct CMUnitTest group[] = {
        cmocka_unit_test(test_every_transition),  cmocka_unit_test(test_out_of_range),
        cmocka_unit_test(test_every_status_ends), cmocka_unit_test(test_words),
        cmocka_unit_test(test_audit_parse),
    };

    return cmocka_run_group_tests(group, NULL, NULL);
}
