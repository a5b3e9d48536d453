#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks the public interface: symbol map and shared library show what the headers declare, and each header compiles by itself.

usage: symbols.py SHARED-LIBRARY
"""
import subprocess
import sys

import public
import tree


def exported(library):
    table = subprocess.run(['nm', '-D', '--defined-only', library], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split('@')[0] for line in table.splitlines() if line.split()[-2] not in ('A', 'w', 'v')}


def check_headers():
    flags = subprocess.run(['pkg-config', '--cflags', 'glib-2.0'], check=True, capture_output=True, text=True).stdout.split()
    for path in public.headers():
        command = ['cc', '-std=gnu11', '-Wall', '-Werror', '-fsyntax-only', '-I', str(tree.ROOT / 'include'), *flags, '-x', 'c', '-']
        source = f'#include <{path.relative_to("include")}>\n'
        done = subprocess.run(command, input=source, capture_output=True, text=True)
        if done.returncode:
            yield f'{path} does not compile by itself: {done.stderr.splitlines()[0]}'


def self_test():
    """The reading of headers, on the forms that occur in them."""
    content = '''
        /* vmf_comment(); */
        #define VMF_THING (vmf_macro())
        #define LONG(x) \\
            vmf_continued(x)
        G_BEGIN_DECLS
        typedef bool (*VmfCallback)(void *vmf_argument);
        typedef struct { bool (*vmf_member)(void); struct { int a; } b; } VmfTable;
        enum { VMF_A, VMF_B };
        VmfChannel *vmf_pointer(const char *uri, bool (*callback)(void *opaque, const char *point));
        G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmfChannel, vmf_free)
        void vmf_free(VmfChannel *channel);
        extern const VmfPolicyOps vmf_policy;
        G_END_DECLS
    '''
    content = '\n'.join(line.strip() for line in content.splitlines())
    if public.names_in(content) != ({'vmf_pointer', 'vmf_free'}, {'vmf_policy'}):
        yield f'symbols.py: self-test: read {public.names_in(content)}'


def main():
    functions, data = public.names()
    declared = functions | data
    findings = list(self_test()) + list(check_headers())
    if tree.text('vmferry.map') != public.map_text():
        findings.append('vmferry.map is not what the headers declare: run scripts/update-map')
    shown = exported(sys.argv[1])
    findings += [f'{name} is shown by the library and declared nowhere' for name in sorted(shown - declared)]
    findings += [f'{name} is declared and not in the library' for name in sorted(declared - shown)]
    return tree.finish(findings, f'{len(declared)} public symbols')


if __name__ == '__main__':
    sys.exit(main())
