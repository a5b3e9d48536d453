#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks from the #include lines that each folder uses only what it may:

    tools -> machine, interop, migration -> ram, block -> stream

include/vmferry is for everyone and needs nobody. machine and tools see the engine through it alone, as any embedder does.
"""
import pathlib
import re
import sys
import tempfile

import tree

PUBLIC = 'vmferry'
MAY_INCLUDE = {
    'include': {PUBLIC},
    'stream': {PUBLIC, 'stream'},
    'ram': {PUBLIC, 'ram', 'stream'},
    'block': {PUBLIC, 'block', 'stream'},
    'migration': {PUBLIC, 'migration', 'ram', 'block', 'stream'},
    'interop': {PUBLIC, 'interop', 'ram', 'block', 'stream'},
    'machine': {PUBLIC, 'machine'},
    'tools': {PUBLIC, 'machine', 'tools'},
    'examples': {PUBLIC},
    'bench': {PUBLIC, 'bench'},
    'tests': {PUBLIC, 'stream', 'ram', 'block', 'migration', 'interop', 'machine', 'tools', 'tests'},
}

# (file, header): why this pair may be. An entry that no longer occurs is a finding too.
EXEMPT = {
    ('ram/test-block.c', 'tests/huge-pages.h'): 'a unit test reserves huge pages of the host as the tests of whole machines do',
    ('ram/test-capture.c', 'tests/huge-pages.h'): 'the same',
    ('ram/test-fault-server.c', 'tests/huge-pages.h'): 'the same',
    ('ram/test-occupancy.c', 'tests/huge-pages.h'): 'the same',
    ('ram/test-populate.c', 'tests/huge-pages.h'): 'the same',
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def folder_of(bracket, header, root):
    """The folder of ours that a header belongs to, None for the system's."""
    first = header.split('/')[0]
    if first == PUBLIC:
        return PUBLIC if bracket == '<' else '(no folder)'
    if bracket == '"' or (first in MAY_INCLUDE and (root / header).is_file()):
        return first if '/' in header else '(no folder)'
    return None


def check(root, exempt):
    findings, used, count = [], set(), 0
    for path in tree.files('.c', '.h', root=root, folders=tuple(MAY_INCLUDE)):
        allowed = MAY_INCLUDE[path.parts[0]]
        for bracket, header in INCLUDE.findall(tree.text(path, root)):
            count += 1
            folder = folder_of(bracket, header, root)
            if folder is None or folder in allowed:
                continue
            if (str(path), header) in exempt:
                used.add((str(path), header))
            elif folder == '(no folder)':
                findings.append(f'{path}: "{header}": write includes from the root ("stream/record.h") or <vmferry/error.h>')
            else:
                findings.append(f'{path}: {path.parts[0]} may not include {header} (of {folder})')
    findings += [f'layering.py: exemption of {pair} is not needed' for pair in sorted(set(exempt) - used)]
    return findings, count


def self_test():
    """Violations planted in a tree of their own are each found, and what is allowed is not."""
    planted = {
        'stream/a.c': ('#include "ram/ram.h"', 1),
        'ram/a.c': ('#  include "migration/session.h"', 1),
        'ram/b.c': ('#include "stream/record.h"\n#include <vmferry/error.h>\n#include <stdio.h>', 0),
        'machine/a.c': ('#include "stream/record.h"', 1),
        'machine/b.c': ('#include <stream/record.h>', 1),
        'tools/a.c': ('#include "machine/rv32.h"\n#include "tools/verbs.h"', 0),
        'tools/b.c': ('#include "vmferry/error.h"', 1),
        'include/vmferry/a.h': ('#include "stream/record.h"', 1),
        'stream/record.h': ('#include "record.h"', 1),
        'migration/a.c': ('#include "interop/qemu.h"', 1),
    }
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        for path, (content, _) in planted.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content + '\n', encoding='utf-8')
        findings, _ = check(root, {('tools/a.c', 'machine/gone.h'): 'is not there'})
    wrong = [path for path, (_, expected) in planted.items()
             if sum(finding.startswith(path + ':') for finding in findings) != expected]
    if not any('is not needed' in finding for finding in findings):
        wrong.append('stale exemption')
    return [f'layering.py: self-test: {path} judged wrongly' for path in wrong]


def main():
    findings, count = check(tree.ROOT, EXEMPT)
    return tree.finish(self_test() + findings, f'{count} includes')


if __name__ == '__main__':
    sys.exit(main())
