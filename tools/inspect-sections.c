/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation. The state of a declared device is the fields of its table, packed, behind their length; the
 * table says how far that goes. What does not fit its table exactly is shown by its length alone: it is another
 * machine's.
 */
#include "tools/inspect-sections.h"

#include <string.h>

#include "machine/section-tables.h"

#define HOST_BIG_ENDIAN (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)
#define SHOWN_MAX 8 /* elements of an array, as text */

static size_t element_size(VmfFieldKind kind)
{
    static const size_t sizes[] = {
        [VMF_FIELD_BOOL] = 1, [VMF_FIELD_U8] = 1, [VMF_FIELD_U16] = 2, [VMF_FIELD_U32] = 4, [VMF_FIELD_U64] = 8};

    return sizes[kind];
}

static uint64_t read_number(const uint8_t *at, size_t size, bool big_endian)
{
    uint64_t value = 0;

    for (size_t i = 0; i < size; i++)
        value |= (uint64_t)at[big_endian ? size - 1 - i : i] << 8 * i;
    return value;
}

static json_t *value_of(const VmfField *field, const uint8_t *at, bool big_endian)
{
    uint64_t value = read_number(at, element_size(field->kind), big_endian);

    return field->kind == VMF_FIELD_BOOL ? json_boolean(value) : json_integer((json_int_t)value);
}

static json_t *values_of(const VmfField *field, const uint8_t *at, bool big_endian)
{
    if (field->count == 1)
        return value_of(field, at, big_endian);
    json_t *values = json_array();
    for (size_t i = 0; i < field->count; i++)
        json_array_append_new(values, value_of(field, at + i * element_size(field->kind), big_endian));
    return values;
}

static size_t table_length(const VmfField *fields, uint32_t version)
{
    size_t length = 0;

    for (const VmfField *field = fields; field->name; field++)
        if (field->since_version <= version)
            length += field->count * element_size(field->kind);
    return length;
}

/* NULL: the content is not that of the table. */
static json_t *fields_of(const VmfDeviceState *table, uint32_t version, const uint8_t *content, size_t length,
                         bool big_endian)
{
    size_t expected = table_length(table->fields, version);

    if (version > table->version || length < 4 || read_number(content, 4, big_endian) != expected ||
        length - 4 < expected)
        return NULL;
    json_t *fields = json_array();
    const uint8_t *at = content + 4;
    for (const VmfField *field = table->fields; field->name; field++) {
        if (field->since_version > version)
            continue;
        const char *name = strrchr(field->name, '.') ? strrchr(field->name, '.') + 1 : field->name;
        json_array_append_new(fields, json_pack("{s:s,s:o}", "name", name, "value", values_of(field, at, big_endian)));
        at += field->count * element_size(field->kind);
    }
    return fields;
}

json_t *vmf_inspect_sections(const VmfImage *image, unsigned layer)
{
    json_t *sections = json_array();
    VmfImageInfo info;

    vmf_image_info(image, layer, &info);
    for (unsigned i = 0; i < info.n_sections; i++) {
        VmfImageSection section;
        size_t length;
        g_autofree uint8_t *content = vmf_image_section_content(image, layer, i, &length);
        vmf_image_section(image, layer, i, &section);
        const VmfDeviceState *table = vmf_machine_section_table(info.architecture, section.name);
        json_t *fields = table ? fields_of(table, section.version, content, length, info.big_endian) : NULL;
        json_t *object = json_pack("{s:s,s:I,s:I,s:I}", "name", section.name, "instance", (json_int_t)section.instance,
                                   "version", (json_int_t)section.version, "length_bytes", (json_int_t)length);
        if (fields)
            json_object_set_new(object, "fields", fields);
        json_array_append_new(sections, object);
    }
    return sections;
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

static void append_value(GString *text, const json_t *value)
{
    if (json_is_boolean(value))
        g_string_append(text, json_is_true(value) ? " true" : " false");
    else
        g_string_append_printf(text, " 0x%" G_GINT64_MODIFIER "x", (guint64)json_integer_value(value));
}

static char *text_of(const json_t *value)
{
    GString *text = g_string_new(NULL);

    if (!json_is_array(value))
        append_value(text, value);
    for (size_t i = 0; i < json_array_size(value) && i < SHOWN_MAX; i++)
        append_value(text, json_array_get(value, i));
    if (json_array_size(value) > SHOWN_MAX)
        g_string_append_printf(text, " … (%zu)", json_array_size(value));
    return g_string_free(text, FALSE);
}

static void print_fields(const json_t *fields)
{
    for (size_t i = 0; i < json_array_size(fields); i++) {
        const json_t *field = json_array_get(fields, i);
        g_autofree char *text = text_of(json_object_get(field, "value"));
        printf("      %-20s%s\n", json_string_value(json_object_get(field, "name")), text);
    }
}

void vmf_inspect_print_sections(const json_t *sections, bool fields)
{
    printf("  sections:\n");
    for (size_t i = 0; i < json_array_size(sections); i++) {
        const json_t *section = json_array_get(sections, i);
        printf("    %-20s instance %-3u version %-3u %8u bytes\n", json_string_value(json_object_get(section, "name")),
               (unsigned)json_integer_value(json_object_get(section, "instance")),
               (unsigned)json_integer_value(json_object_get(section, "version")),
               (unsigned)json_integer_value(json_object_get(section, "length_bytes")));
        if (fields)
            print_fields(json_object_get(section, "fields"));
    }
}
