# SPDX-License-Identifier: LGPL-2.1-or-later
"""An area of an image that is records: header and tail. It ends with END."""

from contextlib import contextmanager

from vmfstream import wire
from vmfstream.faults import Fault, Place, require
from vmfstream.records import walk


class RecordArea:
    """Subclasses have read_record(), which sets ended at END."""

    def __init__(self, octets, offset, what, file, report, order=None):
        self.octets = octets
        self.offset = offset      # in the file
        self.what = what
        self.file = file
        self.report = report
        self.order = order
        self.ended = False

    @contextmanager
    def guard(self, what, at):
        """Faults within are reported; what is where they happened unless they say themselves."""
        try:
            yield
        except Fault as fault:
            self.report.fault(getattr(fault, 'place', Place(self.file, self.offset + at, what)), fault)

    def read_records(self, at):
        end = at
        with self.guard(self.what, at):
            for record in walk(self.octets, at, self.order, self.file, self.report, self.offset):
                end = record.end
                if record.kind not in wire.NAMES:
                    continue
                try:
                    self.read_record(record)
                except Fault as fault:
                    fault.place = getattr(fault, 'place', record.place)
                    if fault.fatal:
                        raise
                    self.report.fault(fault.place, fault)
                if self.ended:
                    break
            end_of_area = Place(self.file, self.offset + end, 'end of ' + self.what)
            self._check_end(end, end_of_area)

    def _check_end(self, end, place):
        try:
            require(self.ended, 'channel.cut', 'the %s ends without END' % self.what)
            require(end == len(self.octets), 'image.layout', '%d octets behind END' % (len(self.octets) - end))
        except Fault as fault:
            fault.place = place
            raise
