# SPDX-License-Identifier: LGPL-2.1-or-later
# Sourced by the scripts here: a known environment, the checkout's path, the packages that a task needs, a configured build.
# shellcheck shell=bash

vmf_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# The distribution's tools come first: a private Python ahead of them may not see the distribution's modules.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C.UTF-8
export HOME=${HOME:-/}

# What building takes. clang and lld compile the guest program for its own machine.
VMF_BUILD_PACKAGES=(gcc libc6-dev binutils meson ninja-build pkgconf python3 git
    libglib2.0-dev libxxhash-dev libjansson-dev liburing-dev libaio-dev libnbd-dev libblkid-dev libcmocka-dev systemtap-sdt-dev clang lld)

vmf_say() { printf '%s\n' "$*" >&2; }

vmf_missing_packages()
{
    local package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s\n' "$package"
    done
}

# vmf_need PACKAGE... : installs those that are missing. With nothing missing there is no apt and no network.
vmf_need()
{
    command -v dpkg-query >/dev/null || return 0
    local missing apt=(apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    mapfile -t missing < <(vmf_missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        vmf_say "missing packages; as root: apt-get install ${missing[*]}"
        return 1
    fi
    vmf_say "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    {
        # Package lists that are at hand may do; if not, they are old or absent.
        "${apt[@]}" install --no-install-recommends "${missing[@]}" ||
            { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${missing[@]}"; }
    } </dev/null >&2
}

# vmf_configure DIRECTORY [MESON OPTION...] : configures a build, or brings an existing one up to date.
vmf_configure()
{
    local dir=$1
    shift
    if [ -f "$dir/build.ninja" ]; then
        meson setup --reconfigure "$dir" "$vmf_root" "$@" && return 0
        rm -rf "$dir"
    fi
    meson setup "$dir" "$vmf_root" "$@"
}
