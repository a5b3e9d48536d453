/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/mailbox.h"

#include <errno.h>
#include <glib-unix.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <vmferry/error.h>

typedef struct {
    void (*call)(void *opaque, void *argument);
    void *opaque;
    void *argument;
    GDestroyNotify destroy;
} Letter;

struct VmfMailbox {
    pthread_mutex_t lock;
    GQueue letters; /* under the lock */
    int event_fd;
    guint watch;
};

static void letter_free(Letter *letter)
{
    if (letter->destroy)
        letter->destroy(letter->argument);
    g_free(letter);
}

static Letter *take(VmfMailbox *mailbox)
{
    Letter *letter;

    pthread_mutex_lock(&mailbox->lock);
    letter = g_queue_pop_head(&mailbox->letters);
    pthread_mutex_unlock(&mailbox->lock);
    return letter;
}

void vmf_mailbox_deliver(VmfMailbox *mailbox)
{
    Letter *letter;

    while ((letter = take(mailbox))) {
        letter->call(letter->opaque, letter->argument);
        letter_free(letter);
    }
}

static gboolean on_event(int fd, GIOCondition condition, void *opaque)
{
    eventfd_t count;

    eventfd_read(fd, &count);
    vmf_mailbox_deliver(opaque);
    return G_SOURCE_CONTINUE;
}

VmfMailbox *vmf_mailbox_new(GError **error)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    VmfMailbox *mailbox;

    if (fd < 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_IO, "mailbox: eventfd: %s", g_strerror(errno));
        return NULL;
    }
    mailbox = g_new0(VmfMailbox, 1);
    pthread_mutex_init(&mailbox->lock, NULL);
    g_queue_init(&mailbox->letters);
    mailbox->event_fd = fd;
    mailbox->watch = g_unix_fd_add(fd, G_IO_IN, on_event, mailbox);
    return mailbox;
}

void vmf_mailbox_free(VmfMailbox *mailbox)
{
    Letter *letter;

    if (!mailbox)
        return;
    g_source_remove(mailbox->watch);
    while ((letter = take(mailbox)))
        letter_free(letter);
    close(mailbox->event_fd);
    pthread_mutex_destroy(&mailbox->lock);
    g_free(mailbox);
}

void vmf_mailbox_post(VmfMailbox *mailbox, void (*call)(void *opaque, void *argument), void *opaque, void *argument,
                      GDestroyNotify destroy)
{
    Letter *letter = g_new(Letter, 1);

    *letter = (Letter){call, opaque, argument, destroy};
    pthread_mutex_lock(&mailbox->lock);
    g_queue_push_tail(&mailbox->letters, letter);
    pthread_mutex_unlock(&mailbox->lock);
    eventfd_write(mailbox->event_fd, 1);
}
