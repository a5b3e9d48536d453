# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an image is read from: a file or a block device, at random. Holes are passed over, since an image is mostly holes."""

import errno
import os

from vmfstream.faults import Fault

_PIECE = 1 << 20


class Storage:
    def __init__(self, path):
        self.name = path
        self.file = open(path, 'rb', buffering=0)   # pylint: disable=consider-using-with
        self.size = os.lseek(self.file.fileno(), 0, os.SEEK_END)

    def close(self):
        self.file.close()

    def read(self, offset, length):
        pieces = []
        while length:
            piece = os.pread(self.file.fileno(), length, offset)
            if not piece:
                raise Fault('image.layout', 'the file ends at %d while it is read' % offset, fatal=True)
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b''.join(pieces)

    def first_nonzero(self, start, end):
        """Where the first octet that is not zero is; None: nowhere."""
        at = self._seek(start, os.SEEK_DATA, end)
        while at < end:
            hole = min(self._seek(at, os.SEEK_HOLE, end), end)
            while at < hole:
                piece = self.read(at, min(_PIECE, hole - at))
                if any(piece):
                    return at + len(piece) - len(piece.lstrip(b'\0'))
                at += len(piece)
            at = self._seek(at, os.SEEK_DATA, end)
        return None

    def _seek(self, at, what, end):
        try:
            return os.lseek(self.file.fileno(), at, what)
        except OSError as error:
            if error.errno == errno.ENXIO:   # no data behind
                return end
            if error.errno == errno.EINVAL:  # holes are not known here: all is data
                return at if what == os.SEEK_DATA else end
            raise
