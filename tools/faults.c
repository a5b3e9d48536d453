/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/faults.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <vmferry/error.h>

#include "tools/numbers.h"

typedef enum { KILL, STOP, CUT, SILENT, N_ACTIONS } Action;
static const char *const action_names[N_ACTIONS] = {
    [KILL] = "kill", [STOP] = "stop", [CUT] = "cut", [SILENT] = "silent"};

typedef struct {
    char *point;
    Action action;
    int64_t for_ns;
    atomic_bool spent;
} Fault;

struct VmfFaults {
    VmfLink *link;
    bool lists;
    GPtrArray *all; /* Fault */
};

static void free_fault(void *opaque)
{
    Fault *fault = opaque;

    g_free(fault->point);
    g_free(fault);
}

static bool parse_action(const char *word, Action *action)
{
    for (*action = 0; *action < N_ACTIONS; (*action)++)
        if (strcmp(action_names[*action], word) == 0)
            return true;
    return false;
}

/* "cut:5s" */
static bool parse_what(const char *text, Fault *fault, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(text, ":", 2);
    uint64_t for_ns = 0;

    if (!parts[0] || !parse_action(parts[0], &fault->action) || (parts[1] && fault->action < CUT)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'%s': expected kill, stop, cut[:TIME] or silent[:TIME]", text);
        return false;
    }
    if (parts[1] && !vmf_parse_duration(parts[1], &for_ns, error))
        return false;
    fault->for_ns = parts[1] ? (int64_t)MIN(for_ns, INT64_MAX) : fault->action == SILENT ? -1 : 0;
    return true;
}

static bool add(VmfFaults *faults, const char *text, GError **error)
{
    const char *equals = strchr(text, '=');
    Fault *fault;

    if (strcmp(text, "list") == 0)
        return faults->lists = true;
    if (!equals || equals == text) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_USAGE, "'%s': expected POINT=ACTION or list", text);
        return false;
    }
    fault = g_new0(Fault, 1);
    fault->point = g_strndup(text, equals - text);
    g_ptr_array_add(faults->all, fault);
    return parse_what(equals + 1, fault, error);
}

VmfFaults *vmf_faults_new(const char *const *texts, GError **error)
{
    g_autoptr(VmfFaults) faults = g_new0(VmfFaults, 1);

    faults->link = vmf_link_new();
    faults->all = g_ptr_array_new_with_free_func(free_fault);
    for (; *texts; texts++)
        if (!add(faults, *texts, error))
            return NULL;
    return g_steal_pointer(&faults);
}

void vmf_faults_free(VmfFaults *faults)
{
    if (!faults)
        return;
    vmf_link_unref(faults->link);
    g_ptr_array_unref(faults->all);
    g_free(faults);
}

VmfLink *vmf_faults_link(VmfFaults *faults)
{
    return faults->link;
}

static void happen(VmfFaults *faults, Fault *fault)
{
    switch (fault->action) {
    case KILL:
        raise(SIGKILL);
        break;
    case STOP:
        raise(SIGSTOP);
        break;
    case CUT:
        vmf_link_fail(faults->link, VMF_LINK_CUT, fault->for_ns);
        break;
    default:
        vmf_link_fail(faults->link, VMF_LINK_SILENT, fault->for_ns);
        break;
    }
}

void vmf_faults_pass(VmfFaults *faults, const char *point)
{
    if (faults->lists)
        fprintf(stderr, "vmferry: fault point %s\n", point);
    for (guint i = 0; i < faults->all->len; i++) {
        Fault *fault = g_ptr_array_index(faults->all, i);

        if (strcmp(fault->point, point) == 0 && !atomic_exchange(&fault->spent, true))
            happen(faults, fault);
    }
}
