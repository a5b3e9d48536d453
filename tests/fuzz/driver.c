/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * main() for a target where there is no libFuzzer: plays inputs, then seeded changes of them.
 *
 * usage: TARGET [--seconds N] [--iterations N] [--seed N] [--keep FILE] FILE|DIRECTORY...
 *
 * With --keep the input that is being tried lies in FILE, behind its length (u64): where the program dies, that is the one.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stream/clock.h"
#include "tests/fuzz/fuzz.h"

#define INPUT_MAX (256u << 10)

typedef struct {
    uint8_t *data;
    size_t size;
} Input;

typedef struct {
    GArray *inputs; /* Input */
    double seconds;
    uint64_t iterations;
    const char *keep_path;
    uint8_t *keep;
} Driver;

static uint64_t random_state = 1;

static uint32_t rnd(uint32_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 33) % MAX(below, 1);
}

/* ---- changes --------------------------------------------------------------------------------------------------------------- */

static size_t insert_some(uint8_t *data, size_t size, size_t max_size)
{
    size_t most = 1 + rnd(16), n = MIN(most, max_size - size), at = rnd((uint32_t)size + 1);

    memmove(data + at + n, data + at, size - at);
    for (size_t i = 0; i < n; i++)
        data[at + i] = (uint8_t)rnd(256);
    return size + n;
}

static size_t remove_some(uint8_t *data, size_t size)
{
    size_t at = rnd((uint32_t)size), most = 1 + rnd(16), n = MIN(most, size - at);

    memmove(data + at, data + at + n, size - at - n);
    return size - n;
}

static void put_number(uint8_t *data, size_t size)
{
    static const uint64_t numbers[] = {0, 1, 0x7f, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, UINT64_MAX};
    uint64_t number = numbers[rnd(G_N_ELEMENTS(numbers))];
    size_t width = (size_t)1 << rnd(4);

    if (size >= width)
        memcpy(data + rnd((uint32_t)(size - width + 1)), &number, width);
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size)
{
    switch (size == 0 ? 0 : rnd(6)) {
    case 0:
        return insert_some(data, size, max_size);
    case 1:
        return remove_some(data, size);
    case 2:
        put_number(data, size);
        return size;
    case 3:
        data[rnd((uint32_t)size)] = (uint8_t)rnd(256);
        return size;
    default:
        data[rnd((uint32_t)size)] ^= 1 << rnd(8);
        return size;
    }
}

__attribute__((weak)) size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    return LLVMFuzzerMutate(data, size, max_size);
}

/* ---- inputs ---------------------------------------------------------------------------------------------------------------- */

static void add_file(Driver *driver, const char *path)
{
    g_autoptr(GError) error = NULL;
    char *data;
    gsize size;

    if (!g_file_get_contents(path, &data, &size, &error)) {
        fprintf(stderr, "%s\n", error->message);
        exit(2);
    }
    Input input = {(uint8_t *)data, MIN(size, INPUT_MAX)};
    g_array_append_val(driver->inputs, input);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void add_path(Driver *driver, const char *path)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    GDir *directory = g_dir_open(path, 0, NULL);
    const char *name;

    if (!directory) {
        add_file(driver, path);
        return;
    }
    while ((name = g_dir_read_name(directory)))
        g_ptr_array_add(names, g_build_filename(path, name, NULL));
    g_dir_close(directory);
    g_ptr_array_sort(names, by_name); /* the same order everywhere */
    for (guint i = 0; i < names->len; i++)
        add_path(driver, g_ptr_array_index(names, i));
}

/* ---- trying ---------------------------------------------------------------------------------------------------------------- */

static void keep_open(Driver *driver)
{
    int fd = driver->keep_path ? open(driver->keep_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666) : -1;

    if (fd < 0)
        return;
    if (ftruncate(fd, 8 + INPUT_MAX) == 0) {
        driver->keep = mmap(NULL, 8 + INPUT_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        driver->keep = driver->keep == MAP_FAILED ? NULL : driver->keep;
    }
    close(fd);
}

/* A copy of its own size, so that a read beyond it is seen. */
static void attempt(Driver *driver, const uint8_t *data, size_t size)
{
    uint64_t length = size;
    uint8_t *copy = g_malloc(MAX(size, 1));

    memcpy(copy, data, size);

    if (driver->keep) {
        memcpy(driver->keep, &length, 8);
        memcpy(driver->keep + 8, data, size);
    }
    LLVMFuzzerTestOneInput(copy, size);
    g_free(copy);
}

static uint64_t try_changes(Driver *driver)
{
    int64_t end = vmf_now_ns() + (int64_t)(driver->seconds * VMF_NS_PER_S);
    g_autofree uint8_t *data = g_malloc(INPUT_MAX);
    uint64_t done = 0;

    while (done < driver->iterations && vmf_now_ns() < end) {
        const Input *input = &g_array_index(driver->inputs, Input, rnd(driver->inputs->len));
        size_t size = input->size;
        memcpy(data, input->data, size);
        for (unsigned turns = 1 + rnd(4); turns > 0; turns--)
            size = LLVMFuzzerCustomMutator(data, size, INPUT_MAX, rnd(UINT32_MAX));
        attempt(driver, data, size);
        done++;
    }
    return done;
}

static void take_arguments(Driver *driver, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (more && strcmp(argv[i], "--seconds") == 0)
            driver->seconds = g_ascii_strtod(argv[++i], NULL);
        else if (more && strcmp(argv[i], "--iterations") == 0)
            driver->iterations = g_ascii_strtoull(argv[++i], NULL, 10);
        else if (more && strcmp(argv[i], "--seed") == 0)
            random_state = g_ascii_strtoull(argv[++i], NULL, 10);
        else if (more && strcmp(argv[i], "--keep") == 0)
            driver->keep_path = argv[++i];
        else
            add_path(driver, argv[i]);
    }
}

int main(int argc, char **argv)
{
    Driver driver = {.inputs = g_array_new(false, false, sizeof(Input)), .iterations = UINT64_MAX};

    take_arguments(&driver, argc, argv);
    keep_open(&driver);
    for (guint i = 0; i < driver.inputs->len; i++)
        attempt(&driver, g_array_index(driver.inputs, Input, i).data, g_array_index(driver.inputs, Input, i).size);
    uint64_t changed = driver.inputs->len > 0 ? try_changes(&driver) : 0;
    printf("%u inputs, %" G_GUINT64_FORMAT " changes of them\n", driver.inputs->len, changed);
    if (driver.keep_path)
        unlink(driver.keep_path);
    for (guint i = 0; i < driver.inputs->len; i++)
        g_free(g_array_index(driver.inputs, Input, i).data);
    bool played = driver.inputs->len > 0;
    g_array_unref(driver.inputs);
    return played ? 0 : 2;
}
