/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/fuzz/guest.h"

#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <vmferry/bitmap-mover.h>

#define PAGE 4096u
#define BLOB_SIZE 1000u

/* ---- state ----------------------------------------------------------------------------------------------------------------- */

static const VmfField counter_fields[] = {
    VMF_FIELD(VmfFuzzCounter, value, VMF_FIELD_U32, 1),
    VMF_FIELD(VmfFuzzCounter, stamp, VMF_FIELD_U64, 1),
    VMF_FIELD(VmfFuzzCounter, flag, VMF_FIELD_BOOL, 2),
    VMF_FIELD_ARRAY(VmfFuzzCounter, bytes, VMF_FIELD_U8, 2),
    VMF_FIELD_END,
};
static const VmfField extra_fields[] = {VMF_FIELD(VmfFuzzCounter, level, VMF_FIELD_U16, 1), VMF_FIELD_END};
static const VmfSubsection counter_subsections[] = {
    {.name = "extra", .version = 1, .minimum_version = 1, .optional = true, .fields = extra_fields},
    {.name = NULL},
};
static const VmfDeviceState counter_state = {
    .size = sizeof(VmfDeviceState),
    .name = "counter",
    .version = 2,
    .minimum_version = 1,
    .fields = counter_fields,
    .subsections = counter_subsections,
};

static bool blob_complete(void *opaque, VmfSaveStream *stream, GError **error)
{
    uint8_t blob[BLOB_SIZE];

    for (unsigned n = 0; n < BLOB_SIZE; n++)
        blob[n] = (uint8_t)(n * 7);
    return vmf_save_bytes(stream, blob, sizeof(blob), error);
}

static bool blob_setup(void *opaque, GError **error)
{
    ((VmfFuzzGuest *)opaque)->setups++;
    return true;
}

static bool blob_load(void *opaque, uint32_t version, const uint8_t *data, size_t length, bool last, GError **error)
{
    VmfFuzzGuest *guest = opaque;

    for (size_t n = 0; n < length; n++) /* the octets are there */
        guest->blob_sum ^= data[n];
    return true;
}

static void blob_cleanup(void *opaque)
{
    ((VmfFuzzGuest *)opaque)->cleanups++;
}

static const VmfSaveHandlers blob_handlers = {
    .size = sizeof(VmfSaveHandlers),
    .save_complete = blob_complete,
    .load_setup = blob_setup,
    .load_state = blob_load,
    .load_cleanup = blob_cleanup,
};

/* ---- run control and dirty log --------------------------------------------------------------------------------------------- */

static bool guest_stop(void *opaque, GError **error)
{
    ((VmfFuzzGuest *)opaque)->running = false;
    ((VmfFuzzGuest *)opaque)->stops++;
    return true;
}

static bool guest_start(void *opaque, GError **error)
{
    ((VmfFuzzGuest *)opaque)->running = true;
    ((VmfFuzzGuest *)opaque)->starts++;
    return true;
}

static bool guest_is_running(void *opaque)
{
    return ((VmfFuzzGuest *)opaque)->running;
}

static bool guest_storage_release(void *opaque, GError **error)
{
    const VmfFuzzGuest *guest = opaque;

    for (size_t i = 0; guest->folder && i < G_N_ELEMENTS(guest->disks); i++)
        vmf_disk_release(guest->disks[i], NULL);
    return true;
}

/* All of them or none. */
static bool guest_storage_acquire(void *opaque, GError **error)
{
    const VmfFuzzGuest *guest = opaque;
    bool done = true;

    for (size_t i = 0; guest->folder && done && i < G_N_ELEMENTS(guest->disks); i++)
        done = vmf_disk_acquire(guest->disks[i], error);
    if (!done)
        guest_storage_release(opaque, NULL);
    return done;
}

static const VmfGuestOps guest_ops = {.size = sizeof(VmfGuestOps),
                                      .stop = guest_stop,
                                      .start = guest_start,
                                      .is_running = guest_is_running,
                                      .storage_release = guest_storage_release,
                                      .storage_acquire = guest_storage_acquire};

static bool log_start(void *opaque, GError **error)
{
    return true;
}

static void log_stop(void *opaque)
{
}

/* A page or two in the first rounds. */
static bool log_harvest(void *opaque, unsigned block, void (*report)(void *, uint64_t, const uint64_t *, size_t), void *report_opaque,
                        GError **error)
{
    VmfFuzzGuest *guest = opaque;
    const uint64_t word = 0x18;

    if (block == 0 && guest->harvests++ < 2)
        report(report_opaque, 0, &word, 1);
    return true;
}

static void log_clear(void *opaque, unsigned block, uint64_t first_page, uint64_t n_pages, uint64_t *words)
{
}

static const VmfDirtyLogOps log_ops = {.size = sizeof(VmfDirtyLogOps),
                                       .name = "fuzz",
                                       .start = log_start,
                                       .stop = log_stop,
                                       .harvest = log_harvest,
                                       .clear = log_clear};

/* ---- the guest ------------------------------------------------------------------------------------------------------------- */

static void add_ram(VmfGuest *guest, const char *name, unsigned pages, uint64_t address, VmfRamFlags flags)
{
    GError *error = NULL;
    VmfRamBlock *block =
        vmf_ram_block_new(name, (uint64_t)pages * PAGE, VMF_RAM_ANON, flags | VMF_RAM_NO_HUGE_PAGES, address, &error);

    if (!block || !vmf_guest_add_ram(guest, block, NULL, &error))
        g_error("%s", error->message);
}

static void fill_page(VmfGuest *guest, unsigned block, unsigned page)
{
    uint8_t *host = (uint8_t *)vmf_ram_block_host(vmf_guest_ram(guest, block)) + (size_t)page * PAGE;

    for (unsigned n = 0; n < PAGE; n++)
        host[n] = (uint8_t)(block * 100 + page + n + (n >> 8));
}

VmfFuzzGuest *vmf_fuzz_guest_new(bool filled)
{
    static const uint8_t uuid[16] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
                                     0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
    VmfFuzzGuest *guest = g_new0(VmfFuzzGuest, 1);

    guest->guest = vmf_guest_new("golden", uuid, &guest_ops, guest);
    vmf_guest_set_property(guest->guest, "cpu", "golden-1");
    vmf_guest_set_property(guest->guest, "timebase", "100000000");
    add_ram(guest->guest, "ram0", 515, 0x80000000, 0);
    add_ram(guest->guest, "ram1", 8, 0x90000000, 0);
    add_ram(guest->guest, "rom", 2, 0x1000, VMF_RAM_ROM);
    vmf_guest_add_device(guest->guest, &counter_state, 0, &guest->counter, NULL);
    vmf_guest_add_handlers(guest->guest, "blob", 0, 1, &blob_handlers, guest, NULL);
    if (!filled)
        return guest;
    vmf_guest_set_dirty_log(guest->guest, &log_ops, guest);
    fill_page(guest->guest, 0, 3);
    fill_page(guest->guest, 0, 514);
    fill_page(guest->guest, 1, 1);
    fill_page(guest->guest, 2, 0);
    return guest;
}

void vmf_fuzz_guest_free(VmfFuzzGuest *guest)
{
    vmf_guest_free(guest->guest);
    g_free(guest);
}

/* ---- disks ----------------------------------------------------------------------------------------------------------------- */

#define SHARED_BYTES (1u << 20)
#define FILE_BYTES_MAX (16u << 20)

static char *disk_folder; /* of the process */

static void remove_disks(void)
{
    static const char *const names[] = {"disk0", "disk0.partial", "disk1", "disk1.bitmaps", "disk0.bitmaps"};

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(disk_folder, names[i], NULL);
        unlink(path);
    }
    rmdir(disk_folder);
}

static VmfDisk *open_disk(VmfFuzzGuest *guest, const char *name, bool incoming)
{
    g_autofree char *uri = g_strdup_printf("file:%s/%s", guest->folder, name);
    VmfDiskOptions options = {.size = sizeof(options), .uri = uri, .sector_bytes = 512, .buffered = true};
    GError *error = NULL;

    options.incoming = incoming;
    options.create_bytes = incoming ? 0 : SHARED_BYTES;
    VmfDisk *disk = vmf_disk_open(name, &options, &error);
    if (!disk || !vmf_guest_add_disk(guest->guest, name, &vmf_disk_guest_ops, disk, &error))
        g_error("%s", error->message);
    return disk;
}

void vmf_fuzz_guest_add_disks(VmfFuzzGuest *guest)
{
    const struct rlimit limit = {FILE_BYTES_MAX, FILE_BYTES_MAX};
    const char *where = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : g_get_tmp_dir();

    guest->folder = g_build_filename(where, "vmf-fuzz-XXXXXX", NULL);
    if (!g_mkdtemp(guest->folder))
        g_error("%s: cannot be made", guest->folder);
    disk_folder = guest->folder;
    atexit(remove_disks);
    guest->disks[0] = open_disk(guest, "disk0", true);
    guest->disks[1] = open_disk(guest, "disk1", false);
    guest->mover = vmf_bitmap_mover_new();
    for (size_t i = 0; i < G_N_ELEMENTS(guest->disks); i++)
        vmf_bitmap_mover_add_disk(guest->mover, guest->disks[i]);
    if (!vmf_guest_add_handlers(guest->guest, "dirty-bitmaps", 0, 1, &vmf_bitmap_handlers, guest->mover, NULL))
        g_error("the bitmaps are not taken along");
    vmf_disk_acquire(guest->disks[1], NULL); /* it is made */
    vmf_disk_release(guest->disks[1], NULL);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
}

static void forget_bitmaps(VmfDisk *disk)
{
    static VmfBitmapInfo infos[VMF_DISK_BITMAPS_MAX];

    for (unsigned i = 0; i < VMF_DISK_BITMAPS_MAX; i++)
        infos[i].size = sizeof(infos[i]);
    for (unsigned n = vmf_disk_list_bitmaps(disk, infos, VMF_DISK_BITMAPS_MAX); n > 0; n--)
        vmf_disk_remove_bitmap(disk, infos[n - 1].name, NULL);
}

bool vmf_fuzz_guest_take_disk(VmfFuzzGuest *guest)
{
    g_autofree char *path = g_build_filename(guest->folder, "disk0", NULL);

    for (size_t i = 0; i < G_N_ELEMENTS(guest->disks); i++) {
        forget_bitmaps(guest->disks[i]);
        vmf_disk_release(guest->disks[i], NULL);
    }
    return unlink(path) == 0;
}

/* ---- between sessions ------------------------------------------------------------------------------------------------------ */

void vmf_fuzz_guest_reset(VmfFuzzGuest *guest, bool running)
{
    guest->running = running;
    guest->starts = guest->stops = guest->setups = guest->cleanups = guest->harvests = 0;
    guest->blob_sum = 0;
    memset(&guest->counter, 0, sizeof(guest->counter));
}

bool vmf_fuzz_guest_is_empty(const VmfFuzzGuest *guest)
{
    for (unsigned b = 0; b < vmf_guest_n_ram(guest->guest); b++) {
        const VmfRamBlock *block = vmf_guest_ram(guest->guest, b);
        const uint8_t *host = vmf_ram_block_host(block);
        for (uint64_t at = 0; at < vmf_ram_block_size(block); at += PAGE / 2)
            if (host[at])
                return false;
    }
    return true;
}

static void leave_what_is_held(void *opaque, const char *id, const char *text)
{
    VmfSession **session = opaque;

    if (strcmp(id, "handover.held") == 0 || strcmp(id, "handover.storage") == 0)
        vmf_session_cancel(*session);
}

const VmfSessionOps vmf_fuzz_session_ops = {.size = sizeof(VmfSessionOps), .event = leave_what_is_held};
