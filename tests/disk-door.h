/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Storage that a test shuts, so that what is asked of it waits. */
#ifndef TESTS_DISK_DOOR_H
#define TESTS_DISK_DOOR_H

#include <pthread.h>

#include "stream/storage-private.h"

/* Nothing that is asked ends while @shut. All under the lock once it is in use. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t opened;
    bool shut;
    unsigned delay_us; /* of all that passes */
    int shuts_at;      /* a request of this kind, once; 0: none */
} Door;

/* For vmf_disk_set_wrap(); @opaque: the door, which outlives the storage. */
VmfStorage *put_door(VmfStorage *below, void *opaque, GError **error);
/* Returns when it is shut. */
void await_shut(Door *door);
/* @shuts_at: what shuts it again, a VmfRequestKind; 0: nothing does. */
void open_door(Door *door, int shuts_at);

#endif
