/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An NBD server for tests, which shakes hands as it should and then says what the test wants, on a thread of its own. */
#ifndef STREAM_TEST_NBD_SERVER_H
#define STREAM_TEST_NBD_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { VMF_TEST_NBD_READ = 0, VMF_TEST_NBD_WRITE = 1, VMF_TEST_NBD_FLUSH = 3, VMF_TEST_NBD_STATUS = 7 };

typedef struct {
    int fd;
    uint32_t context; /* id of the one that was asked for last */
    uint16_t type;
    uint64_t cookie, offset;
    uint32_t length;
} VmfTestNbdCommand;

typedef struct VmfTestNbdServer VmfTestNbdServer;

/* @answer: of each command; false: the server goes away. */
VmfTestNbdServer *vmf_test_nbd_server_new(uint64_t size, bool (*answer)(void *opaque, const VmfTestNbdCommand *command), void *opaque);
/* The same, and it may be written. @answer of a write: its data have been read. */
VmfTestNbdServer *vmf_test_nbd_server_new_writable(uint64_t size, bool (*answer)(void *opaque, const VmfTestNbdCommand *command),
                                                   void *opaque);
/* The client has gone. */
void vmf_test_nbd_server_free(VmfTestNbdServer *server);
const char *vmf_test_nbd_server_uri(const VmfTestNbdServer *server);

/* A block status chunk: (length, flags) of each extent. @last: the answer is complete. */
void vmf_test_nbd_tell(const VmfTestNbdCommand *command, const uint32_t (*extents)[2], size_t n, bool last);
/* That it is done: not of reads. */
void vmf_test_nbd_tell_done(const VmfTestNbdCommand *command);

#endif
