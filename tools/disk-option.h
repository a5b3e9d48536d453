/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* --disk NAME=URI[,size=SIZE][,sector=BYTES][,readonly][,buffered][,no-lock][,bitmaps=PATH] */
#ifndef VMFERRY_TOOLS_DISK_OPTION_H
#define VMFERRY_TOOLS_DISK_OPTION_H

#include "machine/machine.h"

/* The disks that a command line names. */
typedef struct {
    VmfMachineDiskConfig disks[VMF_MACHINE_DISKS_MAX];
    unsigned n_disks;
    char *strings[3 * VMF_MACHINE_DISKS_MAX]; /* of them */
} VmfDiskArguments;

/* @texts: ends with NULL; NULL: none. A path is a file. VMF_ERROR_USAGE. */
bool vmf_disk_arguments_parse(VmfDiskArguments *arguments, char *const *texts, bool insecure, GError **error);
void vmf_disk_arguments_clear(VmfDiskArguments *arguments);

#endif
