/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Huge pages of the host, for tests: reserved for as long as the test runs. */
#ifndef TESTS_HUGE_PAGES_H
#define TESTS_HUGE_PAGES_H

#include <stdbool.h>

/*
 * Makes sure that the host has @n pages of 2 MiB to spare, until _end() or the end of the process, when it has as many as before. Others
 * that do so wait for each other, so what takes long does it only while it needs them. False: it cannot, which is said.
 */
bool vmf_test_huge_pages(unsigned n);
/* Also where there were none. */
void vmf_test_huge_pages_end(void);
/* How many there are to spare just now. */
unsigned vmf_test_spare_huge_pages(void);

#endif
