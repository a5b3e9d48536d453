/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Any descriptor as a channel. */
#include "stream/channel-fd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

bool vmf_socket_is_usable(int fd, const char *name, GError **error)
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof(int);
    int type = 0;

    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length);
    length = sizeof(peer);
    if (type == SOCK_STREAM && getpeername(fd, (struct sockaddr *)&peer, &length) == 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "%s: open: descriptor %d is not a connected stream socket",
                name, fd);
    return false;
}

static VmfChannel *from_plain_fd(int fd, mode_t mode, const char *name, bool one_way, GError **error)
{
    int access = fcntl(fd, F_GETFL) & O_ACCMODE;

    if (!one_way && !(access == O_RDWR && S_ISCHR(mode))) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED,
                    "%s: open: descriptor %d is a pipe or a file: one way only", name, fd);
        close(fd);
        return NULL;
    }
    return vmf_channel_pipe_new(access == O_WRONLY ? -1 : fd, access == O_RDONLY ? -1 : fd, name, one_way, error);
}

VmfChannel *vmf_channel_from_fd(int fd, const char *name, bool one_way, GError **error)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "%s: open: descriptor %d: %s", name, fd, g_strerror(errno));
        return NULL;
    }
    if (!S_ISSOCK(st.st_mode))
        return from_plain_fd(fd, st.st_mode, name, one_way, error);
    if (vmf_socket_is_usable(fd, name, error))
        return vmf_channel_socket_new(fd, name, one_way);
    close(fd);
    return NULL;
}
