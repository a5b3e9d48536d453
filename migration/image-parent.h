/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a layer says of the image that it stands on. */
#ifndef MIGRATION_IMAGE_PARENT_H
#define MIGRATION_IMAGE_PARENT_H

#include "ram/image-reader.h"

/*
 * For a layer that is to be written to @uri over the image that @chain begins with. The name is that image's URI; of a file in
 * the same folder it is only the file's name, so that both can be moved together. @data is the layer's own. VMF_ERROR_IMAGE_PARENT where
 * it does not fit, or the chain would be too long; VMF_ERROR_USAGE where the layer would take the place of what it stands on. @out is
 * to be cleared, also on failure.
 */
bool vmf_image_parent_of_layer(const VmfImageChain *chain, const char *uri, const VmfStaticData *data, VmfImageParent *out,
                               GError **error);

#endif
