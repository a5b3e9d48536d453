# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an image holds, for people and for programs."""

from vmfstream.hashes import IMPLEMENTATION

from .order import order_beside


def summary(chain):
    """A dictionary with stable names."""
    report, image = chain.report, chain.images[0]
    held = {'type': 'summary', 'faults': len(report.findings), 'clean': not report.findings, 'notes': report.notes,
            'hashed_by': IMPLEMENTATION}
    if image.header is None or not image.shapes:
        return held
    header, tail, commit = image.header, image.tail, image.commit
    order_pages, order_ignored = order_beside(image)
    held.update(version=commit.version, byte_order='big' if header.options.big_endian else 'little', layer=image.is_layer,
                image_id=commit.id.hex(), root_digest=image.root.hex(), file_size_bytes=commit.file_size,
                architecture=header.machine.architecture, host=header.static.host,
                chain=[layer.storage.name for layer in chain.images], sums_checked=chain.whole,
                pages_checked=sum(layer.pages_read for layer in chain.images), order_pages=order_pages, order_ignored=order_ignored,
                ram_only=bool(tail and tail.ram_only),
                disks=[disk._asdict() for disk in (tail.disks if tail else ())],
                guest_runs=bool(tail and tail.switchover and tail.switchover.flags & 1),
                blocks=[_block(image, shape) for shape in image.shapes],
                sections=[_section(section) for section in (tail.sections.sections if tail else ())])
    return held


def _block(image, shape):
    data = zero = None
    if image.readable:
        counts = [_counts(image, shape, number) for chunks in image.pieces_with_content(shape) for number in chunks]
        data, zero = (sum(pair[side] for pair in counts) for side in (0, 1))
    return {'name': shape.block.name, 'size_bytes': shape.block.size, 'rom': shape.block.rom, 'data_pages': data, 'zero_pages': zero}


def _counts(image, shape, number):
    return [int.from_bytes(words, 'little').bit_count() for words in image.words(shape, number)]


def _section(section):
    return {'name': section.entry.name, 'instance': section.entry.instance, 'version': section.entry.version,
            'content_bytes': sum(map(len, section.parts)), 'complete': section.complete}


def in_words(file, held):
    state = 'clean' if held['clean'] else '%d fault%s' % (held['faults'], 's' if held['faults'] != 1 else '')
    if 'version' not in held:
        return '%s: %s; not an image that can be read' % (file, state)
    parts = ['%s: %s; version %d, %s-endian, %s' % (file, state, held['version'], held['byte_order'],
                                                   'layer %d deep' % (len(held['chain']) - 1) if held['layer'] else 'whole')]
    blocks, sections = held['blocks'], held['sections']
    parts.append('%d blocks, %d octets' % (len(blocks), sum(b['size_bytes'] for b in blocks)))
    if all(b['data_pages'] is not None for b in blocks):
        parts.append('%d data, %d zero pages here' % tuple(sum(b[k] for b in blocks) for k in ('data_pages', 'zero_pages')))
    parts.append('sums %s' % ('checked' if held['sums_checked'] else 'not checked'))
    if held['pages_checked']:
        parts.append('%d pages read, hashed by %s' % (held['pages_checked'], held['hashed_by']))
    parts.append('disks: %s' % ('none of its business' if held['ram_only'] else
                                ', '.join(disk['name'] for disk in held['disks']) or 'none'))
    parts.append('sections: %s' % (', '.join('%s/%d v%d (%d octets)' % (
        s['name'], s['instance'], s['version'], s['content_bytes']) for s in sections) or 'none'))
    if held['order_pages'] is not None:
        parts.append('order of %d first touches' % held['order_pages'])
    elif held['order_ignored']:
        parts.append('order of first touches ignored: ' + held['order_ignored'])
    return '; '.join(parts)
