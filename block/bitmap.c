/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/bitmap.h"

#include <string.h>
#include <sys/mman.h>
#include <vmferry/bitmap.h>
#include <vmferry/error.h>

#include "stream/pack.h"

static bool refuse(const char *name, VmfErrorCode code, const char *why, GError **error)
{
    g_set_error(error, VMF_ERROR, code, "bitmap %s: create: %s", name, why);
    return false;
}

static bool check_shape(const char *name, uint64_t size_bytes, uint32_t granularity, GError **error)
{
    size_t length = strlen(name);

    if (length < 1 || length > VMF_BITMAP_NAME_MAX || !vmf_is_text(name, length))
        return refuse("", VMF_ERROR_USAGE, "a name has 1 to 255 bytes of UTF-8, no control characters", error);
    if (granularity < VMF_BITMAP_GRANULARITY_MIN || granularity > VMF_BITMAP_GRANULARITY_MAX ||
        granularity & (granularity - 1))
        return refuse(name, VMF_ERROR_USAGE, "a granularity is a power of two from 512 bytes to 64 MiB", error);
    if ((size_bytes - 1) / granularity >= VMF_BITMAP_GRANULES_MAX)
        return refuse(name, VMF_ERROR_USAGE, "the granularity is too fine for so large a disk", error);
    return true;
}

/* Mapped: what is never written costs nothing. */
static uint64_t *new_words(uint64_t n)
{
    void *words = mmap(NULL, n * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return words == MAP_FAILED ? NULL : words;
}

static void free_words(uint64_t *words, uint64_t n)
{
    if (words)
        munmap(words, n * 8);
}

VmfBitmap *vmf_bitmap_new(const char *name, uint64_t size_bytes, uint32_t granularity_bytes, GError **error)
{
    if (!check_shape(name, size_bytes, granularity_bytes, error))
        return NULL;
    g_autoptr(VmfBitmap) bitmap = g_new0(VmfBitmap, 1);

    bitmap->name = g_strdup(name);
    bitmap->size_bytes = size_bytes;
    bitmap->granularity_bytes = granularity_bytes;
    bitmap->n_granules = (size_bytes - 1) / granularity_bytes + 1;
    bitmap->n_pieces = (bitmap->n_granules - 1) / (VMF_BITMAP_PIECE_WORDS * 64) + 1;
    bitmap->n_words = bitmap->n_pieces * VMF_BITMAP_PIECE_WORDS;
    bitmap->recording = true;
    bitmap->words = new_words(bitmap->n_words);
    bitmap->stale = new_words(bitmap->n_pieces / 64 + 1);
    if (bitmap->words && bitmap->stale)
        return g_steal_pointer(&bitmap);
    refuse(name, VMF_ERROR_MEMORY, "out of memory", error);
    return NULL;
}

void vmf_bitmap_free(VmfBitmap *bitmap)
{
    if (!bitmap)
        return;
    free_words(bitmap->words, bitmap->n_words);
    free_words(bitmap->aside, bitmap->n_words);
    free_words(bitmap->stale, bitmap->n_pieces / 64 + 1);
    g_free(bitmap->problem);
    g_free(bitmap->name);
    g_free(bitmap);
}

/* ---- bits -------------------------------------------------------------------------------------------------------- */

static bool test_bit(const uint64_t *words, uint64_t bit)
{
    return words[bit / 64] >> (bit & 63) & 1;
}

static void note_stale(VmfBitmap *bitmap, uint64_t word)
{
    uint64_t piece = word / VMF_BITMAP_PIECE_WORDS;

    bitmap->stale[piece / 64] |= 1ull << (piece & 63);
}

static void or_word(VmfBitmap *bitmap, uint64_t word, uint64_t mask)
{
    if ((bitmap->words[word] & mask) == mask)
        return;
    bitmap->words[word] |= mask;
    note_stale(bitmap, word);
}

/* Bits [first, end) of the word that @first is in, as far as they are in it. */
static uint64_t mask_of(uint64_t first, uint64_t end)
{
    uint64_t last = MIN(end - 1, first | 63);

    return ~0ull << (first & 63) & ~0ull >> (63 - (last & 63));
}

void vmf_bitmap_set(VmfBitmap *bitmap, uint64_t offset, uint64_t length)
{
    if (length == 0)
        return;
    uint64_t end = (offset + length - 1) / bitmap->granularity_bytes + 1;

    for (uint64_t bit = offset / bitmap->granularity_bytes; bit < end; bit = (bit | 63) + 1)
        or_word(bitmap, bit / 64, mask_of(bit, end));
}

void vmf_bitmap_clear(VmfBitmap *bitmap)
{
    for (uint64_t word = 0; word < bitmap->n_words; word++) {
        if (!bitmap->words[word])
            continue;
        bitmap->words[word] = 0;
        note_stale(bitmap, word);
    }
}

void vmf_bitmap_merge(VmfBitmap *bitmap, const VmfBitmap *from)
{
    uint64_t offset, length;

    for (uint64_t at = 0; vmf_bitmap_next(from, at, &offset, &length); at = offset + length)
        vmf_bitmap_set(bitmap, offset, length);
}

bool vmf_bitmap_is_set(const VmfBitmap *bitmap, uint64_t offset)
{
    return test_bit(bitmap->words, offset / bitmap->granularity_bytes);
}

uint64_t vmf_bitmap_count(const VmfBitmap *bitmap)
{
    uint64_t n = 0;

    for (uint64_t word = 0; word < bitmap->n_words; word++)
        n += (uint64_t)__builtin_popcountll(bitmap->words[word]);
    return n;
}

/* The first bit at or after @from that is set (@flip: 0) or clear (~0); @end: none before it. */
static uint64_t find(const uint64_t *words, uint64_t from, uint64_t end, uint64_t flip)
{
    while (from < end) {
        uint64_t left = (words[from / 64] ^ flip) >> (from & 63);

        if (left)
            return MIN(from + (uint64_t)__builtin_ctzll(left), end);
        from = (from | 63) + 1;
    }
    return end;
}

bool vmf_bitmap_next(const VmfBitmap *bitmap, uint64_t from, uint64_t *offset, uint64_t *length)
{
    uint64_t first, end;

    *offset = bitmap->size_bytes;
    *length = 0;
    if (from >= bitmap->size_bytes)
        return false;
    first = find(bitmap->words, from / bitmap->granularity_bytes, bitmap->n_granules, 0);
    if (first == bitmap->n_granules)
        return false;
    end = find(bitmap->words, first, bitmap->n_granules, ~0ull);
    *offset = MAX(first * bitmap->granularity_bytes, from);
    *length = MIN(end * bitmap->granularity_bytes, bitmap->size_bytes) - *offset;
    return true;
}

/* ---- set aside --------------------------------------------------------------------------------------------------- */

bool vmf_bitmap_set_aside(VmfBitmap *bitmap, GError **error)
{
    uint64_t *fresh = new_words(bitmap->n_words);

    if (!fresh) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_MEMORY, "bitmap %s: set aside: out of memory", bitmap->name);
        return false;
    }
    bitmap->aside = bitmap->words;
    bitmap->words = fresh;
    return true;
}

void vmf_bitmap_end_aside(VmfBitmap *bitmap, bool keep)
{
    for (uint64_t word = 0; word < bitmap->n_words; word++) {
        if (!bitmap->aside[word])
            continue;
        if (keep)
            bitmap->words[word] |= bitmap->aside[word];
        else
            note_stale(bitmap, word);
    }
    free_words(bitmap->aside, bitmap->n_words);
    bitmap->aside = NULL;
}

/* ---- the file's view --------------------------------------------------------------------------------------------- */

void vmf_bitmap_look_at_piece(const VmfBitmap *bitmap, uint64_t piece, uint64_t words[VMF_BITMAP_PIECE_WORDS])
{
    uint64_t first = piece * VMF_BITMAP_PIECE_WORDS;

    memcpy(words, bitmap->words + first, VMF_BITMAP_PIECE_WORDS * 8);
    for (unsigned i = 0; bitmap->aside && i < VMF_BITMAP_PIECE_WORDS; i++)
        words[i] |= bitmap->aside[first + i];
}

void vmf_bitmap_forget_piece(VmfBitmap *bitmap, uint64_t piece)
{
    memset(bitmap->words + piece * VMF_BITMAP_PIECE_WORDS, 0, VMF_BITMAP_PIECE_WORDS * 8);
}

void vmf_bitmap_take_piece(VmfBitmap *bitmap, uint64_t piece, uint64_t words[VMF_BITMAP_PIECE_WORDS])
{
    vmf_bitmap_look_at_piece(bitmap, piece, words);
    bitmap->stale[piece / 64] &= ~(1ull << (piece & 63));
}

bool vmf_bitmap_put_piece(VmfBitmap *bitmap, uint64_t piece, const uint64_t words[VMF_BITMAP_PIECE_WORDS])
{
    uint64_t first = piece * VMF_BITMAP_PIECE_WORDS;

    for (unsigned i = 0; i < VMF_BITMAP_PIECE_WORDS; i++) {
        uint64_t begin = (first + i) * 64, end = begin + 64;

        if (end > bitmap->n_granules && words[i] >> (bitmap->n_granules > begin ? bitmap->n_granules - begin : 0))
            return false;
        if (words[i])
            bitmap->words[first + i] = words[i];
    }
    return true;
}

uint64_t vmf_bitmap_next_stale(const VmfBitmap *bitmap, uint64_t from)
{
    return find(bitmap->stale, from, bitmap->n_pieces, 0);
}
