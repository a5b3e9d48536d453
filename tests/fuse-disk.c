/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One thread reads requests from /dev/fuse and submits them; each is answered from its done(). While it is held the
 * thread stands before the next request, and the kernel waits as a guest's driver waits for a device that is slow.
 */
#include "tests/fuse-disk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <linux/loop.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

#define DATA_MAX (128u << 10)
#define REQUEST_MAX (DATA_MAX + 4096)

struct VmfFuseDisk {
    int fd;
    char *path;
    uint64_t size_bytes;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    VmfDisk *disk; /* NULL: held */
    unsigned under_way, n_failed;
};

typedef struct {
    VmfFuseDisk *fuse;
    uint64_t unique;
    VmfDiskRequest request;
    struct iovec iov;
    uint8_t *data; /* DATA_MAX, aligned to a page */
} Op;

/* ---- answers ----------------------------------------------------------------------------------------------------- */

static void answer(VmfFuseDisk *fuse, uint64_t unique, int error, const void *data, size_t length)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof(header) + length), .error = -error, .unique = unique};
    struct iovec iov[] = {{&header, sizeof(header)}, {(void *)data, length}};

    if (writev(fuse->fd, iov, 2) < 0 && errno != ENOENT && errno != ENODEV)
        g_error("fuse: answer: %s", g_strerror(errno));
}

static void on_done(VmfDiskRequest *request, const GError *error)
{
    Op *op = request->opaque;
    VmfFuseDisk *fuse = op->fuse;
    bool is_write = request->operation == VMF_DISK_WRITE, is_read = request->operation == VMF_DISK_READ;
    struct fuse_write_out written = {.size = (uint32_t)request->length};

    if (error)
        answer(fuse, op->unique, EIO, NULL, 0);
    else if (is_read)
        answer(fuse, op->unique, 0, op->data, request->length);
    else
        answer(fuse, op->unique, 0, &written, is_write ? sizeof(written) : 0);
    pthread_mutex_lock(&fuse->lock);
    fuse->under_way--;
    fuse->n_failed += error != NULL;
    pthread_cond_broadcast(&fuse->changed);
    pthread_mutex_unlock(&fuse->lock);
    free(op->data);
    g_free(op);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static VmfDisk *wait_for_disk(VmfFuseDisk *fuse)
{
    pthread_mutex_lock(&fuse->lock);
    while (!fuse->disk)
        pthread_cond_wait(&fuse->changed, &fuse->lock);
    VmfDisk *disk = fuse->disk;
    fuse->under_way++;
    pthread_mutex_unlock(&fuse->lock);
    return disk;
}

static void submit(VmfFuseDisk *fuse, uint64_t unique, VmfDiskOperation operation, uint64_t offset, uint64_t length,
                   const void *data)
{
    Op *op = g_new0(Op, 1);
    bool moves = operation == VMF_DISK_READ || operation == VMF_DISK_WRITE;

    *op = (Op){.fuse = fuse, .unique = unique};
    if (moves && (length > DATA_MAX || posix_memalign((void **)&op->data, 4096, DATA_MAX) != 0))
        g_error("fuse: a request of %" G_GUINT64_FORMAT " bytes", length);
    if (data)
        memcpy(op->data, data, length);
    op->iov = (struct iovec){op->data, length};
    op->request = (VmfDiskRequest){.operation = operation,
                                   .offset = offset,
                                   .length = length,
                                   .iov = moves ? &op->iov : NULL,
                                   .n_iov = moves,
                                   .done = on_done,
                                   .opaque = op};
    vmf_disk_submit(wait_for_disk(fuse), &op->request);
}

static void fallocate_at(VmfFuseDisk *fuse, uint64_t unique, const struct fuse_fallocate_in *in)
{
    if (in->mode & FALLOC_FL_PUNCH_HOLE)
        submit(fuse, unique, VMF_DISK_DISCARD, in->offset, in->length, NULL);
    else if (in->mode & FALLOC_FL_ZERO_RANGE)
        submit(fuse, unique, VMF_DISK_ZERO, in->offset, in->length, NULL);
    else
        answer(fuse, unique, EOPNOTSUPP, NULL, 0);
}

static void say_attributes(VmfFuseDisk *fuse, uint64_t unique)
{
    struct fuse_attr_out out = {
        .attr_valid = 3600,
        .attr = {.ino = 1, .size = fuse->size_bytes, .blocks = fuse->size_bytes / 512, .nlink = 1, .blksize = 4096}};

    out.attr.mode = S_IFREG | 0600;

    answer(fuse, unique, 0, &out, sizeof(out));
}

static void begin(VmfFuseDisk *fuse, uint64_t unique, const struct fuse_init_in *in)
{
    struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION,
                                .minor = FUSE_KERNEL_MINOR_VERSION,
                                .max_readahead = in->max_readahead,
                                .flags = FUSE_BIG_WRITES | FUSE_MAX_PAGES,
                                .max_background = 64,
                                .congestion_threshold = 48,
                                .max_write = DATA_MAX,
                                .time_gran = 1,
                                .max_pages = DATA_MAX / 4096};

    answer(fuse, unique, 0, &out, sizeof(out));
}

static void take(VmfFuseDisk *fuse, const struct fuse_in_header *in, const void *body)
{
    const struct fuse_read_in *read_in = body;
    const struct fuse_write_in *write_in = body;
    struct fuse_open_out opened = {.fh = 1, .open_flags = FOPEN_DIRECT_IO};
    struct fuse_statfs_out statfs = {.st = {.bsize = 4096, .namelen = 255}};

    switch (in->opcode) {
    case FUSE_INIT:
        return begin(fuse, in->unique, body);
    case FUSE_GETATTR:
    case FUSE_SETATTR:
        return say_attributes(fuse, in->unique);
    case FUSE_OPEN:
        return answer(fuse, in->unique, 0, &opened, sizeof(opened));
    case FUSE_READ:
        return submit(fuse, in->unique, VMF_DISK_READ, read_in->offset, read_in->size, NULL);
    case FUSE_WRITE:
        return submit(fuse, in->unique, VMF_DISK_WRITE, write_in->offset, write_in->size, write_in + 1);
    case FUSE_FSYNC:
        return submit(fuse, in->unique, VMF_DISK_FLUSH, 0, 0, NULL);
    case FUSE_FALLOCATE:
        return fallocate_at(fuse, in->unique, body);
    case FUSE_STATFS:
        return answer(fuse, in->unique, 0, &statfs, sizeof(statfs));
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_DESTROY:
        return answer(fuse, in->unique, 0, NULL, 0);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        return;
    default:
        return answer(fuse, in->unique, ENOSYS, NULL, 0);
    }
}

static void *serve(void *opaque)
{
    VmfFuseDisk *fuse = opaque;
    g_autofree uint8_t *buffer = g_malloc(REQUEST_MAX);
    ssize_t n;

    /* Memory that the kernel wants for us must not wait for what we have yet to write. */
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    while ((n = read(fuse->fd, buffer, REQUEST_MAX)) > 0 || errno == EINTR || errno == ENOENT || errno == EAGAIN)
        if (n > 0)
            take(fuse, (const struct fuse_in_header *)buffer, buffer + sizeof(struct fuse_in_header));
    return NULL; /* ENODEV: it was unmounted */
}

/* ---- making it --------------------------------------------------------------------------------------------------- */

VmfFuseDisk *vmf_fuse_disk_new(const char *path, uint64_t size_bytes)
{
    VmfFuseDisk *fuse = g_new0(VmfFuseDisk, 1);

    fuse->fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    g_autofree char *options =
        g_strdup_printf("fd=%d,rootmode=100000,user_id=0,group_id=0,max_read=%u", fuse->fd, DATA_MAX);
    if (fuse->fd < 0 || mount("vmferry-test", path, "fuse", MS_NOSUID | MS_NODEV, options) < 0)
        g_error("fuse: %s", g_strerror(errno));
    fuse->path = g_strdup(path);
    fuse->size_bytes = size_bytes;
    pthread_mutex_init(&fuse->lock, NULL);
    pthread_cond_init(&fuse->changed, NULL);
    if (pthread_create(&fuse->thread, NULL, serve, fuse) != 0)
        g_error("fuse: no thread");
    return fuse;
}

void vmf_fuse_disk_free(VmfFuseDisk *fuse)
{
    /* The loop device lets go of the file behind the back of whoever unmounts. */
    for (unsigned i = 0; i < 3000 && umount(fuse->path) < 0; i++) {
        g_assert(errno == EBUSY);
        g_usleep(10000);
    }
    pthread_join(fuse->thread, NULL);
    close(fuse->fd);
    pthread_cond_destroy(&fuse->changed);
    pthread_mutex_destroy(&fuse->lock);
    g_free(fuse->path);
    g_free(fuse);
}

void vmf_fuse_disk_hold(VmfFuseDisk *fuse)
{
    pthread_mutex_lock(&fuse->lock);
    fuse->disk = NULL;
    while (fuse->under_way > 0)
        pthread_cond_wait(&fuse->changed, &fuse->lock);
    pthread_mutex_unlock(&fuse->lock);
}

void vmf_fuse_disk_use(VmfFuseDisk *fuse, VmfDisk *disk)
{
    pthread_mutex_lock(&fuse->lock);
    fuse->disk = disk;
    pthread_cond_broadcast(&fuse->changed);
    pthread_mutex_unlock(&fuse->lock);
}

VmfDisk *vmf_fuse_disk_used(VmfFuseDisk *fuse)
{
    pthread_mutex_lock(&fuse->lock);
    VmfDisk *disk = fuse->disk;
    pthread_mutex_unlock(&fuse->lock);
    return disk;
}

unsigned vmf_fuse_disk_failures(VmfFuseDisk *fuse)
{
    pthread_mutex_lock(&fuse->lock);
    unsigned n = fuse->n_failed;
    pthread_mutex_unlock(&fuse->lock);
    return n;
}

/* ---- loop devices ------------------------------------------------------------------------------------------------ */

/* A free loop device on @fd; another may be faster. */
static int attach(int fd, char **path)
{
    struct loop_config config = {.fd = (uint32_t)fd, .info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), loop = -1, number = 0;

    for (unsigned i = 0; i < 100 && loop < 0 && number >= 0; i++) {
        number = ioctl(control, LOOP_CTL_GET_FREE);
        g_free(*path);
        *path = g_strdup_printf("/dev/loop%d", number);
        loop = open(*path, O_RDWR | O_CLOEXEC);
        if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) < 0) {
            close(loop);
            loop = -1;
            number = errno == EBUSY ? 0 : -1;
        }
    }
    if (control >= 0)
        close(control);
    return loop;
}

void vmf_mount_ext4(const char *file, const char *where)
{
    g_autofree char *path = NULL;
    int fd = open(file, O_RDWR | O_CLOEXEC), loop = fd < 0 ? -1 : attach(fd, &path);

    if (loop < 0 || mount(path, where, "ext4", 0, NULL) < 0)
        g_error("%s: mount: %s", file, g_strerror(errno));
    close(loop);
    close(fd);
}

char *vmf_fuse_disk_problem(void)
{
    static const char *const devices[] = {"/dev/fuse", "/dev/loop-control"};

    if (geteuid() != 0)
        return g_strdup("only root may mount");
    for (unsigned i = 0; i < G_N_ELEMENTS(devices); i++) {
        int fd = open(devices[i], O_RDWR | O_CLOEXEC);
        if (fd < 0)
            return g_strdup_printf("%s: %s", devices[i], g_strerror(errno));
        close(fd);
    }
    g_autofree char *path = NULL;
    int memory = memfd_create("loop", MFD_CLOEXEC), loop = -1;
    if (memory >= 0 && ftruncate(memory, 1 << 20) == 0)
        loop = attach(memory, &path);
    char *problem = loop < 0 ? g_strdup_printf("a loop device: %s", g_strerror(errno)) : NULL;
    if (loop >= 0)
        close(loop);
    if (memory >= 0)
        close(memory);
    return problem;
}
