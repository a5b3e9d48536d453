#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns meson's testlog.json into lines of "pass|fail|skip TAB name TAB reason", one for each test case.

A cmocka program counts as its cases, any other test as one. A program that ends with 77 was skipped as a whole, its last line of output
being the reason; a case that was skipped inside a program says why in what it printed before. A line "SKIP: reason" of a test that
passed is a skip too, so that nothing that did not run hides behind a pass.
"""
import json
import re
import sys

CASE = re.compile(r'^\[ OK \] (.+)$|^\[ SKIPPED \] (.+)$|^\[ FAILED \] (.+)$')
# A sanitizer's report counts even where the program (a child, perhaps) went on to pass.
REPORT = re.compile(r'^(?:.*: runtime error: .*|SUMMARY: \w+Sanitizer: .*)$', re.M)
LISTED = re.compile(r'^\d+ test\(s\)')


def clean(text):
    return re.sub(r'\s+', ' ', re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', text)).strip()


def last_line(text):
    lines = [clean(line) for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith('[')]
    return lines[-1][:200] if lines else ''


def failures_of(errors):
    """What cmocka says of each failure, "what (file:line)"; where an assertion says nothing, what was printed before it."""
    failures, said = [], ''
    for line in map(clean, errors.splitlines()):
        error = re.match(r'\[ ERROR \] (?:--- )?(.*)', line)
        where = re.search(r'\[ LINE \] --- (\S+):', line)
        if error and not error.group(1).startswith('[ LINE'):
            said = error.group(1)
        elif not error and not where:
            said = line
        if where:
            failures.append(f'{said} ({where.group(1)})')
    return failures


def cmocka_cases(text, errors):
    """[(result, case, reason)], in order; empty when the program is not a cmocka group. Its stderr has one error for each failed case."""
    seen = {}
    said = []
    failures = failures_of(errors)
    for line in text.splitlines():
        line = clean(line)
        match = CASE.match(line)
        if line.startswith('[ RUN'):
            said = []
        elif not match:
            said.append(line)
        else:
            for kind, name in zip(('pass', 'skip', 'fail'), match.groups()):
                if not name or LISTED.match(name) or name in seen:
                    continue
                reason = failures.pop(0) if kind == 'fail' and failures else said[-1] if said else 'no reason given'
                seen[name] = (kind, '' if kind == 'pass' else reason)
    return [(kind, name, reason) for name, (kind, reason) in seen.items()]


def results_of(test):
    name = test['name'].split(' / ')[-1]
    stdout, stderr = test.get('stdout', ''), test.get('stderr', '')
    text = stdout + '\n' + stderr
    outcome = test['result']
    reports = [('fail', name, clean(report)) for report in REPORT.findall(text)]
    if outcome == 'SKIP':
        return reports + [('skip', name, last_line(text) or 'no reason given')]
    cases = [(kind, f'{name}/{case}', reason) for kind, case, reason in cmocka_cases(stdout, stderr)]
    if outcome not in ('OK', 'EXPECTEDFAIL'):
        failed = [case for case in cases if case[0] == 'fail'] + reports
        whole = ('fail', name, f'{outcome.lower()}, status {test.get("returncode")}: {last_line(text)}')
        return [case for case in cases if case[0] != 'fail'] + (failed or [whole])
    skips = re.findall(r'^SKIP: (.*)$', text, re.M)
    passed = cases or ([] if reports else [('pass', name, '')])
    return passed + reports + [('skip', name, clean(reason)) for reason in skips]


def main():
    stage, path = sys.argv[1:]
    try:
        with open(path, encoding='utf-8', errors='replace') as log:
            tests = [json.loads(line) for line in log if line.strip()]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for test in tests:
        for kind, name, reason in results_of(test):
            print(kind, f'{stage}: {name}', reason, sep='\t')
    return 0 if tests else 1


if __name__ == '__main__':
    sys.exit(main())
