/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The vmferry command: a table of verbs. */
#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <vmferry/vmferry.h>

#include "tools/common.h"
#include "tools/report.h"

static int verb_help(int argc, char **argv);

static const VmfVerb verbs[] = {
    {"run", "run a machine, or wait for one to arrive", vmf_verb_run},
    {"migrate", "move a running machine to another host", vmf_verb_migrate},
    {"restore", "run a machine from an image, as it was saved", vmf_verb_restore},
    {"save", "save a machine into an image while it runs", vmf_verb_save},
    {"bitmap", "a disk's dirty bitmaps: which parts were written since", vmf_verb_bitmap},
    {"backup", "copy a disk as it is now, or what changed, while the guest runs", vmf_verb_backup},
    {"status", "what a machine does, and how its migration goes", vmf_verb_status},
    {"cancel", "cancel a migration that runs", vmf_verb_cancel},
    {"stop", "pause a machine", vmf_verb_stop},
    {"cont", "resume a machine, or a migration that waits for its switchover", vmf_verb_cont},
    {"quit", "end a machine", vmf_verb_quit},
    {"resolve", "who has a guest that was handed over, and settling it", vmf_verb_resolve},
    {"list", "the machines of this host", vmf_verb_list},
    {"inspect", "what is in an image", vmf_verb_inspect},
    {"verify", "whether an image is whole", vmf_verb_verify},
    {"convert", "make an image of a stream, or a stream of an image", vmf_verb_convert},
    {"diff", "where the guests of two images differ", vmf_verb_diff},
    {"flatten", "make one image of a layer and its parents", vmf_verb_flatten},
    {"rebase", "make a layer over another parent", vmf_verb_rebase},
    {"help", "this, or what a verb's --help says", verb_help},
};

static const VmfVerb *find_verb(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(verbs); i++)
        if (strcmp(verbs[i].name, name) == 0)
            return &verbs[i];
    return NULL;
}

static void print_verbs(FILE *file)
{
    fprintf(file, "Usage:\n  vmferry VERB [OPTION...] [NAME...]\n\nVerbs:\n");
    for (size_t i = 0; i < G_N_ELEMENTS(verbs); i++)
        fprintf(file, "  %-9s %s\n", verbs[i].name, verbs[i].summary);
    fprintf(file,
            "\n'vmferry VERB --help' and vmferry-VERB(1) say more. 'vmferry --version' says which vmferry this is.\n");
}

static int unknown_verb(const char *name, bool json)
{
    g_autoptr(GError) error = g_error_new(VMF_ERROR, VMF_ERROR_USAGE, "%s: no such verb", name);

    if (json) {
        vmf_report_error(true, error);
        return VMF_EXIT_USAGE;
    }
    fprintf(stderr, "vmferry: %s: no such verb\n", name);
    print_verbs(stderr);
    return VMF_EXIT_USAGE;
}

static int run_verb(const VmfVerb *verb, int argc, char **argv)
{
    g_autofree char *program = g_strconcat("vmferry ", verb->name, NULL);

    g_set_prgname(program); /* what the usage line of --help begins with */
    return verb->run(argc, argv);
}

static int verb_help(int argc, char **argv)
{
    const VmfVerb *verb = argc > 1 ? find_verb(argv[1]) : NULL;
    char *help_argv[] = {argc > 1 ? argv[1] : NULL, (char *)"--help", NULL};

    if (argc > 1 && !verb)
        return unknown_verb(argv[1], vmf_common_wants_json(argc, argv));
    if (verb && verb->run != verb_help)
        return run_verb(verb, 2, help_argv);
    print_verbs(stdout);
    return VMF_EXIT_OK;
}

int main(int argc, char **argv)
{
    const VmfVerb *verb = argc > 1 ? find_verb(argv[1]) : NULL;

    setlocale(LC_CTYPE, ""); /* names and paths are shown as they are written */
    if (verb)
        return run_verb(verb, argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("vmferry %s\n", vmf_version());
        return VMF_EXIT_OK;
    }
    if (argc > 1 && strcmp(argv[1], "--help") == 0)
        return verb_help(1, argv);
    if (argc > 1)
        return unknown_verb(argv[1], vmf_common_wants_json(argc - 1, argv + 1));
    print_verbs(stderr);
    return VMF_EXIT_USAGE;
}
