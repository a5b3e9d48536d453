/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Errors of the engine.
 *
 * Every call that can fail takes a GError ** as its last parameter, returns false (or NULL) and sets it once. The message reads
 * "object: operation: detail: cause"; the caller adds its own object in front with g_prefix_error(). The library never prints and
 * never aborts on what a peer or a file says.
 *
 * Each code has a stable textual id ("stream.version"), which is what programs should compare and what JSON output carries.
 */
#ifndef VMFERRY_ERROR_H
#define VMFERRY_ERROR_H

#include <glib.h>

G_BEGIN_DECLS

#define VMF_ERROR (vmf_error_quark())

/* X(code, id, hint): the hint is one sentence that says what a person can do, or "" */
#define VMF_ERROR_CODES(X)                                                                                                      \
    X(VMF_ERROR_INTERNAL, "internal", "this is a defect: please report it")                                                     \
    X(VMF_ERROR_USAGE, "usage", "see --help")                                                                                   \
    X(VMF_ERROR_URI, "uri", "tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND or file:PATH")                                        \
    X(VMF_ERROR_UNSUPPORTED, "unsupported", "")                                                                                 \
    X(VMF_ERROR_MEMORY, "memory", "free memory on this host or move a smaller guest")                                           \
    X(VMF_ERROR_IO, "io", "")                                                                                                   \
    X(VMF_ERROR_CONNECT, "channel.connect", "is there a target that waits with --incoming, or an NBD server, at this address?") \
    X(VMF_ERROR_CUT, "channel.cut", "the connection ended before the stream did")                                               \
    X(VMF_ERROR_TIMEOUT, "channel.timeout", "")                                                                                 \
    X(VMF_ERROR_CANCELLED, "cancelled", "")                                                                                     \
    X(VMF_ERROR_INSECURE, "channel.insecure", "plaintext off the loopback needs --insecure")                                    \
    X(VMF_ERROR_MAGIC, "stream.magic", "this is not a vmferry stream")                                                          \
    X(VMF_ERROR_VERSION, "stream.version", "this engine reads stream versions 2 and 3")                                         \
    X(VMF_ERROR_CRC, "stream.crc", "")                                                                                          \
    X(VMF_ERROR_RECORD_LENGTH, "stream.record-length", "")                                                                      \
    X(VMF_ERROR_RECORD_UNKNOWN, "stream.record-unknown", "the stream comes from an engine that is newer than this one")         \
    X(VMF_ERROR_RECORD_ORDER, "stream.record-order", "")                                                                        \
    X(VMF_ERROR_RECORD_BODY, "stream.record-body", "")                                                                          \
    X(VMF_ERROR_STATIC_MISSING_END, "static.missing-end", "")                                                                   \
    X(VMF_ERROR_STATIC_DOUBLE_END, "static.double-end", "")                                                                     \
    X(VMF_ERROR_STATIC_LATE, "static.late", "")                                                                                 \
    X(VMF_ERROR_STATIC_DUPLICATE, "static.duplicate", "")                                                                       \
    X(VMF_ERROR_STATIC_SUM, "static.sum", "data was damaged between the hosts")                                                 \
    X(VMF_ERROR_INCOMPATIBLE, "static.incompatible", "start the target with the source's machine settings")                     \
    X(VMF_ERROR_FEATURE, "static.feature", "")                                                                                  \
    X(VMF_ERROR_RAM_BLOCK, "ram.block", "")                                                                                     \
    X(VMF_ERROR_RAM_RANGE, "ram.range", "")                                                                                     \
    X(VMF_ERROR_RAM_COUNTS, "ram.counts", "")                                                                                   \
    X(VMF_ERROR_RAM_SUM, "ram.sum", "data was damaged between the hosts")                                                       \
    X(VMF_ERROR_RAM_AUDIT, "ram.audit", "memory differs from what was sent: a dirty log lost a write")                          \
    X(VMF_ERROR_SECTION, "section", "")                                                                                         \
    X(VMF_ERROR_SECTION_VERSION, "section.version", "")                                                                         \
    X(VMF_ERROR_DEVICE_STATE, "device-state", "")                                                                               \
    X(VMF_ERROR_DEVICE_SUM, "device-state.sum", "data was damaged between the hosts")                                           \
    X(VMF_ERROR_HANDSHAKE, "channel.handshake", "")                                                                             \
    X(VMF_ERROR_REFUSED, "handover.refused", "")                                                                                \
    X(VMF_ERROR_SWITCHOVER_TIMEOUT, "handover.timeout", "raise --switchover-timeout")                                           \
    X(VMF_ERROR_HELD, "handover.held", "'vmferry resolve NAME' says who may have the guest, and settles it")                     \
    X(VMF_ERROR_OFFERED, "handover.offered", "'vmferry resolve NAME' says who may have the guest, and settles it")               \
    X(VMF_ERROR_JOURNAL, "journal", "the state directory must be writable, and have room")                                      \
    X(VMF_ERROR_JOURNAL_DAMAGED, "journal.damaged",                                                                             \
      "what this file said is lost: see at both hosts where the guest runs, then remove the file")                              \
    X(VMF_ERROR_STATE, "state", "")                                                                                             \
    X(VMF_ERROR_GUEST, "guest", "")                                                                                             \
    X(VMF_ERROR_PEER, "peer", "")                                                                                               \
    X(VMF_ERROR_CONTROL_LOST, "control.lost",                                                                                   \
      "a guest that was on its way: see with 'vmferry status' at the target whether it runs there")                             \
    X(VMF_ERROR_ABANDONED, "abandoned", "'vmferry status --follow' shows how it goes on")                                       \
    X(VMF_ERROR_HUGE_PAGES, "ram.huge-pages",                                                                                   \
      "reserve that many pages of 2 MiB on this host: write their number to /proc/sys/vm/nr_hugepages")                         \
    X(VMF_ERROR_NO_SPACE, "storage.full", "free space there, or save elsewhere")                                                 \
    X(VMF_ERROR_IMAGE_MAGIC, "image.magic", "this is not a vmferry image; 'vmferry convert' makes one of a stream")             \
    X(VMF_ERROR_IMAGE_INCOMPLETE, "image.incomplete", "the save into it was never completed")                                   \
    X(VMF_ERROR_IMAGE_VERSION, "image.version", "this engine reads image versions 1 and 2")                                     \
    X(VMF_ERROR_IMAGE_CRC, "image.crc", "the image is damaged: 'vmferry verify' tells how far")                                 \
    X(VMF_ERROR_IMAGE_LAYOUT, "image.layout", "")                                                                               \
    X(VMF_ERROR_IMAGE_BITMAP, "image.bitmap", "the image is damaged: 'vmferry verify' tells how far")                           \
    X(VMF_ERROR_IMAGE_DIGEST, "image.digest", "the image is damaged: 'vmferry verify' tells how far")                           \
    X(VMF_ERROR_IMAGE_PAGE, "image.page", "the image is damaged: 'vmferry verify' tells how far")                               \
    X(VMF_ERROR_IMAGE_PARENT, "image.parent",                                                                                   \
      "--parent says where the image is that a layer was saved over; 'vmferry flatten' makes one image of a long chain")        \
    X(VMF_ERROR_IMAGE_DISK, "image.disk",                                                                                       \
      "memory and disk would no longer fit each other; --force-stale-disks restores all the same")                             \
    X(VMF_ERROR_DISK_RANGE, "disk.range", "")                                                                                   \
    X(VMF_ERROR_DISK_COUNTS, "disk.counts", "")                                                                                 \
    X(VMF_ERROR_DISK_SUM, "disk.sum", "data was damaged between the hosts")                                                     \
    X(VMF_ERROR_DISK_AUDIT, "disk.audit", "the storage does not give back what was written to it, or somebody else writes it")  \
    X(VMF_ERROR_DISK_PLACE, "disk.place",                                                                                       \
      "name another place; --force (of a copy: at its target) lets a filesystem or a partition table be replaced")              \
    X(VMF_ERROR_LOCKED, "storage.locked", "a machine here, or on a host that shares the storage, has it in use")                \
    X(VMF_ERROR_BITMAP, "bitmap.inconsistent", "clear the bitmap, or remove it, and make a full backup")                        \
    X(VMF_ERROR_DISK_BASE, "disk.base", "copy all of the disk, or make a full backup with the bitmap there")                     \
    X(VMF_ERROR_BITMAP_FILE, "bitmap.file",                                                                                     \
      "the file has to be one that can be read and written; one that is damaged is to be removed while no machine has the disk, " \
      "and bitmaps begin anew with a full backup")

typedef enum {
#define X(code, id, hint) code,
    VMF_ERROR_CODES(X)
#undef X
    VMF_ERROR_N
} VmfErrorCode;

GQuark vmf_error_quark(void);

/* Stable id and hint of @error. Errors of other domains (GIOError, …) have the id "io". Never NULL; static strings. */
const char *vmf_error_id(const GError *error);
const char *vmf_error_hint(const GError *error);

G_END_DECLS
#endif
