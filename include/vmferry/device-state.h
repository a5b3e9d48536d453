/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Declarative device state: a table of fields says what of a struct travels, since which version; subsections carry what only some
 * devices need. The encoding is in docs/stream-format.rst ("Device state").
 *
 *   static const VmfField timer_fields[] = {
 *       VMF_FIELD(struct timer, compare, VMF_FIELD_U64, 1),
 *       VMF_FIELD(struct timer, period, VMF_FIELD_U32, 2),          // a version 1 stream leaves it as pre_load set it
 *       VMF_FIELD_END
 *   };
 *
 * Compatibility both ways: an older stream lacks newer fields and subsections, which keep what pre_load put there. A newer stream is
 * accepted by older code when its version is within the older code's reach and every subsection that the older code does not know is
 * marked optional; otherwise it is refused before anything of the device changes.
 */
#ifndef VMFERRY_DEVICE_STATE_H
#define VMFERRY_DEVICE_STATE_H

#include <vmferry/guest.h>
#include <stddef.h>

G_BEGIN_DECLS

typedef enum { VMF_FIELD_NONE, VMF_FIELD_BOOL, VMF_FIELD_U8, VMF_FIELD_U16, VMF_FIELD_U32, VMF_FIELD_U64 } VmfFieldKind;

typedef struct {
    const char *name; /* NULL ends a table */
    VmfFieldKind kind;
    size_t offset; /* into the device's struct, or the subsection's (the same struct) */
    size_t count;  /* 1, or the length of an array */
    uint32_t since_version;
} VmfField;

#define VMF_FIELD(type, member, kind, since) {#member, kind, offsetof(type, member), 1, since}
#define VMF_FIELD_ARRAY(type, member, kind, since)                                                                              \
    {#member, kind, offsetof(type, member), sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]), since}
#define VMF_FIELD_END {NULL, VMF_FIELD_NONE, 0, 0, 0}

typedef struct {
    const char *name; /* NULL ends a table; 1 to 63 bytes */
    uint32_t version;         /* from 1 */
    uint32_t minimum_version; /* oldest that can be loaded, from 1 */
    bool optional;            /* a loader that does not know it, or not this version of it, may skip it */
    bool (*needed)(const void *device); /* NULL: always sent */
    const VmfField *fields;
} VmfSubsection;

struct VmfDeviceState {
    size_t size;      /* sizeof(VmfDeviceState) */
    const char *name; /* 1 to 63 bytes, as in the stream */
    uint32_t version;                                    /* from 1 */
    uint32_t minimum_version;                            /* oldest that can be loaded, from 1 */
    const VmfField *fields;                              /* at most 16 MiB with all subsections */
    const VmfSubsection *subsections;                    /* NULL: none */
    void (*pre_save)(void *device);                      /* guest stopped; may refresh fields. May be NULL */
    void (*pre_load)(void *device);                      /* sets defaults. May be NULL */
    bool (*post_load)(void *device, GError **error);     /* checks and applies; the fields are the peer's word. May be NULL */
};

/* Encodes @device. The result is owned by the caller. */
GByteArray *vmf_device_state_save(const VmfDeviceState *state, void *device, GError **error);

/*
 * Decodes into @device. The whole input is checked before the first field changes; then pre_load, the fields, post_load. When
 * post_load refuses, every field of the tables gets back what it had before; what pre_load and post_load changed beyond the fields is
 * theirs to undo. @swap: the stream's byte order is not the host's.
 */
bool vmf_device_state_load(const VmfDeviceState *state, void *device, uint32_t version, const uint8_t *data, size_t length, bool swap,
                           GError **error);

G_END_DECLS
#endif
