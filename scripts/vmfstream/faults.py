# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is wrong with a stream, and the list in which it is gathered."""

from collections import namedtuple

Finding = namedtuple('Finding', 'file offset record id message')


class Fault(Exception):
    """One broken rule, by its stable id. A fatal one loses the framing: nothing after it in the file can be told apart."""

    def __init__(self, id, message, fatal=False):
        super().__init__(message)
        self.id = id
        self.message = message
        self.fatal = fatal


def require(condition, id, message):
    if not condition:
        raise Fault(id, message)


class Place(namedtuple('Place', 'file offset record')):
    """Where a finding belongs, kept for rules that can only be decided later."""


class Report:
    def __init__(self):
        self.findings = []
        self.notes = []

    def add(self, place, id, message):
        self.findings.append(Finding(place.file, place.offset, place.record, id, message))

    def fault(self, place, fault):
        self.add(place, fault.id, fault.message)

    def note(self, text):
        """Something that could not be decided from the files given. It is no fault."""
        self.notes.append(text)
