/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tools/common.h"

int vmf_verb_quit(int argc, char **argv)
{
    return vmf_common_command(
        argc, argv,
        "Ends the machine's process; a guest that is in it is lost. A migration that runs is cancelled first.", "quit",
        "quitting");
}
