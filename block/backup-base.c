/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether what an incremental backup is to go onto is its base. A few units that the bitmap says were never written since are read at
 * both ends, ahead of the moment and of the first change, while the guest runs. A write marks what it touches before it is given to the
 * storage: so what is clean once it has been read was read as it was when the base was made.
 *
 * What differs is another's. What does not differ proves nothing: a migration compares all of it (migration/disk-base.c), and a backup
 * that did would read as much as a full one.
 */
#include "block/backup-private.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <vmferry/error.h>

#include "stream/channel-wait.h"
#include "stream/io-memory.h"

#define SAMPLES 64u
#define TRIES 64u  /* units that are dirty and are passed over, for each of them */
#define AT_ONCE 4u /* reads of the disk: the guest has its own */

typedef struct Look Look;

typedef struct {
    Look *look;
    uint64_t offset, length;
    uint8_t *ours, *theirs;
    VmfDiskRequest read;
    VmfStorageRequest read_there;
    struct iovec iov, iov_there;
    bool ended, failed; /* read: under the lock */
    GError *error;      /* of the target */
} Sample;

/* Who gives it up leaves it to the last read that ends: storage may say nothing any more. */
struct Look {
    const VmfBackup *backup;
    uint8_t *memory;
    unsigned n, n_begun;
    Sample samples[SAMPLES];

    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned n_ended;
    bool is_left;
};

static uint64_t length_of(const VmfBackup *backup, uint64_t unit)
{
    return MIN(VMF_DISK_UNIT, backup->disk->size_bytes - unit * VMF_DISK_UNIT);
}

static bool is_clean(const VmfBackup *backup, uint64_t unit)
{
    return vmf_bitmaps_is_clean(backup->disk->bitmaps, backup->bitmap, unit * VMF_DISK_UNIT, length_of(backup, unit));
}

/* Where there is data, at or behind it: a disk that is mostly holes looks like any other where it has none. */
static uint64_t move_to_data(const VmfBackup *backup, uint64_t unit, uint64_t end)
{
    uint64_t offset = unit * VMF_DISK_UNIT, length = 0;
    VmfExtentKind kind = VMF_EXTENT_DATA;

    if (!vmf_disk_extent(backup->disk, offset, backup->disk->size_bytes - offset, &kind, &length, NULL) || kind == VMF_EXTENT_DATA)
        return unit;
    uint64_t data = (offset + length) / VMF_DISK_UNIT;
    return data < end ? data : unit;
}

/* All over the disk; every second one has data, as far as there is some. */
static void choose(Look *look)
{
    const VmfBackup *backup = look->backup;
    uint64_t n_units = backup->units.n;

    for (unsigned i = 0; i < SAMPLES; i++) {
        uint64_t unit = n_units / SAMPLES * i + n_units % SAMPLES * i / SAMPLES;
        uint64_t end = n_units / SAMPLES * (i + 1) + n_units % SAMPLES * (i + 1) / SAMPLES;

        if (i % 2 && unit < end)
            unit = move_to_data(backup, unit, end);
        for (unsigned tries = 0; tries < TRIES && unit < end && !is_clean(backup, unit); tries++)
            unit++;
        if (unit < end && is_clean(backup, unit))
            look->samples[look->n++] = (Sample){.offset = unit * VMF_DISK_UNIT, .length = length_of(backup, unit)};
    }
}

/* ---- its memory ---------------------------------------------------------------------------------------------------- */

static Look *look_new(const VmfBackup *backup)
{
    Look *look = g_new0(Look, 1);

    look->backup = backup;
    pthread_mutex_init(&look->lock, NULL);
    vmf_cond_init(&look->changed);
    return look;
}

static void look_free(Look *look)
{
    pthread_cond_destroy(&look->changed);
    pthread_mutex_destroy(&look->lock);
    free(look->memory);
    g_free(look);
}

static void leave(Look *look)
{
    pthread_mutex_lock(&look->lock);
    look->is_left = true;
    bool all_ended = look->n_ended == look->n_begun;
    pthread_mutex_unlock(&look->lock);
    if (all_ended)
        look_free(look);
}

static bool allocate(Look *look, GError **error)
{
    look->memory = vmf_io_memory_new((size_t)look->n * 2 * VMF_DISK_UNIT);
    for (unsigned i = 0; look->memory && i < look->n; i++) {
        look->samples[i].look = look;
        look->samples[i].ours = look->memory + (size_t)i * 2 * VMF_DISK_UNIT;
        look->samples[i].theirs = look->samples[i].ours + VMF_DISK_UNIT;
    }
    if (!look->memory)
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "disk %s: backup: out of memory", look->backup->disk->name);
    return look->memory != NULL;
}

/* ---- the target ---------------------------------------------------------------------------------------------------- */

static void on_read_there(VmfStorageRequest *request, GError *error)
{
    ((Sample *)request->opaque)->error = error;
}

static bool read_target(Look *look, GError **error)
{
    VmfStorageQueue *queue = look->backup->queue;
    GError *failed = NULL;

    for (unsigned i = 0; i < look->n; i++) {
        Sample *sample = &look->samples[i];

        sample->iov_there = (struct iovec){sample->theirs, sample->length};
        sample->read_there = (VmfStorageRequest){.kind = VMF_REQUEST_READ,
                                                 .offset = sample->offset,
                                                 .length = sample->length,
                                                 .iov = &sample->iov_there,
                                                 .n_iov = 1,
                                                 .done = on_read_there,
                                                 .opaque = sample};
        vmf_storage_submit(queue, &sample->read_there);
    }
    vmf_storage_wait(queue, 0);
    for (unsigned i = 0; i < look->n; i++) {
        GError **one = &look->samples[i].error;
        if (!failed)
            failed = g_steal_pointer(one);
        g_clear_error(one);
    }
    if (failed)
        g_propagate_error(error, failed);
    return !failed;
}

/* ---- the disk ------------------------------------------------------------------------------------------------------ */

static void on_read(VmfDiskRequest *request, const GError *error)
{
    Sample *sample = request->opaque;
    Look *look = sample->look;

    pthread_mutex_lock(&look->lock);
    sample->ended = true;
    sample->failed = error != NULL;
    look->n_ended++;
    bool last = look->is_left && look->n_ended == look->n_begun;
    pthread_cond_signal(&look->changed);
    pthread_mutex_unlock(&look->lock);
    if (last)
        look_free(look);
}

static void begin_read(Look *look)
{
    Sample *sample = &look->samples[look->n_begun++];

    sample->iov = (struct iovec){sample->ours, sample->length};
    sample->read = (VmfDiskRequest){.operation = VMF_DISK_READ,
                                    .offset = sample->offset,
                                    .length = sample->length,
                                    .iov = &sample->iov,
                                    .n_iov = 1,
                                    .done = on_read,
                                    .opaque = sample};
    vmf_disk_submit(look->backup->disk, &sample->read);
}

static bool await(Look *look, const Sample *sample, GError **error)
{
    const VmfFlag *cancelled = look->backup->cancelled;

    pthread_mutex_lock(&look->lock);
    while (!sample->ended && !(cancelled && atomic_load(cancelled)))
        vmf_cond_wait_until(&look->changed, &look->lock, vmf_deadline_after(VMF_BACKUP_LOOK_NS));
    bool ended = sample->ended;
    pthread_mutex_unlock(&look->lock);
    if (!ended)
        g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "disk %s: backup: it was cancelled", look->backup->disk->name);
    return ended;
}

static bool differs(const VmfBackup *backup, uint64_t offset, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_DISK_BASE,
                "disk %s: backup: %s: it differs at offset %" G_GUINT64_FORMAT
                ", where bitmap %s says that nothing was written since: it is another's base, or was changed itself",
                backup->disk->name, vmf_storage_name(backup->target), offset, backup->bitmap);
    return false;
}

/* What cannot be read is not what the backup is about, unless it is dirty. */
static bool compare(const VmfBackup *backup, const Sample *sample, GError **error)
{
    uint64_t at = 0;

    if (sample->failed || !is_clean(backup, sample->offset / VMF_DISK_UNIT))
        return true;
    while (at < sample->length && sample->ours[at] == sample->theirs[at])
        at++;
    return at == sample->length || differs(backup, sample->offset + at, error);
}

static bool compare_all(Look *look, GError **error)
{
    for (unsigned i = 0; i < look->n; i++) {
        while (look->n_begun < look->n && look->n_begun < i + AT_ONCE)
            begin_read(look);
        if (!await(look, &look->samples[i], error) || !compare(look->backup, &look->samples[i], error))
            return false;
    }
    return true;
}

bool vmf_backup_check_base(const VmfBackup *backup, GError **error)
{
    Look *look = look_new(backup);

    choose(look);
    bool good = look->n == 0 || (allocate(look, error) && read_target(look, error) && compare_all(look, error));
    leave(look);
    return good;
}
