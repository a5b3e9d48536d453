/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the journal needs of the world: files of one directory, random bits, the time of day. The journal goes through
 * this table alone, so that a test can put files in memory under it whose unsynced content gets lost or torn at a
 * crash.
 */
#ifndef MIGRATION_JOURNAL_FILES_H
#define MIGRATION_JOURNAL_FILES_H

#include <vmferry/journal.h>

#include <stddef.h>

/* An open file; each implementation has its own. */
typedef struct VmfJournalFile VmfJournalFile;

/*
 * Calls return 0, or -errno. @name is a plain name, without a slash. All calls of one journal are made one at a time,
 * by the thread that called the journal; none may wait for another process. What outlasts a crash of the machine is
 * said at each; a process that dies loses its handles and with them its locks, nothing else.
 */
typedef struct {
    /*
     * Makes the file @name of @size zeros, with the room for them allocated, and locks it. -EEXIST; -EAGAIN when
     * another process took the lock first (it removes leftovers). Neither content nor name is durable. On failure there
     * is no file.
     */
    int (*create)(void *opaque, const char *name, size_t size, VmfJournalFile **file);
    /* Opens a file, without a lock. -ENOENT. A file opened with @writable false is never written or locked. */
    int (*open)(void *opaque, const char *name, bool writable, VmfJournalFile **file);
    /* Reads at most @size octets from the start of the file; *@got says how many there were. Sees what others wrote,
     * durable or not. -ENOENT when its name was removed. */
    int (*read)(void *opaque, VmfJournalFile *file, void *buffer, size_t size, size_t *got);
    /* Overwrites @size octets within the file; never beyond its end. Until sync() succeeds any part of them may be
     * durable. */
    int (*write)(void *opaque, VmfJournalFile *file, size_t offset, const void *data, size_t size);
    /*
     * Makes the content of the file durable, whoever wrote it. -ENOENT when its name was removed. After a failure it is
     * unknown what of the writes since the last sync() a crash would leave.
     */
    int (*sync)(void *opaque, VmfJournalFile *file);
    /* Takes the file's only lock without waiting; held until the handle is closed. -EAGAIN: another handle has it. */
    int (*lock)(void *opaque, VmfJournalFile *file);
    /* 1: another handle, of this process or any, holds the lock. 0: none does. Takes nothing. */
    int (*is_locked)(void *opaque, VmfJournalFile *file);
    /* Ends the lock as well. */
    void (*close)(void *opaque, VmfJournalFile *file);
    /*
     * Gives the file @from the name @to and takes the old name away, in one step for everybody who looks for @to.
     * -EEXIST: there is a @to, nothing changed; -ENOENT: there is no @from. Durable after sync_directory(), with what
     * sync() made durable of the content.
     */
    int (*publish)(void *opaque, const char *from, const char *to);
    /* Removes a name. Durable after sync_directory(). -ENOENT. */
    int (*remove)(void *opaque, const char *name);
    int (*sync_directory)(void *opaque);
    /* Appends every name in the directory to @names (newly allocated strings), but for "." and "..". */
    int (*list)(void *opaque, GPtrArray *names);
    /* Fills @buffer with random octets. */
    int (*random)(void *opaque, void *buffer, size_t size);
    /* CLOCK_REALTIME. */
    int64_t (*time_ns)(void *opaque);
    /* The journal is done with the table. NULL: nothing to do. */
    void (*free)(void *opaque);
} VmfJournalFiles;

/* A directory of this host; @opaque comes from vmf_journal_directory_open(). */
extern const VmfJournalFiles vmf_journal_posix_files;

/* Opens @directory, made with mode 0700 where it is not there, durably, its parents too. NULL and @error on failure. */
void *vmf_journal_directory_open(const char *directory, GError **error);

/* A journal over any table. @name stands in messages. Owns @opaque from here on, also when it fails. */
VmfJournal *vmf_journal_open_on(const VmfJournalFiles *files, void *opaque, const char *name, GError **error);

#endif
