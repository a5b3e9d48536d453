/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A simulated world of two hosts between which one guest is handed over: the engine's own exchange and journal, over a
 * clock, disks, a link and storage that are values in memory.
 *
 * Theory of operation. A schedule is a list of choices (choices.h). The world is a queue of events in virtual time;
 * each is handled to its end, the processes' deadlines in between, and after each the judge (judge.c) looks at
 * everything. What cannot be an event because it comes in the middle of a call, a crash between two writes or another
 * process reading what is half written, is a choice at the callback where it comes. A schedule has three parts:
 * anything may go wrong until heal_ns; nothing more goes wrong, and what can settle by itself has to; then a truthful
 * person does what docs/operations.rst says, and one guest has to run, or its loss has to have a reason.
 *
 * Files: source.c and target.c are the processes, link.c their channels, disk.c their state directories, people.c what
 * people and their tools do, judge.c what must hold, plants.c what is broken on purpose.
 */
#ifndef SIMULATION_WORLD_H
#define SIMULATION_WORLD_H

#include <vmferry/journal.h>

#include "migration/exchange.h"
#include "stream/clock.h"
#include "tests/simulation/choices.h"
#include "tests/simulation/disk.h"
#include "tests/simulation/plants.h"

typedef enum { HOST_SOURCE, HOST_TARGET, HOST_OTHER, N_HOSTS } Host;

typedef enum {
    SOURCE,   /* where the guest runs at first */
    TARGET,   /* where it is loaded */
    OUTSIDER, /* another run --incoming over the target's state directory, or the next one after a crash */
    STRANGER, /* a run --incoming on another machine, which took over the target's address */
    TOOL,     /* vmferry resolve at the source's host */
    ONWARD,   /* where the target's guest was handed on to; as a process, all that is left of that migration */
    BOOTED,   /* vmferry run NAME at the source's host: the guest from its disk, not from memory */
    N_PROCESSES,
    NOBODY = N_PROCESSES
} Who;

typedef struct Process {
    struct World *world;
    Who who;
    Host host;
    bool alive;
    bool entered; /* its vCPUs have run, and it has not stopped them since */
    bool copy;    /* it has all of the guest's memory */
    bool begun;   /* its entry of T is in the journal and locked by it */
    VmfJournal *journal;
} Process;

typedef enum {
    EVENT_STOP,
    EVENT_OFFER,
    EVENT_TO_SOURCE, /* a message on the main channel: a = type, b = sums are right, n = number of the message */
    EVENT_TO_TARGET,
    EVENT_END_AT_SOURCE, /* the main channel ended */
    EVENT_END_AT_TARGET,
    EVENT_LOADED,
    EVENT_QUESTION, /* a = question, b = to whom, n = number of the ask */
    EVENT_ANSWER,   /* a = answer, b = from which host, n = number of the ask */
    EVENT_KILL,     /* a = whom, b = its host goes down */
    EVENT_CUT,
    EVENT_CANCEL,
    EVENT_PERSON,
    EVENT_BOOT,
    EVENT_OUTSIDER_UP,
    EVENT_TARGET_EXIT,
    EVENT_DEAF, /* the target listens no more */
    EVENT_PRUNE,
    EVENT_HAND_ON,
} EventKind;

typedef struct {
    int64_t at_ns;
    uint32_t order;
    EventKind kind;
    unsigned a, b, n;
} Event;

#define EVENTS_MAX 256

/* One direction of the main channel. */
typedef struct {
    unsigned sent, dropped_from; /* messages from that number on are lost */
    int64_t last_ns;
    bool ended; /* its reader knows that it is over, or will when what is under way has come */
} Lane;

typedef struct World {
    Choices choices;
    const Plant *plant;
    VmfSourceTable source_table;
    VmfTargetTable target_table;
    GString *trace; /* NULL: nobody reads it */

    int64_t now_ns, heal_ns, end_ns;
    bool healed;
    bool broken_open; /* the hosts cannot reach each other until heal_ns */
    unsigned n_events, order, n_steps;
    Event events[EVENTS_MAX];

    Disk disks[N_HOSTS];
    Process processes[N_PROCESSES];
    VmfJournal *graveyard[16]; /* of processes that died in the middle of a call */
    unsigned n_graves;
    bool sync_lies;

    bool has_storage;
    Who storage; /* who has the lock */

    Lane to_source, to_target;
    bool cut;
    bool deaf;
    bool question_open; /* the source waits for an answer to ask_number */
    unsigned ask_number;
    bool in_between; /* somebody_else_asks() is at work */

    VmfSourceExchange source;
    VmfTargetExchange target;
    uint8_t token[16], target_id[16];
    bool has_peer_id; /* at offered(T): otherwise READY brings it */
    bool source_ended, target_over; /* GONE, DEAD or RUNNING was dealt with */
    bool gone_written;
    VmfAnswer last_answer;

    /* What the judge has to know of the past. */
    bool disk_failed;  /* the target's own */
    bool aborted;      /* ABORT was asked or sent: a copy at the target is nobody's last one */
    bool source_killed;
    bool returned;     /* the guest went on at the source after the handover had begun, or was booted there */
    bool target_ran;
    bool fenced_word;  /* a person said that the other side is dead, and it was */
    bool source_fenced; /* its host runs nothing of this guest any more */
    bool person_ran_target; /* a person had the target run its copy, with the source dead */
    bool given_up;     /* a person gave the source's copy up for the target's */
    bool lost;         /* the process that had the only copy was killed */
    const char *violation;
} World;

/* ---- world.c ------------------------------------------------------------------------------------------------------ */

World *world_new(void);
void world_free(World *world);
/* Runs the schedule that @world->choices was set up for. Returns what was violated, or NULL. */
const char *world_run(World *world, const Plant *plant);

static inline Disk *disk_of(const Process *process)
{
    return &process->world->disks[process->host];
}

void later(World *world, int64_t delay_ns, EventKind kind, unsigned a, unsigned b, unsigned n);
/* Handles what is due until @end_ns, or until nothing is left. */
void run_until(World *world, int64_t end_ns);
bool fault(World *world, Group group, const char *label);
/* A place where @process may die, or its host. False: it did. */
bool point(Process *process, const char *label);
void kill_process(Process *process, bool host_goes_down);
/* It ends by itself. */
void exit_process(Process *process);
bool open_journal(Process *process);
void violate(World *world, const char *what);
G_GNUC_PRINTF(3, 4) void say(World *world, const char *who, const char *format, ...);
#define SAY(world, ...)                                                                                                         \
    do {                                                                                                                        \
        if (G_UNLIKELY((world)->trace))                                                                                         \
            say(world, __VA_ARGS__);                                                                                            \
    } while (0)

bool storage_take(Process *process);
void storage_drop(Process *process);
/* The first instruction, or the next one after a stop. */
void enter_guest(Process *process);

/* ---- link.c ------------------------------------------------------------------------------------------------------- */

int64_t delay(World *world, const char *label);
bool link_send(Process *from, uint32_t type, bool good);
void link_cut(World *world);
/* One end closes the main channel: the other reads what is under way, then the end. */
void link_close(Process *from);
bool link_arrives(World *world, const Lane *lane, const Event *event);
void link_ask(World *world, VmfQuestion question);
void link_confirm(World *world);
void link_question(World *world, const Event *event);
/* What the target's host says to a question that reaches it now. */
VmfAnswer host_answers(World *world, VmfQuestion question, Who who);
/* Between two steps of a write, another process of the same host may have to answer. */
void somebody_else_asks(Process *busy);

/* ---- source.c, target.c ------------------------------------------------------------------------------------------- */

void source_begin(World *world);
void source_event(World *world, const Event *event);
void source_after(World *world); /* whatever was done to its exchange */
void target_begin(World *world);
void target_event(World *world, const Event *event);
void target_after(World *world);

/* ---- people.c ----------------------------------------------------------------------------------------------------- */

void people_act(World *world);
void people_boot(World *world);
void people_prune(World *world);
/* A process says that something needs a person. */
void people_hear(World *world);
/* The guest is handed on from the target to a third host, and the target's process ends. */
void people_hand_on(World *world);
/* The end: what a truthful person does until one guest runs. */
void people_settle(World *world);

/* ---- judge.c ------------------------------------------------------------------------------------------------------ */

void judge_step(World *world);
void judge_entry(Process *process);
void judge_never(World *world);
/* A copy is let go, by its own process. */
void judge_discard(Process *process);
void judge_kill(Process *process);
/* Nothing more goes wrong, and time has passed: what is still open needs a reason. */
void judge_quiet(World *world);
void judge_end(World *world);

#endif
