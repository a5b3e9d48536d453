/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The state directory of one host: files in memory under the journal's table of callbacks.
 *
 * A write changes what every process of the host reads, and nothing that outlasts a crash of the host; sync() moves the
 * file's changed sectors over, sync_directory() the names. When a host goes down each changed file is kept, lost or
 * kept in part (sectors, and a sector torn within), and each changed name is the old or the new one. A sync that fails
 * may have written any part, and the rest is never tried again, as real ones do. What a dead process has open is
 * closed.
 */
#ifndef SIMULATION_DISK_H
#define SIMULATION_DISK_H

#include "migration/journal-files.h"

#define DISK_SECTOR 512
#define DISK_FILE_MAX 8192
#define DISK_FILES 12
#define DISK_NAMES 16
#define DISK_HANDLES 32

struct Process;

struct VmfJournalFile {
    struct Process *process; /* NULL: not in use */
    int inode;
    bool writable, locks;
    bool dead; /* its process is no more */
};

typedef struct {
    bool used;
    size_t size;
    uint32_t dirty; /* a bit for each sector */
    uint8_t now[DISK_FILE_MAX], durable[DISK_FILE_MAX];
} Inode;

typedef struct {
    char text[48];
    int now, durable; /* inode; -1: no such name */
} Name;

typedef struct {
    Inode inodes[DISK_FILES];
    Name names[DISK_NAMES];
    VmfJournalFile handles[DISK_HANDLES];
    uint64_t random;
} Disk;

/* opaque: a Process (world.h), which says whose disk it is. */
extern const VmfJournalFiles simulated_files;

void disk_clear(Disk *disk, uint64_t identity);
/* The host went down. */
void disk_crash(struct Process *process, Disk *disk);
void disk_close_all(Disk *disk, const struct Process *process);
/* The content of @name as a crash at this moment would leave it at worst; NULL: it would leave none. */
const uint8_t *disk_durable(const Disk *disk, const char *name, size_t *size);

#endif
