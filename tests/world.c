/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/world.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <glib/gstdio.h>

#include "migration/session.h"

struct VmfTripRunning {
    VmfTrip *trip;
    VmfConnector *connector;
    VmfListener *listener;
    VmfSession *source, *target;
    pthread_t source_thread, target_thread;
    pthread_mutex_t lock;
    GString *events;
};

typedef struct {
    VmfTripRunning *running;
    const char *side;
} Side;

void vmf_trip_init(VmfTrip *trip)
{
    *trip = (VmfTrip){0};
    vmf_parameters_init(&trip->source_parameters);
    vmf_parameters_init(&trip->target_parameters);
    trip->source_parameters.audit = VMF_AUDIT_BEFORE;
}

void vmf_trip_clear(VmfTrip *trip)
{
    g_clear_error(&trip->source_error);
    g_clear_error(&trip->target_error);
    g_clear_pointer(&trip->events, g_free);
}

static void note(VmfTripRunning *running, const char *side, const char *id, const char *text)
{
    pthread_mutex_lock(&running->lock);
    g_string_append_printf(running->events, "%s %s: %s\n", side, id, text);
    pthread_mutex_unlock(&running->lock);
}

/* A guest that is held is left so, unless the test is about what comes after. */
static void leave(VmfTripRunning *running, VmfSession *session, const char *id)
{
    if (!running->trip->keeps_holds && (strcmp(id, "handover.held") == 0 || strcmp(id, "handover.storage") == 0))
        vmf_session_cancel(session);
}

static void source_event(void *opaque, const char *id, const char *text)
{
    VmfTripRunning *running = opaque;

    note(running, "source", id, text);
    leave(running, running->source, id);
}

static void target_event(void *opaque, const char *id, const char *text)
{
    VmfTripRunning *running = opaque;

    note(running, "target", id, text);
    leave(running, running->target, id);
}

static const VmfSessionOps source_ops = {.size = sizeof(VmfSessionOps), .event = source_event};
static const VmfSessionOps target_ops = {.size = sizeof(VmfSessionOps), .event = target_event};

static void *source_main(void *opaque)
{
    VmfTripRunning *running = opaque;

    running->trip->source_done = vmf_session_run(running->source, &running->trip->source_error);
    return NULL;
}

static void *target_main(void *opaque)
{
    VmfTripRunning *running = opaque;

    running->trip->target_done = vmf_session_run(running->target, &running->trip->target_error);
    return NULL;
}

static void make_pair(VmfTripRunning *running)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        g_error("socketpair: %s", g_strerror(errno));
    g_autofree char *here = g_strdup_printf("fd:%d", ends[0]), *there = g_strdup_printf("fd:%d", ends[1]);
    running->connector = vmf_connector_new(here, 0, NULL);
    running->listener = vmf_listener_new(there, 0, NULL);
}

static void make_link(VmfTripRunning *running)
{
    VmfTrip *trip = running->trip;
    g_autoptr(GError) error = NULL;

    if (trip->is_over_fd) {
        make_pair(running);
    } else if (!trip->listen_uri) {
        vmf_memory_link_new(0, &running->connector, &running->listener);
    } else {
        running->listener = vmf_listener_new(trip->listen_uri, 0, &error);
        if (!running->listener)
            g_error("%s", error->message);
        running->connector = vmf_connector_new(vmf_listener_uri(running->listener), 0, &error);
    }
    vmf_connector_set_wrap(running->connector, trip->wrap_source, trip->wrap_opaque);
    vmf_listener_set_wrap(running->listener, trip->wrap_target, trip->wrap_opaque);
}

VmfTripRunning *vmf_trip_start(VmfTrip *trip, VmfGuest *source, VmfGuest *target)
{
    VmfTripRunning *running = g_new0(VmfTripRunning, 1);

    running->trip = trip;
    running->events = g_string_new(NULL);
    pthread_mutex_init(&running->lock, NULL);
    make_link(running);
    running->source = vmf_session_new_source(source, running->connector, &trip->source_parameters, &source_ops, running);
    running->target = vmf_session_new_target(target, running->listener, &trip->target_parameters, &target_ops, running);
    if (trip->target_silence_ns)
        running->target->silence_ns = trip->target_silence_ns;
    pthread_create(&running->target_thread, NULL, target_main, running);
    pthread_create(&running->source_thread, NULL, source_main, running);
    return running;
}

VmfSession *vmf_trip_source(VmfTripRunning *running)
{
    return running->source;
}

VmfSession *vmf_trip_target(VmfTripRunning *running)
{
    return running->target;
}

/* A target that goes on waiting when the source is done (refused, say), or on answering questions, is told to stop. */
bool vmf_trip_finish(VmfTripRunning *running)
{
    VmfTrip *trip = running->trip;

    pthread_join(running->source_thread, NULL);
    if (!trip->source_done) {
        VmfStatistics statistics = {.size = sizeof(statistics)};
        vmf_session_get_statistics(running->target, &statistics);
        if (statistics.status <= VMF_STATUS_SETUP || statistics.status == VMF_STATUS_COMPLETED)
            vmf_session_cancel(running->target);
    }
    pthread_join(running->target_thread, NULL);
    trip->source.size = trip->target.size = sizeof(VmfStatistics);
    vmf_session_get_statistics(running->source, &trip->source);
    vmf_session_get_statistics(running->target, &trip->target);
    vmf_session_free(running->source);
    vmf_session_free(running->target);
    vmf_connector_free(running->connector);
    vmf_listener_free(running->listener);
    trip->events = g_string_free(running->events, false);
    pthread_mutex_destroy(&running->lock);
    g_free(running);
    return trip->source_done && trip->target_done;
}

bool vmf_trip_run(VmfTrip *trip, VmfGuest *source, VmfGuest *target)
{
    return vmf_trip_finish(vmf_trip_start(trip, source, target));
}

void vmf_test_journal_init(VmfTestJournal *journal)
{
    g_autoptr(GError) error = NULL;

    journal->directory = g_dir_make_tmp("vmferry-XXXXXX", &error);
    if (journal->directory)
        journal->journal = vmf_journal_open(journal->directory, &error);
    if (error)
        g_error("%s", error->message);
}

VmfJournalState vmf_test_journal_clear(VmfTestJournal *journal)
{
    g_autoptr(GArray) entries = vmf_journal_list(journal->journal, NULL, NULL);
    g_autoptr(GDir) dir = g_dir_open(journal->directory, 0, NULL);

    g_assert(entries && entries->len <= 1);
    VmfJournalState state = entries->len > 0 ? g_array_index(entries, VmfJournalEntry, 0).state : VMF_JOURNAL_NONE;
    for (const char *name; (name = g_dir_read_name(dir));) {
        g_autofree char *path = g_build_filename(journal->directory, name, NULL);
        g_unlink(path);
    }
    g_rmdir(journal->directory);
    g_free(journal->directory);
    vmf_journal_free(journal->journal);
    return state;
}

VmfMachine *vmf_test_machine(const char *name, unsigned memory_mib, VmfRamBackend backend, uint64_t dirty, uint64_t set)
{
    g_autoptr(GError) error = NULL;
    VmfMachineConfig config = {
        .name = name,
        .memory_bytes = (uint64_t)memory_mib << 20,
        .ram_backend = backend,
        .dirty_bytes_per_second = dirty,
        .set_bytes = set,
        .seed = 7,
        .unpaced = true,
    };
    VmfMachine *machine = vmf_machine_new(&config, &error);

    if (!machine)
        g_error("%s", error->message);
    return machine;
}
