/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/presence.h"

#include <pthread.h>
#include <stdatomic.h>

struct VmfPresence {
    _Atomic unsigned n_references;
    VmfPresenceOps ops;
    void *opaque;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned n_inside; /* calls of the ops that have not returned */
    bool closed;
    GError *why;
};

VmfPresence *vmf_presence_new(const VmfPresenceOps *ops, void *opaque)
{
    VmfPresence *presence = g_new0(VmfPresence, 1);

    presence->n_references = 1;
    presence->ops = *ops;
    presence->opaque = opaque;
    pthread_mutex_init(&presence->lock, NULL);
    pthread_cond_init(&presence->changed, NULL);
    return presence;
}

VmfPresence *vmf_presence_ref(VmfPresence *presence)
{
    atomic_fetch_add(&presence->n_references, 1);
    return presence;
}

void vmf_presence_unref(VmfPresence *presence)
{
    if (!presence || atomic_fetch_sub(&presence->n_references, 1) > 1)
        return;
    g_clear_error(&presence->why);
    pthread_cond_destroy(&presence->changed);
    pthread_mutex_destroy(&presence->lock);
    g_free(presence);
}

void vmf_presence_close(VmfPresence *presence, const GError *why)
{
    pthread_mutex_lock(&presence->lock);
    presence->closed = true;
    if (why && !presence->why)
        presence->why = g_error_copy(why);
    while (presence->n_inside > 0)
        pthread_cond_wait(&presence->changed, &presence->lock);
    pthread_mutex_unlock(&presence->lock);
}

/* False: the ops are not to be called; *@result is the answer. */
static bool enter(VmfPresence *presence, bool *result, GError **error)
{
    *result = true;
    if (!presence)
        return false;
    pthread_mutex_lock(&presence->lock);
    bool open = !presence->closed;
    if (open)
        presence->n_inside++;
    else if (presence->why)
        g_propagate_error(error, g_error_copy(presence->why));
    *result = open || !presence->why;
    pthread_mutex_unlock(&presence->lock);
    return open;
}

static void leave(VmfPresence *presence)
{
    pthread_mutex_lock(&presence->lock);
    if (--presence->n_inside == 0)
        pthread_cond_broadcast(&presence->changed);
    pthread_mutex_unlock(&presence->lock);
}

bool vmf_presence_pending(VmfPresence *presence, unsigned block, VmfDirtyBitmap *out, GError **error)
{
    bool done;

    if (!enter(presence, &done, error))
        return done;
    done = presence->ops.pending(presence->opaque, block, out, error);
    leave(presence);
    return done;
}

bool vmf_presence_ensure(VmfPresence *presence, unsigned block, uint64_t chunk, GError **error)
{
    bool there;

    if (!enter(presence, &there, error))
        return there;
    there = presence->ops.ensure(presence->opaque, block, chunk, error);
    leave(presence);
    return there;
}
