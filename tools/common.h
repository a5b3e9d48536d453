/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What every verb has in common: the table's line, options, exit codes. */
#ifndef VMFERRY_TOOLS_COMMON_H
#define VMFERRY_TOOLS_COMMON_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "tools/client.h"

typedef enum {
    VMF_EXIT_OK = 0,
    VMF_EXIT_FAILED = 1,
    VMF_EXIT_USAGE = 2,
    VMF_EXIT_WARNING = 3, /* done, but something is to be looked at */
    VMF_EXIT_HELD = 4,    /* who runs the guest is not known */
    VMF_EXIT_UNSUPPORTED = 77,
} VmfExit;

typedef struct {
    const char *name;
    const char *summary;
    int (*run)(int argc, char **argv); /* argv[0] is the verb; returns a VmfExit */
} VmfVerb;

int vmf_verb_run(int argc, char **argv);
int vmf_verb_migrate(int argc, char **argv);
int vmf_verb_restore(int argc, char **argv);
int vmf_verb_save(int argc, char **argv);
int vmf_verb_bitmap(int argc, char **argv);
int vmf_verb_backup(int argc, char **argv);
int vmf_verb_status(int argc, char **argv);
int vmf_verb_cancel(int argc, char **argv);
int vmf_verb_stop(int argc, char **argv);
int vmf_verb_cont(int argc, char **argv);
int vmf_verb_quit(int argc, char **argv);
int vmf_verb_resolve(int argc, char **argv);
int vmf_verb_list(int argc, char **argv);
int vmf_verb_inspect(int argc, char **argv);
int vmf_verb_verify(int argc, char **argv);
int vmf_verb_convert(int argc, char **argv);
int vmf_verb_diff(int argc, char **argv);
int vmf_verb_flatten(int argc, char **argv);
int vmf_verb_rebase(int argc, char **argv);

/* Options that every verb takes, and its operands. */
typedef struct {
    char *runtime_dir; /* as resolved, after vmf_common_parse() */
    gboolean json;
    char **operands; /* as many as were asked for, then NULL */
} VmfCommon;

/*
 * Parses the command line of a verb: its own @entries beside the common ones, then @n_operands operands, named in
 * @synopsis ("NAME URI"). On failure it is said and *exit_code is set.
 */
bool vmf_common_parse(VmfCommon *common, int argc, char **argv, const char *synopsis, const char *description,
                      const GOptionEntry *entries, unsigned n_operands, int *exit_code);
/* The same with @least to @most operands. */
bool vmf_common_parse_some(VmfCommon *common, int argc, char **argv, const char *synopsis, const char *description,
                           const GOptionEntry *entries, unsigned least, unsigned most, int *exit_code);
/* Whether --json is there, for errors that come before the command line is understood. */
bool vmf_common_wants_json(int argc, char **argv);
void vmf_common_clear(VmfCommon *common);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(VmfCommon, vmf_common_clear)

/* Says what went wrong and returns the exit code that goes with it. */
int vmf_common_fail(const VmfCommon *common, const GError *error);

/* The exit code alone, for who says it otherwise. */
int vmf_common_exit_code(const GError *error);

/* Connects to the machine that the first operand names; NULL: said, *exit_code set. */
VmfClient *vmf_common_connect(const VmfCommon *common, int *exit_code);

/* A verb that is one command to the machine; says @done ("stopped") when it worked. */
int vmf_common_command(int argc, char **argv, const char *description, const char *command, const char *done);

#endif
