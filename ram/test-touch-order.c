/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <glib/gstdio.h>
#include <sys/stat.h>
#include <vmferry/error.h>

#include "ram/touch-order.h"
#include "stream/crc32c.h"

#define HEAD_SIZE 56
#define ENTRIES 10000u

static const uint8_t id[VMF_IMAGE_ID_SIZE] = {1, 2, 3};
static const VmfImageDigest root = {{9, 8, 7}};

typedef struct {
    char *folder;
    char *path;
} World;

static void add_entries(VmfTouchOrder *order)
{
    for (uint64_t i = 0; i < ENTRIES; i++)
        vmf_touch_order_add(order, i % 3 ? 65535 : 0, i % 2 ? (UINT64_C(1) << 48) - 1 - i : i);
}

static int set_up(void **state)
{
    World *world = g_new0(World, 1);
    g_autoptr(VmfTouchOrder) order = vmf_touch_order_new();
    GStatBuf status;

    world->folder = g_dir_make_tmp("vmferry-order-XXXXXX", NULL);
    world->path = g_build_filename(world->folder, "image.order", NULL);
    add_entries(order);
    assert_true(vmf_touch_order_write(order, world->path, id, &root, NULL));
    assert_int_equal(g_stat(world->path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600); /* where a guest has what is nobody else's business */
    *state = world;
    return 0;
}

static int tear_down(void **state)
{
    World *world = *state;

    g_unlink(world->path);
    assert_int_equal(g_rmdir(world->folder), 0); /* nothing else was left there */
    g_free(world->path);
    g_free(world->folder);
    g_free(world);
    return 0;
}

static void assert_refused(World *world, int code)
{
    g_autoptr(GError) error = NULL;

    assert_null(vmf_touch_order_read(world->path, id, &root, &error));
    assert_true(g_error_matches(error, VMF_ERROR, code));
}

/* Changes the file by @change, which may replace it. */
static void edit(World *world, void (*change)(GByteArray *bytes))
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_autofree char *text = NULL;
    size_t length;

    assert_true(g_file_get_contents(world->path, &text, &length, NULL));
    g_byte_array_append(bytes, (uint8_t *)text, (guint)length);
    change(bytes);
    assert_true(g_file_set_contents(world->path, (char *)bytes->data, bytes->len, NULL));
}

static void sum_up(GByteArray *bytes)
{
    uint32_t crc = GUINT32_TO_LE(vmf_crc32c(0, bytes->data, bytes->len - 8));

    memcpy(bytes->data + bytes->len - 8, &crc, sizeof(crc));
}

static void what_was_written_is_read(void **state)
{
    World *world = *state;
    g_autoptr(VmfTouchOrder) order = vmf_touch_order_read(world->path, id, &root, NULL);
    unsigned block;
    uint64_t page;

    assert_non_null(order);
    assert_int_equal(vmf_touch_order_length(order), ENTRIES);
    for (uint64_t i = 0; i < ENTRIES; i++) {
        vmf_touch_order_get(order, i, &block, &page);
        assert_int_equal(block, i % 3 ? 65535 : 0);
        assert_int_equal(page, i % 2 ? (UINT64_C(1) << 48) - 1 - i : i);
    }
}

static void the_file_is_as_documented(void **state)
{
    World *world = *state;
    static const uint8_t head[] = {'V', 'M', 'F', 'O', 'R', 'D', 'E', 'R', 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3};
    static const uint8_t third[] = {2, 0, 0, 0, 0, 0, 0xff, 0xff};
    g_autofree char *text = NULL;
    size_t length;

    assert_true(g_file_get_contents(world->path, &text, &length, NULL));
    assert_int_equal(length, HEAD_SIZE + ENTRIES * 8 + 8);
    assert_memory_equal(text, head, sizeof(head));
    assert_memory_equal(text + 32, root.bytes, sizeof(root.bytes));
    assert_int_equal((uint8_t)text[48] | (uint8_t)text[49] << 8, ENTRIES);
    assert_memory_equal(text + HEAD_SIZE + 2 * 8, third, sizeof(third));
}

static void one_of_another_image_is_refused(void **state)
{
    World *world = *state;
    const VmfImageDigest other = {{9, 8, 6}};
    uint8_t other_id[VMF_IMAGE_ID_SIZE] = {0};
    g_autoptr(GError) error = NULL;

    assert_null(vmf_touch_order_read(world->path, id, &other, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IMAGE_PARENT));
    assert_null(vmf_touch_order_read(world->path, other_id, &root, NULL));
}

static void cut(GByteArray *bytes)
{
    g_byte_array_set_size(bytes, bytes->len - 1);
}

static void cut_to_nothing(GByteArray *bytes)
{
    g_byte_array_set_size(bytes, 0);
}

static void add_octets(GByteArray *bytes)
{
    g_byte_array_append(bytes, (const uint8_t *)"12345678", 8);
}

static void claim_more(GByteArray *bytes)
{
    memset(bytes->data + 48, 0xff, 8);
    sum_up(bytes);
}

static void flip_an_entry(GByteArray *bytes)
{
    bytes->data[HEAD_SIZE + 777] ^= 4;
}

static void flip_the_foot(GByteArray *bytes)
{
    bytes->data[bytes->len - 1] = 1;
}

static void be_newer(GByteArray *bytes)
{
    bytes->data[8] = 2;
    sum_up(bytes);
}

static void use_the_reserved(GByteArray *bytes)
{
    bytes->data[12] = 1;
    sum_up(bytes);
}

static void be_something_else(GByteArray *bytes)
{
    bytes->data[0] = 'W';
    sum_up(bytes);
}

static void a_damaged_one_is_refused(void **state)
{
    static const struct {
        void (*change)(GByteArray *bytes);
        int code;
    } cases[] = {
        {flip_an_entry, VMF_ERROR_CRC},           {flip_an_entry, 0}, /* and back */
        {flip_the_foot, VMF_ERROR_CRC},           {sum_up, VMF_ERROR_CRC},
        {add_octets, VMF_ERROR_IMAGE_LAYOUT},     {cut, VMF_ERROR_IMAGE_LAYOUT},
        {claim_more, VMF_ERROR_IMAGE_LAYOUT},     {use_the_reserved, VMF_ERROR_IMAGE_LAYOUT},
        {be_newer, VMF_ERROR_IMAGE_VERSION},      {be_something_else, VMF_ERROR_IMAGE_MAGIC},
        {cut_to_nothing, VMF_ERROR_IMAGE_LAYOUT},
    };
    World *world = *state;

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        edit(world, cases[i].change);
        if (cases[i].code)
            assert_refused(world, cases[i].code);
        else
            what_was_written_is_read(state);
    }
}

static void a_missing_one_is_no_wonder(void **state)
{
    World *world = *state;

    g_unlink(world->path);
    assert_refused(world, VMF_ERROR_IO);
    assert_int_equal(mkfifo(world->path, 0600), 0);
    assert_refused(world, VMF_ERROR_IO);
}

static void an_empty_one_is_one(void **state)
{
    World *world = *state;
    g_autoptr(VmfTouchOrder) order = vmf_touch_order_new();

    assert_true(vmf_touch_order_write(order, world->path, id, &root, NULL));
    g_autoptr(VmfTouchOrder) again = vmf_touch_order_read(world->path, id, &root, NULL);
    assert_non_null(again);
    assert_int_equal(vmf_touch_order_length(again), 0);
}

static void what_cannot_be_written_leaves_the_old_one(void **state)
{
    World *world = *state;
    g_autofree char *partial = g_strconcat(world->path, ".partial", NULL);
    g_autoptr(VmfTouchOrder) order = vmf_touch_order_new();
    g_autoptr(GError) error = NULL;

    assert_int_equal(g_mkdir(partial, 0700), 0);
    assert_false(vmf_touch_order_write(order, world->path, id, &root, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_IO));
    what_was_written_is_read(state);
    g_rmdir(partial);
}

#define WITH_A_FILE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_A_FILE(what_was_written_is_read),
        WITH_A_FILE(the_file_is_as_documented),
        WITH_A_FILE(one_of_another_image_is_refused),
        WITH_A_FILE(a_damaged_one_is_refused),
        WITH_A_FILE(a_missing_one_is_no_wonder),
        WITH_A_FILE(an_empty_one_is_one),
        WITH_A_FILE(what_cannot_be_written_leaves_the_old_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
