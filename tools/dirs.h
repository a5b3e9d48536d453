/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where machines are found: names, the runtime directory with their sockets, the state directory that survives a
 * reboot. */
#ifndef VMFERRY_TOOLS_DIRS_H
#define VMFERRY_TOOLS_DIRS_H

#include <glib.h>
#include <stdbool.h>

/* 1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit: safe in a path, a URI and a shell. */
bool vmf_check_machine_name(const char *name, GError **error);

/* @option if given, else the environment (VMFERRY_RUNTIME_DIR, VMFERRY_STATE_DIR), else the default of this user. */
char *vmf_runtime_dir(const char *option);
char *vmf_state_dir(const char *option);

/* Makes the directory and its parents, 0700; one that is there must be the user's, and nobody else may write to it. */
bool vmf_make_private_dir(const char *path, GError **error);

/* DIR/NAME.SUFFIX */
char *vmf_machine_path(const char *dir, const char *name, const char *suffix);

/*
 * Claims the name in @dir for this process: a locked file DIR/NAME.pid with its pid. The lock goes with the process,
 * however that ends, so a name is never lost to a crash. Returns the descriptor that holds it, -1 with @error when
 * another process does.
 */
int vmf_claim_name(const char *dir, const char *name, GError **error);
void vmf_release_name(const char *dir, const char *name, int fd);

#endif
