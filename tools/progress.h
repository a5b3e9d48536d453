/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How a migration goes, at most ten times a second: a line that is rewritten on a terminal, and JSON status lines where
 * they are asked for.
 */
#ifndef VMFERRY_TOOLS_PROGRESS_H
#define VMFERRY_TOOLS_PROGRESS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

typedef struct {
    bool json;       /* status lines on stdout */
    FILE *programs;  /* status lines for --progress=FD, or NULL */
    bool terminal;   /* stderr is one */
    bool line_shown; /* the cursor stands behind a line of ours */
} VmfProgress;

/* @detail: x-vmferry of query-migrate. */
void vmf_progress_show(VmfProgress *progress, const char *name, const json_t *detail);
/* Before anything else is written to the terminal. */
void vmf_progress_clear(VmfProgress *progress);

#endif
