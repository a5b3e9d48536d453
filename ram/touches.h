/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults that a guest has met lately, by windows of pages: whether it goes on where it was. A guest that touches two
 * pages close to each other is likely to touch those around them too, and is spared their faults; one that touches
 * pages at random is not made to wait for what it will not use.
 */
#ifndef RAM_TOUCHES_H
#define RAM_TOUCHES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define VMF_TOUCH_WINDOW 16u /* pages, aligned; a chunk is a multiple of it */
#define VMF_TOUCHES_KEPT 16u

/* One thread's. */
typedef struct {
    uint64_t windows[VMF_TOUCHES_KEPT]; /* a ring */
    unsigned next;
} VmfTouches;

static inline void vmf_touches_init(VmfTouches *touches)
{
    memset(touches, 0x7f, sizeof(*touches)); /* near nothing */
    touches->next = 0;
}

/* Notes a touch of @page of @block: whether one in its window, or in one beside it, was noted lately. */
static inline bool vmf_touches_near(VmfTouches *touches, unsigned block, uint64_t page)
{
    uint64_t window = (uint64_t)block << 48 | page / VMF_TOUCH_WINDOW;
    bool near = false, same = false;

    for (unsigned i = 0; i < VMF_TOUCHES_KEPT; i++) {
        near |= touches->windows[i] - window + 1 <= 2;
        same |= touches->windows[i] == window;
    }
    if (!same)
        touches->windows[touches->next++ % VMF_TOUCHES_KEPT] = window;
    return near;
}

#endif
