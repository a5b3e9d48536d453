/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/watchdog.h"

#include <vmferry/error.h>

#include "stream/clock.h"

#define LOOK_NS (50 * VMF_NS_PER_MS)

struct VmfWatchdog {
    VmfSession *session;
    bool (*look)(void *opaque, GError **why);
    void *opaque;
    pthread_t thread;
    bool quit; /* under the session's lock */
};

/* Waits for the next look. False: there is none. */
static bool sleep_between_looks(VmfWatchdog *watchdog)
{
    VmfSession *session = watchdog->session;
    int64_t deadline = vmf_now_ns() + LOOK_NS;

    pthread_mutex_lock(&session->lock);
    while (!watchdog->quit && vmf_session_wait_locked(session, deadline))
        ;
    bool go_on = !watchdog->quit;
    pthread_mutex_unlock(&session->lock);
    return go_on;
}

static void *watch(void *opaque)
{
    VmfWatchdog *watchdog = opaque;
    VmfSession *session = watchdog->session;
    GError *why = NULL;

    while (!why && sleep_between_looks(watchdog))
        watchdog->look(watchdog->opaque, &why);
    if (!why)
        return NULL;
    pthread_mutex_lock(&session->lock);
    session->expiry = why;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
    vmf_session_wake(session);
    return NULL;
}

VmfWatchdog *vmf_watchdog_new(VmfSession *session, bool (*look)(void *opaque, GError **why), void *opaque, GError **error)
{
    VmfWatchdog *watchdog = g_new0(VmfWatchdog, 1);

    *watchdog = (VmfWatchdog){.session = session, .look = look, .opaque = opaque};
    int failed = pthread_create(&watchdog->thread, NULL, watch, watchdog);
    if (!failed)
        return watchdog;
    g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "watchdog: thread: %s", g_strerror(failed));
    g_free(watchdog);
    return NULL;
}

void vmf_watchdog_free(VmfWatchdog *watchdog)
{
    if (!watchdog)
        return;
    pthread_mutex_lock(&watchdog->session->lock);
    watchdog->quit = true;
    pthread_cond_broadcast(&watchdog->session->changed);
    pthread_mutex_unlock(&watchdog->session->lock);
    pthread_join(watchdog->thread, NULL);
    g_free(watchdog);
}
