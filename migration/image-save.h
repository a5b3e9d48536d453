/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What tests of a save need beside vmferry/save.h. */
#ifndef MIGRATION_IMAGE_SAVE_H
#define MIGRATION_IMAGE_SAVE_H

#include "migration/session.h"
#include "stream/storage.h"

/* Around the storage that the session opens, ahead of its run: @wrap owns what it is given. */
void vmf_save_session_wrap_storage(VmfSession *session, VmfStorage *(*wrap)(VmfStorage *storage, void *opaque, GError **error),
                                   void *opaque);

#endif
