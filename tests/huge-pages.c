/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/huge-pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#define HUGE_PAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/"

#define PATIENCE_S 90

static int held = -1; /* the file of the number, locked: tests run side by side */
static unsigned before;
/* A process that puts the number back once this end is closed, be it because we were killed. */
static int keeper_pipe = -1;
static pid_t keeper;

static unsigned read_number(const char *path)
{
    unsigned value = 0;
    FILE *file = fopen(path, "r");

    if (file && fscanf(file, "%u", &value) != 1)
        value = 0;
    if (file)
        fclose(file);
    return value;
}

static bool write_number(unsigned value)
{
    return dprintf(held, "%u\n", value) > 0;
}

/* Somebody else's test may hold it for as long as it runs. */
static bool wait_for_lock(void)
{
    for (unsigned tries = 0; tries < PATIENCE_S * 10; tries++) {
        if (flock(held, LOCK_EX | LOCK_NB) == 0)
            return true;
        if (errno != EWOULDBLOCK)
            return false;
        usleep(100000);
    }
    return false;
}

static bool lock(void)
{
    held = open(HUGE_PAGES "nr_hugepages", O_WRONLY | O_CLOEXEC);
    if (held >= 0 && wait_for_lock())
        return true;
    printf("skip: huge pages: the host's number of them cannot be changed: %s\n", strerror(errno));
    if (held >= 0)
        close(held);
    held = -1;
    return false;
}

static bool start_keeper(void)
{
    int ends[2];
    char byte;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    keeper = fork();
    if (keeper == 0) {
        close(ends[1]);
        setsid(); /* a signal to our group is not for it */
        while (read(ends[0], &byte, 1) > 0)
            continue;
        write_number(before);
        _exit(0);
    }
    close(ends[0]);
    keeper_pipe = ends[1];
    return keeper > 0;
}

void vmf_test_huge_pages_end(void)
{
    if (held < 0)
        return;
    if (keeper_pipe >= 0)
        close(keeper_pipe);
    if (keeper > 0)
        waitpid(keeper, NULL, 0);
    keeper_pipe = -1;
    keeper = 0;
    close(held);
    held = -1;
}

unsigned vmf_test_spare_huge_pages(void)
{
    unsigned free = read_number(HUGE_PAGES "free_hugepages"), reserved = read_number(HUGE_PAGES "resv_hugepages");

    return free > reserved ? free - reserved : 0;
}

bool vmf_test_huge_pages(unsigned n)
{
    static bool registered;

    if (!lock())
        return false;
    if (!registered)
        atexit(vmf_test_huge_pages_end);
    registered = true;
    before = read_number(HUGE_PAGES "nr_hugepages");
    unsigned spare = vmf_test_spare_huge_pages();
    if (spare < n && start_keeper())
        write_number(before + n - spare);
    spare = vmf_test_spare_huge_pages();
    if (spare >= n)
        return true;
    printf("skip: huge pages: this host has %u to spare, %u are needed\n", spare, n);
    return false;
}
