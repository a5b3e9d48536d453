/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Channels over descriptors. All constructors take ownership of their descriptors, also when they fail. */
#ifndef VMF_STREAM_CHANNEL_FD_H
#define VMF_STREAM_CHANNEL_FD_H

#include "stream/channel.h"

/* VMF_ERROR_UNSUPPORTED unless @fd is a connected stream socket. Leaves @fd alone. */
bool vmf_socket_is_usable(int fd, const char *name, GError **error);

/* Over a connected stream socket. */
VmfChannel *vmf_channel_socket_new(int fd, const char *name, bool one_way);

/* Over what is no socket: pipes, files, character devices. Either descriptor may be -1, or both the same. */
VmfChannel *vmf_channel_pipe_new(int read_fd, int write_fd, const char *name, bool one_way, GError **error);

/* The reader on the other end sees the end of the stream; reading goes on. Writer thread, after its last write. */
void vmf_channel_pipe_close_write(VmfChannel *channel);

/* Which of a command's standard input and output are ours. */
typedef enum {
    VMF_EXEC_WRITE = 1 << 0, /* we write its input */
    VMF_EXEC_READ = 1 << 1,  /* we read its output */
} VmfExecSides;
/* Runs "/bin/sh -c @command" in a process group of its own. */
VmfChannel *vmf_channel_exec_new(const char *command, VmfExecSides sides, GError **error);

/*
 * Writes a file that appears under @path, complete and synced, when vmf_channel_finish() succeeds, and not at all
 * otherwise. What is no regular file (a device) is written in place.
 */
VmfChannel *vmf_channel_file_write_new(const char *path, GError **error);

/* Reads a file or a block device from its start. */
VmfChannel *vmf_channel_file_read_new(const char *path, GError **error);

#endif
