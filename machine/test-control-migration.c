/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A migration of the control server's that is ended by its owner: what its thread had to say comes before its end, never after. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <vmferry/channel.h>

#include "machine/control-migration.h"
#include "machine/machine.h"

typedef struct {
    unsigned n_statuses, n_events, n_ends;
    bool late; /* something was told after the end */
} Told;

static void status_changed(void *opaque, VmfStatus status)
{
    Told *told = opaque;

    told->n_statuses++;
    told->late |= told->n_ends > 0;
}

static void event(void *opaque, const char *id, const char *text)
{
    Told *told = opaque;

    told->n_events++;
    told->late |= told->n_ends > 0;
}

static void ended(void *opaque)
{
    ((Told *)opaque)->n_ends++;
}

static const VmfMigrationOps ops = {.status_changed = status_changed, .event = event, .ended = ended};

typedef struct {
    VmfMachine *machine;
    VmfConnector *connector;
    VmfListener *listener;
    VmfMailbox *mailbox;
    VmfParameters parameters;
    Told told;
} Rig;

static int set_up(void **state)
{
    const VmfMachineConfig config = {.name = "guest", .memory_bytes = 4 << 20};
    Rig *rig = g_new0(Rig, 1);

    rig->machine = vmf_machine_new(&config, NULL);
    rig->mailbox = vmf_mailbox_new(NULL);
    vmf_memory_link_new(0, &rig->connector, &rig->listener);
    vmf_parameters_init(&rig->parameters);
    *state = rig;
    return rig->machine && rig->mailbox ? 0 : -1;
}

static int tear_down(void **state)
{
    Rig *rig = *state;

    vmf_mailbox_free(rig->mailbox);
    vmf_listener_free(rig->listener);
    vmf_connector_free(rig->connector);
    vmf_machine_free(rig->machine);
    g_free(rig);
    return 0;
}

static VmfMigration *new_arrival(Rig *rig)
{
    const VmfMigrationConfig config = {
        .guest = vmf_machine_guest(rig->machine),
        .listener = rig->listener,
        .parameters = &rig->parameters,
        .uri = "memory",
        .mailbox = rig->mailbox,
        .ops = &ops,
        .opaque = &rig->told,
    };
    VmfMigration *migration = vmf_migration_new(&config, NULL);

    assert_non_null(migration);
    return migration;
}

/* An arrival that a new migration takes the place of: it is finished, and freed at once. */
static void test_finished(void **state)
{
    Rig *rig = *state;
    VmfMigration *migration = new_arrival(rig);

    vmf_migration_finish(migration);
    assert_true(vmf_migration_has_ended(migration));
    assert_int_equal(rig->told.n_ends, 1);
    assert_true(rig->told.n_statuses > 0);
    vmf_mailbox_deliver(rig->mailbox); /* nothing is left that refers to it */
    assert_false(rig->told.late);
    assert_int_equal(rig->told.n_ends, 1);
    vmf_migration_free(migration);
    vmf_mailbox_deliver(rig->mailbox);
    assert_false(rig->told.late);
}

/* The same without a look in between: a letter that is left refers to memory that was freed. */
static void test_finished_and_freed(void **state)
{
    Rig *rig = *state;

    for (unsigned turn = 0; turn < 20; turn++) {
        VmfMigration *migration = new_arrival(rig);
        vmf_migration_finish(migration);
        vmf_migration_free(migration);
        vmf_mailbox_deliver(rig->mailbox);
        assert_int_equal(rig->told.n_ends, turn + 1);
    }
}

/* Freed while it waits: nobody is told of an end. */
static void test_freed(void **state)
{
    Rig *rig = *state;

    vmf_migration_free(new_arrival(rig));
    unsigned n = rig->told.n_statuses;
    vmf_mailbox_deliver(rig->mailbox);
    assert_int_equal(rig->told.n_statuses, n);
    assert_int_equal(rig->told.n_ends, 0);
}

#define rig_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        rig_test(test_finished),
        rig_test(test_finished_and_freed),
        rig_test(test_freed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
