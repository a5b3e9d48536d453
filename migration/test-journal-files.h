/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests of the journal: files in memory that know what is durable.
 *
 * Every operation that reaches the "disk" is counted. At the chosen one the machine stops: that operation and all later
 * ones fail, and crash() then decides, by a seed, what of the unsynced content and names is left. Or one operation
 * fails and the machine goes on.
 */
#ifndef MIGRATION_TEST_JOURNAL_FILES_H
#define MIGRATION_TEST_JOURNAL_FILES_H

#include "migration/journal-files.h"

#include <errno.h>
#include <string.h>

#define DISK_NAMES 16
#define DISK_ROOM 8192
#define DISK_BLOCK 512

typedef struct {
    size_t size;
    uint32_t unsynced; /* a bit for each block: written since the last sync, also since one that failed */
    uint8_t cached[DISK_ROOM], durable[DISK_ROOM];
    bool size_durable;
    VmfJournalFile *holder;
} Inode;

typedef struct {
    char name[48];
    Inode *inode;
} Name;

typedef struct {
    Name cached[DISK_NAMES], durable[DISK_NAMES]; /* inode NULL: free */
    GPtrArray *inodes;                            /* all that ever were */
    unsigned operations;                          /* so far */
    unsigned stop_at;                             /* this operation and all after it fail; 0: never */
    unsigned fail_at;                             /* this one alone fails, with @fail_with */
    int fail_with;
    bool skip_syncs; /* a planted fault: sync says yes and does nothing */
    uint64_t random;
    int64_t time_ns;
} Disk;

struct VmfJournalFile {
    Inode *inode;
};

static inline uint64_t disk_random(Disk *disk)
{
    disk->random ^= disk->random << 13;
    disk->random ^= disk->random >> 7;
    disk->random ^= disk->random << 17;
    return disk->random;
}

static inline int disk_operation(Disk *disk)
{
    unsigned number = ++disk->operations;

    if (disk->stop_at && number >= disk->stop_at)
        return -EIO;
    return number == disk->fail_at ? disk->fail_with : 0;
}

static inline Name *disk_find(Name *names, const char *name)
{
    for (unsigned i = 0; i < DISK_NAMES; i++)
        if (names[i].inode && strcmp(names[i].name, name) == 0)
            return &names[i];
    return NULL;
}

static inline void disk_name(Name *names, const char *name, Inode *inode)
{
    for (unsigned i = 0; i < DISK_NAMES; i++)
        if (!names[i].inode) {
            g_strlcpy(names[i].name, name, sizeof(names[i].name));
            names[i].inode = inode;
            return;
        }
    g_assert_not_reached();
}

static inline int disk_create(void *opaque, const char *name, size_t size, VmfJournalFile **file)
{
    Disk *disk = opaque;
    int result = disk_operation(disk);

    if (result != 0 || disk_find(disk->cached, name))
        return result != 0 ? result : -EEXIST;
    Inode *inode = g_new0(Inode, 1);
    g_ptr_array_add(disk->inodes, inode);
    inode->size = size;
    disk_name(disk->cached, name, inode);
    *file = g_new0(VmfJournalFile, 1);
    (*file)->inode = inode;
    inode->holder = *file;
    return 0;
}

static inline int disk_open(void *opaque, const char *name, bool writable, VmfJournalFile **file)
{
    Disk *disk = opaque;
    Name *found = disk_find(disk->cached, name);

    if (!found)
        return -ENOENT;
    *file = g_new0(VmfJournalFile, 1);
    (*file)->inode = found->inode;
    return 0;
}

static inline int disk_read(void *opaque, VmfJournalFile *file, void *buffer, size_t size, size_t *got)
{
    *got = MIN(size, file->inode->size);
    memcpy(buffer, file->inode->cached, *got);
    return 0;
}

static inline int disk_write(void *opaque, VmfJournalFile *file, size_t offset, const void *data, size_t size)
{
    int result = disk_operation(opaque);

    g_assert(offset + size <= file->inode->size);
    /* A write that fails may have got some of the way. */
    memcpy(file->inode->cached + offset, data, result != 0 ? size / 2 : size);
    for (size_t at = offset / DISK_BLOCK; at * DISK_BLOCK < offset + size; at++)
        file->inode->unsynced |= 1u << at;
    return result;
}

static inline int disk_sync(void *opaque, VmfJournalFile *file)
{
    Disk *disk = opaque;
    int result = disk_operation(disk);
    uint32_t blocks = result != 0 || disk->skip_syncs ? 0 : file->inode->unsynced;

    for (size_t at = 0; at * DISK_BLOCK < DISK_ROOM; at++)
        if (blocks & 1u << at)
            memcpy(file->inode->durable + at * DISK_BLOCK, file->inode->cached + at * DISK_BLOCK, DISK_BLOCK);
    file->inode->unsynced = 0; /* what a sync failed over is not tried again by the next one */
    file->inode->size_durable |= result == 0 && !disk->skip_syncs;
    return result;
}

static inline int disk_lock(void *opaque, VmfJournalFile *file)
{
    if (file->inode->holder && file->inode->holder != file)
        return -EAGAIN;
    file->inode->holder = file;
    return 0;
}

static inline int disk_is_locked(void *opaque, VmfJournalFile *file)
{
    return file->inode->holder && file->inode->holder != file;
}

static inline void disk_close(void *opaque, VmfJournalFile *file)
{
    if (file->inode->holder == file)
        file->inode->holder = NULL;
    g_free(file);
}

static inline int disk_publish(void *opaque, const char *from, const char *to)
{
    Disk *disk = opaque;
    int result = disk_operation(disk);
    Name *name = disk_find(disk->cached, from);

    if (result != 0 || !name || disk_find(disk->cached, to))
        return result != 0 ? result : !name ? -ENOENT : -EEXIST;
    g_strlcpy(name->name, to, sizeof(name->name));
    return 0;
}

static inline int disk_remove(void *opaque, const char *name)
{
    Disk *disk = opaque;
    int result = disk_operation(disk);
    Name *found = disk_find(disk->cached, name);

    if (result != 0 || !found)
        return result != 0 ? result : -ENOENT;
    found->inode = NULL;
    return 0;
}

static inline int disk_sync_directory(void *opaque)
{
    Disk *disk = opaque;
    int result = disk_operation(disk);

    if (result == 0 && !disk->skip_syncs)
        memcpy(disk->durable, disk->cached, sizeof(disk->durable));
    return result;
}

static inline int disk_list(void *opaque, GPtrArray *names)
{
    Disk *disk = opaque;

    for (unsigned i = 0; i < DISK_NAMES; i++)
        if (disk->cached[i].inode)
            g_ptr_array_add(names, g_strdup(disk->cached[i].name));
    return 0;
}

static inline int disk_fill_random(void *opaque, void *buffer, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)buffer)[i] = (uint8_t)(disk_random(opaque) >> 32);
    return 0;
}

static inline int64_t disk_time_ns(void *opaque)
{
    return ++((Disk *)opaque)->time_ns;
}

static inline Disk *disk_new(uint64_t seed)
{
    Disk *disk = g_new0(Disk, 1);

    disk->inodes = g_ptr_array_new_with_free_func(g_free);
    disk->random = seed * 2 + 1;
    return disk;
}

static inline void disk_free(Disk *disk)
{
    g_ptr_array_unref(disk->inodes);
    g_free(disk);
}

/* How unsynced content goes: nothing of it is left, all of it, or each block of 512 octets as chance has it, one of
 * them cut in the middle. */
typedef enum { CRASH_LOST, CRASH_KEPT, CRASH_TORN, CRASH_N } CrashKind;

static inline void crash_content(Disk *disk, Inode *inode, CrashKind kind)
{
    for (size_t at = 0; at < DISK_ROOM; at += DISK_BLOCK) {
        uint64_t chance = disk_random(disk);
        size_t length = kind == CRASH_LOST ? 0 : kind == CRASH_KEPT ? DISK_BLOCK : chance & 1 ? 0 : DISK_BLOCK;
        if (kind == CRASH_TORN && (chance >> 8) % 8 == 0)
            length = (chance >> 16) % DISK_BLOCK;
        memcpy(inode->durable + at, inode->cached + at, length);
    }
    if (!inode->size_durable && (kind == CRASH_LOST || (kind == CRASH_TORN && disk_random(disk) & 1)))
        inode->size = 0;
    inode->size_durable = true;
    memcpy(inode->cached, inode->durable, DISK_ROOM);
    inode->holder = NULL;
}

/* The machine comes up again. All journals over it have been freed. Names are kept or lost one by one, as chance has
 * it. */
static inline void disk_crash(Disk *disk, CrashKind kind)
{
    if (kind == CRASH_LOST || (kind == CRASH_TORN && disk_random(disk) & 1))
        memcpy(disk->cached, disk->durable, sizeof(disk->cached));
    for (guint i = 0; i < disk->inodes->len; i++)
        crash_content(disk, g_ptr_array_index(disk->inodes, i), kind);
    memcpy(disk->durable, disk->cached, sizeof(disk->durable));
    disk->stop_at = disk->fail_at = disk->operations = 0;
}

static const VmfJournalFiles disk_files = {
    .create = disk_create,
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
    .random = disk_fill_random,
    .time_ns = disk_time_ns,
};

#endif
