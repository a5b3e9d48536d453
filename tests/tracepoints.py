#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tracepoints of the sources, of docs/tracing.rst and of the built library are the same, with as many arguments.

usage: tracepoints.py SHARED-LIBRARY (true|false: built with sys/sdt.h)
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
SKIP = 77


def count(arguments):
    """Arguments of a call: commas outside parentheses and brackets, and one."""
    depth, commas = 0, 0
    for c in arguments:
        depth += (c in '([') - (c in ')]')
        commas += c == ',' and depth == 0
    return commas + 1


def of_sources():
    found = set()
    for folder in ('stream', 'ram', 'block', 'migration', 'interop'):
        for path in sorted((ROOT / folder).rglob('*.c')):
            for name, arguments in re.findall(r'VMF_TRACE\((\w+),(.*?)\);', path.read_text(encoding='utf-8'), re.S):
                found.add((name, count(arguments)))
    return found


def of_page():
    """Rows of the table; a row goes on where the first column is empty."""
    rows = []
    lines = iter((ROOT / 'docs' / 'tracing.rst').read_text(encoding='utf-8').splitlines())
    columns = None
    for line in lines:
        if re.fullmatch(r'=+  =+  =+', line):
            columns = [match.span() for match in re.finditer('=+', line)]
        elif columns and line and not line.startswith('name '):
            name, arguments = (line[start:end].strip() for start, end in columns[:2])
            if line[:1] == ' ':
                rows[-1][1] += ' ' + arguments
            else:
                rows.append([name, arguments])
        elif not line:
            columns = None
    return {(name, count(arguments)) for name, arguments in rows}


def of_library(library):
    notes = subprocess.run(['readelf', '-nW', library], check=True, capture_output=True, text=True).stdout
    found = re.findall(r'Provider: vmferry\s+Name: (\w+)\s+Location: .*\n\s+Arguments: (.*)', notes)
    return {(name, len(arguments.split())) for name, arguments in found}


def main():
    sources, page = of_sources(), of_page()
    assert len(sources) >= 10, sources
    assert sources == page, f'in the sources, not in docs/tracing.rst or the other way round: {sources ^ page}'
    if sys.argv[2] == 'false':
        print('built without sys/sdt.h (systemtap-sdt-dev)')
        assert not of_library(sys.argv[1])
        return SKIP
    library = of_library(sys.argv[1])
    assert library == sources, f'in the sources, not in the library or the other way round: {library ^ sources}'
    print(f'{len(library)} tracepoints')
    return 0


if __name__ == '__main__':
    sys.exit(main())
