/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <vmferry/error.h>

#include "migration/image-offline.h"
#include "ram/image-verify.h"

VmfStorageOptions vmf_image_storage_options(const VmfImageOptions *options, VmfStorageMode mode)
{
    VmfStorageOptions storage = {.mode = mode};

    if (options) {
        storage.connect = options->flags;
        storage.buffered = options->buffered;
        storage.backend = options->backend;
    }
    storage.silence_ns = options && options->silence_ns ? options->silence_ns : VMF_IMAGE_SILENCE_NS;
    return storage;
}

VmfImage *vmf_image_open(const char *uri, const VmfImageOptions *options, GError **error)
{
    VmfStorageOptions storage = vmf_image_storage_options(options, VMF_STORAGE_READ);
    g_autoptr(VmfImage) image = g_new0(VmfImage, 1);

    storage.cancelled = &image->cancelled;
    if (options && options->alone) {
        image->file = vmf_image_file_open(uri, &storage, error);
        image->chain = image->file ? vmf_image_chain_of_file(image->file) : NULL;
    } else {
        image->chain = vmf_image_chain_open(uri, options ? options->parents : NULL, &storage, error);
    }
    return image->chain ? g_steal_pointer(&image) : NULL;
}

void vmf_image_close(VmfImage *image)
{
    if (!image)
        return;
    vmf_image_chain_free(image->chain);
    vmf_image_file_free(image->file);
    g_free(image);
}

void vmf_image_cancel(VmfImage *image)
{
    atomic_store(&image->cancelled, true);
}

bool vmf_image_check_cancelled(const VmfImage *image, GError **error)
{
    if (!atomic_load(&image->cancelled))
        return false;
    g_set_error(error, VMF_ERROR, VMF_ERROR_CANCELLED, "%s: cancelled",
                vmf_storage_name(vmf_image_layer_of(image, 0)->storage));
    return true;
}

unsigned vmf_image_n_layers(const VmfImage *image)
{
    return vmf_image_chain_n_layers(image->chain);
}

/* ---- verifying ----------------------------------------------------------------------------------------------------
 */

static void tell_damage(VmfImage *image, const VmfVerifyOptions *options, const VmfImageDamage *damage)
{
    const VmfImageFile *file = vmf_image_layer_of(image, damage->layer);
    g_autoptr(GError) as_error = g_error_new_literal(VMF_ERROR, damage->code, damage->text);
    VmfDamage told = {.uri = vmf_storage_name(file->storage),
                      .page = damage->page,
                      .id = vmf_error_id(as_error),
                      .text = damage->text};

    if (damage->block >= 0)
        told.block = vmf_image_file_block_name(file, (unsigned)damage->block);
    options->damage(options->opaque, &told);
}

bool vmf_image_verify(VmfImage *image, const VmfVerifyOptions *options, VmfVerifyResult *result, GError **error)
{
    VmfImageVerifyOptions how = {
        .n_layers = options->parents ? VMF_IMAGE_CHAIN_MAX : 1,
        .n_threads = options->n_threads,
        .max_listed = options->max_listed,
        .progress = options->progress,
        .opaque = options->opaque,
        .cancel = &image->cancelled,
    };
    VmfImageVerifyResult found;

    bool done = vmf_image_chain_verify(image->chain, &how, &found, error);
    *result = (VmfVerifyResult){found.pages_checked, found.pages_damaged, found.n_damaged, found.sums_checked};
    for (guint i = 0; options->damage && i < found.damage->len; i++)
        tell_damage(image, options, &g_array_index(found.damage, VmfImageDamage, i));
    vmf_image_verify_result_clear(&found);
    return done;
}
