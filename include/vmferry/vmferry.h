/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Everything an embedder includes. Start at session.h; docs/embedding.rst walks through a whole VMM. */
#ifndef VMFERRY_VMFERRY_H
#define VMFERRY_VMFERRY_H

#include <vmferry/backup.h>
#include <vmferry/bitmap-mover.h>
#include <vmferry/bitmap.h>
#include <vmferry/block.h>
#include <vmferry/channel.h>
#include <vmferry/device-state.h>
#include <vmferry/error.h>
#include <vmferry/guest.h>
#include <vmferry/handlers.h>
#include <vmferry/handover.h>
#include <vmferry/image.h>
#include <vmferry/journal.h>
#include <vmferry/ram.h>
#include <vmferry/restore.h>
#include <vmferry/save.h>
#include <vmferry/session.h>

/* "0.1.0" */
const char *vmf_version(void);

#endif
