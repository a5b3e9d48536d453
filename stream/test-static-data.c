/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Static data: written and read back in both versions and byte orders; what is twice, too much, out of order or cut is refused.
 */
#include "stream/static-data.h"

#include "stream/test-link.h"

static VmfStaticData *sample(void)
{
    VmfStaticData *data = vmf_static_data_new();
    VmfStaticBlock ram = {.name = "ram", .size = 64u << 20, .guest_address = 0x80000000, .page_size = 4096};
    VmfStaticBlock rom = {.name = "boot rom", .flags = VMF_BLOCK_FLAG_ROM, .size = 8192, .page_size = 4096};

    vmf_static_data_add_property(data, "cpu.model", "golden-1");
    vmf_static_data_add_property(data, "empty", "");
    vmf_static_data_add_block(data, &ram);
    vmf_static_data_add_block(data, &rom);
    vmf_static_data_add_section(data, "cpu", 0, 3);
    vmf_static_data_add_section(data, "timer", UINT32_MAX, 1);
    vmf_static_data_add_section(data, "timer", 1, 0);
    data->features_offered = UINT64_C(0x8000000000000013);
    data->features_required = 3;
    data->page_channels = 64;
    data->host = g_strdup("host-\xc3\xa4");
    return data;
}

/* Reads records until the channel ends; returns how many STATIC_DATA_END came. */
static unsigned take_all(Link *link, VmfStaticData *data)
{
    unsigned ends = 0;
    VmfRecord record;

    while (vmf_record_read(link->reader, &record, NULL)) {
        GError *error = NULL;
        if (record.type == VMF_RECORD_STATIC_DATA_END)
            ends++;
        else if (!vmf_static_data_take(data, &record, link->reader->format.swap, &error))
            fail_msg("%s", error->message);
    }
    return ends;
}

static void assert_same(const VmfStaticData *a, const VmfStaticData *b)
{
    assert_int_equal(a->properties->len, b->properties->len);
    for (guint i = 0; i < a->properties->len; i++) {
        const VmfStaticProperty *x = &g_array_index(a->properties, VmfStaticProperty, i),
                                *y = &g_array_index(b->properties, VmfStaticProperty, i);
        assert_string_equal(x->key, y->key);
        assert_string_equal(x->value, y->value);
    }
    assert_int_equal(a->blocks->len, b->blocks->len);
    for (guint i = 0; i < a->blocks->len; i++) {
        const VmfStaticBlock *x = &g_array_index(a->blocks, VmfStaticBlock, i),
                             *y = &g_array_index(b->blocks, VmfStaticBlock, i);
        assert_string_equal(x->name, y->name);
        assert_true(x->flags == y->flags && x->size == y->size && x->guest_address == y->guest_address &&
                    x->page_size == y->page_size);
    }
    assert_int_equal(a->sections->len, b->sections->len);
    for (guint i = 0; i < a->sections->len; i++) {
        const VmfStaticSection *x = &g_array_index(a->sections, VmfStaticSection, i),
                               *y = &g_array_index(b->sections, VmfStaticSection, i);
        assert_string_equal(x->name, y->name);
        assert_true(x->instance == y->instance && x->version == y->version);
    }
    assert_string_equal(a->host, b->host);
}

static void test_round_trip(void **state)
{
    for (unsigned swap = 0; swap < 2; swap++)
        for (unsigned version = 2; version <= 3; version++) {
            g_autoptr(VmfStaticData) in = sample(), out = vmf_static_data_new();
            Link link = link_new(swap);
            link.writer->format.version = version;
            assert_true(vmf_static_data_write(in, link.writer, NULL));
            assert_true(vmf_record_flush(link.writer, NULL));
            vmf_channel_shutdown(link.near);
            assert_int_equal(take_all(&link, out), version == 3);
            assert_same(in, out);
            assert_true(out->have_properties && out->have_sections && out->have_features == (version == 3));
            if (version == 3) {
                assert_true(out->features_offered == in->features_offered && out->features_required == 3);
                assert_int_equal(out->page_channels, 64);
            }
            link_free(&link);
        }
}

/* What a guest may have at most can be written and read. */
static void test_the_most(void **state)
{
    g_autoptr(VmfStaticData) in = vmf_static_data_new(), out = vmf_static_data_new();
    g_autofree char *value = g_strnfill(VMF_PROPERTY_VALUE_MAX, 'v');
    Link link = link_new(false);

    for (unsigned i = 0; i < VMF_PROPERTIES_MAX; i++) {
        g_autofree char *key = g_strdup_printf("%0*u", VMF_PROPERTY_KEY_MAX, i);
        vmf_static_data_add_property(in, key, value);
    }
    for (unsigned i = 0; i < VMF_SECTIONS_MAX; i++)
        vmf_static_data_add_section(in, "a-section-with-a-name-of-the-greatest-length-that-there-can-be-x", i, 1);
    for (unsigned i = 0; i < VMF_SECTIONS_MAX; i++)
        g_array_index(in->sections, VmfStaticSection, i).name[VMF_SECTION_NAME_MAX] = 0;
    for (unsigned i = 0; i < 256; i++) {
        g_autofree char *name = g_strdup_printf("%0255u", i);
        VmfStaticBlock block = {.name = name, .size = VMF_BLOCK_SIZE_MAX, .guest_address = UINT64_MAX, .page_size = 4096};
        vmf_static_data_add_block(in, &block);
    }
    in->host = g_strnfill(VMF_HOST_NAME_MAX, 'h');
    assert_true(vmf_static_data_write(in, link.writer, NULL));
    assert_true(vmf_record_flush(link.writer, NULL));
    vmf_channel_shutdown(link.near);
    take_all(&link, out);
    assert_same(in, out);
    link_free(&link);
}

/* ---- bodies by hand --------------------------------------------------------------------------------------------------------
 */

static bool take_body(VmfStaticData *data, uint32_t type, VmfPack *pack, GError **error)
{
    g_autofree uint8_t *copy = g_memdup2(pack->bytes->data, pack->bytes->len);
    VmfRecord record = {.type = type, .length = pack->bytes->len, .body = copy, .checked = pack->bytes->len};

    g_byte_array_unref(pack->bytes);
    return vmf_static_data_take(data, &record, pack->swap, error);
}

static void refuse_in(VmfStaticData *data, uint32_t type, VmfPack pack, VmfErrorCode code)
{
    g_autoptr(GError) error = NULL;

    assert_false(take_body(data, type, &pack, &error));
    assert_error(error, code);
}

static void refuse(uint32_t type, VmfPack pack, VmfErrorCode code)
{
    g_autoptr(VmfStaticData) data = vmf_static_data_new();

    refuse_in(data, type, pack, code);
}

static void accept_in(VmfStaticData *data, uint32_t type, VmfPack pack)
{
    GError *error = NULL;

    if (!take_body(data, type, &pack, &error))
        fail_msg("%s", error->message);
}

static VmfPack counted(uint32_t count, uint32_t reserved)
{
    VmfPack pack = {g_byte_array_new(), false};

    vmf_pack_u32(&pack, count);
    vmf_pack_u32(&pack, reserved);
    return pack;
}

static void add_property(VmfPack *pack, const char *key, const char *value)
{
    vmf_pack_u16(pack, (uint16_t)strlen(key));
    vmf_pack_u16(pack, (uint16_t)strlen(value));
    vmf_pack_bytes(pack, key, strlen(key));
    vmf_pack_bytes(pack, value, strlen(value));
}

static VmfPack properties(const char *key, const char *value)
{
    VmfPack pack = counted(1, 0);

    add_property(&pack, key, value);
    return pack;
}

static void test_properties(void **state)
{
    g_autofree char *long_key = g_strnfill(VMF_PROPERTY_KEY_MAX + 1, 'k'),
                    *long_value = g_strnfill(VMF_PROPERTY_VALUE_MAX + 1, 'v');
    g_autoptr(VmfStaticData) data = vmf_static_data_new();

    refuse(VMF_RECORD_PROPERTIES, properties("", "value"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_PROPERTIES, properties(long_key, "value"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_PROPERTIES, properties("key", long_value), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_PROPERTIES, properties("key", "\xff"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_PROPERTIES, properties("key\xc3\xa4", "value"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_PROPERTIES, properties("key", "two\nlines"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_PROPERTIES, counted(257, 0), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_PROPERTIES, counted(UINT32_MAX, 0), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_PROPERTIES, counted(0, 1), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_PROPERTIES, counted(1, 0), VMF_ERROR_RECORD_BODY);
    VmfPack twice = counted(2, 0);
    add_property(&twice, "key", "a");
    add_property(&twice, "key", "b");
    refuse(VMF_RECORD_PROPERTIES, twice, VMF_ERROR_STATIC_DUPLICATE);
    accept_in(data, VMF_RECORD_PROPERTIES, properties("key", ""));
    refuse_in(data, VMF_RECORD_PROPERTIES, properties("other", ""), VMF_ERROR_STATIC_DUPLICATE);
}

static VmfPack block(uint32_t index, uint32_t flags, uint64_t size, uint32_t page_size, const char *name)
{
    VmfPack pack = {g_byte_array_new(), false};

    vmf_pack_u32(&pack, index);
    vmf_pack_u32(&pack, flags);
    vmf_pack_u64(&pack, size);
    vmf_pack_u64(&pack, 0);
    vmf_pack_u32(&pack, page_size);
    vmf_pack_u16(&pack, (uint16_t)strlen(name));
    vmf_pack_u16(&pack, 0);
    vmf_pack_bytes(&pack, name, strlen(name));
    return pack;
}

static void test_blocks(void **state)
{
    g_autofree char *long_name = g_strnfill(256, 'n');
    g_autoptr(VmfStaticData) data = vmf_static_data_new();

    refuse(VMF_RECORD_RAM_BLOCK, block(0, 0, 0, 4096, "ram"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_RAM_BLOCK, block(0, 0, 4097, 4096, "ram"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_RAM_BLOCK, block(0, 0, VMF_BLOCK_SIZE_MAX + 4096, 4096, "ram"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_RAM_BLOCK, block(0, 0, UINT64_MAX - 4095, 4096, "ram"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_RAM_BLOCK, block(0, 0, 65536, 65536, "ram"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_RAM_BLOCK, block(0, 0, 4096, 0, "ram"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_RAM_BLOCK, block(0, 2, 4096, 4096, "ram"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_RAM_BLOCK, block(1, 0, 4096, 4096, "ram"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_RAM_BLOCK, block(0, 0, 4096, 4096, ""), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_RAM_BLOCK, block(0, 0, 4096, 4096, long_name), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_RAM_BLOCK, block(0, 0, 4096, 4096, "r\x01m"), VMF_ERROR_RECORD_BODY);
    accept_in(data, VMF_RECORD_RAM_BLOCK, block(0, 0, 4096, 4096, "ram"));
    refuse_in(data, VMF_RECORD_RAM_BLOCK, block(1, 1, 8192, 4096, "ram"), VMF_ERROR_STATIC_DUPLICATE);
    refuse_in(data, VMF_RECORD_RAM_BLOCK, block(0, 0, 4096, 4096, "rom"), VMF_ERROR_RECORD_BODY);
    for (uint32_t i = 1; i < 256; i++) {
        g_autofree char *name = g_strdup_printf("ram%u", i);
        accept_in(data, VMF_RECORD_RAM_BLOCK, block(i, 0, 4096, 4096, name));
    }
    refuse_in(data, VMF_RECORD_RAM_BLOCK, block(256, 0, 4096, 4096, "one too many"), VMF_ERROR_RECORD_BODY);
}

static VmfPack disk(uint32_t index, uint32_t flags, uint64_t size, uint32_t sector_bytes, const char *name)
{
    VmfPack pack = {g_byte_array_new(), false};

    vmf_pack_u32(&pack, index);
    vmf_pack_u32(&pack, flags);
    vmf_pack_u64(&pack, size);
    vmf_pack_u32(&pack, sector_bytes);
    vmf_pack_u16(&pack, (uint16_t)strlen(name));
    vmf_pack_u16(&pack, 0);
    vmf_pack_bytes(&pack, name, strlen(name));
    return pack;
}

static void test_disks(void **state)
{
    g_autoptr(VmfStaticData) data = vmf_static_data_new();
    const uint64_t most = VMF_WIRE_DISK_SIZE_MAX, most_copied = VMF_WIRE_COPIED_DISK_SIZE_MAX;

    refuse(VMF_RECORD_GUEST_DISK, disk(0, 0, 0, 512, "disk"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_GUEST_DISK, disk(0, 0, 513, 512, "disk"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_GUEST_DISK, disk(0, 0, 512, 4096, "disk"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_GUEST_DISK, disk(0, 0, 1024, 1024, "disk"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_GUEST_DISK, disk(0, 2, 512, 512, "disk"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_GUEST_DISK, disk(1, 0, 512, 512, "disk"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_GUEST_DISK, disk(0, 0, most + 512, 512, "disk"), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_GUEST_DISK, disk(0, VMF_WIRE_DISK_COPIED, most_copied + 512, 512, "disk"), VMF_ERROR_RECORD_BODY);
    accept_in(data, VMF_RECORD_GUEST_DISK, disk(0, 0, most, 512, "disk"));
    accept_in(data, VMF_RECORD_GUEST_DISK, disk(1, VMF_WIRE_DISK_COPIED, most_copied, 512, "copied"));
    refuse_in(data, VMF_RECORD_GUEST_DISK, disk(2, 0, 512, 512, "disk"), VMF_ERROR_STATIC_DUPLICATE);
}

static void add_section(VmfPack *pack, uint32_t id, uint32_t instance, const char *name)
{
    vmf_pack_u32(pack, id);
    vmf_pack_u32(pack, instance);
    vmf_pack_u32(pack, 1);
    vmf_pack_u16(pack, (uint16_t)strlen(name));
    vmf_pack_u16(pack, 0);
    vmf_pack_bytes(pack, name, strlen(name));
}

static VmfPack sections(const char *first, uint32_t second_id, uint32_t second_instance)
{
    VmfPack pack = counted(2, 0);

    add_section(&pack, 0, 0, first);
    add_section(&pack, second_id, second_instance, "cpu");
    return pack;
}

static void test_sections(void **state)
{
    g_autofree char *long_name = g_strnfill(VMF_SECTION_NAME_MAX + 1, 'n');
    g_autoptr(VmfStaticData) data = vmf_static_data_new();

    refuse(VMF_RECORD_SECTIONS, sections("cpu", 1, 0), VMF_ERROR_STATIC_DUPLICATE);
    refuse(VMF_RECORD_SECTIONS, sections("cpu", 2, 1), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_SECTIONS, sections("cpu", 0, 1), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_SECTIONS, sections("", 1, 1), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_SECTIONS, sections(long_name, 1, 1), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_SECTIONS, sections("c\tu", 1, 1), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_SECTIONS, counted(1025, 0), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_SECTIONS, counted(UINT32_MAX, 0), VMF_ERROR_RECORD_BODY);
    accept_in(data, VMF_RECORD_SECTIONS, sections("cpu", 1, 1));
    refuse_in(data, VMF_RECORD_SECTIONS, counted(0, 0), VMF_ERROR_STATIC_DUPLICATE);
}

static VmfPack features(uint64_t offered, uint64_t required, uint32_t channels)
{
    VmfPack pack = {g_byte_array_new(), false};

    vmf_pack_u64(&pack, offered);
    vmf_pack_u64(&pack, required);
    vmf_pack_u32(&pack, channels);
    vmf_pack_u32(&pack, 0);
    return pack;
}

static VmfPack host(const char *name)
{
    VmfPack pack = {g_byte_array_new(), false};

    vmf_pack_u16(&pack, (uint16_t)strlen(name));
    vmf_pack_bytes(&pack, "\0\0\0\0\0", 6);
    vmf_pack_bytes(&pack, name, strlen(name));
    return pack;
}

static void test_features_and_host(void **state)
{
    g_autofree char *long_name = g_strnfill(256, 'n');
    g_autoptr(VmfStaticData) data = vmf_static_data_new();

    refuse(VMF_RECORD_FEATURES, features(1, 2, 0), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_FEATURES, features(0, 0, 65), VMF_ERROR_RECORD_BODY);
    accept_in(data, VMF_RECORD_FEATURES, features(UINT64_MAX, UINT64_MAX, 64));
    refuse_in(data, VMF_RECORD_FEATURES, features(0, 0, 0), VMF_ERROR_STATIC_DUPLICATE);
    refuse(VMF_RECORD_HOST, host(""), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_HOST, host(long_name), VMF_ERROR_RECORD_BODY);
    refuse(VMF_RECORD_HOST, host("a\nb"), VMF_ERROR_RECORD_BODY);
    accept_in(data, VMF_RECORD_HOST, host("a"));
    refuse_in(data, VMF_RECORD_HOST, host("b"), VMF_ERROR_STATIC_DUPLICATE);
}

static void test_what_is_static(void **state)
{
    assert_true(vmf_static_data_is_static(VMF_RECORD_PROPERTIES));
    assert_true(vmf_static_data_is_static(VMF_RECORD_HOST));
    assert_true(vmf_static_data_is_static(VMF_RECORD_STATIC_DATA_END));
    assert_true(vmf_static_data_is_static(0x1e));
    assert_false(vmf_static_data_is_static(VMF_RECORD_PREFLIGHT));
    assert_false(vmf_static_data_is_static(VMF_RECORD_HINT));
    refuse(0x1e, counted(0, 0), VMF_ERROR_RECORD_UNKNOWN);
    refuse(VMF_RECORD_PAGES, counted(0, 0), VMF_ERROR_RECORD_ORDER);
}

/* ---- every truncation, every octet -----------------------------------------------------------------------------------------
 */

static bool try_take(const VmfRecord *record, bool swap, void *opaque, GError **error)
{
    g_autoptr(VmfStaticData) data = vmf_static_data_new();

    return vmf_static_data_take(data, record, swap, error);
}

static void test_every_octet(void **state)
{
    for (unsigned swap = 0; swap < 2; swap++) {
        g_autoptr(VmfStaticData) in = sample();
        Link link = link_new(swap);
        VmfRecord record;
        g_array_set_size(in->blocks, 1);
        assert_true(vmf_static_data_write(in, link.writer, NULL));
        assert_true(vmf_record_flush(link.writer, NULL));
        while (vmf_record_read(link.reader, &record, NULL) && record.type != VMF_RECORD_STATIC_DATA_END) {
            g_autofree uint8_t *body = g_memdup2(record.body, record.checked);
            try_everything(try_take, record.type, body, record.checked, swap, NULL);
        }
        assert_int_equal(record.type, VMF_RECORD_STATIC_DATA_END);
        link_free(&link);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_the_most),    cmocka_unit_test(test_properties),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_disks),         cmocka_unit_test(test_sections),    cmocka_unit_test(test_features_and_host),
        cmocka_unit_test(test_what_is_static), cmocka_unit_test(test_every_octet),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
