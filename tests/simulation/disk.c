/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/simulation/disk.h"

#include <errno.h>
#include <string.h>

#include "tests/simulation/world.h"

void disk_clear(Disk *disk, uint64_t identity)
{
    disk->random = identity;
    for (unsigned i = 0; i < DISK_FILES; i++)
        disk->inodes[i].used = false;
    for (unsigned i = 0; i < DISK_NAMES; i++)
        disk->names[i].now = disk->names[i].durable = -1;
    memset(disk->handles, 0, sizeof(disk->handles));
}

static Name *find(Disk *disk, const char *text)
{
    for (unsigned i = 0; i < DISK_NAMES; i++) {
        Name *name = &disk->names[i];
        if ((name->now >= 0 || name->durable >= 0) && strcmp(name->text, text) == 0)
            return name;
    }
    return NULL;
}

static Name *find_or_add(Disk *disk, const char *text)
{
    Name *name = find(disk, text);

    for (unsigned i = 0; i < DISK_NAMES && !name; i++)
        if (disk->names[i].now < 0 && disk->names[i].durable < 0)
            name = &disk->names[i];
    if (name)
        g_strlcpy(name->text, text, sizeof(name->text));
    return name;
}

const uint8_t *disk_durable(const Disk *disk, const char *text, size_t *size)
{
    const Name *name = find((Disk *)disk, text);

    if (!name || name->durable < 0)
        return NULL;
    *size = disk->inodes[name->durable].size;
    return disk->inodes[name->durable].durable;
}

static VmfJournalFile *new_handle(Process *process, int inode, bool writable)
{
    Disk *disk = disk_of(process);

    for (unsigned i = 0; i < DISK_HANDLES; i++)
        if (!disk->handles[i].process) {
            disk->handles[i] = (VmfJournalFile){.process = process, .inode = inode, .writable = writable};
            return &disk->handles[i];
        }
    return NULL;
}

static bool is_locked(const Disk *disk, int inode)
{
    for (unsigned i = 0; i < DISK_HANDLES; i++)
        if (disk->handles[i].process && !disk->handles[i].dead && disk->handles[i].locks && disk->handles[i].inode == inode)
            return true;
    return false;
}

void disk_close_all(Disk *disk, const Process *process)
{
    for (unsigned i = 0; i < DISK_HANDLES; i++)
        if (disk->handles[i].process == process)
            disk->handles[i].dead = true;
}

/* ---- crashes ------------------------------------------------------------------------------------------------------ */

/* Half of a sector: what was being written when the power went. */
static void tear(Inode *inode, unsigned sector)
{
    memcpy(inode->durable + sector * DISK_SECTOR, inode->now + sector * DISK_SECTOR, DISK_SECTOR / 2);
}

static void write_some(World *world, Inode *inode)
{
    unsigned fate = pick(&world->choices, "unsynced content: kept, lost, in part", 3);
    unsigned mask = fate == 0 ? ~0u : fate == 1 ? 0 : pick(&world->choices, "which sectors", 65536);

    for (unsigned i = 0; i < DISK_FILE_MAX / DISK_SECTOR; i++) {
        if (!(inode->dirty & 1u << i))
            continue;
        if (mask & 1u << i)
            memcpy(inode->durable + i * DISK_SECTOR, inode->now + i * DISK_SECTOR, DISK_SECTOR);
        else if (fate == 2)
            tear(inode, i);
    }
    inode->dirty = 0;
}

void disk_crash(Process *process, Disk *disk)
{
    World *world = process->world;

    for (unsigned i = 0; i < DISK_FILES; i++) {
        Inode *inode = &disk->inodes[i];
        if (!inode->used)
            continue;
        if (inode->dirty)
            write_some(world, inode);
        memcpy(inode->now, inode->durable, inode->size);
    }
    for (unsigned i = 0; i < DISK_NAMES; i++) {
        Name *name = &disk->names[i];
        if (name->now == name->durable)
            continue;
        if (pick(&world->choices, "unsynced name: new, old", 2))
            name->now = name->durable;
        else
            name->durable = name->now;
    }
}

/* ---- the table ---------------------------------------------------------------------------------------------------- */

/* Ahead of every call: the dead do nothing, and here is where one dies. */
#define BEGIN(process, what)                                                                                                    \
    if (!(process)->alive || !point(process, "crash before disk " what))                                                        \
        return -EIO;                                                                                                            \
    if (fault((process)->world, DISKS, "disk error in " what)) {                                                                \
        (process)->world->disk_failed |= (process)->who == TARGET;                                                              \
        return -EIO;                                                                                                            \
    }
#define END(process, what, result) (point(process, "crash after disk " what) ? (result) : -EIO)

static bool has_name(const Disk *disk, int inode)
{
    for (unsigned i = 0; i < DISK_NAMES; i++)
        if (disk->names[i].now == inode)
            return true;
    return false;
}

/* A file is gone when it has no name, now or after a crash, and nobody has it open. */
static bool is_gone(const Disk *disk, int inode)
{
    for (unsigned i = 0; i < DISK_NAMES; i++)
        if (disk->names[i].now == inode || disk->names[i].durable == inode)
            return false;
    for (unsigned i = 0; i < DISK_HANDLES; i++)
        if (disk->handles[i].process && disk->handles[i].inode == inode)
            return false;
    return true;
}

static int new_inode(Disk *disk)
{
    for (int i = 0; i < DISK_FILES; i++)
        if (!disk->inodes[i].used || is_gone(disk, i))
            return i;
    return -1;
}

static int disk_make(void *opaque, const char *text, size_t size, VmfJournalFile **file)
{
    Process *process = opaque;
    Disk *disk = disk_of(process);

    BEGIN(process, "create")
    Name *name = find_or_add(disk, text);
    if (name && name->now >= 0)
        return -EEXIST;
    int at = new_inode(disk);
    if (!name || at < 0 || size > DISK_FILE_MAX) {
        violate(process->world, "the world's disk is too small");
        return -ENOSPC;
    }
    *file = new_handle(process, at, true);
    if (!*file)
        return -EMFILE;
    (*file)->locks = true;
    Inode *inode = &disk->inodes[at];
    inode->used = true;
    inode->size = size;
    inode->dirty = 0;
    memset(inode->now, 0, size);
    memset(inode->durable, 0, size);
    name->now = at;
    return 0;
}

static int disk_open(void *opaque, const char *text, bool writable, VmfJournalFile **file)
{
    Process *process = opaque;

    if (!process->alive || fault(process->world, DISKS, "disk error in open"))
        return -EIO;
    Name *name = find(disk_of(process), text);
    if (!name || name->now < 0)
        return -ENOENT;
    *file = new_handle(process, name->now, writable);
    return *file ? 0 : -EMFILE;
}

static int disk_read(void *opaque, VmfJournalFile *file, void *buffer, size_t size, size_t *got)
{
    Process *process = opaque;

    if (!process->alive)
        return -EIO;
    somebody_else_asks(process);
    if (!has_name(disk_of(process), file->inode))
        return -ENOENT;
    const Inode *inode = &disk_of(process)->inodes[file->inode];
    *got = MIN(size, inode->size);
    memcpy(buffer, inode->now, *got);
    return 0;
}

static int disk_write(void *opaque, VmfJournalFile *file, size_t offset, const void *data, size_t size)
{
    Process *process = opaque;

    BEGIN(process, "write")
    Inode *inode = &disk_of(process)->inodes[file->inode];
    if (!file->writable || offset + size > inode->size)
        return -EINVAL;
    memcpy(inode->now + offset, data, size);
    for (size_t i = offset / DISK_SECTOR; i * DISK_SECTOR < offset + size; i++)
        inode->dirty |= 1u << i;
    return END(process, "write", 0);
}

static int disk_sync(void *opaque, VmfJournalFile *file)
{
    Process *process = opaque;
    World *world = process->world;
    Disk *disk = disk_of(process);
    Inode *inode = &disk->inodes[file->inode];

    if (!process->alive || !point(process, "crash before disk sync"))
        return -EIO;
    somebody_else_asks(process);
    if (!has_name(disk, file->inode))
        return -ENOENT;
    if (fault(world, DISKS, "disk error in sync")) {
        write_some(world, inode);
        somebody_else_asks(process);
        return -EIO;
    }
    if (!world->sync_lies)
        for (unsigned i = 0; inode->dirty; i++) {
            if (!(inode->dirty & 1u << i))
                continue;
            memcpy(inode->durable + i * DISK_SECTOR, inode->now + i * DISK_SECTOR, DISK_SECTOR);
            inode->dirty &= ~(1u << i);
        }
    somebody_else_asks(process);
    return END(process, "sync", 0);
}

static int disk_lock(void *opaque, VmfJournalFile *file)
{
    Process *process = opaque;

    if (!process->alive)
        return -EIO;
    if (is_locked(disk_of(process), file->inode))
        return -EAGAIN;
    file->locks = true;
    return 0;
}

static int disk_is_locked(void *opaque, VmfJournalFile *file)
{
    Process *process = opaque;

    return process->alive ? is_locked(disk_of(process), file->inode) : -EIO;
}

static void disk_close(void *opaque, VmfJournalFile *file)
{
    file->process = NULL;
}

static int disk_publish(void *opaque, const char *from, const char *to)
{
    Process *process = opaque;
    Disk *disk = disk_of(process);

    BEGIN(process, "rename")
    Name *old = find(disk, from), *new = find_or_add(disk, to);
    if (!old || old->now < 0)
        return -ENOENT;
    if (!new)
        return -ENOSPC;
    if (new->now >= 0)
        return -EEXIST;
    new->now = old->now;
    old->now = -1;
    return END(process, "rename", 0);
}

static int disk_remove(void *opaque, const char *text)
{
    Process *process = opaque;

    BEGIN(process, "remove")
    Name *name = find(disk_of(process), text);
    if (!name || name->now < 0)
        return -ENOENT;
    name->now = -1;
    return END(process, "remove", 0);
}

static int disk_sync_directory(void *opaque)
{
    Process *process = opaque;
    Disk *disk = disk_of(process);

    if (process->alive)
        somebody_else_asks(process);
    BEGIN(process, "sync of the directory")
    for (unsigned i = 0; i < DISK_NAMES && !process->world->plant->directory_unsynced; i++)
        disk->names[i].durable = disk->names[i].now;
    return END(process, "sync of the directory", 0);
}

static int disk_list(void *opaque, GPtrArray *names)
{
    Process *process = opaque;
    const Disk *disk = disk_of(process);

    if (!process->alive || fault(process->world, DISKS, "disk error in list"))
        return -EIO;
    for (unsigned i = 0; i < DISK_NAMES; i++)
        if (disk->names[i].now >= 0)
            g_ptr_array_add(names, g_strdup(disk->names[i].text));
    return 0;
}

static int disk_random(void *opaque, void *buffer, size_t size)
{
    Disk *disk = disk_of(opaque);
    uint8_t *at = buffer;

    for (size_t i = 0; i < size; i++) {
        disk->random = disk->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        at[i] = (uint8_t)(disk->random >> 56);
    }
    return 0;
}

static int64_t disk_time_ns(void *opaque)
{
    const Process *process = opaque;

    return process->world->now_ns;
}

const VmfJournalFiles simulated_files = {
    .create = disk_make,
    .open = disk_open,
    .read = disk_read,
    .write = disk_write,
    .sync = disk_sync,
    .lock = disk_lock,
    .is_locked = disk_is_locked,
    .close = disk_close,
    .publish = disk_publish,
    .remove = disk_remove,
    .sync_directory = disk_sync_directory,
    .list = disk_list,
    .random = disk_random,
    .time_ns = disk_time_ns,
};
