/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/numbers.h"

#include <string.h>
#include <vmferry/error.h>

typedef struct {
    const char *suffix;
    uint64_t scale;
} Unit;

static const Unit size_units[] = {
    {"", 1},
    {"K", UINT64_C(1) << 10},
    {"M", UINT64_C(1) << 20},
    {"G", UINT64_C(1) << 30},
    {"T", UINT64_C(1) << 40},
    {"KB", UINT64_C(1000)},
    {"MB", UINT64_C(1000000)},
    {"GB", UINT64_C(1000000000)},
    {"TB", UINT64_C(1000000000000)},
    {NULL},
};

static const Unit duration_units[] = {
    {"ns", 1}, {"us", UINT64_C(1000)}, {"ms", UINT64_C(1000000)}, {"s", UINT64_C(1000000000)}, {NULL},
};

static const Unit no_units[] = {{"", 1}, {NULL}};

static bool find_scale(const Unit *units, const char *suffix, uint64_t *scale)
{
    for (; units->suffix; units++) {
        if (strcmp(units->suffix, suffix) == 0) {
            *scale = units->scale;
            return true;
        }
    }
    return false;
}

/* Adds the digits after the point. What is finer than a whole unit of the result (1.0001K) is refused, not rounded. */
static bool add_fraction(const char *digits, const char *end, uint64_t scale, uint64_t *value)
{
    uint64_t numerator = 0, denominator = 1, product;

    for (; digits < end; digits++) {
        numerator = numerator * 10 + g_ascii_digit_value(*digits);
        if (__builtin_mul_overflow(denominator, UINT64_C(10), &denominator))
            return false;
    }
    if (__builtin_mul_overflow(numerator, scale, &product) || product % denominator != 0)
        return false;
    return !__builtin_add_overflow(*value, product / denominator, value);
}

static const char *skip_digits(const char *text)
{
    while (g_ascii_isdigit(*text))
        text++;
    return text;
}

static bool parse(const char *text, const char *end, const Unit *units, uint64_t *value)
{
    const char *whole_end = skip_digits(text);
    const char *number_end = *whole_end == '.' ? skip_digits(whole_end + 1) : whole_end;
    g_autofree char *suffix = g_strndup(number_end, end - MIN(number_end, end));
    uint64_t scale;

    *value = 0;
    if (whole_end == text || number_end > end || number_end == whole_end + 1 || !find_scale(units, suffix, &scale))
        return false;
    for (; text < whole_end; text++)
        if (__builtin_mul_overflow(*value, UINT64_C(10), value) ||
            __builtin_add_overflow(*value, g_ascii_digit_value(*text), value))
            return false;
    if (__builtin_mul_overflow(*value, scale, value))
        return false;
    return number_end == whole_end || add_fraction(whole_end + 1, number_end, scale, value);
}

bool vmf_parse_size(const char *text, uint64_t *bytes, GError **error)
{
    const char *end = text + strlen(text);

    if (g_str_has_suffix(text, "/s"))
        end -= 2;
    if (parse(text, end, size_units, bytes))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                "'%s': not a size: a number with K M G T (1024) or KB MB GB TB (1000)", text);
    return false;
}

bool vmf_parse_duration(const char *text, uint64_t *ns, GError **error)
{
    *ns = 0;
    if (strcmp(text, "0") == 0 || parse(text, text + strlen(text), duration_units, ns))
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'%s': not a time: a number with ms or s", text);
    return false;
}

bool vmf_parse_number(const char *text, uint64_t minimum, uint64_t maximum, uint64_t *value, GError **error)
{
    if (strspn(text, "0123456789") == strlen(text) && parse(text, text + strlen(text), no_units, value) &&
        *value >= minimum && *value <= maximum)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE,
                "'%s': not a number from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT, text, minimum, maximum);
    return false;
}

static char *format(double value, const char *const *units, unsigned n_units)
{
    unsigned i = 0;

    for (; value >= 999.95 && i + 1 < n_units; i++)
        value /= 1000;
    return g_strdup_printf(i == 0 ? "%.0f %s" : "%.1f %s", value, units[i]);
}

char *vmf_format_bytes(uint64_t bytes)
{
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};

    return format(bytes, units, G_N_ELEMENTS(units));
}

char *vmf_format_ns(uint64_t ns)
{
    static const char *const units[] = {"ns", "us", "ms", "s"};

    return format(ns, units, G_N_ELEMENTS(units));
}
