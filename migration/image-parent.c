/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "migration/image-parent.h"

#include <string.h>

#include <vmferry/error.h>

#include "migration/image-build.h"

static char *name_for(const char *parent, const char *uri)
{
    if (!g_str_has_prefix(parent, "file:"))
        return g_strdup(parent);
    g_autofree char *path = g_canonicalize_filename(parent + strlen("file:"), NULL);
    g_autofree char *folder = g_path_get_dirname(path), *name = g_path_get_basename(path);
    if (!g_str_has_prefix(uri, "file:"))
        return g_strconcat("file:", path, NULL);
    g_autofree char *own = g_canonicalize_filename(uri + strlen("file:"), NULL);
    g_autofree char *own_folder = g_path_get_dirname(own);
    return g_strconcat("file:", strcmp(folder, own_folder) == 0 ? name : path, NULL);
}

static bool check_length(const VmfImageChain *chain, const char *name, GError **error)
{
    if (vmf_image_chain_n_layers(chain) < VMF_IMAGE_CHAIN_MAX)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_PARENT, "%s: its chain is as long as a chain may be", name);
    return false;
}

bool vmf_image_parent_of_layer(const VmfImageChain *chain, const char *uri, const VmfStaticData *data, VmfImageParent *out,
                               GError **error)
{
    const VmfImageFile *parent = vmf_image_chain_layer(chain, 0);
    const char *name = vmf_storage_name(parent->storage);

    *out = (VmfImageParent){.root = parent->commit.root, .name = name_for(name, uri)};
    memcpy(out->id, parent->commit.id, sizeof(out->id));
    return vmf_image_build_check_target(uri, chain, error) && check_length(chain, name, error) &&
           vmf_image_chain_check_fit(data, uri, parent, error);
}
