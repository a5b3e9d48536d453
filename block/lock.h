/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The lock on the file that holds a disk: never two writers, in one process, on one host, or on hosts that share a
 * filesystem.
 *
 * Octets of the file are locked, whatever is in them and whether they are there or not:
 *
 *   101   somebody writes     a writer: exclusively
 *   201   nobody else writes  a writer: exclusively; a reader: shared
 *   100   somebody reads      a reader: shared
 *
 * These are the octets that QEMU locks of its images (100 + n: permission n is used, 200 + n: it is refused to others;
 * permission 0 is to read, 1 is to write), so that the two keep out of each other's way.
 */
#ifndef BLOCK_LOCK_H
#define BLOCK_LOCK_H

#include <glib.h>
#include <stdbool.h>

/*
 * Locks the file that @fd is open on, at once or not at all. The lock is that of the open file description, and ends
 * when its last descriptor is closed, or with vmf_disk_lock_drop(). @name: for messages. VMF_ERROR_LOCKED: another has
 * it; VMF_ERROR_UNSUPPORTED: there are no such locks there.
 */
bool vmf_disk_lock_take(int fd, bool writes, const char *name, GError **error);
/* That of a partial file (stream/partial-file.h) too. By name, not by closing: a child between its fork and its
 * exec has the descriptor as well. */
void vmf_disk_lock_drop(int fd);

#endif
