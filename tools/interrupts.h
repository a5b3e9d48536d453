/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Signals to a command that waits. The first SIGINT or SIGTERM asks it to cancel what it waits for; a SIGINT after that
 * asks it to wait no longer. SIGTERM never does, and neither does anything in the first 300 ms: a terminal's Ctrl-C is
 * one keystroke, and timeout(1) signals both its child and its process group.
 */
#ifndef VMFERRY_TOOLS_INTERRUPTS_H
#define VMFERRY_TOOLS_INTERRUPTS_H

#include <stdbool.h>

void vmf_interrupts_catch(void);
bool vmf_interrupts_cancel(void);
bool vmf_interrupts_abandon(void);

#endif
