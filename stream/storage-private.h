/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Storage from the inside. A kind of storage embeds VmfStorage first, a kind of queue VmfStorageQueue; both are
 * allocated with g_new0().
 *
 * The life of a request: vmf_storage_submit() checks it and appends it to the queue's list of staged requests; issue()
 * or reap() takes it from there and gives it to whoever executes it; reap() finds out what has become of it and says
 * vmf_storage_request_ended(); it then waits in the list of ended requests until its done() is called. No step
 * allocates or takes a lock, as far as the backend can do without.
 */
#ifndef STREAM_STORAGE_PRIVATE_H
#define STREAM_STORAGE_PRIVATE_H

#include "stream/storage-uri.h"
#include "stream/storage.h"

#include <stdatomic.h>

typedef struct {
    VmfStorageRequest *head;
    VmfStorageRequest **tail;
    unsigned n;
} VmfRequestList;

static inline void vmf_request_list_init(VmfRequestList *list)
{
    *list = (VmfRequestList){.tail = &list->head};
}

static inline void vmf_request_list_append(VmfRequestList *list, VmfStorageRequest *request)
{
    request->next = NULL;
    *list->tail = request;
    list->tail = &request->next;
    list->n++;
}

/* NULL: empty */
static inline VmfStorageRequest *vmf_request_list_pop(VmfRequestList *list)
{
    VmfStorageRequest *request = list->head;

    if (!request)
        return NULL;
    list->head = request->next;
    if (!list->head)
        list->tail = &list->head;
    list->n--;
    return request;
}

/* Moves all of @from to @to, which is overwritten. */
static inline void vmf_request_list_take(VmfRequestList *from, VmfRequestList *to)
{
    *to = *from;
    if (!to->head)
        to->tail = &to->head;
    vmf_request_list_init(from);
}

/* Calls are as those of storage.h; what they are given has been checked against size, alignment and mode. */
typedef struct {
    void (*free)(VmfStorage *storage);
    bool (*set_size)(VmfStorage *storage, uint64_t size, GError **error); /* sets storage->size itself */
    bool (*preallocate)(VmfStorage *storage, uint64_t offset, uint64_t length,
                        GError **error); /* NULL: no such thing */
    bool (*flush)(VmfStorage *storage, GError **error);
    bool (*commit)(VmfStorage *storage, GError **error); /* after a flush; NULL: there is no name to take */
    bool (*execute)(VmfStorage *storage, VmfStorageRequest *request,
                    GError **error); /* READ or WRITE, one piece; it may block */
    bool (*extent)(VmfStorage *storage, uint64_t offset, uint64_t length, VmfExtentKind *kind, uint64_t *extent_length,
                   GError **error);
    /* The caller completes VmfStorageQueue. */
    VmfStorageQueue *(*queue_new)(VmfStorage *storage, unsigned depth, GError **error);
    void (*shutdown)(VmfStorage *storage); /* NULL: nothing there waits for a peer */
} VmfStorageOps;

struct VmfStorage {
    const VmfStorageOps *ops;
    char *name; /* owned */
    const char *backend;
    VmfStorageMode mode;
    _Atomic uint64_t size; /* bytes */
    uint32_t alignment;
    bool in_place;
    bool wants_stable_writes;
    bool any_memory; /* the alignment is of offsets and lengths alone, not of what pieces data lies in */
};

typedef struct {
    /* Begins what is staged, as much of it as can be begun. */
    void (*issue)(VmfStorageQueue *queue);
    /* Begins what is staged, and ends what has completed. @wait: sleeps until one has been ended, or
     * vmf_storage_is_woken(). Some are busy. */
    void (*reap)(VmfStorageQueue *queue, bool wait);
    void (*wake)(VmfStorageQueue *queue); /* woken was set: ends a sleep, any thread. NULL: there is none */
    void (*free)(VmfStorageQueue *queue); /* nothing is under way */
} VmfStorageQueueOps;

struct VmfStorageQueue {
    const VmfStorageQueueOps *ops;
    VmfStorage *storage;
    unsigned depth;
    unsigned busy;         /* staged or being executed: at most depth */
    unsigned under_way;    /* busy, or ended and not told yet */
    bool telling;          /* done() of some request is being called */
    bool wakeable;         /* whoever waits does so in vmf_storage_wait_or_wake() */
    atomic_bool woken;
    VmfRequestList staged; /* busy, not begun */
    VmfRequestList ended;  /* not told yet */
};

static inline bool vmf_storage_is_woken(VmfStorageQueue *queue)
{
    return queue->wakeable && atomic_load(&queue->woken);
}

/* The end of a busy request, @error is taken over: NULL if it went well. */
void vmf_storage_request_ended(VmfStorageQueue *queue, VmfStorageRequest *request, GError *error);

/* "NAME: write: 4096 bytes at offset 8192: CAUSE", VMF_ERROR_IO or VMF_ERROR_NO_SPACE. Returns a new error. */
GError *vmf_storage_request_error(const VmfStorage *storage, const VmfStorageRequest *request, int err);
/* The same of a call that concerns the whole storage. Returns false. */
bool vmf_storage_error(const VmfStorage *storage, const char *operation, int err, GError **error);

/* Makes @request new: nothing is transferred yet. */
void vmf_storage_request_begin(VmfStorageRequest *request);

/*
 * What became of one attempt at READ or WRITE: @result is bytes, or -errno. Returns true when the request has ended,
 * with *@error set or not; false: request->left and progress stand at what remains.
 */
bool vmf_storage_request_attempted(const VmfStorage *storage, VmfStorageRequest *request, int64_t result,
                                   GError **error);

/* One a kind of URI. */
VmfStorage *vmf_storage_file_open(const char *path, const VmfStorageOptions *options, GError **error);
/* Takes over @uri. */
VmfStorage *vmf_storage_nbd_open(VmfStorageUri *uri, const VmfStorageOptions *options, GError **error);

#endif
