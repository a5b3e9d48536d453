/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A process that goes on in the background once it is ready: the caller's shell gets the first line, or the error and
 * exit code of a start that failed, as if it had stayed in the foreground.
 */
#ifndef VMFERRY_TOOLS_DAEMON_H
#define VMFERRY_TOOLS_DAEMON_H

#include <glib.h>
#include <stdbool.h>

/*
 * Forks; must come before any thread. Returns only in the child, the descriptor to be given to vmf_daemon_ready(); the
 * parent waits, and exits as the child says. -1 with @error: there is no child.
 */
int vmf_daemon_fork(GError **error);

/* In the child: the parent may exit 0. Standard output ends, standard error goes to @log_path from now on. */
bool vmf_daemon_ready(int ready_fd, const char *log_path, GError **error);

#endif
