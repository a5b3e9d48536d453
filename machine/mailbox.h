/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Calls from any thread into the thread that runs the main loop.
 *
 * g_main_context_invoke() would do the same, but under GLib's own locks, which ThreadSanitizer cannot see; here the
 * hand-over is a pthread mutex and an eventfd.
 */
#ifndef VMFERRY_MACHINE_MAILBOX_H
#define VMFERRY_MACHINE_MAILBOX_H

#include <glib.h>
#include <stdbool.h>

typedef struct VmfMailbox VmfMailbox;

/* The mailbox is emptied by the default main context of the thread that runs it. */
VmfMailbox *vmf_mailbox_new(GError **error);
/* Letters that were not delivered are dropped, their arguments freed. No other thread may be posting. */
void vmf_mailbox_free(VmfMailbox *mailbox);

/*
 * Has @call(@opaque, @argument) run by the main loop, in the order of posting. Any thread. @argument is then given to
 * @destroy (NULL: it is not freed).
 */
void vmf_mailbox_post(VmfMailbox *mailbox, void (*call)(void *opaque, void *argument), void *opaque, void *argument,
                      GDestroyNotify destroy);

/* Delivers at once what was posted before. Main loop's thread only. */
void vmf_mailbox_deliver(VmfMailbox *mailbox);

#endif
