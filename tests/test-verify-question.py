#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The independent reader on channels on which questions about a token were asked: what is right, and planted faults."""

import json
import os
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..')
sys.path.insert(0, os.path.join(ROOT, 'scripts'))

from vmfstream import wire  # noqa: E402
from vmfstream.question import QuestionChannel  # noqa: E402
from vmfstream.writer import Channel, question_preamble  # noqa: E402

TOKEN = bytes(range(0xA0, 0xB0))
STATE_DIRECTORY = bytes(range(0x30, 0x40))
results = {True: 0, False: 0}


def check(name, condition, detail=''):
    results[bool(condition)] += 1
    if not condition:
        print('FAILED: %s: %s' % (name, detail))


def ask(name, id, questions=(wire.QUERY,), answers=(1,), opening=None, change=None):
    """A question's channel in both versions and byte orders; @change edits its two directions."""
    for version, big_endian in ((2, False), (2, True), (3, False), (3, True)):
        label = 'v%d-%s' % (version, 'be' if big_endian else 'le')
        asked, back = Channel(version, big_endian), Channel(version, big_endian)
        for kind in questions:
            asked.token(kind, TOKEN)
        for answer in answers:
            back.add(wire.ANSWER, TOKEN + STATE_DIRECTORY + back.packed('II', answer, 0))
        if change:
            change(asked, back)
        start = question_preamble(version, big_endian, TOKEN, **(opening or {}))
        channel = QuestionChannel()
        report = channel.verify(('question', memoryview(start + asked.octets())), ('answer', memoryview(back.octets())))
        found = report.findings[0].id if report.findings else None
        check('question: %s, %s' % (name, label), found == id, 'expected %s, found %s' % (id, report.findings[:3]))


def test_questions():
    ask('whole', None)
    ask('none', None, (), ())
    ask('three', None, (wire.QUERY, wire.ABORT, wire.INQUIRE), (4, 3, 5))
    ask('not answered yet', None, (wire.QUERY, wire.QUERY), (4,))
    ask('ahead of the answer', 'stream.record-order', (wire.QUERY,) * 3, (4,))
    ask('more answers than questions', 'stream.record-order', (wire.QUERY,), (4, 1))
    ask('RUN', 'stream.record-order', (wire.RUN,))
    ask('END', 'stream.record-order', (wire.QUERY,), (1,), change=lambda asked, back: asked.add(wire.END))
    ask('RUNNING', 'stream.record-order', (wire.QUERY,), (), change=lambda asked, back: back.token(wire.RUNNING, TOKEN))
    ask('unknown to QUERY', 'stream.record-body', (wire.QUERY,), (5,))
    ask('unknown to ABORT', 'stream.record-body', (wire.ABORT,), (5,))
    for answer in (0, 6, 0xFFFFFFFF):
        ask('answer %d' % answer, 'stream.record-body', (wire.INQUIRE,), (answer,))
    ask('reserved field', 'stream.record-body', answers=(), change=lambda asked, back: back.add(
        wire.ANSWER, TOKEN + STATE_DIRECTORY + back.packed('II', 1, 1)))
    ask('an answer that is too long', 'stream.record-body', answers=(), change=lambda asked, back: back.add(
        wire.ANSWER, TOKEN + STATE_DIRECTORY + back.packed('IIQ', 1, 0, 0)))
    ask('an answer that is too short', 'stream.record-body', answers=(), change=lambda asked, back: back.add(
        wire.ANSWER, TOKEN + STATE_DIRECTORY + back.packed('I', 1)))
    ask('token of the answer', 'stream.record-body', answers=(), change=lambda asked, back: back.add(
        wire.ANSWER, bytes(16) + STATE_DIRECTORY + back.packed('II', 1, 0)))
    ask('token of the question', 'stream.record-body', (), change=lambda asked, back: asked.token(wire.QUERY, bytes(16)))
    ask('a question that is too long', 'stream.record-body', (), change=lambda asked, back: asked.token(wire.QUERY, TOKEN + bytes(8)))
    ask('two directories', 'stream.record-body', (wire.QUERY,) * 2, (4,), change=lambda asked, back: back.add(
        wire.ANSWER, TOKEN + TOKEN + back.packed('II', 1, 0)))
    ask('an unknown optional record', None, change=lambda asked, back: asked.add(0x80000070, bytes(8)))
    ask('an unknown record', 'stream.record-unknown', change=lambda asked, back: asked.add(0x70, bytes(8)))
    ask('cut', 'channel.cut', change=lambda asked, back: setattr(back.pieces[0], 'octets', back.pieces[0].octets[:-8]))
    ask('CRC', 'stream.crc', change=lambda asked, back: setattr(asked.pieces[0], 'octets', asked.pieces[0].octets[:-1] + b'x'))
    ask('one-way', 'stream.record-body', opening={'options': 2})
    ask('options', 'stream.record-body', opening={'options': 4})
    ask('reserved octets', 'stream.record-body', opening={'reserved': 1})
    ask('more reserved octets', 'stream.record-body', opening={'more': bytes(11) + b'x'})
    faults = {'stream.magic': lambda o: b'VMFTOKEM' + o[8:], 'stream.version': lambda o: o[:11] + b'\4' + o[12:],
              'stream.crc': lambda o: o[:20] + b'x' + o[21:], 'channel.cut': lambda o: o[:47]}
    for id, change in faults.items():
        given = QuestionChannel().verify(('question', memoryview(change(question_preamble(3, False, TOKEN)))))
        check('preamble of a question: ' + id, given.findings and given.findings[0].id == id, given.findings)


def test_command():
    command = os.path.join(ROOT, 'scripts', 'verify-stream')

    def run(*arguments):
        return subprocess.run([sys.executable, command, *arguments], capture_output=True, text=True, check=False)

    with tempfile.TemporaryDirectory() as directory:
        names = [os.path.join(directory, n) for n in ('question', 'answer')]
        asked, back = Channel(3, False), Channel(3, False)
        asked.token(wire.QUERY, TOKEN)
        back.add(wire.ANSWER, TOKEN + STATE_DIRECTORY + back.packed('II', 3, 0))
        for name, octets in ((names[0], question_preamble(3, False, TOKEN) + asked.octets()), (names[1], back.octets())):
            with open(name, 'wb') as file:
                file.write(octets)
        ended = run(names[0], '--return', names[1])
        check('command: a question', ended.returncode == 0 and 'QUERY; answers: never' in ended.stdout, ended)
        last = json.loads(run('--json', names[0]).stdout)
        check('command: a question in JSON', last['clean'] and last['questions'] == ['QUERY'] and last['answers'] == [], last)


def main():
    for name, test in list(globals().items()):
        if name.startswith('test_'):
            test()
    print('%d passed, %d failed' % (results[True], results[False]))
    return 1 if results[False] else 0


if __name__ == '__main__':
    sys.exit(main())
