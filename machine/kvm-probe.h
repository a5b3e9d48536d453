/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tries what this host's KVM can do, with a guest of a few instructions. */
#ifndef MACHINE_KVM_PROBE_H
#define MACHINE_KVM_PROBE_H

#include <glib.h>
#include <stdbool.h>

/*
 * Runs it at CPL0 and at CPL3, several times; it writes a number of pages. @ring: with the dirty ring, which has to
 * report each of them each time. False with @error, which says what this host cannot do.
 */
bool vmf_kvm_probe(bool ring, GError **error);

#endif
