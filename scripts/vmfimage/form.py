# SPDX-License-Identifier: LGPL-2.1-or-later
"""The numbers of docs/fixed-ram-format.rst, and the commit block in both directions."""

import struct
from collections import namedtuple

from vmfstream import wire
from vmfstream.crc32c import crc32c
from vmfstream.faults import Fault
from vmfstream.hashes import xxh3_128

UNIT = 4096                  # of all areas; size of the commit block and of a digest block
HEADER_OFFSET = UNIT
PAGES_ALIGNMENT = 2 << 20
MAGIC = b'VMFIMAGE'
VERSION = 1
VERSION_DISKS = 2            # some are held
LAYER = 1
MAX_HEADER = 1 << 20
MAX_TAIL = 64 << 20
MAX_CHAIN = 64               # images, the first and the last counted
MAX_PARENT_NAME = 4095
SWITCHOVER_RUNS = 1
DISK_CONTAINED = 1
CHUNK_WORDS = wire.CHUNK_PAGES // 8   # octets of a bitmap
ENTRY = 8                             # octets of an entry of the chunk tables

_FIELDS = '<8sII16sQQQQQQ16s16s16s'
_ROOT_COVERS = 128
_ROOT_END = 144
_CRC_AT = UNIT - 4

Commit = namedtuple('Commit', 'version flags id file_size header_length table_offset table_length tail_offset tail_length '
                    'header_digest table_digest tail_digest')


def aligned(value, unit=UNIT):
    return -(-value // unit) * unit


def pack_commit(commit, magic=MAGIC, version=None, root=None, reserved=b'', crc=None):
    """The commit block; what is not given is as it should be. @reserved: the first of the octets that are zero."""
    said, flags, *rest = commit
    start = struct.pack(_FIELDS, magic, said if version is None else version, flags, *rest)
    start += root_digest(start) if root is None else root
    start = (start + reserved).ljust(_CRC_AT, b'\0')
    return start + struct.pack('<I', crc32c(start) if crc is None else crc)


def root_digest(block):
    return xxh3_128(block[:_ROOT_COVERS])


def read_commit(block, storage_size):
    """Checks in the order of the page. Returns the commit and the root digest. Every fault is fatal."""
    def demand(condition, id, message):
        if not condition:
            raise Fault(id, message, fatal=True)

    demand(len(block) == UNIT, 'image.magic', 'an image has %d octets at least, there are %d' % (UNIT, len(block)))
    demand(any(block), 'image.incomplete', 'the commit block was never written')
    magic, version, *fields = struct.unpack_from(_FIELDS, block)
    demand(magic == MAGIC, 'image.magic', 'this is not an image: %s' % magic.hex())
    demand(version in (VERSION, VERSION_DISKS), 'image.version', 'version %d; %d and %d are read' % (version, VERSION, VERSION_DISKS))
    said, = struct.unpack_from('<I', block, _CRC_AT)
    found = crc32c(block[:_CRC_AT])
    demand(said == found, 'image.crc', 'CRC is %08x, the block says %08x' % (found, said))
    commit, root = Commit(version, *fields), block[_ROOT_COVERS:_ROOT_END]
    demand(not any(block[_ROOT_END:_CRC_AT]), 'image.layout', 'reserved octets that are not zero')
    _check_ranges(commit, storage_size, demand)
    demand(root == root_digest(block), 'image.digest', 'root digest: %s said, %s found' % (root.hex(), root_digest(block).hex()))
    return commit, root


def _check_ranges(commit, storage_size, demand):
    def area(what, offset, length, most):
        demand(0 < length <= most, 'image.layout', '%s of %d octets' % (what, length))
        demand(offset % UNIT == 0, 'image.layout', '%s at %d, which is no multiple of %d' % (what, offset, UNIT))
        demand(offset + length <= commit.file_size, 'image.layout', '%s end at %d, behind the file size %d' %
               (what, offset + length, commit.file_size))

    demand(not commit.flags & ~LAYER, 'image.layout', 'unknown flags 0x%x' % commit.flags)
    demand(any(commit.id), 'image.layout', 'an id of zeros')
    demand(commit.file_size % UNIT == 0, 'image.layout', 'a file size of %d octets' % commit.file_size)
    demand(commit.file_size <= storage_size, 'image.layout', 'a file size of %d octets, there are %d' %
           (commit.file_size, storage_size))
    demand(commit.table_length % ENTRY == 0, 'image.layout', 'chunk tables of %d octets' % commit.table_length)
    area('header', HEADER_OFFSET, commit.header_length, MAX_HEADER)
    area('chunk tables', commit.table_offset, commit.table_length, commit.file_size)
    area('tail', commit.tail_offset, commit.tail_length, MAX_TAIL)
