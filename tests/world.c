/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/world.h"

#include <stdio.h>

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

static void source_event(void *opaque, const char *id, const char *text)
{
    note(opaque, "source", id, text);
}

static void target_event(void *opaque, const char *id, const char *text)
{
    note(opaque, "target", id, text);
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

static void make_link(VmfTripRunning *running)
{
    VmfTrip *trip = running->trip;
    g_autoptr(GError) error = NULL;

    if (!trip->listen_uri) {
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

/* A target that goes on waiting when the source is done (refused, say) is told to stop. */
bool vmf_trip_finish(VmfTripRunning *running)
{
    VmfTrip *trip = running->trip;

    pthread_join(running->source_thread, NULL);
    if (!trip->source_done) {
        VmfStatistics statistics = {.size = sizeof(statistics)};
        vmf_session_get_statistics(running->target, &statistics);
        if (statistics.status <= VMF_STATUS_SETUP)
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
