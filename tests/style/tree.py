# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the checks in this folder share: the files of the tree and one way to report."""
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ('include', 'stream', 'ram', 'block', 'migration', 'interop', 'machine', 'tools', 'examples', 'bench', 'tests', 'scripts', 'docs')
LIBRARY = ('stream', 'ram', 'block', 'migration', 'interop')


def files(*suffixes, root=ROOT, folders=FOLDERS):
    """Paths relative to root of all files in our folders whose name ends so, sorted. Works without git, as in a release."""
    found = [path.relative_to(root) for folder in folders for path in (root / folder).rglob('*')
             if path.is_file() and path.name.endswith(suffixes) and '__pycache__' not in path.parts]
    return sorted(found)


def text(path, root=ROOT):
    return (root / path).read_text(encoding='utf-8')


def finish(findings, checked):
    for finding in findings:
        print(finding, file=sys.stderr)
    print(f'{checked}; {len(findings)} findings')
    return 1 if findings else 0
