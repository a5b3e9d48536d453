/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of Operation: declarative device state.
 *
 * Encoding, all integers in the byte order of the stream (the host's that wrote it):
 *
 *   u32 fields_length      length of what follows up to the first subsection
 *   fields                 those with since_version <= the section's version, in the table's order, packed without
 * padding: BOOL is one octet, 0 or 1; U8 to U64 their octets; an array its elements subsections, any number from 0 to
 * 64: u8  0x53 u8  name_length      1 to 63 name                 printable ASCII, not terminated; no name twice u8
 * flags            bit 0: optional, a loader that cannot read it may do without; the others are zero u32 version u32
 * length body                 its fields with since_version <= its version, packed as above u8  0x00               the
 * end; nothing follows
 *
 * The lengths are redundant for a loader that knows the tables, which is their use: a length that disagrees with the
 * table names the damage before any field is believed, and an unknown optional subsection can be stepped over.
 *
 * Loading has three steps. Parsing checks the whole input and only remembers where each part's body lies; it writes
 * nothing. Then the bytes of every field in the tables are put aside, pre_load runs, and the parts are copied into the
 * struct, which cannot fail. Then post_load may still refuse; the fields get their bytes back, so a refused load leaves
 * the described part of the device as it was. What pre_load and post_load do beyond the fields is theirs to undo.
 *
 * A known subsection of a version out of reach is treated as an unknown one: refused, unless its writer marked it
 * optional.
 */
#include "migration/device-state.h"
#include "migration/ops.h"

#include <vmferry/error.h>

#define MARK_SUBSECTION 0x53
#define MARK_END 0x00
#define FLAG_OPTIONAL 0x01
#define SUBSECTION_HEADER_MAX (1 + 1 + VMF_DEVICE_NAME_MAX + 1 + 4 + 4) /* octets */

static const uint8_t kind_sizes[] = {
    [VMF_FIELD_NONE] = 0, [VMF_FIELD_BOOL] = 1, [VMF_FIELD_U8] = 1,
    [VMF_FIELD_U16] = 2,  [VMF_FIELD_U32] = 4,  [VMF_FIELD_U64] = 8,
};
_Static_assert(sizeof(bool) == 1, "a bool field is one octet in memory as in the stream");

/* ---- the description --------------------------------------------------------------------------------------------- */

bool vmf_is_printable(const char *text, size_t length, size_t most)
{
    if (length == 0 || length > most)
        return false;
    for (size_t i = 0; i < length; i++) {
        if (!g_ascii_isprint(text[i]))
            return false;
    }
    return true;
}

static size_t field_size(const VmfField *field)
{
    return kind_sizes[field->kind] * field->count;
}

static size_t fields_size(const VmfField *fields, uint32_t version)
{
    size_t size = 0;

    for (const VmfField *f = fields; f && f->name; f++) {
        if (f->since_version <= version)
            size += field_size(f);
    }
    return size;
}

static const char *versions_fault(uint32_t version, uint32_t minimum_version)
{
    if (minimum_version == 0)
        return "versions count from 1";
    return minimum_version > version ? "the oldest version that can be loaded is newer than its own" : NULL;
}

/* Adds the fields' size to *total, which never exceeds VMF_DEVICE_STATE_MAX. */
static const char *fields_fault(const VmfField *fields, uint32_t version, size_t *total)
{
    for (const VmfField *f = fields; f && f->name; f++) {
        size_t size;

        if (f->kind <= VMF_FIELD_NONE || f->kind > VMF_FIELD_U64)
            return "a field's kind is unknown";
        if (f->count == 0)
            return "a field has no elements";
        if (f->since_version == 0 || f->since_version > version)
            return "a field's version is not one of the table's";
        if (__builtin_mul_overflow(f->count, (size_t)kind_sizes[f->kind], &size) ||
            size > VMF_DEVICE_STATE_MAX - *total)
            return "its fields exceed 16 MiB";
        *total += size;
    }
    return NULL;
}

static const VmfSubsection *find_subsection(const VmfSubsection *subsections, const char *name, size_t length)
{
    for (const VmfSubsection *s = subsections; s && s->name; s++) {
        if (strlen(s->name) == length && !memcmp(s->name, name, length))
            return s;
    }
    return NULL;
}

static const char *subsection_fault(const VmfSubsection *all, const VmfSubsection *s, size_t *total)
{
    const char *fault = versions_fault(s->version, s->minimum_version);

    if (!vmf_is_printable(s->name, strlen(s->name), VMF_DEVICE_NAME_MAX))
        return "a subsection's name has 1 to 63 bytes of printable ASCII";
    if (s - all >= VMF_SUBSECTIONS_MAX)
        return "there are more than 64 subsections";
    if (find_subsection(all, s->name, strlen(s->name)) != s)
        return "two subsections have one name";
    if (SUBSECTION_HEADER_MAX > VMF_DEVICE_STATE_MAX - *total)
        return "its fields exceed 16 MiB";
    *total += SUBSECTION_HEADER_MAX;
    return fault ? fault : fields_fault(s->fields, s->version, total);
}

static const char *state_fault(const VmfDeviceState *state)
{
    size_t total = sizeof(uint32_t) + 1;
    const char *fault = versions_fault(state->version, state->minimum_version);

    if (!fault)
        fault = fields_fault(state->fields, state->version, &total);
    for (const VmfSubsection *s = state->subsections; !fault && s && s->name; s++)
        fault = subsection_fault(state->subsections, s, &total);
    return fault;
}

bool vmf_device_state_copy(VmfDeviceState *own, const VmfDeviceState *theirs, GError **error)
{
    const char *fault;

    if (!vmf_ops_copy(own, sizeof(*own), theirs, VMF_SIZE_UP_TO(VmfDeviceState, fields))) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                    "device state: its description has %zu bytes, less than any release had", theirs->size);
        return false;
    }
    if (!own->name || !vmf_is_printable(own->name, strlen(own->name), VMF_DEVICE_NAME_MAX)) {
        g_set_error_literal(error, VMF_ERROR, VMF_ERROR_USAGE,
                            "device state: a name has 1 to 63 bytes of printable ASCII");
        return false;
    }
    fault = state_fault(own);
    if (!fault)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "device state '%s': %s", own->name, fault);
    return false;
}

/* ---- saving ------------------------------------------------------------------------------------------------------ */

static void put_u8(GByteArray *out, uint8_t value)
{
    g_byte_array_append(out, &value, sizeof(value));
}

static void put_u32(GByteArray *out, uint32_t value)
{
    g_byte_array_append(out, (const uint8_t *)&value, sizeof(value));
}

static void put_fields(GByteArray *out, const VmfField *fields, uint32_t version, const uint8_t *device)
{
    put_u32(out, fields_size(fields, version));
    for (const VmfField *f = fields; f && f->name; f++) {
        if (f->since_version > version)
            continue;
        if (f->kind != VMF_FIELD_BOOL) {
            g_byte_array_append(out, device + f->offset, field_size(f));
            continue;
        }
        for (size_t i = 0; i < f->count;
             i++) /* read as an octet: a bool that is neither 0 nor 1 must not be read as a bool */
            put_u8(out, device[f->offset + i] != 0);
    }
}

static void put_subsection(GByteArray *out, const VmfSubsection *subsection, const uint8_t *device)
{
    put_u8(out, MARK_SUBSECTION);
    put_u8(out, strlen(subsection->name));
    g_byte_array_append(out, (const uint8_t *)subsection->name, strlen(subsection->name));
    put_u8(out, subsection->optional ? FLAG_OPTIONAL : 0);
    put_u32(out, subsection->version);
    put_fields(out, subsection->fields, subsection->version, device);
}

GByteArray *vmf_device_state_save(const VmfDeviceState *state, void *device, GError **error)
{
    VmfDeviceState own;
    GByteArray *out;

    if (!vmf_device_state_copy(&own, state, error))
        return NULL;
    if (own.pre_save)
        own.pre_save(device);
    out = g_byte_array_new();
    put_fields(out, own.fields, own.version, device);
    for (const VmfSubsection *s = own.subsections; s && s->name; s++) {
        if (!s->needed || s->needed(device))
            put_subsection(out, s, device);
    }
    put_u8(out, MARK_END);
    return out;
}

/* ---- parsing: the whole input, before anything of the device changes --------------------------------------------- */

typedef struct {
    const uint8_t *data;
    size_t left;
    bool swap;
} Input;

/* Fields of the device that the input has, checked; @body lies in the input. */
typedef struct {
    const VmfField *fields;
    uint32_t version;
    const uint8_t *body;
} Part;

typedef struct {
    const char *name; /* in the input, not terminated */
    uint8_t name_length;
    bool optional;
    uint32_t version;
    const uint8_t *body;
    uint32_t length;
} SubsectionHeader;

typedef struct {
    Part parts[1 + VMF_SUBSECTIONS_MAX];
    unsigned n_parts;
    SubsectionHeader seen[VMF_SUBSECTIONS_MAX];
    unsigned n_seen;
} Parsed;

static bool take(Input *in, const char *what, size_t length, const uint8_t **out, GError **error)
{
    if (length > in->left) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "%s: %zu bytes are announced, %zu are left", what, length,
                    in->left);
        return false;
    }
    *out = in->data;
    in->data += length;
    in->left -= length;
    return true;
}

static bool take_u8(Input *in, const char *what, uint8_t *out, GError **error)
{
    const uint8_t *data;

    if (!take(in, what, sizeof(*out), &data, error))
        return false;
    *out = *data;
    return true;
}

static bool take_u32(Input *in, const char *what, uint32_t *out, GError **error)
{
    const uint8_t *data;

    if (!take(in, what, sizeof(*out), &data, error))
        return false;
    memcpy(out, data, sizeof(*out));
    if (in->swap)
        *out = __builtin_bswap32(*out);
    return true;
}

static bool check_version(uint32_t version, uint32_t minimum, uint32_t own, GError **error)
{
    if (version >= minimum && version <= own)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_SECTION_VERSION, "version %u: this machine reads %u to %u", version,
                minimum, own);
    return false;
}

static bool check_bools(const VmfField *field, const uint8_t *values, GError **error)
{
    for (size_t i = 0; i < field->count; i++) {
        if (values[i] > 1) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "field '%s': %u is not a bool", field->name,
                        values[i]);
            return false;
        }
    }
    return true;
}

static bool add_part(Parsed *parsed, const VmfField *fields, uint32_t version, const uint8_t *body, size_t length,
                     GError **error)
{
    size_t expected = fields_size(fields, version);
    const uint8_t *values = body;

    if (length != expected) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "fields: %zu bytes, version %u has %zu", length, version,
                    expected);
        return false;
    }
    for (const VmfField *f = fields; f && f->name; f++) {
        if (f->since_version > version)
            continue;
        if (f->kind == VMF_FIELD_BOOL && !check_bools(f, values, error))
            return false;
        values += field_size(f);
    }
    parsed->parts[parsed->n_parts++] = (Part){fields, version, body};
    return true;
}

static bool parse_fields(const VmfDeviceState *state, uint32_t version, Input *in, Parsed *parsed, GError **error)
{
    const uint8_t *body;
    uint32_t length;

    return check_version(version, state->minimum_version, state->version, error) &&
           take_u32(in, "length of the fields", &length, error) && take(in, "fields", length, &body, error) &&
           add_part(parsed, state->fields, version, body, length, error);
}

static bool parse_header(Input *in, SubsectionHeader *header, GError **error)
{
    const uint8_t *name;
    uint8_t flags;

    if (!take_u8(in, "subsection: length of the name", &header->name_length, error) ||
        !take(in, "subsection: name", header->name_length, &name, error))
        return false;
    header->name = (const char *)name;
    if (!vmf_is_printable(header->name, header->name_length, VMF_DEVICE_NAME_MAX)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE,
                    "subsection: its name is not 1 to 63 bytes of printable ASCII");
        return false;
    }
    if (!take_u8(in, "subsection: flags", &flags, error) ||
        !take_u32(in, "subsection: version", &header->version, error) ||
        !take_u32(in, "subsection: length", &header->length, error) ||
        !take(in, "subsection: fields", header->length, &header->body, error))
        return false;
    if (flags & ~FLAG_OPTIONAL) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "subsection: flags 0x%02x are unknown", flags);
        return false;
    }
    header->optional = flags & FLAG_OPTIONAL;
    return true;
}

static bool check_new(Parsed *parsed, const SubsectionHeader *header, GError **error)
{
    for (unsigned i = 0; i < parsed->n_seen; i++) {
        const SubsectionHeader *other = &parsed->seen[i];

        if (other->name_length == header->name_length && !memcmp(other->name, header->name, header->name_length)) {
            g_set_error_literal(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "it is there twice");
            return false;
        }
    }
    if (parsed->n_seen == VMF_SUBSECTIONS_MAX) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "it is one more than the %u that there can be",
                    VMF_SUBSECTIONS_MAX);
        return false;
    }
    parsed->seen[parsed->n_seen++] = *header;
    return true;
}

static bool add_subsection(const VmfDeviceState *state, Parsed *parsed, const SubsectionHeader *header, GError **error)
{
    const VmfSubsection *known = find_subsection(state->subsections, header->name, header->name_length);

    if (!check_new(parsed, header, error))
        return false;
    if (!known) {
        if (header->optional)
            return true;
        g_set_error_literal(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE,
                            "it is unknown to this machine and cannot be left out");
        return false;
    }
    if (!check_version(header->version, known->minimum_version, known->version, header->optional ? NULL : error))
        return header->optional;
    return add_part(parsed, known->fields, header->version, header->body, header->length, error);
}

static bool parse_subsections(const VmfDeviceState *state, Input *in, Parsed *parsed, GError **error)
{
    for (;;) {
        SubsectionHeader header;
        uint8_t mark;

        if (!take_u8(in, "mark of a subsection or the end", &mark, error))
            return false;
        if (mark == MARK_END)
            return true;
        if (mark != MARK_SUBSECTION) {
            g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "0x%02x is not the mark of a subsection or the end",
                        mark);
            return false;
        }
        if (!parse_header(in, &header, error))
            return false;
        if (!add_subsection(state, parsed, &header, error)) {
            g_prefix_error(error, "subsection '%.*s': ", header.name_length, header.name);
            return false;
        }
    }
}

static bool parse(const VmfDeviceState *state, uint32_t version, Input *in, Parsed *parsed, GError **error)
{
    if (in->left > VMF_DEVICE_STATE_MAX) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "%zu bytes are more than the %u that there can be",
                    in->left, VMF_DEVICE_STATE_MAX);
        return false;
    }
    if (!parse_fields(state, version, in, parsed, error) || !parse_subsections(state, in, parsed, error))
        return false;
    if (in->left == 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "%zu bytes follow the end", in->left);
    return false;
}

/* ---- applying ---------------------------------------------------------------------------------------------------- */

static void swap_elements(uint8_t *elements, size_t element_size, size_t count)
{
    for (size_t i = 0; i < count; i++, elements += element_size) {
        for (size_t low = 0, high = element_size - 1; low < high; low++, high--) {
            uint8_t octet = elements[low];

            elements[low] = elements[high];
            elements[high] = octet;
        }
    }
}

static void apply_part(const Part *part, uint8_t *device, bool swap)
{
    const uint8_t *values = part->body;

    for (const VmfField *f = part->fields; f && f->name; f++) {
        if (f->since_version > part->version)
            continue;
        memcpy(device + f->offset, values, field_size(f));
        if (swap)
            swap_elements(device + f->offset, kind_sizes[f->kind], f->count);
        values += field_size(f);
    }
}

static void put_aside_fields(GByteArray *aside, const VmfField *fields, const uint8_t *device)
{
    for (const VmfField *f = fields; f && f->name; f++)
        g_byte_array_append(aside, device + f->offset, field_size(f));
}

/* The bytes of every field that the description has, whether or not the input has it: pre_load may set any of them. */
static GByteArray *put_aside(const VmfDeviceState *state, const uint8_t *device)
{
    GByteArray *aside = g_byte_array_new();

    put_aside_fields(aside, state->fields, device);
    for (const VmfSubsection *s = state->subsections; s && s->name; s++)
        put_aside_fields(aside, s->fields, device);
    return aside;
}

static const uint8_t *give_back_fields(const uint8_t *aside, const VmfField *fields, uint8_t *device)
{
    for (const VmfField *f = fields; f && f->name; f++) {
        memcpy(device + f->offset, aside, field_size(f));
        aside += field_size(f);
    }
    return aside;
}

static void give_back(const VmfDeviceState *state, const GByteArray *aside, uint8_t *device)
{
    const uint8_t *next = give_back_fields(aside->data, state->fields, device);

    for (const VmfSubsection *s = state->subsections; s && s->name; s++)
        next = give_back_fields(next, s->fields, device);
}

static bool apply(const VmfDeviceState *state, void *device, const Parsed *parsed, bool swap, GError **error)
{
    g_autoptr(GByteArray) aside = put_aside(state, device);
    g_autoptr(GError) cause = NULL;

    if (state->pre_load)
        state->pre_load(device);
    for (unsigned i = 0; i < parsed->n_parts; i++)
        apply_part(&parsed->parts[i], device, swap);
    if (!state->post_load || state->post_load(device, &cause))
        return true;
    give_back(state, aside, device);
    g_set_error(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE, "the device refuses: %s",
                cause ? cause->message : "no reason given");
    return false;
}

bool vmf_device_state_load(const VmfDeviceState *state, void *device, uint32_t version, const uint8_t *data,
                           size_t length, bool swap, GError **error)
{
    Input in = {data, length, swap};
    VmfDeviceState own;
    Parsed parsed;

    if (!vmf_device_state_copy(&own, state, error))
        return false;
    parsed.n_parts = parsed.n_seen = 0;
    if (parse(&own, version, &in, &parsed, error) && apply(&own, device, &parsed, swap, error))
        return true;
    g_prefix_error(error, "%s: load: ", own.name);
    return false;
}
