/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Device state. One device, described by an older and by a newer table: every encoding of one is loaded by the other.
 * Then what a stream must never do: any prefix of an encoding, any byte of it changed, and each rule of the layout
 * broken by hand.
 */
#include "migration/device-state.h"
#include "migration/ops.h"

#include <vmferry/error.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

struct timer {
    uint64_t compare;
    uint32_t period;
    uint16_t queue[3];
    bool armed;
    uint8_t mode;
    uint32_t skew; /* since version 2 */
    /* subsection "rate", version 2 has rate_high */
    bool has_rate;
    uint32_t rate;
    uint32_t rate_high;
    /* subsection "hint", optional */
    uint16_t hint;
    /* not in any table */
    unsigned saved, defaulted, applied;
    bool refuse;
};

static void timer_pre_save(void *device)
{
    ((struct timer *)device)->saved++;
}

static void timer_pre_load(void *device)
{
    struct timer *t = device;

    t->defaulted++;
    t->skew = 1000;
    t->has_rate = false;
    t->rate = 60;
    t->rate_high = 0;
    t->hint = 9;
}

static bool timer_post_load(void *device, GError **error)
{
    struct timer *t = device;

    t->applied++;
    if (!t->refuse)
        return true;
    g_set_error_literal(error, VMF_ERROR, VMF_ERROR_GUEST, "the period is 0");
    return false;
}

static bool rate_needed(const void *device)
{
    return ((const struct timer *)device)->has_rate;
}

#define MAIN_FIELDS                                                                                                    \
    VMF_FIELD(struct timer, compare, VMF_FIELD_U64, 1), VMF_FIELD(struct timer, period, VMF_FIELD_U32, 1),             \
        VMF_FIELD_ARRAY(struct timer, queue, VMF_FIELD_U16, 1), VMF_FIELD(struct timer, armed, VMF_FIELD_BOOL, 1),     \
        VMF_FIELD(struct timer, mode, VMF_FIELD_U8, 1)

static const VmfField old_fields[] = {MAIN_FIELDS, VMF_FIELD_END};
static const VmfField new_fields[] = {MAIN_FIELDS, VMF_FIELD(struct timer, skew, VMF_FIELD_U32, 2), VMF_FIELD_END};
static const VmfField rate_1_fields[] = {VMF_FIELD(struct timer, has_rate, VMF_FIELD_BOOL, 1),
                                         VMF_FIELD(struct timer, rate, VMF_FIELD_U32, 1), VMF_FIELD_END};
static const VmfField rate_2_fields[] = {VMF_FIELD(struct timer, has_rate, VMF_FIELD_BOOL, 1),
                                         VMF_FIELD(struct timer, rate, VMF_FIELD_U32, 1),
                                         VMF_FIELD(struct timer, rate_high, VMF_FIELD_U32, 2), VMF_FIELD_END};
static const VmfField hint_fields[] = {VMF_FIELD(struct timer, hint, VMF_FIELD_U16, 1), VMF_FIELD_END};

static const VmfSubsection rate_1_only[] = {{"rate", 1, 1, false, rate_needed, rate_1_fields}, {NULL}};
static const VmfSubsection new_subsections[] = {
    {"rate", 2, 1, false, rate_needed, rate_2_fields}, {"hint", 1, 1, true, NULL, hint_fields}, {NULL}};

#define TIMER(version, table, subs)                                                                                    \
    {                                                                                                                  \
        sizeof(VmfDeviceState), "timer", version, 1, table, subs, timer_pre_save, timer_pre_load, timer_post_load      \
    }
static const VmfDeviceState oldest = TIMER(1, old_fields, NULL);
static const VmfDeviceState with_rate = TIMER(1, old_fields, rate_1_only);
static const VmfDeviceState newest = TIMER(2, new_fields, new_subsections);
static const VmfDeviceState newest_main = TIMER(2, new_fields, NULL);

static const struct timer sample = {
    .compare = UINT64_C(0x0123456789abcdef),
    .period = 0x89abcdef,
    .queue = {0x1122, 0x3344, 0x5566},
    .armed = true,
    .mode = 7,
    .skew = 42,
    .has_rate = true,
    .rate = 75,
    .rate_high = 3,
    .hint = 12,
};

static struct timer blank(void)
{
    struct timer t;

    memset(&t, 0, sizeof(t));
    t.compare = 5;
    t.rate = 6;
    return t;
}

static GByteArray *save(const VmfDeviceState *state, const struct timer *from)
{
    struct timer copy = *from;
    GByteArray *encoding = vmf_device_state_save(state, &copy, NULL);

    assert_non_null(encoding);
    assert_int_equal(copy.saved, from->saved + 1);
    return encoding;
}

static void assert_main_fields(const struct timer *t)
{
    assert_int_equal(t->compare, sample.compare);
    assert_int_equal(t->period, sample.period);
    assert_memory_equal(t->queue, sample.queue, sizeof(sample.queue));
    assert_true(t->armed);
    assert_int_equal(t->mode, sample.mode);
}

static struct timer load(const VmfDeviceState *state, uint32_t version, const GByteArray *encoding)
{
    g_autoptr(GError) error = NULL;
    struct timer t = blank();

    if (!vmf_device_state_load(state, &t, version, encoding->data, encoding->len, false, &error))
        fail_msg("%s", error->message);
    assert_int_equal(t.defaulted, 1);
    assert_int_equal(t.applied, 1);
    assert_main_fields(&t);
    return t;
}

static void assert_refused(const VmfDeviceState *state, uint32_t version, const void *data, size_t length, bool swap,
                           int code, const char *words)
{
    g_autofree uint8_t *exact = g_memdup2(data, length); /* so that a sanitizer sees a read behind the end */
    g_autoptr(GError) error = NULL;
    struct timer t = blank(), before = t;

    assert_false(vmf_device_state_load(state, &t, version, exact, length, swap, &error));
    if (!g_error_matches(error, VMF_ERROR, code) || !strstr(error->message, words))
        fail_msg("expected %d '%s', got %d '%s'", code, words, error->code, error->message);
    assert_true(g_str_has_prefix(error->message, "timer: load: "));
    assert_memory_equal(&t, &before, sizeof(t));
}

/* ---- the layout -------------------------------------------------------------------------------------------------- */

#if G_BYTE_ORDER == G_LITTLE_ENDIAN
#define HOST_IS_BIG false
#else
#define HOST_IS_BIG true
#endif

/* The page of the format, octet by octet, in either byte order: what one writes the other loads swapped. */
static const uint8_t little[] = {20,   0,    0,    0,    0xef,
                                 0xcd, 0xab, 0x89, 0x67, 0x45,
                                 0x23, 0x01, 0xef, 0xcd, 0xab,
                                 0x89, 0x22, 0x11, 0x44, 0x33,
                                 0x66, 0x55, 1,    7,    /* rate */ 0x53,
                                 4,    'r',  'a',  't',  'e',
                                 0,    1,    0,    0,    0,
                                 5,    0,    0,    0,    1,
                                 75,   0,    0,    0,    /* end */ 0};
static const uint8_t big[] = {0,    0,    0,    20,   0x01,
                              0x23, 0x45, 0x67, 0x89, 0xab,
                              0xcd, 0xef, 0x89, 0xab, 0xcd,
                              0xef, 0x11, 0x22, 0x33, 0x44,
                              0x55, 0x66, 1,    7,    /* rate */ 0x53,
                              4,    'r',  'a',  't',  'e',
                              0,    0,    0,    0,    1,
                              0,    0,    0,    5,    1,
                              0,    0,    0,    75,   /* end */ 0};
_Static_assert(sizeof(little) == sizeof(big), "one encoding, two byte orders");

static void test_layout(void **state)
{
    g_autoptr(GByteArray) encoding = save(&with_rate, &sample);

    assert_int_equal(encoding->len, sizeof(little));
    assert_memory_equal(encoding->data, HOST_IS_BIG ? big : little, sizeof(little));
}

static void test_both_byte_orders(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct timer t = blank();
        bool is_big = i == 1;

        assert_true(
            vmf_device_state_load(&with_rate, &t, 1, is_big ? big : little, sizeof(big), is_big != HOST_IS_BIG, NULL));
        assert_main_fields(&t);
        assert_true(t.has_rate);
        assert_int_equal(t.rate, 75);
    }
    assert_refused(&with_rate, 1, little, sizeof(little), !HOST_IS_BIG, VMF_ERROR_DEVICE_STATE, "are left");
}

/* ---- older and newer --------------------------------------------------------------------------------------------- */

static void test_same_both_ends(void **state)
{
    g_autoptr(GByteArray) encoding = save(&newest, &sample);
    struct timer t = load(&newest, 2, encoding);

    assert_int_equal(t.skew, 42);
    assert_true(t.has_rate);
    assert_int_equal(t.rate, 75);
    assert_int_equal(t.rate_high, 3);
    assert_int_equal(t.hint, 12);
}

static void test_old_stream_without_subsection(void **state)
{
    g_autoptr(GByteArray) encoding = save(&oldest, &sample);
    struct timer t = load(&newest, 1, encoding);

    assert_int_equal(t.skew, 1000);
    assert_false(t.has_rate);
    assert_int_equal(t.rate, 60);
    assert_int_equal(t.rate_high, 0);
    assert_int_equal(t.hint, 9);
}

static void test_old_version_of_a_subsection(void **state)
{
    g_autoptr(GByteArray) encoding = save(&with_rate, &sample);
    struct timer t = load(&newest, 1, encoding);

    assert_int_equal(t.rate, 75);
    assert_int_equal(t.rate_high, 0);
}

/* The newer description sends what an older machine knows as long as nothing is needed that it does not: the optional
 * part is left. */
static void test_new_stream_at_an_old_machine(void **state)
{
    static const VmfDeviceState newer = TIMER(1, old_fields, new_subsections);
    struct timer plain = sample;
    g_autoptr(GByteArray) with = save(&newer, &sample);
    g_autoptr(GByteArray) without = NULL;
    struct timer t;

    plain.has_rate = false;
    without = save(&newer, &plain);
    t = load(&oldest, 1, without);
    assert_int_equal(t.hint, 9);
    assert_refused(&oldest, 1, with->data, with->len, false, VMF_ERROR_DEVICE_STATE,
                   "subsection 'rate': it is unknown");
}

static void test_newer_version_is_refused(void **state)
{
    g_autoptr(GByteArray) encoding = save(&newest_main, &sample);

    assert_refused(&oldest, 2, encoding->data, encoding->len, false, VMF_ERROR_SECTION_VERSION,
                   "version 2: this machine reads 1 to 1");
    assert_refused(&newest, 0, encoding->data, encoding->len, false, VMF_ERROR_SECTION_VERSION, "version 0");
}

static void test_too_old_version_is_refused(void **state)
{
    VmfDeviceState modern = newest;
    g_autoptr(GByteArray) encoding = save(&oldest, &sample);

    modern.minimum_version = 2;
    assert_refused(&modern, 1, encoding->data, encoding->len, false, VMF_ERROR_SECTION_VERSION,
                   "version 1: this machine reads 2 to 2");
}

static void test_subsection_version_out_of_reach(void **state)
{
    static const VmfSubsection mandatory[] = {{"rate", 2, 1, false, NULL, rate_2_fields}, {NULL}};
    static const VmfSubsection optional[] = {{"rate", 2, 1, true, NULL, rate_2_fields}, {NULL}};
    static const VmfDeviceState sends_mandatory = TIMER(1, old_fields, mandatory);
    static const VmfDeviceState sends_optional = TIMER(1, old_fields, optional);
    g_autoptr(GByteArray) refused = save(&sends_mandatory, &sample);
    g_autoptr(GByteArray) skipped = save(&sends_optional, &sample);
    struct timer t;

    assert_refused(&with_rate, 1, refused->data, refused->len, false, VMF_ERROR_SECTION_VERSION,
                   "subsection 'rate': version 2: this machine reads 1 to 1");
    t = load(&with_rate, 1, skipped);
    assert_false(t.has_rate);
    assert_int_equal(t.rate, 60);
}

/* ---- a peer's word ----------------------------------------------------------------------------------------------- */

static void test_every_truncation(void **state)
{
    g_autoptr(GByteArray) encoding = save(&newest, &sample);

    for (size_t length = 0; length < encoding->len; length++)
        assert_refused(&newest, 2, encoding->data, length, false, VMF_ERROR_DEVICE_STATE, "");
}

static void check_changed(const VmfDeviceState *description, uint32_t version, const uint8_t *data, size_t length)
{
    g_autofree uint8_t *exact = g_memdup2(data, length);
    struct timer t = blank(), before = t;
    g_autoptr(GError) error = NULL;

    if (vmf_device_state_load(description, &t, version, exact, length, false, &error)) {
        assert_int_equal(t.applied, 1);
        assert_null(error);
        return;
    }
    assert_non_null(error);
    assert_memory_equal(&t, &before, sizeof(t));
}

static void test_every_byte_changed(void **state)
{
    const VmfDeviceState *const descriptions[] = {&oldest, &with_rate, &newest};
    g_autoptr(GByteArray) encoding = save(&newest, &sample);

    for (unsigned d = 0; d < G_N_ELEMENTS(descriptions); d++) {
        for (size_t i = 0; i < encoding->len; i++) {
            uint8_t was = encoding->data[i];

            for (unsigned value = 0; value < 256; value++) {
                encoding->data[i] = value;
                check_changed(descriptions[d], descriptions[d]->version, encoding->data, encoding->len);
            }
            encoding->data[i] = was;
        }
    }
}

/* An encoding of `oldest` up to its end mark, to be gone on with by hand. */
static GByteArray *begin(void)
{
    GByteArray *encoding = save(&oldest, &sample);

    g_byte_array_set_size(encoding, encoding->len - 1);
    return encoding;
}

static void add_u32(GByteArray *encoding, uint32_t value)
{
    g_byte_array_append(encoding, (const uint8_t *)&value, sizeof(value));
}

static void add_subsection(GByteArray *encoding, const char *name, uint8_t flags, uint32_t version, uint32_t length)
{
    const uint8_t head[] = {0x53, strlen(name)};

    g_byte_array_append(encoding, head, sizeof(head));
    g_byte_array_append(encoding, (const uint8_t *)name, strlen(name));
    g_byte_array_append(encoding, &flags, 1);
    add_u32(encoding, version);
    add_u32(encoding, length);
}

static void add_end(GByteArray *encoding)
{
    g_byte_array_append(encoding, (const uint8_t *)"", 1);
}

static void assert_encoding_refused(const GByteArray *encoding, const char *words)
{
    assert_refused(&oldest, 1, encoding->data, encoding->len, false, VMF_ERROR_DEVICE_STATE, words);
}

static void test_duplicates(void **state)
{
    g_autoptr(GByteArray) unknown = begin(), known = begin();

    add_subsection(unknown, "later", 1, 1, 0);
    add_subsection(unknown, "later", 1, 2, 0);
    add_end(unknown);
    assert_encoding_refused(unknown, "subsection 'later': it is there twice");

    for (unsigned i = 0; i < 2; i++) {
        add_subsection(known, "rate", 0, 1, 5);
        g_byte_array_append(known, (const uint8_t *)"\1\1\1\1\1", 5);
    }
    add_end(known);
    assert_refused(&with_rate, 1, known->data, known->len, false, VMF_ERROR_DEVICE_STATE,
                   "subsection 'rate': it is there twice");
}

static void test_too_many_subsections(void **state)
{
    g_autoptr(GByteArray) encoding = begin();
    struct timer t = blank();

    for (unsigned i = 0; i < VMF_SUBSECTIONS_MAX; i++) {
        g_autofree char *name = g_strdup_printf("later-%u", i);

        add_subsection(encoding, name, 1, 1, 0);
    }
    add_end(encoding);
    assert_true(vmf_device_state_load(&oldest, &t, 1, encoding->data, encoding->len, false, NULL));
    g_byte_array_set_size(encoding, encoding->len - 1);
    add_subsection(encoding, "one-more", 1, 1, 0);
    add_end(encoding);
    assert_encoding_refused(encoding, "subsection 'one-more': it is one more than the 64");
}

static void test_malformed(void **state)
{
    g_autoptr(GByteArray) flags = begin(), no_name = begin(), ugly_name = begin(), huge = begin(), trailing = begin(),
                          mark = begin();

    add_subsection(flags, "later", 3, 1, 0);
    add_end(flags);
    assert_encoding_refused(flags, "flags 0x03 are unknown");
    add_subsection(no_name, "", 1, 1, 0);
    add_end(no_name);
    assert_encoding_refused(no_name, "printable ASCII");
    add_subsection(ugly_name, "a\nb", 1, 1, 0);
    add_end(ugly_name);
    assert_encoding_refused(ugly_name, "printable ASCII");
    add_subsection(huge, "later", 1, 1, UINT32_MAX);
    add_end(huge);
    assert_encoding_refused(huge, "4294967295 bytes are announced, 1 are left");
    add_end(trailing);
    add_end(trailing);
    assert_encoding_refused(trailing, "1 bytes follow the end");
    g_byte_array_append(mark, (const uint8_t *)"\x54", 1);
    assert_encoding_refused(mark, "0x54 is not the mark");
}

static void test_lengths_that_disagree(void **state)
{
    g_autoptr(GByteArray) fields = save(&oldest, &sample), subsection = begin(), longer = begin();
    uint32_t length = 19;

    memcpy(fields->data, &length, sizeof(length));
    assert_encoding_refused(fields, "fields: 19 bytes, version 1 has 20");
    add_subsection(subsection, "rate", 0, 1, 4);
    g_byte_array_append(subsection, (const uint8_t *)"\1\1\1\1", 4);
    add_end(subsection);
    assert_refused(&with_rate, 1, subsection->data, subsection->len, false, VMF_ERROR_DEVICE_STATE,
                   "subsection 'rate': fields: 4 bytes, version 1 has 5");
    add_subsection(longer, "rate", 0, 1, 6);
    g_byte_array_append(longer, (const uint8_t *)"\1\1\1\1\1\1", 6);
    add_end(longer);
    assert_refused(&with_rate, 1, longer->data, longer->len, false, VMF_ERROR_DEVICE_STATE,
                   "subsection 'rate': fields: 6 bytes, version 1 has 5");
}

static void test_bool_is_0_or_1(void **state)
{
    g_autoptr(GByteArray) encoding = save(&oldest, &sample);
    struct timer odd = sample;
    g_autoptr(GByteArray) tamed = NULL;

    encoding->data[22] = 2;
    assert_encoding_refused(encoding, "field 'armed': 2 is not a bool");
    memset(&odd.armed, 0x40, 1); /* what a careless device may have there */
    tamed = save(&oldest, &odd);
    assert_int_equal(tamed->data[22], 1);
}

static void test_oversized_input(void **state)
{
    g_autofree uint8_t *data = g_malloc0(VMF_DEVICE_STATE_MAX + 1);

    assert_refused(&oldest, 1, data, VMF_DEVICE_STATE_MAX + 1, false, VMF_ERROR_DEVICE_STATE, "are more than");
}

/* ---- the callbacks ----------------------------------------------------------------------------------------------- */

static void test_refusal_gives_the_fields_back(void **state)
{
    g_autoptr(GByteArray) encoding = save(&newest, &sample);
    g_autoptr(GError) error = NULL;
    struct timer t = blank(), before;

    t.refuse = true;
    before = t;
    assert_false(vmf_device_state_load(&newest, &t, 2, encoding->data, encoding->len, false, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_DEVICE_STATE));
    assert_string_equal(error->message, "timer: load: the device refuses: the period is 0");
    assert_int_equal(t.applied, 1); /* it was asked, with the new fields in place */
    t.applied = t.defaulted = 0;
    assert_memory_equal(&t, &before, sizeof(t));
}

static void test_no_callbacks(void **state)
{
    static const VmfDeviceState bare = {.size = VMF_SIZE_UP_TO(VmfDeviceState, fields),
                                        .name = "timer",
                                        .version = 1,
                                        .minimum_version = 1,
                                        .fields = old_fields,
                                        .pre_save = (void *)1, /* beyond its size: not there */
                                        .post_load = (void *)1};
    struct timer t = sample, u = blank();
    g_autoptr(GByteArray) encoding = vmf_device_state_save(&bare, &t, NULL);

    assert_non_null(encoding);
    assert_true(vmf_device_state_load(&bare, &u, 1, encoding->data, encoding->len, false, NULL));
    assert_main_fields(&u);
}

static void test_empty_device(void **state)
{
    static const VmfDeviceState empty = {.size = sizeof(empty), .name = "timer", .version = 1, .minimum_version = 1};
    struct timer t = blank(), before = t;
    g_autoptr(GByteArray) encoding = vmf_device_state_save(&empty, &t, NULL);

    assert_int_equal(encoding->len, 5);
    assert_true(vmf_device_state_load(&empty, &t, 1, encoding->data, encoding->len, false, NULL));
    assert_memory_equal(&t, &before, sizeof(t));
}

/* ---- descriptions that are wrong --------------------------------------------------------------------------------- */

static void assert_bad_description(const VmfDeviceState *description, const char *words)
{
    g_autoptr(GError) error = NULL, load_error = NULL;
    struct timer t = blank(), before = t;

    assert_null(vmf_device_state_save(description, &t, &error));
    assert_true(g_error_matches(error, VMF_ERROR, VMF_ERROR_USAGE));
    if (!strstr(error->message, words))
        fail_msg("expected '%s', got '%s'", words, error->message);
    assert_false(vmf_device_state_load(description, &t, 1, (const uint8_t *)"", 1, false, &load_error));
    assert_true(g_error_matches(load_error, VMF_ERROR, VMF_ERROR_USAGE));
    assert_memory_equal(&t, &before, sizeof(t));
}

static void test_bad_descriptions(void **state)
{
    static const VmfField bad_kind[] = {{"x", 17, 0, 1, 1}, VMF_FIELD_END};
    static const VmfField no_kind[] = {{"x", VMF_FIELD_NONE, 0, 1, 1}, VMF_FIELD_END};
    static const VmfField no_count[] = {{"x", VMF_FIELD_U8, 0, 0, 1}, VMF_FIELD_END};
    static const VmfField too_new[] = {{"x", VMF_FIELD_U8, 0, 1, 2}, VMF_FIELD_END};
    static const VmfField no_version[] = {{"x", VMF_FIELD_U8, 0, 1, 0}, VMF_FIELD_END};
    static const VmfField too_large[] = {{"x", VMF_FIELD_U8, 0, VMF_DEVICE_STATE_MAX, 1}, VMF_FIELD_END};
    static const VmfField overflow[] = {{"x", VMF_FIELD_U64, 0, SIZE_MAX / 8 + 2, 1}, VMF_FIELD_END};
    const struct {
        const VmfField *fields;
        const char *words;
    } cases[] = {
        {bad_kind, "kind"},      {no_kind, "kind"},     {no_count, "no elements"}, {too_new, "version"},
        {no_version, "version"}, {too_large, "16 MiB"}, {overflow, "16 MiB"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        VmfDeviceState description = TIMER(1, cases[i].fields, NULL);

        assert_bad_description(&description, cases[i].words);
    }
}

static void test_bad_names_and_versions(void **state)
{
    static const VmfSubsection twice[] = {{"a", 1, 1, false, NULL, NULL}, {"a", 1, 1, true, NULL, NULL}, {NULL}};
    static const VmfSubsection unnamed[] = {{"", 1, 1, false, NULL, NULL}, {NULL}};
    static const VmfSubsection version_0[] = {{"a", 0, 0, false, NULL, NULL}, {NULL}};
    g_autofree char *long_name = g_strnfill(VMF_DEVICE_NAME_MAX + 1, 'n');
    VmfDeviceState d = oldest;

    d.name = long_name;
    assert_bad_description(&d, "63 bytes");
    d.name = NULL;
    assert_bad_description(&d, "63 bytes");
    d = oldest;
    d.minimum_version = 2;
    assert_bad_description(&d, "oldest version");
    d.minimum_version = 0;
    assert_bad_description(&d, "count from 1");
    d = oldest;
    d.subsections = twice;
    assert_bad_description(&d, "one name");
    d.subsections = unnamed;
    assert_bad_description(&d, "63 bytes");
    d.subsections = version_0;
    assert_bad_description(&d, "count from 1");
    d.size = sizeof(size_t);
    assert_bad_description(&d, "less than any release");
}

int main(void)
{
    static const struct CMUnitTest group[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_both_byte_orders),
        cmocka_unit_test(test_same_both_ends),
        cmocka_unit_test(test_old_stream_without_subsection),
        cmocka_unit_test(test_old_version_of_a_subsection),
        cmocka_unit_test(test_new_stream_at_an_old_machine),
        cmocka_unit_test(test_newer_version_is_refused),
        cmocka_unit_test(test_too_old_version_is_refused),
        cmocka_unit_test(test_subsection_version_out_of_reach),
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_every_byte_changed),
        cmocka_unit_test(test_duplicates),
        cmocka_unit_test(test_too_many_subsections),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_lengths_that_disagree),
        cmocka_unit_test(test_bool_is_0_or_1),
        cmocka_unit_test(test_oversized_input),
        cmocka_unit_test(test_refusal_gives_the_fields_back),
        cmocka_unit_test(test_no_callbacks),
        cmocka_unit_test(test_empty_device),
        cmocka_unit_test(test_bad_descriptions),
        cmocka_unit_test(test_bad_names_and_versions),
    };

    return cmocka_run_group_tests(group, NULL, NULL);
}
