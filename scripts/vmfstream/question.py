# SPDX-License-Identifier: LGPL-2.1-or-later
"""A question about a token on a channel of its own, and its answers: one file for each direction, or the questions alone."""

from . import wire
from .faults import Fault, Place, Report, require
from .records import Body, read_question_preamble, walk


class QuestionChannel:
    """The records of a question's channel: read_questions(), then read_answers() where they were recorded."""

    def __init__(self):
        self.report = Report()
        self.preamble = None
        self.questions = []
        self.answers = []     # (answer, state directory)

    def verify(self, questions, answers=None):
        """Each argument is a (name, octets) pair."""
        self.read_questions(*questions)
        if answers is not None:
            self.read_answers(*answers)
        return self.report

    def read_questions(self, file, octets):
        try:
            self.preamble = read_question_preamble(octets)
        except Fault as fault:
            self.report.fault(Place(file, 0, 'preamble'), fault)
            return
        self._read(file, octets, wire.PREAMBLE_SIZE, self._read_question)

    def read_answers(self, file, octets):
        if self.preamble is None:
            return
        self._read(file, octets, 0, self._read_answer)
        if len(self.answers) < len(self.questions) - 1:
            self.report.add(Place(file, len(octets), 'end of file'), 'stream.record-order',
                            'a question was asked ahead of the answer to the one before')

    def _read(self, file, octets, at, read):
        order = wire.order_mark(self.preamble.options.big_endian)
        try:
            for record in walk(octets, at, order, file, self.report):
                if record.kind not in wire.NAMES:
                    continue
                try:
                    read(record, Body(record.body, order))
                except Fault as fault:
                    self.report.fault(record.place, fault)
        except Fault as fault:
            self.report.fault(fault.place, fault)

    def _read_question(self, record, body):
        require(record.kind in wire.QUESTIONS, 'stream.record-order', 'not a question')
        token, = body.take('16s')
        body.done()
        self.questions.append(record.kind)
        self._check_token(token)

    def _read_answer(self, record, body):
        require(record.kind == wire.ANSWER, 'stream.record-order', 'not an answer')
        token, directory, answer, reserved = body.take('16s16sII')
        body.done()
        require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
        require(answer in wire.ANSWER_NAMES, 'stream.record-body', 'answer %d' % answer)
        self.answers.append((answer, directory))
        self._check_token(token)
        require(len(self.answers) <= len(self.questions), 'stream.record-order', 'more answers than questions')
        require(answer != wire.ANSWER_UNKNOWN or self.questions[len(self.answers) - 1] == wire.INQUIRE, 'stream.record-body',
                'UNKNOWN, to a question that is not INQUIRE')
        require(directory == self.answers[0][1], 'stream.record-body', 'of another state directory than the answer before')

    def _check_token(self, token):
        require(token == self.preamble.token, 'stream.record-body', 'a token that is not the preamble\'s')


def summary(channel):
    """As that of a stream: a dictionary with stable names."""
    preamble, findings = channel.preamble, channel.report.findings
    held = {'type': 'summary', 'faults': len(findings), 'clean': not findings, 'notes': channel.report.notes}
    if preamble is not None:
        held.update(version=preamble.options.version, byte_order='big' if preamble.options.big_endian else 'little',
                    token=preamble.token.hex(), questions=[wire.type_name(kind) for kind in channel.questions],
                    answers=[wire.ANSWER_NAMES[answer] for answer, _ in channel.answers])
    return held


def in_words(file, held):
    state = 'clean' if held['clean'] else '%d fault%s' % (held['faults'], 's' if held['faults'] != 1 else '')
    if 'token' not in held:
        return '%s: %s; not a question that can be read' % (file, state)
    return '%s: %s; questions about token %s: %s; answers: %s' % (
        file, state, held['token'], ', '.join(held['questions']) or 'none', ', '.join(held['answers']) or 'none')
