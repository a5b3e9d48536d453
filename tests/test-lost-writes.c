/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A dirty log that loses one write: whenever that makes a difference it is found, named, and the guest is where it should be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "machine/machine-private.h"
#include "tests/lost-writes.h"

#define MIB (UINT64_C(1) << 20)
/* Runs in which it made a difference, for each log: under a sanitizer a few do. scripts/lost-writes makes as many as one likes. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define RUNS 4
#else
#define RUNS 34
#endif

static VmfLostWriteSetting setting_of(const char *backend, const char *log, VmfAudit audit)
{
    return (VmfLostWriteSetting){
        .machine = {.name = "guest", .backend = backend, .dirty_log = log, .memory_bytes = 6 * MIB,
                    .dirty_bytes_per_second = 40 * MIB, .set_bytes = 4 * MIB, .seed = 7},
        .audit = audit,
        .minimum_rounds = 6,
    };
}

/* Runs seeds until @n of them have made a difference. */
static void lose(const char *backend, const char *log, VmfAudit audit, unsigned n)
{
    VmfLostWriteSetting setting = setting_of(backend, log, audit);
    unsigned found[VMF_FINDING_N] = {0};

    for (uint64_t seed = 1; found[VMF_FOUND_BY_LOG_AUDIT] + found[VMF_FOUND_BY_FULL_AUDIT] < n; seed++) {
        VmfLostWriteRun run = vmf_lose_write(&setting, seed);
        if (run.finding == VMF_FOUND_WRONG)
            fail_msg("%s, --audit=%s, seed %d: %s", log, vmf_audit_name(audit), (int)seed, run.text);
        found[run.finding]++;
        assert_true(found[VMF_FOUND_HARMLESS] + found[VMF_FOUND_NOTHING_LOST] <= 2 * n + 10);
        g_free(run.text);
    }
    print_message("%s, --audit=%s:", log, vmf_audit_name(audit));
    for (unsigned i = 0; i < VMF_FINDING_N; i++)
        print_message(" %s %u", vmf_finding_words[i], found[i]);
    print_message("\n");
}

static void need_kvm_log(const char *log)
{
    VmfLostWriteSetting setting = setting_of("kvm", log, VMF_AUDIT_BEFORE);
    g_autoptr(GError) error = NULL;
    VmfMachine *machine = vmf_kvm_works(&error) ? vmf_machine_new(&setting.machine, &error) : NULL;

    if (!machine) {
        print_message("skip: %s\n", error->message);
        g_clear_error(&error); /* skip() does not return */
        skip();
    }
    vmf_machine_free(machine);
}

static void test_rv32(void **state)
{
    lose("rv32", "rv32", VMF_AUDIT_BEFORE, RUNS);
    lose("rv32", "rv32", VMF_AUDIT_AFTER, RUNS / 4);
}

static void test_kvm_bitmap(void **state)
{
    need_kvm_log("kvm-bitmap");
    lose("kvm", "kvm-bitmap", VMF_AUDIT_BEFORE, RUNS);
    lose("kvm", "kvm-bitmap", VMF_AUDIT_AFTER, RUNS / 4);
}

static void test_uffd(void **state)
{
    need_kvm_log("uffd-wp");
    lose("kvm", "uffd-wp", VMF_AUDIT_BEFORE, RUNS);
    lose("kvm", "uffd-wp", VMF_AUDIT_AFTER, RUNS / 4);
}

/* The same without a fault: nobody is accused. */
static void test_sound_logs(void **state)
{
    VmfLostWriteSetting setting = setting_of("auto", "auto", VMF_AUDIT_BEFORE);

    for (unsigned i = 0; i < 3; i++) {
        VmfLostWriteRun run = vmf_lose_write(&setting, 0);
        if (run.finding != VMF_FOUND_NOTHING_LOST)
            fail_msg("%s", run.text);
        assert_true(run.log_audit_pages > 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rv32),
        cmocka_unit_test(test_kvm_bitmap),
        cmocka_unit_test(test_uffd),
        cmocka_unit_test(test_sound_logs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
