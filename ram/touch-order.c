/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ram/touch-order.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmferry/error.h>

#include "stream/crc32c.h"

#define ORDER_MAGIC "VMFORDER"
#define ORDER_VERSION 1u
#define ORDER_MAX (UINT64_C(1) << 32)
#define PAGE_BITS 48u

/* The file's head and foot, little-endian. */
typedef struct {
    char magic[8];
    uint32_t version;
    uint32_t reserved;
    uint8_t image_id[VMF_IMAGE_ID_SIZE];
    uint8_t root[VMF_IMAGE_DIGEST_SIZE];
    uint64_t count;
} OrderHead;
_Static_assert(sizeof(OrderHead) == 56, "head of the order file");

typedef struct {
    uint32_t crc;
    uint32_t reserved;
} OrderFoot;
_Static_assert(sizeof(OrderFoot) == 8, "foot of the order file");

struct VmfTouchOrder {
    uint64_t *entries; /* little-endian */
    uint64_t n, n_allocated;
};

VmfTouchOrder *vmf_touch_order_new(void)
{
    return g_new0(VmfTouchOrder, 1);
}

void vmf_touch_order_free(VmfTouchOrder *order)
{
    if (!order)
        return;
    g_free(order->entries);
    g_free(order);
}

static bool grow(VmfTouchOrder *order)
{
    uint64_t n = MAX(order->n_allocated * 2, 4096);
    uint64_t *more = g_try_realloc_n(order->entries, n, sizeof(uint64_t));

    if (!more)
        return false;
    order->entries = more;
    order->n_allocated = n;
    return true;
}

void vmf_touch_order_add(VmfTouchOrder *order, unsigned block, uint64_t page)
{
    if (order->n < ORDER_MAX && (order->n < order->n_allocated || grow(order)))
        order->entries[order->n++] = GUINT64_TO_LE((uint64_t)block << PAGE_BITS | page);
}

uint64_t vmf_touch_order_length(const VmfTouchOrder *order)
{
    return order->n;
}

void vmf_touch_order_get(const VmfTouchOrder *order, uint64_t index, unsigned *block, uint64_t *page)
{
    uint64_t entry = GUINT64_FROM_LE(order->entries[index]);

    *block = (unsigned)(entry >> PAGE_BITS);
    *page = entry & ((UINT64_C(1) << PAGE_BITS) - 1);
}

/* ---- files --------------------------------------------------------------------------------------------------------
 */

static bool fail(GError **error, int code, const char *path, const char *why)
{
    g_set_error(error, VMF_ERROR, code, "order of touches %s: %s", path, why);
    return false;
}

static uint32_t crc_of(const OrderHead *head, const VmfTouchOrder *order)
{
    uint32_t crc = vmf_crc32c(0, head, sizeof(*head));

    return order->n ? vmf_crc32c(crc, order->entries, order->n * sizeof(uint64_t)) : crc;
}

static OrderHead head_of(const VmfTouchOrder *order, const uint8_t *image_id, const VmfImageDigest *root)
{
    OrderHead head = {.version = GUINT32_TO_LE(ORDER_VERSION), .count = GUINT64_TO_LE(order->n)};

    memcpy(head.magic, ORDER_MAGIC, sizeof(head.magic));
    memcpy(head.image_id, image_id, sizeof(head.image_id));
    memcpy(head.root, root->bytes, sizeof(head.root));
    return head;
}

/* All of it or nothing; closes @file. */
static bool write_to(FILE *file, const OrderHead *head, const VmfTouchOrder *order)
{
    OrderFoot foot = {.crc = GUINT32_TO_LE(crc_of(head, order))};
    bool whole = fwrite(head, sizeof(*head), 1, file) == 1 &&
                 (order->n == 0 || fwrite(order->entries, sizeof(uint64_t), order->n, file) == order->n) &&
                 fwrite(&foot, sizeof(foot), 1, file) == 1;

    return fclose(file) == 0 && whole;
}

bool vmf_touch_order_write(const VmfTouchOrder *order, const char *path, const uint8_t image_id[VMF_IMAGE_ID_SIZE],
                           const VmfImageDigest *root, GError **error)
{
    g_autofree char *partial = g_strconcat(path, ".partial", NULL);
    OrderHead head = head_of(order, image_id, root);
    int fd;

    unlink(partial); /* of one that did not come to its end */
    fd = open(partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (file && write_to(file, &head, order) && rename(partial, path) == 0)
        return true;
    fail(error, VMF_ERROR_IO, path, g_strerror(errno));
    if (fd >= 0 && !file)
        close(fd);
    if (fd >= 0)
        unlink(partial);
    return false;
}

static bool check_head(const OrderHead *head, const char *path, uint64_t size, GError **error)
{
    uint64_t count = GUINT64_FROM_LE(head->count);

    if (memcmp(head->magic, ORDER_MAGIC, sizeof(head->magic)) != 0)
        return fail(error, VMF_ERROR_IMAGE_MAGIC, path, "not such a file");
    if (GUINT32_FROM_LE(head->version) != ORDER_VERSION)
        return fail(error, VMF_ERROR_IMAGE_VERSION, path, "of another version");
    if (head->reserved || count > ORDER_MAX || size != sizeof(OrderHead) + count * sizeof(uint64_t) + sizeof(OrderFoot))
        return fail(error, VMF_ERROR_IMAGE_LAYOUT, path, "its length is not what it says");
    return true;
}

static bool read_entries(VmfTouchOrder *order, FILE *file, const OrderHead *head, const char *path, GError **error)
{
    OrderFoot foot;

    order->n = GUINT64_FROM_LE(head->count);
    order->entries = g_try_new(uint64_t, order->n);
    if (order->n && !order->entries)
        return fail(error, VMF_ERROR_MEMORY, path, "too long for this host");
    order->n_allocated = order->n;
    if (fread(order->entries, sizeof(uint64_t), order->n, file) != order->n || fread(&foot, sizeof(foot), 1, file) != 1)
        return fail(error, VMF_ERROR_IO, path, "cannot be read");
    if (foot.reserved || !vmf_crc32c_matches(crc_of(head, order), GUINT32_FROM_LE(foot.crc)))
        return fail(error, VMF_ERROR_CRC, path, "damaged");
    return true;
}

static bool read_from(VmfTouchOrder *order, FILE *file, const char *path, const OrderHead *wanted, GError **error)
{
    struct stat status;
    OrderHead head;

    if (fstat(fileno(file), &status) < 0 || !S_ISREG(status.st_mode))
        return fail(error, VMF_ERROR_IO, path, "not a file");
    if (fread(&head, sizeof(head), 1, file) != 1)
        return fail(error, VMF_ERROR_IMAGE_LAYOUT, path, "too short");
    if (!check_head(&head, path, (uint64_t)status.st_size, error) || !read_entries(order, file, &head, path, error))
        return false;
    if (memcmp(head.image_id, wanted->image_id, sizeof(head.image_id)) == 0 &&
        memcmp(head.root, wanted->root, sizeof(head.root)) == 0)
        return true;
    return fail(error, VMF_ERROR_IMAGE_PARENT, path, "of another image");
}

VmfTouchOrder *vmf_touch_order_read(const char *path, const uint8_t image_id[VMF_IMAGE_ID_SIZE],
                                    const VmfImageDigest *root, GError **error)
{
    g_autoptr(VmfTouchOrder) order = vmf_touch_order_new();
    OrderHead wanted = head_of(order, image_id, root);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe of that name is not waited for */
    FILE *file = fd >= 0 ? fdopen(fd, "r") : NULL;

    if (!file) {
        fail(error, VMF_ERROR_IO, path, g_strerror(errno));
        return NULL;
    }
    bool usable = read_from(order, file, path, &wanted, error);
    fclose(file);
    return usable ? g_steal_pointer(&order) : NULL;
}
