#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks habits that a reader relies on: licence lines, sizes of files and functions, no state outside handles, nothing left open.

usage: style.py [STATIC LIBRARY]

With the engine's static library its object files are searched for mutable data as well.
"""
import re
import subprocess
import sys

import tree

LINE_MAX = 140       # the formatter aims at 120; tables and comments may run a little over
FILE_MAX = 900       # lines
FUNCTION_MAX = 80    # lines from the opening to the closing brace
SPDX = 'SPDX-License-Identifier: LGPL-2.1-or-later'

# Written in two halves, so that this file does not find itself.
LEFT_OPEN = re.compile(r'\b(?:TO' r'DO|FIX' r'ME|XX' r'X|not imple' r'mented|unimple' r'mented)\b')
MACHINE_PATH = re.compile(r'(?<![\w.])/(?:home|root|work|mnt|farm)/\w|\.py' r'env')

# (file, line pattern): why it may stand.
EXEMPT_PATHS = {
}
# (file, function): why it is longer than FUNCTION_MAX.
EXEMPT_FUNCTIONS = {
}
# (object file's source, symbol): why the library may keep this.
EXEMPT_DATA = {
}


def check_text(path, content):
    lines = content.splitlines()
    if path.suffix in ('.c', '.h', '.py', '.S', '.sh') or content.startswith('#!'):
        if SPDX not in '\n'.join(lines[:2]):
            yield f'{path}: no SPDX line at the top'
    if path.suffix in ('.c', '.h', '.py') and len(lines) > FILE_MAX:
        yield f'{path}: {len(lines)} lines: which idea could leave it?'
    for number, line in enumerate(lines, 1):
        if path.suffix in ('.c', '.h', '.py') and len(line) > LINE_MAX:
            yield f'{path}:{number}: {len(line)} columns'
        if line != line.rstrip() and path.suffix in ('.c', '.h', '.py', '.rst', '.build', '.sh'):
            yield f'{path}:{number}: white space at the end'
        if re.match(r' \* -{20,}', line):
            yield f'{path}:{number}: a rule that the formatter broke: make it end within 120 columns'
        if LEFT_OPEN.search(line):
            yield f'{path}:{number}: left open: {line.strip()[:80]}'
        if MACHINE_PATH.search(line) and (str(path), line.strip()) not in EXEMPT_PATHS:
            yield f'{path}:{number}: a path of one machine: {line.strip()[:80]}'
    if content and not content.endswith('\n'):
        yield f'{path}: no newline at the end'


def check_script(path, content):
    """A script is read to its end by its interpreter, even where no test gets that far."""
    first = content.split('\n', 1)[0]
    if path.suffix == '.py' or first.startswith('#!/usr/bin/python3'):
        try:
            compile(content, str(path), 'exec')
        except SyntaxError as error:
            yield f'{path}: {error}'
    elif first.startswith(('#!/bin/bash', '#!/bin/sh', '#!/usr/bin/env bash')):
        done = subprocess.run(['bash', '-n', tree.ROOT / path], capture_output=True, text=True)
        if done.returncode:
            yield f'{path}: {done.stderr.strip()}'
    elif first.startswith('#!') and 'python' in first:
        yield f'{path}: starts {first}, which may be another Python than the distribution\'s; write /usr/bin/python3'
    if first.startswith('#!') and not (tree.ROOT / path).stat().st_mode & 0o111:
        yield f'{path}: starts with #! and is not executable'


def functions(content):
    """(name, lines) of each function: a body's braces stand alone in the first column."""
    start, head = None, ''
    for number, line in enumerate(content.splitlines()):
        if line == '{':
            start = number
        elif line == '}' and start is not None:
            name = re.search(r'(\w+)\s*\((?!.*\w+\s*\()', head) or re.search(r'(\w+)\s*\(', head)
            yield name.group(1) if name else '?', number - start + 1
            start = None
        elif start is None:
            head = line if line[:1] not in (' ', '\t') else head


def check_functions(paths):
    lengths = []
    findings = []
    for path in paths:
        for name, length in functions(tree.text(path)):
            lengths.append(length)
            if length > FUNCTION_MAX and (str(path), name) not in EXEMPT_FUNCTIONS:
                findings.append(f'{path}: {name}() has {length} lines, more than {FUNCTION_MAX}')
    return findings, sorted(lengths)


def mutable_data(library):
    """(source file, symbol) of all that lies in writable sections. .data.rel.ro is constant once relocated."""
    table = subprocess.run(['objdump', '-t', library], check=True, capture_output=True, text=True).stdout
    source = '?'
    for line in table.splitlines():
        member = re.match(r'^(\S+):\s+file format', line)
        if member:
            source = member.group(1).split('/')[-1].removesuffix('.o').replace('_', '/', 1)  # stream_error.c.o
        match = re.match(r'^[0-9a-f]+ .{7} (\.t?data\S*|\.t?bss\S*|\*COM\*)\s+[0-9a-f]+\s+(?:\.hidden )?(\S+)$', line)
        if match and not match.group(1).startswith('.data.rel.ro') and not match.group(2).startswith('.'):
            yield source, re.sub(r'\.\d+$', '', match.group(2))


def main():
    findings = []
    paths = [path for path in tree.files('') if path.suffix not in ('.bin', '.img', '.gz', '.stream', '.pyc')]
    for path in paths:
        try:
            content = tree.text(path)
        except UnicodeDecodeError:
            continue
        findings += check_text(path, content)
        findings += check_script(path, content)
    sources = [path for path in paths if path.suffix == '.c']
    found, lengths = check_functions(sources)
    findings += found
    if lengths:
        print(f'{len(sources)} C files, {len(lengths)} functions: median {lengths[len(lengths) // 2]} lines, '
              f'95 of 100 within {lengths[len(lengths) * 95 // 100]}, longest {lengths[-1]}')
    for library in sys.argv[1:]:
        for source, symbol in mutable_data(library):
            if (source, symbol) not in EXEMPT_DATA:
                findings.append(f'{source}: {symbol} is mutable state outside any handle')
    return tree.finish(findings, f'{len(paths)} files')


if __name__ == '__main__':
    sys.exit(main())
