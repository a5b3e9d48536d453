/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which cells of the two tables were walked through: the steps of the engine are counted where they are made (ld --wrap). */
#ifndef SIMULATION_COVERAGE_H
#define SIMULATION_COVERAGE_H

#include <stdbool.h>
#include <stdio.h>

void coverage_clear(void);
/* One line with both counts, then one for each cell that was not reached. Returns how many were not and have no reason. */
unsigned coverage_report(FILE *out);

#endif
