/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * docs/stream-format.rst in C: numbers and layouts, and nothing else. A layout that was released is never edited; a new one gets a new
 * name and a new record type.
 */
#ifndef VMF_STREAM_WIRE_H
#define VMF_STREAM_WIRE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define VMF_IMAGE_MARKER UINT64_MAX
#define VMF_IMAGE_ID 0x564D4659u
#define VMF_IMAGE_HEADER_SIZE 24
#define VMF_MACHINE_HEADER_SIZE 64
#define VMF_ARCHITECTURE_SIZE 32
#define VMF_PREAMBLE_SIZE 48
#define VMF_PREAMBLE_MAGIC "VMFPAGES"
#define VMF_TOKEN_PREAMBLE_MAGIC "VMFTOKEN"

#define VMF_STREAM_VERSION_MIN 2
#define VMF_STREAM_VERSION_MAX 3

#define VMF_OPTION_BIG_ENDIAN (1u << 0)
#define VMF_OPTION_ONE_WAY (1u << 1)
#define VMF_OPTIONS_KNOWN (VMF_OPTION_BIG_ENDIAN | VMF_OPTION_ONE_WAY)

#define VMF_RECORD_OPTIONAL (1u << 31)
#define VMF_RECORD_HEADER_SIZE 16
#define VMF_RECORD_BODY_MAX (4u << 20)

/* X(code, number, name) */
#define VMF_RECORDS(X)                                                                                                          \
    X(VMF_RECORD_PROPERTIES, 0x01, "PROPERTIES")                                                                                \
    X(VMF_RECORD_RAM_BLOCK, 0x02, "RAM_BLOCK")                                                                                  \
    X(VMF_RECORD_SECTIONS, 0x03, "SECTIONS")                                                                                    \
    X(VMF_RECORD_FEATURES, 0x04, "FEATURES")                                                                                    \
    X(VMF_RECORD_HOST, 0x80000005u, "HOST")                                                                                     \
    X(VMF_RECORD_GUEST_DISK, 0x80000006u, "GUEST_DISK")                                                                         \
    X(VMF_RECORD_STATIC_DATA_END, 0x1F, "STATIC_DATA_END")                                                                      \
    X(VMF_RECORD_PREFLIGHT, 0x20, "PREFLIGHT")                                                                                  \
    X(VMF_RECORD_PAGE_CHANNELS, 0x21, "PAGE_CHANNELS")                                                                          \
    X(VMF_RECORD_PAGES, 0x22, "PAGES")                                                                                          \
    X(VMF_RECORD_HINT, 0x80000023u, "HINT")                                                                                     \
    X(VMF_RECORD_SECTION, 0x24, "SECTION")                                                                                      \
    X(VMF_RECORD_ROUND, 0x80000025u, "ROUND")                                                                                   \
    X(VMF_RECORD_EXTENT, 0x26, "EXTENT")                                                                                        \
    X(VMF_RECORD_END_MARK, 0x27, "END_MARK")                                                                                    \
    X(VMF_RECORD_SWITCHOVER, 0x28, "SWITCHOVER")                                                                                \
    X(VMF_RECORD_RUN, 0x29, "RUN")                                                                                              \
    X(VMF_RECORD_ABORT, 0x2A, "ABORT")                                                                                          \
    X(VMF_RECORD_QUERY, 0x2B, "QUERY")                                                                                          \
    X(VMF_RECORD_DISK_SYNC, 0x2C, "DISK_SYNC")                                                                                  \
    X(VMF_RECORD_PING, 0x2D, "PING")                                                                                            \
    X(VMF_RECORD_INQUIRE, 0x2E, "INQUIRE")                                                                                      \
    X(VMF_RECORD_CONFIRM, 0x2F, "CONFIRM")                                                                                      \
    X(VMF_RECORD_BASE, 0x30, "BASE")                                                                                            \
    X(VMF_RECORD_END, 0x3F, "END")                                                                                              \
    X(VMF_RECORD_VERDICT, 0x40, "VERDICT")                                                                                      \
    X(VMF_RECORD_TARGET_HOST, 0x80000041u, "TARGET_HOST")                                                                       \
    X(VMF_RECORD_ACK, 0x42, "ACK")                                                                                              \
    X(VMF_RECORD_READY, 0x43, "READY")                                                                                          \
    X(VMF_RECORD_REFUSED, 0x44, "REFUSED")                                                                                      \
    X(VMF_RECORD_RUNNING, 0x45, "RUNNING")                                                                                      \
    X(VMF_RECORD_NEVER, 0x46, "NEVER")                                                                                          \
    X(VMF_RECORD_REPORT, 0x47, "REPORT")                                                                                        \
    X(VMF_RECORD_PONG, 0x48, "PONG")                                                                                            \
    X(VMF_RECORD_FAILED, 0x49, "FAILED")                                                                                        \
    X(VMF_RECORD_ANSWER, 0x4A, "ANSWER")                                                                                        \
    X(VMF_RECORD_TARGET_STATE, 0x8000004Bu, "TARGET_STATE")                                                                     \
    X(VMF_RECORD_MIRRORED, 0x4D, "MIRRORED")                                                                                    \
    X(VMF_RECORD_DISK_SYNCED, 0x4C, "DISK_SYNCED")                                                                              \
    X(VMF_RECORD_LAYOUT, 0x50, "LAYOUT")                                                                                        \
    X(VMF_RECORD_PARENT, 0x51, "PARENT")                                                                                        \
    X(VMF_RECORD_DISK, 0x52, "DISK")                                                                                            \
    X(VMF_RECORD_RAM_ONLY, 0x53, "RAM_ONLY")

enum {
#define X(code, number, name) code = number,
    VMF_RECORDS(X)
#undef X
};

/* "PAGES"; "record 0x77" has no name and gives NULL. */
const char *vmf_record_name(uint32_t type);

#define VMF_STATIC_LAST 0x1Fu /* types up to here, optional bit aside, are static data */

#define VMF_PROPERTIES_MAX 256
#define VMF_PROPERTY_KEY_MAX 63
#define VMF_PROPERTY_VALUE_MAX 255
#define VMF_BLOCK_SIZE_MAX (UINT64_C(1) << 48)
#define VMF_BLOCK_FLAG_ROM (1u << 0)
#define VMF_SECTIONS_MAX 1024
#define VMF_SECTION_NAME_MAX 63
#define VMF_SECTION_CONTENT_MAX (1u << 20)
#define VMF_DEVICE_STATE_MAX (16u << 20)
#define VMF_HOST_NAME_MAX 255
#define VMF_VERDICT_TEXTS_MAX 256
#define VMF_VERDICT_TEXT_MAX 1024
#define VMF_ACK_ENTRIES_MAX 4096

#define VMF_FEATURE_ACKS (UINT64_C(1) << 0)
#define VMF_FEATURE_SUMS (UINT64_C(1) << 1)
#define VMF_FEATURE_HINTS (UINT64_C(1) << 2)
#define VMF_FEATURE_AUDIT_BEFORE (UINT64_C(1) << 3)
#define VMF_FEATURE_REPORT (UINT64_C(1) << 4)
#define VMF_FEATURE_DISKS (UINT64_C(1) << 5)
#define VMF_FEATURE_BASES (UINT64_C(1) << 6)
#define VMF_FEATURE_MIRROR (UINT64_C(1) << 7)
#define VMF_FEATURES_KNOWN                                                                                                      \
    (VMF_FEATURE_ACKS | VMF_FEATURE_SUMS | VMF_FEATURE_HINTS | VMF_FEATURE_AUDIT_BEFORE | VMF_FEATURE_REPORT | \
     VMF_FEATURE_DISKS | VMF_FEATURE_BASES | VMF_FEATURE_MIRROR)

#define VMF_SECTION_FIRST (1u << 0)
#define VMF_SECTION_LAST (1u << 1)
#define VMF_SECTION_META_SIZE 16

#define VMF_WIRE_DISKS_MAX 256
#define VMF_WIRE_DISK_NAME_MAX 63
#define VMF_WIRE_DISK_SIZE_MAX (UINT64_C(1) << 50)
#define VMF_WIRE_COPIED_DISK_SIZE_MAX (UINT64_C(1) << 46)
#define VMF_WIRE_DISK_COPIED (1u << 0)
#define VMF_GRANULE_BYTES 65536u
#define VMF_EXTENT_DATA_MAX (1u << 20) /* octets of a payload */
#define VMF_EXTENT_ZERO_MAX (UINT64_C(1) << 36) /* octets, without one */
#define VMF_EXTENT_FIRST (1u << 0)
#define VMF_EXTENT_IS_ZERO (1u << 1)
#define VMF_EXTENT_MIRRORED (1u << 2)
#define VMF_BASE_IS_ZERO (1u << 0)
#define VMF_BASE_GRANULES_MAX 1024u /* of one record: 64 MiB */
#define VMF_DISK_SYNC_LAST (1u << 0)
#define VMF_DISK_SYNC_VERIFY (1u << 1)
#define VMF_DISK_SYNC_WRITTEN (1u << 2)

#define VMF_PAGES_FIRST_PASS (1u << 0)
#define VMF_PAGES_DATA_MAX 128
#define VMF_WIRE_CHUNK_WORDS 8

#define VMF_SWITCHOVER_RUN (1u << 0)
#define VMF_SWITCHOVER_AUDIT (1u << 1)
#define VMF_READY_AUDITED (1u << 0)
#define VMF_REPORT_GAP_KNOWN (1u << 0)
#define VMF_REPORT_NOT_STARTED (1u << 1)

#define VMF_TOKEN_SIZE 16

typedef struct {
    uint32_t type;
    uint32_t length;
    uint32_t checked;
    uint32_t crc32c;
} VmfWireRecordHeader;
static_assert(sizeof(VmfWireRecordHeader) == VMF_RECORD_HEADER_SIZE, "record header");

/* Bodies that are laid out as structs: they are written and read for every half megabyte of pages, every megabyte of a disk. */
typedef struct {
    uint32_t block;
    uint32_t flags;
    uint64_t sequence;
    uint64_t chunk;
    uint32_t epoch;
    uint32_t n_data;
    uint64_t data[VMF_WIRE_CHUNK_WORDS];
    uint64_t zero[VMF_WIRE_CHUNK_WORDS];
} VmfWirePages;
static_assert(sizeof(VmfWirePages) == 160, "PAGES");
static_assert(offsetof(VmfWirePages, data) == 32 && offsetof(VmfWirePages, zero) == 96, "PAGES");

typedef struct {
    uint32_t disk;
    uint32_t flags;
    uint64_t offset;
    uint64_t length;
} VmfWireExtent;
static_assert(sizeof(VmfWireExtent) == 24, "EXTENT");

#endif
