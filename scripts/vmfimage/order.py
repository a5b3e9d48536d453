# SPDX-License-Identifier: LGPL-2.1-or-later
"""The order of first touches beside an image. A hint: whatever is wrong with it is no fault of the image."""

import struct

from vmfstream.crc32c import crc32c
from vmfstream.faults import Fault, require

MAGIC = b'VMFORDER'
MAX_COUNT = 1 << 32
_HEAD = '<8sII16s16sQ'
_HEAD_SIZE = struct.calcsize(_HEAD)


def pack_order(id, root, touches):
    """@touches: (block, page) in the order of first touches."""
    start = struct.pack(_HEAD, MAGIC, 1, 0, id, root, len(touches))
    start += struct.pack('<%dQ' % len(touches), *(block << 48 | page for block, page in touches))
    return start + struct.pack('<II', crc32c(start), 0)


def read_order(octets, image):
    """How many pages it names. A Fault says why it is ignored; its id is not of the document."""
    def demand(condition, why):
        require(condition, 'order', why)

    demand(len(octets) >= _HEAD_SIZE + 8, 'too short')
    magic, version, zero, id, root, count = struct.unpack_from(_HEAD, octets)
    demand((magic, version, zero) == (MAGIC, 1, 0), 'not an order, or of another version')
    demand((id, root) == (image.commit.id, image.root), 'of another image')
    demand(count <= MAX_COUNT and len(octets) == _HEAD_SIZE + 8 * count + 8, 'its length does not fit its count')
    crc, zero = struct.unpack_from('<II', octets, len(octets) - 8)
    demand(crc32c(octets[:-8]) == crc and zero == 0, 'damaged')
    for touch in struct.unpack_from('<%dQ' % count, octets, _HEAD_SIZE):
        block, page = touch >> 48, touch & (1 << 48) - 1
        demand(block < len(image.shapes) and page < image.shapes[block].n_pages, 'it names a page that is not there')
    return count


def order_beside(image):
    """(pages, None), (None, why it is ignored), or (None, None) where there is none."""
    try:
        with open(image.storage.name + '.order', 'rb') as file:
            return read_order(file.read(), image), None
    except OSError:
        return None, None
    except Fault as fault:
        return None, fault.message
