/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The journal's files in a directory of this host. */
#include "migration/journal-files.h"

#include <vmferry/error.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "stream/clock.h"

typedef struct {
    int fd;
} Directory;

struct VmfJournalFile {
    int fd;
};

static VmfJournalFile *file_new(int fd)
{
    VmfJournalFile *file = g_new(VmfJournalFile, 1);

    file->fd = fd;
    return file;
}

static void file_close(void *opaque, VmfJournalFile *file)
{
    close(file->fd);
    g_free(file);
}

/*
 * Locks of the open file, not of the process: they hold between two handles of one process too, closing another handle
 * does not end them, and F_OFD_GETLK can ask without taking, so that a question never looks like an owner to the next
 * one who asks.
 */
static int file_lock(void *opaque, VmfJournalFile *file)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(file->fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

static int file_is_locked(void *opaque, VmfJournalFile *file)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(file->fd, F_OFD_GETLK, &lock) != 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}

static int file_write(void *opaque, VmfJournalFile *file, size_t offset, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(file->fd, (const uint8_t *)data + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return 0;
}

/*
 * Room is allocated, and then written to: allocated room that was never written to changes the file system's own tables
 * when it is, which is slower. A copy-on-write file system needs new room all the same.
 */
static int fill(VmfJournalFile *file, size_t size)
{
    g_autofree uint8_t *zeros = g_malloc0(size);
    int result;

    do
        result = -posix_fallocate(file->fd, 0, (off_t)size);
    while (result == -EINTR);
    return result != 0 ? result : file_write(NULL, file, 0, zeros, size);
}

static int file_create(void *opaque, const char *name, size_t size, VmfJournalFile **file)
{
    const Directory *directory = opaque;
    int fd = openat(directory->fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return -errno;
    *file = file_new(fd);
    int result = file_lock(opaque, *file);
    if (result == 0)
        result = fill(*file, size);
    if (result == 0)
        return 0;
    unlinkat(directory->fd, name, 0);
    file_close(opaque, *file);
    return result;
}

/* O_NONBLOCK: somebody's FIFO of that name must not stop us; what is not a file is damage. */
static int file_open(void *opaque, const char *name, bool writable, VmfJournalFile **file)
{
    const Directory *directory = opaque;
    struct stat status;
    int fd =
        openat(directory->fd, name, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);

    if (fd < 0)
        return -errno;
    int result = fstat(fd, &status) != 0 ? -errno : S_ISREG(status.st_mode) ? 0 : -EINVAL;
    if (result != 0) {
        close(fd);
        return result;
    }
    *file = file_new(fd);
    return 0;
}

/* A state in a file that has lost its name (it was forgotten, or somebody emptied the directory) is durable for nobody. */
static int check_name(const VmfJournalFile *file)
{
    struct stat status;

    if (fstat(file->fd, &status) != 0)
        return -errno;
    return status.st_nlink == 0 ? -ENOENT : 0;
}

static int file_read(void *opaque, VmfJournalFile *file, void *buffer, size_t size, size_t *got)
{
    int result = check_name(file);

    if (result != 0)
        return result;
    for (*got = 0; *got < size;) {
        ssize_t n = pread(file->fd, (uint8_t *)buffer + *got, size - *got, (off_t)*got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        *got += (size_t)n;
    }
    return 0;
}

static int sync_fd(int fd, int (*call)(int))
{
    int result;

    do
        result = call(fd) == 0 ? 0 : -errno;
    while (result == -EINTR);
    return result;
}

static int file_sync(void *opaque, VmfJournalFile *file)
{
    int result = check_name(file);

    return result != 0 ? result : sync_fd(file->fd, fdatasync);
}

/* A link, since it never replaces, on every file system that has links; the others have rename without replacing, or
 * nothing. */
static int file_publish(void *opaque, const char *from, const char *to)
{
    const Directory *directory = opaque;

    if (linkat(directory->fd, from, directory->fd, to, 0) == 0) {
        unlinkat(directory->fd, from, 0);
        return 0;
    }
    if (errno != EPERM && errno != EOPNOTSUPP && errno != ENOSYS)
        return -errno;
    return renameat2(directory->fd, from, directory->fd, to, RENAME_NOREPLACE) == 0 ? 0 : -errno;
}

static int file_remove(void *opaque, const char *name)
{
    const Directory *directory = opaque;

    return unlinkat(directory->fd, name, 0) == 0 ? 0 : -errno;
}

static int directory_sync(void *opaque)
{
    const Directory *directory = opaque;

    return sync_fd(directory->fd, fsync);
}

/* Through a descriptor of its own: one directory has one read position. */
static int directory_list(void *opaque, GPtrArray *names)
{
    const Directory *directory = opaque;
    int fd = openat(directory->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);

    if (!stream) {
        int result = -errno;
        if (fd >= 0)
            close(fd);
        return result;
    }
    errno = 0;
    for (struct dirent *entry; (entry = readdir(stream)); errno = 0)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            g_ptr_array_add(names, g_strdup(entry->d_name));
    int result = -errno;
    closedir(stream);
    return result;
}

static int system_random(void *opaque, void *buffer, size_t size)
{
    ssize_t n;

    do
        n = getrandom(buffer, size, 0); /* up to 256 octets come whole */
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : (size_t)n == size ? 0 : -EIO;
}

static int64_t system_time_ns(void *opaque)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * VMF_NS_PER_S + t.tv_nsec;
}

static void directory_free(void *opaque)
{
    Directory *directory = opaque;

    close(directory->fd);
    g_free(directory);
}

const VmfJournalFiles vmf_journal_posix_files = {
    .create = file_create,
    .open = file_open,
    .read = file_read,
    .write = file_write,
    .sync = file_sync,
    .lock = file_lock,
    .is_locked = file_is_locked,
    .close = file_close,
    .publish = file_publish,
    .remove = file_remove,
    .sync_directory = directory_sync,
    .list = directory_list,
    .random = system_random,
    .time_ns = system_time_ns,
    .free = directory_free,
};

/* ---- the directory itself --------------------------------------------------------------------------------------- */

/* Makes the name of @path durable in the folder above it. */
static int sync_parent(const char *path)
{
    g_autofree char *parent = g_path_get_dirname(path);
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int result = fd < 0 ? -errno : sync_fd(fd, fsync);

    if (fd >= 0)
        close(fd);
    return result;
}

/* Parents first. One that was there is taken as it is; a parent that another process made a moment ago gets its sync
 * from us as well. */
static int make_directory(const char *path)
{
    g_autofree char *parent = g_path_get_dirname(path);
    int result = mkdir(path, 0700) == 0 ? 0 : -errno;

    if (result == -ENOENT && strcmp(parent, path) != 0) {
        result = make_directory(parent);
        if (result == 0)
            result = mkdir(path, 0700) == 0 ? 0 : -errno;
    }
    if (result == 0)
        return sync_parent(path);
    if (result == -EEXIST) {
        sync_parent(path); /* it may not be ours to open; whoever made it syncs it as well */
        return 0;
    }
    return result;
}

void *vmf_journal_directory_open(const char *directory, GError **error)
{
    g_autofree char *path = g_canonicalize_filename(directory, NULL);
    struct stat status;
    int result = make_directory(path);
    int fd = result != 0 ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (result == 0 && fd < 0)
        result = -errno;
    if (result == 0 && fstat(fd, &status) != 0)
        result = -errno;
    if (result == 0 && status.st_mode & S_IWOTH) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_JOURNAL, "journal: %s: open: everybody may write to it: make it 0700",
                    directory);
        close(fd);
        return NULL;
    }
    if (result != 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_JOURNAL, "journal: %s: open: %s", directory, g_strerror(-result));
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    Directory *opened = g_new(Directory, 1);
    opened->fd = fd;
    return opened;
}
