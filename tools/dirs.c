/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/dirs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/error.h>

#define NAME_MAX_BYTES 63
#define LETTERS_DIGITS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

bool vmf_check_machine_name(const char *name, GError **error)
{
    size_t length = strlen(name);

    if (length >= 1 && length <= NAME_MAX_BYTES && g_ascii_isalnum(name[0]) &&
        strspn(name, LETTERS_DIGITS "._-") == length)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                "machine name '%s': 1 to %d letters, digits, '.', '_' and '-', the first a letter or digit", name,
                NAME_MAX_BYTES);
    return false;
}

static const char *option_or_environment(const char *option, const char *variable)
{
    const char *value = option ? option : g_getenv(variable);

    return value && *value ? value : NULL;
}

char *vmf_runtime_dir(const char *option)
{
    const char *given = option_or_environment(option, "VMFERRY_RUNTIME_DIR");

    if (given)
        return g_canonicalize_filename(given, NULL);
    if (geteuid() == 0)
        return g_strdup("/run/vmferry");
    return g_build_filename(g_get_user_runtime_dir(), "vmferry", NULL);
}

char *vmf_state_dir(const char *option)
{
    const char *given = option_or_environment(option, "VMFERRY_STATE_DIR");

    if (given)
        return g_canonicalize_filename(given, NULL);
    if (geteuid() == 0)
        return g_strdup("/var/lib/vmferry");
    return g_build_filename(g_get_user_state_dir(), "vmferry", NULL);
}

static bool refuse_dir(const char *path, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "directory %s: %s", path, why);
    return false;
}

bool vmf_make_private_dir(const char *path, GError **error)
{
    struct stat st;

    if (g_mkdir_with_parents(path, 0700) < 0 || stat(path, &st) < 0)
        return refuse_dir(path, g_strerror(errno), error);
    if (!S_ISDIR(st.st_mode))
        return refuse_dir(path, g_strerror(ENOTDIR), error);
    if (st.st_uid != geteuid())
        return refuse_dir(path, "belongs to another user", error);
    if (st.st_mode & (S_IWGRP | S_IWOTH))
        return refuse_dir(path, "others may write to it", error);
    return true;
}

char *vmf_machine_path(const char *dir, const char *name, const char *suffix)
{
    g_autofree char *file = g_strconcat(name, ".", suffix, NULL);

    return g_build_filename(dir, file, NULL);
}

/* The file may have been removed by its last holder between open and lock: then the lock is on nothing that others see.
 */
static bool is_still_there(int fd, const char *path)
{
    struct stat ours, theirs;

    return fstat(fd, &ours) == 0 && stat(path, &theirs) == 0 && ours.st_ino == theirs.st_ino &&
           ours.st_dev == theirs.st_dev;
}

int vmf_claim_name(const char *dir, const char *name, GError **error)
{
    g_autofree char *path = vmf_machine_path(dir, name, "pid");

    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

        if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0) {
            bool taken = fd >= 0 && errno == EWOULDBLOCK;

            g_set_error(error, VMF_ERROR, taken ? VMF_ERROR_STATE : VMF_ERROR_IO, "machine %s: run: %s%s%s", name,
                        taken ? "" : path, taken ? "" : ": ",
                        taken ? "a machine of this name runs already" : g_strerror(errno));
            if (fd >= 0)
                close(fd);
            return -1;
        }
        if (is_still_there(fd, path)) {
            if (ftruncate(fd, 0) == 0)
                dprintf(fd, "%d\n", (int)getpid());
            return fd;
        }
        close(fd);
    }
}

void vmf_release_name(const char *dir, const char *name, int fd)
{
    g_autofree char *path = vmf_machine_path(dir, name, "pid");

    unlink(path);
    close(fd);
}
