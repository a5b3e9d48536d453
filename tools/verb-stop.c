/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/common.h"

int vmf_verb_stop(int argc, char **argv)
{
    return vmf_common_command(argc, argv,
                              "Pauses the machine: its vCPU stands still until cont. A paused guest arrives paused.",
                              "stop", "stopped");
}
