/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Images at rest (docs/fixed-ram-format.rst): what is in one, whether it is whole, and making others of it. No guest is needed, and
 * nothing of an image is believed before it was checked.
 *
 * An image is opened with the layers that it stands on. Layers are numbered: 0 is the image itself, 1 its parent, and so on. One thread
 * at a time uses a VmfImage, except for vmf_image_cancel().
 */
#ifndef VMFERRY_IMAGE_H
#define VMFERRY_IMAGE_H

#include <vmferry/channel.h>
#include <vmferry/device-state.h>
#include <vmferry/ram.h>

G_BEGIN_DECLS

typedef struct VmfImage VmfImage;

typedef struct {
    size_t size;                /* sizeof(VmfImageOptions) */
    const char *const *parents; /* URIs of images that may be parents, NULL-terminated: tried ahead of those in the layers. NULL: none */
    bool alone;                 /* parents are not looked for: what is not in the image itself is not known */
    VmfConnectFlags flags;      /* VMF_CONNECT_INSECURE: NBD in plaintext off the loopback */
    bool buffered;              /* through the page cache, also where direct I/O is possible */
    const char *backend;        /* "io_uring", "libaio", "threads"; NULL: what works best here */
    int64_t silence_ns;         /* an NBD server that says nothing for so long is given up: VMF_ERROR_IO; 0: 30 s */
} VmfImageOptions;

/*
 * Opens and checks the image at @uri ("file:PATH" or an NBD export) and its parents: all but bitmaps, digests and pages, which are checked
 * when they are first used. @options may be NULL.
 */
VmfImage *vmf_image_open(const char *uri, const VmfImageOptions *options, GError **error);
void vmf_image_close(VmfImage *image);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfImage, vmf_image_close)
/* Makes what runs, and all that comes, fail with VMF_ERROR_CANCELLED. Any thread. */
void vmf_image_cancel(VmfImage *image);
unsigned vmf_image_n_layers(const VmfImage *image);

/* ---- what is in it ----------------------------------------------------------------------------------------------------------- */

/* Strings and arrays are the image's. */
typedef struct {
    const char *uri;
    const uint8_t *id;            /* 16 octets */
    const uint8_t *root_digest;   /* 16 octets: of everything that the image says */
    uint64_t file_size;           /* bytes, holes included */
    bool big_endian;              /* header and device state; the rest is little-endian in every image */
    const char *architecture;
    uint32_t page_size;           /* bytes */
    uint32_t engine_version;      /* major << 16 | minor << 8 | patch, of the writer */
    const uint8_t *uuid;          /* 16 octets, of the machine */
    const char *host;             /* where it was written; NULL: it does not say */
    const char *parent_uri;       /* as the layer has it; NULL: it is no layer */
    const uint8_t *parent_id;     /* 16 octets */
    const uint8_t *parent_digest; /* 16 octets */
    bool runs;                    /* the guest runs once it is restored */
    bool ram_only;                /* it says nothing of the guest's disks, as its owner wished */
    unsigned n_properties, n_blocks, n_sections, n_disks;
} VmfImageInfo;
void vmf_image_info(const VmfImage *image, unsigned layer, VmfImageInfo *out);

void vmf_image_property(const VmfImage *image, unsigned layer, unsigned index, const char **key, const char **value);

typedef struct {
    const char *name;
    uint64_t size; /* bytes */
    uint64_t guest_address;
    bool rom;
    uint64_t pages_used;      /* of the guest, parents included: not zeros */
    uint64_t sum;             /* of the guest's memory, parents included (docs/stream-format.rst) */
    uint64_t pages_here;      /* in this layer */
    uint64_t zero_pages_here; /* of which this layer says that they have become zeros */
    uint64_t bytes_here;      /* in this layer: pages and their digests */
} VmfImageRam;
/* Counts bits, so it reads bitmaps and digests at first. */
bool vmf_image_ram(VmfImage *image, unsigned layer, unsigned index, VmfImageRam *out, GError **error);

typedef struct {
    const char *name;
    uint32_t instance, version;
    uint64_t length; /* bytes of content */
} VmfImageSection;
void vmf_image_section(const VmfImage *image, unsigned layer, unsigned index, VmfImageSection *out);
/* Its content, the parts joined: new memory, g_free(). */
uint8_t *vmf_image_section_content(const VmfImage *image, unsigned layer, unsigned index, size_t *length);

typedef struct {
    const char *name, *identity, *mark;
    uint64_t size;  /* bytes */
    bool contained; /* its content is in the image */
    uint64_t pages_used; /* of that: pages that are not zeros, parents included */
} VmfImageDiskInfo;
void vmf_image_disk(const VmfImage *image, unsigned layer, unsigned index, VmfImageDiskInfo *out);

/* How many of a chunk's pages are where: for maps. What is in none of these is zeros. */
typedef struct {
    unsigned n_pages; /* VMF_CHUNK_SIZE / 4096, or less in the last chunk of a block */
    unsigned here;    /* data in layer 0 */
    unsigned below;   /* data in a parent */
    unsigned zeroed;  /* zeros by layer 0's word */
} VmfImageOccupancy;
uint64_t vmf_image_n_chunks(const VmfImage *image, unsigned block);
bool vmf_image_occupancy(VmfImage *image, unsigned block, uint64_t chunk, VmfImageOccupancy *out, GError **error);

/* ---- whether it is whole ------------------------------------------------------------------------------------------------------ */

typedef struct {
    const char *uri;   /* of the layer */
    const char *block; /* NULL: not of a RAM block */
    int64_t page;      /* of the block, -1: not a page: bitmaps and digests, octets between areas, sums */
    const char *id;    /* as of errors */
    const char *text;
} VmfDamage;

typedef struct {
    size_t size;         /* sizeof(VmfVerifyOptions) */
    bool parents;        /* them as well */
    unsigned n_threads;  /* 0: one a CPU, at most 8 */
    unsigned max_listed; /* damage() is called so often at most */
    /* Both on the calling thread; NULL: not wanted. progress() some times a second, damage() at the end. */
    void (*progress)(void *opaque, uint64_t done_bytes, uint64_t total_bytes);
    void (*damage)(void *opaque, const VmfDamage *damage);
    void *opaque;
} VmfVerifyOptions;

typedef struct {
    uint64_t pages_checked, pages_damaged;
    uint64_t n_damaged; /* pages, chunks, areas, sums: 0 means whole */
    bool sums_checked;  /* counts and sums of all memory: needs the parents */
} VmfVerifyResult;

/* Compares every octet with its digests. True: all was looked at, @result says what was found. */
bool vmf_image_verify(VmfImage *image, const VmfVerifyOptions *options, VmfVerifyResult *result, GError **error);

/* ---- two images ---------------------------------------------------------------------------------------------------------------- */

typedef struct {
    size_t size; /* sizeof(VmfDiffOptions) */
    bool read;   /* pages with one digest are read and compared too; otherwise the digest, of 64 bits, decides */
    /* All on the calling thread; NULL: not wanted. pages(): a run of pages that differ, in order. other(): what else does, in words. */
    void (*progress)(void *opaque, uint64_t done_bytes, uint64_t total_bytes);
    void (*pages)(void *opaque, const char *block, uint64_t first_page, uint64_t n_pages);
    void (*other)(void *opaque, const char *what);
    void *opaque;
} VmfDiffOptions;

typedef struct {
    uint64_t pages_used;      /* that are not zeros in one of them at least */
    uint64_t pages_different; /* of which so many */
    unsigned n_other;         /* properties, device state, disks, run state */
} VmfDiffResult;

/* Compares two guests, each with all its layers. VMF_ERROR_INCOMPATIBLE: their RAM blocks are not the same. */
bool vmf_image_diff(VmfImage *a, VmfImage *b, const VmfDiffOptions *options, VmfDiffResult *result, GError **error);

/* ---- making others -------------------------------------------------------------------------------------------------------------- */

typedef struct {
    size_t size;           /* sizeof(VmfImageMakeOptions) */
    VmfConnectFlags flags; /* of what is written, as all of these */
    bool buffered;
    const char *backend;
    unsigned n_threads; /* 0: one a CPU, at most 8 */
    /* On the calling thread, some times a second; NULL: none. False cancels. */
    bool (*progress)(void *opaque, uint64_t done_bytes, uint64_t total_bytes);
    void *opaque;
    bool force; /* overwrite a device whatever it holds; otherwise one with a filesystem or a partition table is refused */
} VmfImageMakeOptions;

/*
 * Each writes an image at @uri, which has that name once it is whole, and an id of its own. It must not be one of the images that are read
 * (VMF_ERROR_USAGE), nor a machine's disk (VMF_ERROR_LOCKED), nor a device that is in use (VMF_ERROR_IO) or, without force, holds what is
 * known (VMF_ERROR_DISK_PLACE). Pages are checked against their digests on the way. @options may be NULL.
 *
 * flatten: all that @image and its parents say, as one image without a parent.
 * rebase: the same guest as a layer over @parent, of which only what differs from it is written. @parent is any image of a guest with the
 * same RAM blocks, with its layers; where @image holds disks, @parent holds the same.
 */
bool vmf_image_flatten(VmfImage *image, const char *uri, const VmfImageMakeOptions *options, GError **error);
bool vmf_image_rebase(VmfImage *image, VmfImage *parent, const char *uri, const VmfImageMakeOptions *options, GError **error);

/*
 * A one-way stream, as "file:PATH" or another URI that can be read in one direction, becomes an image at @uri, and the other way round.
 * The image says nothing of disks (ram_only): the stream does not. A stream that copies disks, and an image that holds some, are
 * VMF_ERROR_UNSUPPORTED.
 */
bool vmf_image_from_stream(const char *stream_uri, const char *uri, const VmfImageMakeOptions *options, GError **error);
bool vmf_image_to_stream(VmfImage *image, const char *stream_uri, const VmfImageMakeOptions *options, GError **error);

G_END_DECLS
#endif
