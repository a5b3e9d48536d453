/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files that take their name when they are whole.
 *
 * What is being written has the name PATH.partial and a lock. Committed, it is renamed to PATH and the directory is
 * synced, so under PATH there is the former file or the whole new one, whatever happens in between. Dropped before
 * that, it is removed; a writer that was killed leaves it behind, and the next one takes it over. Two writers at once
 * are kept apart by the lock, which lives as long as the descriptor and so until the rename is done.
 *
 * Guest memory is in these files: they are created for their owner alone.
 */
#ifndef STREAM_PARTIAL_FILE_H
#define STREAM_PARTIAL_FILE_H

#include <glib.h>
#include <stdbool.h>

typedef struct {
    char *path;    /* where links led to, so that a link to a file stays one */
    char *partial; /* NULL: it has its name */
} VmfPartialFile;

/* Returns a locked, empty descriptor, the caller's; -1 with VMF_ERROR_IO. @access: O_WRONLY or O_RDWR. */
int vmf_partial_file_create(VmfPartialFile *file, const char *path, int access, GError **error);
/* Renames, and syncs the directory; nothing the second time. What was written has been synced. */
bool vmf_partial_file_commit(VmfPartialFile *file, GError **error);
/* Removes what has not got its name. The descriptor is still open, so that the lock holds. All zeros is allowed. */
void vmf_partial_file_clear(VmfPartialFile *file);

/*
 * For others that write under such a name (block/receive.h), so that all keep out of each other's way.
 *
 * Locks what @fd is open on, at once or not at all, for as long as its description lives. Returns an errno; EBUSY: somebody
 * else is writing it. @lockless: storage without such locks will do.
 */
int vmf_partial_file_lock(int fd, bool lockless);
/*
 * Opens @partial and locks it; what is in it stays. @flags: the access, and O_CREAT if it is to be made. -1 with errno;
 * EBUSY as above; EMLINK: it is no regular file or has another name as well.
 */
int vmf_partial_file_open(const char *partial, int flags, bool lockless);
/* Whether @fd, which may be -1, is open on what stands under @name; a link there is not followed. */
bool vmf_partial_file_is_at(int fd, const char *name);
/* What was renamed or removed in the directory of @path is durable. Returns an errno. Where that cannot be asked for, 0. */
int vmf_sync_directory_of(const char *path);
/* In words, of the errno of vmf_partial_file_lock() or vmf_partial_file_open(). */
const char *vmf_partial_file_problem(int err);

#endif
