/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks that a guest uses while they are still in the image, octet by octet: threads stand for the guest and keep a
 * model of its disk, which begins as what was saved. Whatever they read has to be in the model. What is brought behind
 * their back waits at a fault point, where it matters, so that the disk stays as empty as they left it.
 */
#ifndef TESTS_LAZY_RIG_H
#define TESTS_LAZY_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include <vmferry/vmferry.h>

#include "block/disk.h"
#include "tests/save-rig.h"

#define MIB (1u << 20)
#define UNIT 65536u
#define DISK_BYTES (9 * MIB + 512)
#define THREADS 3u

typedef struct World World;
typedef struct Player Player;

typedef struct {
    Player *player;
    unsigned number;
    pthread_t thread;
    GRand *rand;
    uint8_t *data;
    bool ended; /* the request; as the rest under the player's lock */
    GError *error;
    bool busy;
    uint64_t n;
} Hand;

/* A guest with its disk. */
struct Player {
    World *world;
    VmfGuest *guest;
    VmfDisk *disk;
    uint8_t *model, *at_stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopped, quiet, over, disk_lost; /* quiet: it runs and does nothing */
    bool wrong; /* something was read that is not in the model */
    unsigned n_told; /* requests that failed without the guest having been stopped for it */
    Hand hands[THREADS];
};

struct World {
    VmfSaveRig rig;
    uint8_t *content; /* of the disk that was saved */
    const char *hold_at, *kill_at;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool held, go; /* at hold_at */
    bool quiet;    /* the next guest is */
    const VmfStorageFault *faults; /* of the new disk's storage */
    size_t n_faults;
    VmfStorage *storage; /* with them */
};

typedef struct {
    World *world;
    Player *player;
    VmfSession *session;
    pthread_t thread;
    bool done;
    GError *error, *move_error;
} Restore;

/* What the engine calls, too. */
bool player_stop(void *opaque, GError **error);
bool player_start(void *opaque, GError **error);
bool player_is_running(void *opaque);
/* One more request of this hand's, whose thread is not at work. False: it failed. */
bool player_request(Hand *hand, VmfDiskOperation operation, uint64_t offset, uint64_t length);
/* And what it makes of the model. */
void player_change(Hand *hand, VmfDiskOperation operation, uint64_t offset, uint64_t length);
/* Until each of its hands has come so much further, or some of the disk is lost. */
void player_wait(Player *player, uint64_t more);
/* From here on it runs, and does nothing. */
void player_calm(Player *player);

/* In the world's folder. */
char *world_path(const World *world, const char *name);
bool world_has(const World *world, const char *name);

/* A guest that stands; its disk is @name there, which is a file, or is to arrive. */
Player *player_new(World *world, const char *disk, bool incoming);
/* Nothing that it read was wrong, and nothing failed that it would have heard of. */
void player_free(Player *player);

/* For cmocka: there is an image of a guest with a disk, guest.image. */
int world_enter(void **state);
int world_leave(void **state);

/* Lazily, into "new". Goes on in a thread of its own. */
void restore_begin(Restore *restore, World *world, const char *image);
/* The guest runs, its memory is there, and of its disk only what it asks for, until world_let_go(). */
void restore_begin_held(Restore *restore, World *world);
void world_let_go(World *world);
VmfStatistics restore_statistics(const Restore *restore);
/* The session's end. */
bool restore_finish(Restore *restore);
void restore_end(Restore *restore);
void world_assert_content(const World *world, const char *name, const uint8_t *expected);
/* It has come to its end, and the guest's disk is what it made of it. */
void restore_assert_whole(Restore *restore);
void world_remove_new(World *world);
/* Once more, from the beginning, without any of the faults. */
void world_comes_back(World *world, const char *image);
char *restore_wait_for_hold(Restore *restore);
/* The guest is held, with @words, and stays so until it is given up, with @code; nothing of it that is not whole has a name. */
void restore_assert_given_up(Restore *restore, const char *words, VmfErrorCode code);

#endif
