/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The layers that an image stands on. A parent is what its id and root digest say; its name, and the URIs that the
 * caller gives, only say where to look.
 */
#include "ram/image-chain.h"

#include <vmferry/error.h>

/* ---- whether a layer fits its parent ------------------------------------------------------------------------------
 */

static bool misfit(const char *name, const VmfImageFile *parent, const char *what, GError **error)
{
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_PARENT, "%s: parent %s: %s", name, vmf_storage_name(parent->storage),
                what);
    return false;
}

static bool same_block(const VmfStaticBlock *a, const VmfStaticBlock *b)
{
    return strcmp(a->name, b->name) == 0 && a->size == b->size && a->page_size == b->page_size &&
           a->guest_address == b->guest_address && a->flags == b->flags;
}

/* The next disk of @data from @*at on whose content is in the image. NULL: there is none. */
static const VmfStaticDisk *next_contained(const VmfStaticData *data, guint *at)
{
    while (*at < data->disks->len) {
        const VmfStaticDisk *disk = &g_array_index(data->disks, VmfStaticDisk, (*at)++);
        if (disk->flags & VMF_WIRE_DISK_COPIED)
            return disk;
    }
    return NULL;
}

/* A layer without disks may stand on anything; one with some has blocks for the same disks as its parent. */
static bool same_disks(const VmfStaticData *ours, const VmfStaticData *theirs)
{
    guint at = 0, there = 0;
    const VmfStaticDisk *a = next_contained(ours, &at), *b = next_contained(theirs, &there);

    if (!a)
        return true;
    while (a && b && strcmp(a->name, b->name) == 0 && a->size == b->size) {
        a = next_contained(ours, &at);
        b = next_contained(theirs, &there);
    }
    return !a && !b;
}

bool vmf_image_chain_check_fit(const VmfStaticData *ours, const char *name, const VmfImageFile *parent, GError **error)
{
    const VmfStaticData *theirs = parent->static_data;

    if (strcmp(ours->machine.architecture, theirs->machine.architecture) != 0 ||
        ours->machine.page_size != theirs->machine.page_size)
        return misfit(name, parent, "is of another architecture", error);
    bool same = ours->blocks->len == theirs->blocks->len;
    for (guint b = 0; same && b < ours->blocks->len; b++)
        same = same_block(&g_array_index(ours->blocks, VmfStaticBlock, b),
                          &g_array_index(theirs->blocks, VmfStaticBlock, b));
    if (!same)
        return misfit(name, parent, "has another RAM layout", error);
    return same_disks(ours, theirs) || misfit(name, parent, "does not hold the same disks", error);
}

/* ---- looking for a parent -----------------------------------------------------------------------------------------
 */

/* Where @name leads from the image at @from: a file beside it, unless the path is absolute. New. */
static char *resolve(const char *from, const char *name)
{
    if (!g_str_has_prefix(from, "file:") || !g_str_has_prefix(name, "file:") || name[strlen("file:")] == '/')
        return g_strdup(name);
    if (!strchr(from, '/'))
        return g_strdup(name);
    g_autofree char *folder = g_path_get_dirname(from + strlen("file:"));
    g_autofree char *path = g_build_filename(folder, name + strlen("file:"), NULL);
    return g_strconcat("file:", path, NULL);
}

/* Opens the image at @uri if its commit block says that it is @parent. NULL without an error: it is another one. */
static VmfImageFile *open_if(const char *uri, const VmfImageParent *parent, const VmfStorageOptions *options,
                             GError **error)
{
    uint8_t block[VMF_IMAGE_COMMIT_SIZE] = {0};
    VmfStorageOptions reading = *options;
    VmfImageCommit commit;

    reading.mode = VMF_STORAGE_READ;
    g_autoptr(VmfStorage) storage = vmf_storage_open(uri, &reading, error);
    if (!storage)
        return NULL;
    size_t length = MIN(sizeof(block), vmf_storage_size(storage));
    if (!vmf_storage_read(storage, 0, block, length, error))
        return NULL;
    if (!vmf_image_commit_decode(block, vmf_storage_size(storage), &commit, error)) {
        g_prefix_error(error, "%s: ", uri);
        return NULL;
    }
    if (memcmp(commit.id, parent->id, sizeof(commit.id)) != 0 || !vmf_image_digest_equal(&commit.root, &parent->root))
        return NULL;
    return vmf_image_file_read(g_steal_pointer(&storage), error);
}

/*
 * What is told when nothing that was tried is the parent: the last thing that went wrong, where it says that an image
 * is damaged; otherwise that the parent is missing, and why.
 */
static void set_missing(const VmfImageFile *layer, const char *uri, bool others, GError *cause, GError **error)
{
    bool is_damage = cause && cause->domain == VMF_ERROR && cause->code >= VMF_ERROR_IMAGE_VERSION &&
                     cause->code <= VMF_ERROR_IMAGE_PARENT;

    if (is_damage) {
        g_propagate_prefixed_error(error, cause, "%s: parent: ", vmf_storage_name(layer->storage));
        return;
    }
    g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_PARENT, "%s: parent %s: %s%s", vmf_storage_name(layer->storage), uri,
                others ? "none of those given, and there: " : "",
                cause ? cause->message : "another image than the one that this layer was saved over");
    g_clear_error(&cause);
}

static VmfImageFile *open_parent(const VmfImageFile *layer, const char *const *parents,
                                 const VmfStorageOptions *options, GError **error)
{
    g_autofree char *own = resolve(vmf_storage_name(layer->storage), layer->parent.name);
    GError *cause = NULL;
    VmfImageFile *file = NULL;

    for (unsigned i = 0; !file && parents && parents[i]; i++) {
        g_clear_error(&cause);
        file = open_if(parents[i], &layer->parent, options, &cause);
    }
    if (!file) {
        g_clear_error(&cause);
        file = open_if(own, &layer->parent, options, &cause);
    }
    if (file)
        g_clear_error(&cause);
    else
        set_missing(layer, own, parents && parents[0], cause, error);
    return file;
}

/* ---- the chain ----------------------------------------------------------------------------------------------------
 */

static bool is_in(const VmfImageChain *chain, const uint8_t *id)
{
    for (unsigned i = 0; i < chain->n_layers; i++)
        if (memcmp(chain->layers[i]->commit.id, id, VMF_IMAGE_ID_SIZE) == 0)
            return true;
    return false;
}

static bool add_parent(VmfImageChain *chain, const char *const *parents, const VmfStorageOptions *options,
                       GError **error)
{
    VmfImageFile *layer = chain->layers[chain->n_layers - 1];

    if (chain->n_layers == VMF_IMAGE_CHAIN_MAX || is_in(chain, layer->parent.id)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IMAGE_PARENT, "%s: parent %s: %s", vmf_storage_name(layer->storage),
                    layer->parent.name,
                    chain->n_layers == VMF_IMAGE_CHAIN_MAX ? "the chain is too long" : "is in the chain already");
        return false;
    }
    VmfImageFile *parent = open_parent(layer, parents, options, error);
    if (!parent)
        return false;
    chain->layers[chain->n_layers++] = parent;
    return vmf_image_chain_check_fit(layer->static_data, vmf_storage_name(layer->storage), parent, error);
}

VmfImageChain *vmf_image_chain_open(const char *uri, const char *const *parents, const VmfStorageOptions *options,
                                    GError **error)
{
    g_autoptr(VmfImageChain) chain = g_new0(VmfImageChain, 1);
    VmfImageFile *file = vmf_image_file_open(uri, options, error);

    if (!file)
        return NULL;
    chain->layers[chain->n_layers++] = file;
    while (chain->layers[chain->n_layers - 1]->parent.name)
        if (!add_parent(chain, parents, options, error))
            return NULL;
    return g_steal_pointer(&chain);
}

VmfImageChain *vmf_image_chain_of_file(VmfImageFile *file)
{
    VmfImageChain *chain = g_new0(VmfImageChain, 1);

    *chain = (VmfImageChain){.n_layers = 1, .layers = {file}, .borrowed = true};
    return chain;
}

void vmf_image_chain_free(VmfImageChain *chain)
{
    if (!chain)
        return;
    for (unsigned i = 0; !chain->borrowed && i < chain->n_layers; i++)
        vmf_image_file_free(chain->layers[i]);
    g_free(chain);
}

unsigned vmf_image_chain_n_layers(const VmfImageChain *chain)
{
    return chain->n_layers;
}

VmfImageFile *vmf_image_chain_layer(const VmfImageChain *chain, unsigned index)
{
    return chain->layers[index];
}

char *vmf_image_chain_place(const VmfImageChain *chain, unsigned layer, unsigned block)
{
    const VmfImageFile *file = chain->layers[layer];
    g_autofree char *title = vmf_image_file_block_title(file, block);

    return g_strdup_printf("%s: %s", vmf_storage_name(file->storage), title);
}

/* ---- chunks -------------------------------------------------------------------------------------------------------
 */

/* Pages of @from that no younger layer has. */
static void take_layer(const VmfImageChunk *from, unsigned layer, VmfPageSet *open, VmfImageChunk *out, uint8_t *layers)
{
    VmfPageSet data = vmf_page_set_and(&from->data, open), zero = vmf_page_set_and(&from->zero, open);

    for (unsigned w = 0; w < VMF_CHUNK_WORDS; w++)
        for (uint64_t left = data.words[w]; left; left &= left - 1) {
            unsigned page = w * 64 + (unsigned)__builtin_ctzll(left);
            out->digests[page] = from->digests[page];
            if (layers)
                layers[page] = (uint8_t)layer;
        }
    out->data = vmf_page_set_or(&out->data, &data);
    out->zero = vmf_page_set_or(&out->zero, &zero);
    *open = vmf_page_set_and_not(open, &data);
    *open = vmf_page_set_and_not(open, &zero);
}

bool vmf_image_chain_chunk(VmfImageChain *chain, unsigned block, uint64_t chunk, VmfImageChunk *out, uint8_t *layers,
                           GError **error)
{
    VmfPageSet open;
    VmfImageChunk from;

    memset(open.words, 0xff, sizeof(open.words));
    memset(out, 0, sizeof(*out));
    for (unsigned i = 0; i < chain->n_layers && !vmf_page_set_is_empty(&open); i++) {
        if (chain->layers[i]->table[chain->layers[i]->layout.blocks[block].first_chunk + chunk] == 0)
            continue;
        if (!vmf_image_file_chunk(chain->layers[i], block, chunk, true, &from, error))
            return false;
        take_layer(&from, i, &open, out, layers);
    }
    return true;
}
