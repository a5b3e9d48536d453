#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""needed.py [--no-suite SUITE]... BUILD [NAME...]: what ninja has to build for these tests, one target a line."""
import argparse
import json
import os
import subprocess
import sys


def introspect(build, what):
    return json.loads(subprocess.run(['meson', 'introspect', what, build], check=True, capture_output=True).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('build')
    parser.add_argument('--no-suite', action='append', default=[])
    parser.add_argument('names', nargs='*')
    args = parser.parse_args()
    files = {target['id']: target['filename'] for target in introspect(args.build, '--targets')}
    needed = set()
    for test in introspect(args.build, '--tests'):
        suites = {suite.rpartition(':')[2] for suite in test['suite']}
        if not suites & set(args.no_suite) and (not args.names or test['name'] in args.names):
            needed.update(os.path.relpath(file, os.path.realpath(args.build)) for target in test['depends'] for file in files[target])
    for target in sorted(needed):
        print(target)


if __name__ == '__main__':
    sys.exit(main())
