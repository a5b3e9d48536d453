/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Static data: what a stream says of the machine ahead of everything else. The same struct is filled from a guest by the writer and
 * from records by the reader; comparing two of them is migration/compatibility.c.
 */
#ifndef VMF_STREAM_STATIC_DATA_H
#define VMF_STREAM_STATIC_DATA_H

#include "stream/header.h"

typedef struct {
    char *key;
    char *value;
} VmfStaticProperty;

typedef struct {
    char *name;
    uint32_t flags; /* VMF_BLOCK_FLAG_… */
    uint64_t size;
    uint64_t guest_address;
    uint32_t page_size;
} VmfStaticBlock;

typedef struct {
    char *name;
    uint32_t instance;
    uint32_t version;
} VmfStaticSection;

typedef struct {
    char *name;
    uint32_t flags; /* VMF_WIRE_DISK_… */
    uint64_t size;  /* bytes */
    uint32_t sector_bytes;
} VmfStaticDisk;

typedef struct {
    VmfMachineHeader machine;
    GArray *properties; /* VmfStaticProperty */
    GArray *blocks;     /* VmfStaticBlock, by index */
    GArray *sections;   /* VmfStaticSection, by id */
    GArray *disks;      /* VmfStaticDisk, by index */
    bool have_properties, have_sections, have_features;
    uint64_t features_offered;
    uint64_t features_required;
    uint32_t page_channels;
    char *host; /* or NULL */
} VmfStaticData;

VmfStaticData *vmf_static_data_new(void);
void vmf_static_data_free(VmfStaticData *data);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfStaticData, vmf_static_data_free)

/* The strings are copied. */
void vmf_static_data_add_property(VmfStaticData *data, const char *key, const char *value);
void vmf_static_data_add_block(VmfStaticData *data, const VmfStaticBlock *block);
void vmf_static_data_add_section(VmfStaticData *data, const char *name, uint32_t instance, uint32_t version);

void vmf_static_data_add_disk(VmfStaticData *data, const VmfStaticDisk *disk);

/* Queues all records in the order of the format; version 3 with FEATURES and STATIC_DATA_END. */
bool vmf_static_data_write(const VmfStaticData *data, VmfRecordWriter *writer, GError **error);

/* Whether the type is in the range of static data, known or not. */
bool vmf_static_data_is_static(uint32_t type);

/* What no record by itself can be blamed for, once all of them were taken. */
bool vmf_static_data_check(const VmfStaticData *data, GError **error);

/* Takes one static record other than STATIC_DATA_END. Unknown optional ones must have been skipped. */
bool vmf_static_data_take(VmfStaticData *data, const VmfRecord *record, bool swap, GError **error);

#endif
