/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/watchdog.h"

#include <vmferry/error.h>

#include "stream/clock.h"

#define LOOKS 8 /* within the patience: it is overdrawn by at most an eighth */

struct VmfWatchdog {
    VmfSession *session;
    int64_t patience_ns;
    uint64_t (*progress)(void *opaque);
    void *opaque;
    pthread_t thread;
    bool quit;  /* under the session's lock */
    bool acted; /* the thread's; read once it has ended */
};

/* Waits for the next look. False: there is none. */
static bool sleep_between_looks(VmfWatchdog *watchdog)
{
    VmfSession *session = watchdog->session;
    int64_t deadline = vmf_now_ns() + watchdog->patience_ns / LOOKS;

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
    uint64_t before = watchdog->progress(watchdog->opaque);
    int64_t since = vmf_now_ns();

    while (!watchdog->acted && sleep_between_looks(watchdog)) {
        uint64_t now = watchdog->progress(watchdog->opaque);
        if (now != before)
            since = vmf_now_ns();
        before = now;
        watchdog->acted = vmf_now_ns() - since >= watchdog->patience_ns;
    }
    if (watchdog->acted)
        vmf_session_shutdown_channels(watchdog->session);
    return NULL;
}

VmfWatchdog *vmf_watchdog_new(VmfSession *session, int64_t patience_ns, uint64_t (*progress)(void *opaque), void *opaque,
                              GError **error)
{
    VmfWatchdog *watchdog = g_new0(VmfWatchdog, 1);

    *watchdog = (VmfWatchdog){.session = session, .patience_ns = patience_ns, .progress = progress, .opaque = opaque};
    int failed = pthread_create(&watchdog->thread, NULL, watch, watchdog);
    if (!failed)
        return watchdog;
    g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "watchdog: thread: %s", g_strerror(failed));
    g_free(watchdog);
    return NULL;
}

bool vmf_watchdog_free(VmfWatchdog *watchdog)
{
    if (!watchdog)
        return false;
    pthread_mutex_lock(&watchdog->session->lock);
    watchdog->quit = true;
    pthread_cond_broadcast(&watchdog->session->changed);
    pthread_mutex_unlock(&watchdog->session->lock);
    pthread_join(watchdog->thread, NULL);
    bool acted = watchdog->acted;
    g_free(watchdog);
    return acted;
}
