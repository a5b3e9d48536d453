#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks tests/results.py, by which scripts/test counts: nothing that failed, was skipped or was reported hides behind a pass."""
import json
import pathlib
import subprocess
import sys
import tempfile

RESULTS = pathlib.Path(__file__).with_name('results.py')
GROUP = '''[==========] Running 3 test(s).
[ RUN      ] fine
[       OK ] fine
[ RUN      ] cannot
there is no such device here
[  SKIPPED ] cannot
[ RUN      ] wrong
[  FAILED  ] wrong
[==========] 3 test(s) run.
'''
GROUP_ERRORS = '''[  ERROR   ] --- 0x1 != 0x2
[   LINE   ] --- ../test-x.c:11: error: Failure!
[  PASSED  ] 1 test(s).
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] cannot

 1 SKIPPED TEST(S)
[  FAILED  ] 1 test(s), listed below:
[  FAILED  ] wrong
'''
RACE = 'WARNING: ThreadSanitizer: data race\nSUMMARY: ThreadSanitizer: data race x.c:5 in f\n'
# (result, stdout, stderr, exit status): what comes of it
ROWS = [
    ('OK', 'done\n', '', 0, [('pass', 't', '')]),
    ('OK', '[       OK ] a\n[       OK ] b\n', '', 0, [('pass', 't/a', ''), ('pass', 't/b', '')]),
    ('FAIL', GROUP, GROUP_ERRORS, 1, [('pass', 't/fine', ''), ('skip', 't/cannot', 'there is no such device here'),
                                      ('fail', 't/wrong', '0x1 != 0x2 (../test-x.c:11)')]),
    ('SKIP', '', 'first\nno kernel for it\n', 77, [('skip', 't', 'no kernel for it')]),
    ('OK', 'ok: a\nSKIP: b: no network\n', '', 0, [('pass', 't', ''), ('skip', 't', 'b: no network')]),
    ('FAIL', 'last words\n', '', -6, [('fail', 't', 'fail, status -6: last words')]),
    ('TIMEOUT', '', '', -15, [('fail', 't', 'timeout, status -15: ')]),
    ('OK', '', RACE, 0, [('fail', 't', 'SUMMARY: ThreadSanitizer: data race x.c:5 in f')]),
    ('OK', '[       OK ] a\n', 'x.c:7:3: runtime error: shift\n', 0, [('pass', 't/a', ''), ('fail', 't', 'x.c:7:3: runtime error: shift')]),
]


def read(rows):
    with tempfile.NamedTemporaryFile('w', suffix='.json') as log:
        for result, stdout, stderr, status in rows:
            print(json.dumps({'name': 'vmferry / t', 'result': result, 'stdout': stdout, 'stderr': stderr, 'returncode': status}), file=log)
        log.flush()
        done = subprocess.run([RESULTS, 'stage', log.name], capture_output=True, text=True)
    return done.returncode, [tuple(line.split('\t')) for line in done.stdout.splitlines()]


def main():
    wrong = 0
    for *row, expected in ROWS:
        status, lines = read([row])
        if status or lines != [(kind, f'stage: {name}', reason) for kind, name, reason in expected]:
            print(f'{row}\n  gives {lines}\n  instead of {expected}', file=sys.stderr)
            wrong += 1
    if read([])[0] == 0:
        print('no tests at all pass', file=sys.stderr)
        wrong += 1
    print(f'{len(ROWS) + 1} rows, {wrong} wrong')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
