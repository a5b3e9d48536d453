/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/units.h"

#define ASK_MAX 16u

bool vmf_disk_units_init(VmfDiskUnits *units, uint64_t size_bytes)
{
    *units = (VmfDiskUnits){.n = size_bytes / VMF_DISK_UNIT + (size_bytes % VMF_DISK_UNIT != 0)};
    units->todo = g_try_malloc0((units->n / 64 + 1) * 8);
    units->under_way = g_try_malloc0((units->n / 64 + 1) * 8);
    units->asked = g_try_malloc0((units->n / 64 + 1) * 8);
    units->urgent = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    return units->todo && units->under_way && units->asked;
}

void vmf_disk_units_clear(VmfDiskUnits *units)
{
    g_clear_pointer(&units->todo, g_free);
    g_clear_pointer(&units->under_way, g_free);
    g_clear_pointer(&units->asked, g_free);
    g_clear_pointer(&units->urgent, g_array_unref);
}

/* Of the word that has unit @at, the bits of [at, end). */
static uint64_t mask_from(uint64_t at, uint64_t end)
{
    uint64_t mask = ~0ull << (at & 63);

    return end - (at & ~63ull) >= 64 ? mask : mask & ((1ull << (end & 63)) - 1);
}

static uint64_t next_word(uint64_t at)
{
    return (at | 63) + 1;
}

/* ---- looking ----------------------------------------------------------------------------------------------------- */

/* The first in [from, end) that is in @bits or in @others. */
static uint64_t find(const uint64_t *bits, const uint64_t *others, uint64_t from, uint64_t end)
{
    for (uint64_t at = from; at < end; at = next_word(at)) {
        uint64_t found = (bits[at / 64] | others[at / 64]) & mask_from(at, end);

        if (found)
            return (at & ~63ull) + (uint64_t)__builtin_ctzll(found);
    }
    return end;
}

uint64_t vmf_disk_units_next_todo(const VmfDiskUnits *units, uint64_t from)
{
    return find(units->todo, units->todo, from, units->n);
}

uint64_t vmf_disk_units_next_left(const VmfDiskUnits *units, uint64_t from, uint64_t end)
{
    return find(units->todo, units->under_way, from, end);
}

uint64_t vmf_disk_units_next_under_way(const VmfDiskUnits *units, uint64_t from, uint64_t end)
{
    return find(units->under_way, units->under_way, from, end);
}

uint64_t vmf_disk_units_run(const VmfDiskUnits *units, uint64_t first, uint64_t max)
{
    uint64_t n = 0;

    while (n < max && first + n < units->n && units->todo[(first + n) / 64] >> ((first + n) & 63) & 1)
        n++;
    return n;
}

/* ---- changing ---------------------------------------------------------------------------------------------------- */

uint64_t vmf_disk_units_set_todo(VmfDiskUnits *units, uint64_t offset, uint64_t length)
{
    uint64_t end = (offset + length - 1) / VMF_DISK_UNIT + 1, n = 0;

    for (uint64_t at = offset / VMF_DISK_UNIT; at < end; at = next_word(at)) {
        uint64_t mask = mask_from(at, end) & ~units->todo[at / 64];

        units->todo[at / 64] |= mask;
        n += (uint64_t)__builtin_popcountll(mask);
    }
    units->n_left += n;
    return n;
}

void vmf_disk_units_begin(VmfDiskUnits *units, uint64_t first, uint64_t n)
{
    for (uint64_t at = first; at < first + n; at = next_word(at)) {
        uint64_t mask = mask_from(at, first + n) & units->todo[at / 64];

        units->todo[at / 64] &= ~mask;
        units->asked[at / 64] &= ~mask;
        units->under_way[at / 64] |= mask;
    }
}

void vmf_disk_units_end(VmfDiskUnits *units, uint64_t first, uint64_t n)
{
    for (uint64_t at = first; at < first + n; at = next_word(at)) {
        uint64_t mask = mask_from(at, first + n) & units->under_way[at / 64];

        units->under_way[at / 64] &= ~mask;
        units->n_left -= (uint64_t)__builtin_popcountll(mask);
    }
}

void vmf_disk_units_undo(VmfDiskUnits *units, uint64_t first, uint64_t n)
{
    for (uint64_t at = first; at < first + n; at = next_word(at)) {
        uint64_t mask = mask_from(at, first + n) & units->under_way[at / 64];

        units->under_way[at / 64] &= ~mask;
        units->todo[at / 64] |= mask;
    }
    units->cursor = MIN(units->cursor, first);
}

/* ---- what is waited for ------------------------------------------------------------------------------------------ */

static void make_urgent(VmfDiskUnits *units, uint64_t unit)
{
    uint64_t bit = 1ull << (unit & 63);

    if (!(units->todo[unit / 64] & bit) || units->asked[unit / 64] & bit)
        return;
    units->asked[unit / 64] |= bit;
    g_array_append_val(units->urgent, unit);
}

bool vmf_disk_units_ask(VmfDiskUnits *units, uint64_t first, uint64_t end)
{
    uint64_t unit = vmf_disk_units_next_left(units, first, end);
    bool left = unit < end;

    for (unsigned n = 0; unit < end && n < ASK_MAX; n++) {
        make_urgent(units, unit);
        unit = vmf_disk_units_next_left(units, unit + 1, end);
    }
    return left;
}

uint64_t vmf_disk_units_take_urgent(VmfDiskUnits *units, uint64_t max, uint64_t *first)
{
    while (units->urgent->len > 0) {
        *first = g_array_index(units->urgent, uint64_t, 0);
        g_array_remove_index(units->urgent, 0);
        uint64_t n = vmf_disk_units_run(units, *first, max);
        if (n > 0)
            return n;
    }
    return 0;
}
