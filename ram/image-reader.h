/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A fixed-ram image that is read: one file (VmfImageFile), and the chain of layers that it stands on, as a page store
 * (VmfImageChain). Everything a file says is checked before it is used; bitmaps and digest blocks at their first use,
 * pages when they are read.
 */
#ifndef RAM_IMAGE_READER_H
#define RAM_IMAGE_READER_H

#include "ram/image-format.h"
#include "ram/page-scan.h"
#include "ram/page-store.h"
#include "stream/message.h"
#include "stream/static-data.h"
#include "stream/storage.h"

/* ---- one file ----------------------------------------------------------------------------------------------- */

typedef struct {
    VmfStorage *storage; /* owned */
    VmfImageCommit commit;
    VmfStreamFormat format;
    VmfStaticData *static_data; /* owned */
    uint64_t static_sum;
    VmfImageLayout layout;
    VmfImageParent parent; /* name NULL: none */
    GArray *disks;         /* VmfImageDisk */
    bool ram_only;
    GArray *sections; /* VmfSection in order, all parts of all sections; the contents live as long as the file */
    uint64_t device_sum;
    VmfSwitchover summary;       /* n_blocks of them */
    const uint64_t *table;       /* host order, layout.n_chunks entries; owned */
    struct VmfImageIndex *index; /* private: chunks that were looked at */
    uint8_t *tail;               /* private: what the sections point into */
} VmfImageFile;

/* Reads commit block, header, tables and tail, and checks them. Costs a hostile file's reader no more memory than
 * VMF_IMAGE_HEADER_MAX, VMF_IMAGE_TAIL_MAX, and what of the tables is not zero. */
VmfImageFile *vmf_image_file_open(const char *uri, const VmfStorageOptions *options, GError **error);
/* The same of storage that is open, and becomes the file's, also where it fails. */
VmfImageFile *vmf_image_file_read(VmfStorage *storage, GError **error);
void vmf_image_file_free(VmfImageFile *file);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfImageFile, vmf_image_file_free)

/* What block @block of the layout is: its name, and in messages "RAM block NAME" or "disk NAME" (new). */
const char *vmf_image_file_block_name(const VmfImageFile *file, unsigned block);
char *vmf_image_file_block_title(const VmfImageFile *file, unsigned block);
static inline bool vmf_image_file_block_is_disk(const VmfImageFile *file, unsigned block)
{
    return block >= file->layout.n_blocks - file->layout.n_disks;
}
/* The disk that block @block is; and the block that has the content of the disk of this name, -1: none has. */
const VmfStaticDisk *vmf_image_file_block_disk(const VmfImageFile *file, unsigned block);
int vmf_image_file_find_disk(const VmfImageFile *file, const char *name);

/* Bits and digests of a chunk, read at need and checked against the table. Any thread. @digests false: out->digests is
 * not filled in (bits only). */
bool vmf_image_file_chunk(VmfImageFile *file, unsigned block, uint64_t chunk, bool digests, VmfImageChunk *out,
                          GError **error);

/* ---- a chain ------------------------------------------------------------------------------------------------ */

typedef struct VmfImageChain VmfImageChain;

/* Opens @uri and its parents, by their names (relative to the layer that names them) or, where given, @parents (URIs,
 * NULL-terminated, tried first). */
VmfImageChain *vmf_image_chain_open(const char *uri, const char *const *parents, const VmfStorageOptions *options,
                                    GError **error);
/* A layer by itself, as if it had no parent: its own pages, and all others zero. For verifying. Borrows @file. */
VmfImageChain *vmf_image_chain_of_file(VmfImageFile *file);
/* Whether a layer with this static data can stand on @parent: architecture, page size, RAM layout, disks that it contains.
 * VMF_ERROR_IMAGE_PARENT; messages call the layer @name. */
bool vmf_image_chain_check_fit(const VmfStaticData *layer, const char *name, const VmfImageFile *parent,
                               GError **error);
void vmf_image_chain_free(VmfImageChain *chain);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfImageChain, vmf_image_chain_free)
unsigned vmf_image_chain_n_layers(const VmfImageChain *chain);
/* 0 is the image itself, then its parent, … */
VmfImageFile *vmf_image_chain_layer(const VmfImageChain *chain, unsigned index);

/* What the guest's chunk is: data and zero pages (a page in neither is zero and in no layer), digests of the data
 * pages, and for each page of data the layer that has it (@layers: VMF_CHUNK_PAGES entries, may be NULL). Any thread.
 */
bool vmf_image_chain_chunk(VmfImageChain *chain, unsigned block, uint64_t chunk, VmfImageChunk *out, uint8_t *layers,
                           GError **error);

/*
 * Reading pages: one reader a thread, with a queue on each layer. Reads @wanted of a chunk into @memory (page n at n *
 * VMF_PAGE_SIZE; aligned to 4096): merged runs, checked against their digests. Pages of zeros are not written: they are
 * returned in *@zero. VMF_ERROR_IMAGE_PAGE names block and page.
 */
typedef struct VmfImageReader VmfImageReader;
/* @depth: chunks under way at once, 1 to 64; 0: the default, 4. */
VmfImageReader *vmf_image_reader_new(VmfImageChain *chain, unsigned depth, GError **error);
/* Waits for what is under way; done() is still called. */
void vmf_image_reader_free(VmfImageReader *reader);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfImageReader, vmf_image_reader_free)
bool vmf_image_reader_read(VmfImageReader *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted,
                           void *memory, VmfPageSet *zero, GError **error);

/* A read that has ended. */
typedef struct {
    unsigned block;
    uint64_t chunk;
    void *memory;
    VmfPageSet data;         /* of those wanted: read, and right unless they are in damaged */
    VmfPageSet zero;         /* of those wanted: zeros; memory is as it was */
    VmfPageSet damaged;      /* of data: not what their digests say. All of it after an I/O error */
    const uint64_t *digests; /* of data, by page of the chunk */
} VmfImageRead;

/*
 * The same without waiting: up to @depth chunks are under way at once, a further start waits for one of them. done() is
 * called from within later calls, on this thread, with @error NULL if all is well (the callee owns it); @read is valid
 * until it returns, and it may start another. False with @error where bits or digests of the chunk cannot be had:
 * done() is not called then.
 */
typedef void (*VmfImageReadDone)(void *opaque, const VmfImageRead *read, GError *error);
bool vmf_image_reader_start(VmfImageReader *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted,
                            void *memory, VmfImageReadDone done, void *opaque, GError **error);
/*
 * The same while nothing is under way, for who waits for this read alone: done() has been called when it returns true.
 * What is one piece of the file is read by this thread, which saves handing it over and being woken.
 */
bool vmf_image_reader_read_now(VmfImageReader *reader, unsigned block, uint64_t chunk, const VmfPageSet *wanted,
                               void *memory, VmfImageReadDone done, void *opaque, GError **error);
/* Waits until at most @n_under_way chunks are under way. */
void vmf_image_reader_wait(VmfImageReader *reader, unsigned n_under_way);
/* Ends what has arrived, without waiting. */
void vmf_image_reader_poll(VmfImageReader *reader);
unsigned vmf_image_reader_under_way(const VmfImageReader *reader);

/*
 * The chain as a page store (presence, read): for walking, converting, comparing. The chain outlives it. Batches name
 * blocks of the store's own, whose memory is never touched. False with @error: no memory for them.
 */
bool vmf_image_store_new(VmfImageChain *chain, VmfPageStore *store, GError **error);
VmfRamBlock *vmf_image_store_block(const VmfPageStore *store, unsigned block);

#endif
