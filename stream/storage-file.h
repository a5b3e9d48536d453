/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files and block devices, and what executes their requests. */
#ifndef STREAM_STORAGE_FILE_H
#define STREAM_STORAGE_FILE_H

#include "stream/partial-file.h"
#include "stream/storage-private.h"

typedef struct VmfStorageFile VmfStorageFile;

typedef struct {
    const char *name;
    bool needs_direct;   /* on buffered files it would make submitters wait */
    bool (*works)(void); /* does the system let us? */
    /* May fail where there are too many of them: then the next backend is tried. */
    VmfStorageQueue *(*queue_new)(VmfStorageFile *file, unsigned depth, GError **error);
} VmfFileBackend;

struct VmfStorageFile {
    VmfStorage base;
    int fd;
    bool is_device;
    bool direct;
    atomic_uint zero_way; /* the first way to zero that may work here */
    VmfPartialFile partial;
    const VmfFileBackend *const *backends; /* the one in use, and what to fall back on, until NULL */
};

extern const VmfFileBackend vmf_file_backend_io_uring;
extern const VmfFileBackend vmf_file_backend_libaio;
extern const VmfFileBackend vmf_file_backend_threads;

/* Turns on direct I/O unless @buffered, as far as it works, and sets direct, alignment and wants_stable_writes.
 * @is_new: it is empty. */
void vmf_storage_file_learn(VmfStorageFile *file, bool buffered, bool is_new);

/* Of a file that vmf_storage_open() has returned: its descriptor, which stays the storage's. */
int vmf_storage_file_fd(const VmfStorage *storage);

/* Executes any request and waits for it. Returns its error. Any thread. */
GError *vmf_storage_file_execute(VmfStorageFile *file, VmfStorageRequest *request);
/* Makes a range read as zeros, durably or not, the best way the file has, and waits for it. Returns an errno. Any
 * thread. */
int vmf_storage_file_zero(VmfStorageFile *file, const VmfStorageRequest *request);

#endif
