# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sparse file in memory: what the writer fills, and a storage that can be verified without touching a disk."""

from vmfstream.faults import Fault

_PIECE = 4096


class Sparse:
    def __init__(self, name='image'):
        self.name = name
        self.size = 0
        self.pieces = {}    # number -> bytearray of 4096

    def copy(self):
        other = Sparse(self.name)
        other.size = self.size
        other.pieces = {number: bytearray(piece) for number, piece in self.pieces.items()}
        return other

    def write(self, offset, octets):
        self.size = max(self.size, offset + len(octets))
        at = 0
        while at < len(octets):
            number, within = divmod(offset + at, _PIECE)
            some = octets[at:at + _PIECE - within]
            self.pieces.setdefault(number, bytearray(_PIECE))[within:within + len(some)] = some
            at += len(some)

    def flip(self, offset, bit=0):
        self.write(offset, bytes([self.read(offset, 1)[0] ^ 1 << bit]))

    def truncate(self, size):
        self.size = size

    def save(self, path):
        """As a file whose holes are holes."""
        with open(path, 'wb') as file:
            for number, piece in sorted(self.pieces.items()):
                if number * _PIECE < self.size:
                    file.seek(number * _PIECE)
                    file.write(piece[:self.size - number * _PIECE])
            file.truncate(self.size)

    # As a Storage

    def close(self):
        pass

    def read(self, offset, length):
        if offset + length > self.size:
            raise Fault('image.layout', 'the file ends at %d while it is read' % self.size, fatal=True)
        first, last = offset // _PIECE, (offset + length - 1) // _PIECE
        octets = b''.join(bytes(self.pieces.get(number, _PIECE)) for number in range(first, last + 1))
        return octets[offset - first * _PIECE:][:length]

    def first_nonzero(self, start, end):
        for number in sorted(self.pieces):
            low, high = max(start, number * _PIECE), min(end, (number + 1) * _PIECE)
            some = self.read(low, high - low) if low < high else b''
            if any(some):
                return low + len(some) - len(some.lstrip(b'\0'))
        return None
