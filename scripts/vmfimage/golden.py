# SPDX-License-Identifier: LGPL-2.1-or-later
"""The golden images: the machine of the golden streams, saved whole, as a layer over that, with disks
beside it, and with one in it, in both byte orders.
They never change once released."""

import gzip

from vmfstream import golden as streams
from vmfstream import wire

from .writer import ImageWriter, Parent

IMAGE_ID = bytes(range(0x10, 0x20))
LAYER_ID = bytes(range(0x20, 0x30))
DISKS_ID = bytes(range(0x30, 0x40))
HELD_ID = bytes(range(0x40, 0x50))

# What the golden streams leave behind.
PAGES = {(0, 3): streams.page(6), (0, 514): streams.page(3), (1, 1): streams.page(4), (2, 0): streams.page(5)}
# What the layer says beside it: a page in the first chunk that was zeros, one that changed, three that became zeros.
LAYER_PAGES = {(0, 4): streams.page(7), (0, 514): streams.page(8), (1, 7): streams.page(9)}
LAYER_ZEROS = ((0, 3), (1, 1), (2, 0))
LAYER_BLOB = bytes(n * 11 & 0xFF for n in range(1000))

ORDERS = {'le': False, 'be': True}
KINDS = ('image', 'layer', 'disks', 'held')


def file_name(kind, order):
    return '%s-v%d-%s.img' % (kind, 2 if kind == 'held' else 1, order)


FILES = {file_name(kind, order): (kind, order) for kind in KINDS for order in ORDERS}


def state(stream, blob=streams.BLOB):
    stream.section(1, 0, blob[:streams.BLOB_FIRST_PART])
    stream.section(0, 0, streams.counter_state(stream.order), last=True)
    stream.section(1, 1, blob[streams.BLOB_FIRST_PART:], last=True)


def disks(stream):
    stream.disk('disk0', 1 << 30, 'serial:golden-0', 'generation:7')
    stream.disk('disk1', 4096, 'serial:golden-1')


# The first disk of the golden streams, held: no whole number of pages, and its last one has data.
HELD_PAGES = {(3, 0): streams.page(11), (3, 17): streams.page(12),
              (3, streams.DISK_SIZE // 4096): streams.page(13)[:512].ljust(4096, b'\0')}


def held(stream):
    stream.disk('disk0', streams.DISK_SIZE, 'serial:golden-0', 'generation:7', flags=1)
    stream.disk('disk1', 1 << 20, 'serial:golden-1')


def plan(kind='image'):
    """The records of a golden image in their order, so that a test can replace one."""
    static = {name: (lambda w, s, part=part: part(s)) for name, part in streams.plan().items()
              if name in ('machine', 'properties', 'blocks', 'sections', 'features', 'host', 'static end')}
    if kind == 'held':
        static = held_static(static)
    parts = {
        **static,
        'layout': lambda w, s: s.layout(w.places),
        'parent': lambda w, s: s.parent(w.parent.id, w.parent.root, w.parent.name) if w.parent else None,
        'header end': lambda w, s: s.header_end(),
        'disks': lambda w, s: {'disks': disks, 'held': held, 'layer': lambda s: s.ram_only()}.get(kind, lambda s: None)(s),
        'state': lambda w, s: state(s, LAYER_BLOB if kind == 'layer' else streams.BLOB),
        'switchover': lambda w, s: w.switchover(s),
        'end': lambda w, s: s.end(),
    }
    return parts


def guest_disks(stream):
    stream.guest_disk('disk0', streams.DISK_SIZE)
    stream.guest_disk('disk1', 1 << 20, copied=False)


def held_static(static):
    with_disks = {}
    for name, part in static.items():
        with_disks[name] = part
        if name == 'blocks':
            with_disks['guest disks'] = lambda w, s: guest_disks(s)
    with_disks['features'] = lambda w, s: s.features(wire.SUMS | wire.DISKS, wire.SUMS | wire.DISKS)
    return with_disks


def writer(kind, order, parts=None, parent=None):
    """Not written yet. A layer's @parent is the golden image of the same byte order unless it is given."""
    parts = parts or plan(kind)
    if kind == 'layer':
        parent = parent or Parent(writer('image', order).write().seal(), 'file:' + file_name('image', order))
        return ImageWriter(parts, ORDERS[order], LAYER_ID, LAYER_PAGES, LAYER_ZEROS, parent)
    if kind == 'held':
        return ImageWriter(parts, ORDERS[order], HELD_ID, {**PAGES, **HELD_PAGES})
    return ImageWriter(parts, ORDERS[order], DISKS_ID if kind == 'disks' else IMAGE_ID, PAGES)


def golden_image(name):
    """The octets of one of FILES, as a sparse file."""
    return writer(*FILES[name]).write().seal().file


def packed(image):
    """What is kept in tests/golden: mostly holes, so compressed. Another zlib may compress otherwise; the content counts."""
    return gzip.compress(image.read(0, image.size), compresslevel=9, mtime=0)
