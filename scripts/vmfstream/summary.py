# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a stream holds, for people and for programs."""


def summary(verifier):
    """A dictionary with stable names; counts of pages are the first pass's as received."""
    report, options, main, image = verifier.report, verifier.options, verifier.main, verifier.image
    held = {'type': 'summary', 'faults': len(report.findings), 'clean': not report.findings, 'notes': report.notes}
    if options is None or main is None:
        return held
    held.update(version=options.version, byte_order='big' if options.big_endian else 'little', one_way=options.one_way,
                architecture=verifier.machine.architecture if verifier.machine else None, host=main.static.host,
                preflight=main.preflight, trailing_bytes=verifier.trailing, records_unknown=main.unknown_records,
                page_channels=main.page_channels.count if main.page_channels else None,
                pages_records=image.records, data_pages_sent=image.data_pages, zero_pages_sent=image.zero_pages,
                sums_checked=verifier.sums_checked)
    held['blocks'] = [_block(block, image) for block in main.static.blocks]
    held['disks'] = [{'name': copy.disk.name, 'size_bytes': copy.disk.size, 'data_bytes': copy.data_octets,
                      'base_bytes': copy.base_octets}
                     for _, copy in sorted(main.disks.copies.items())]
    held['sections'] = [_section(section) for section in (main.sections.sections if main.sections else ())]
    held['bitmaps'] = verifier.bitmaps.summary() if verifier.bitmaps else []
    return held


def _block(block, image):
    data, zero, hole = image.first_pass_counts(block)
    return {'name': block.name, 'size_bytes': block.size, 'rom': block.rom, 'data_pages': data, 'zero_pages': zero,
            'hole_pages': hole}


def _section(section):
    return {'name': section.entry.name, 'instance': section.entry.instance, 'version': section.entry.version,
            'content_bytes': sum(map(len, section.parts)), 'parts': len(section.parts), 'complete': section.complete,
            'device_state': section.is_device}


def _disk_in_words(disk):
    base = ', %d in a base' % disk['base_bytes'] if disk['base_bytes'] else ''
    return '%s (%d octets, %d sent%s)' % (disk['name'], disk['size_bytes'], disk['data_bytes'], base)


def in_words(file, held):
    state = 'clean' if held['clean'] else '%d fault%s' % (held['faults'], 's' if held['faults'] != 1 else '')
    if 'version' not in held:
        return '%s: %s; not a stream that can be read' % (file, state)
    blocks, sections = held['blocks'], held['sections']
    parts = ['%s: %s; version %d, %s-endian, %s' %
             (file, state, held['version'], held['byte_order'], 'one-way' if held['one_way'] else 'two-way')]
    parts.append('%d blocks, %d octets' % (len(blocks), sum(b['size_bytes'] for b in blocks)))
    if held['preflight']:
        parts.append('preflight')
    else:
        parts.append('first pass %d data, %d zero, %d hole pages' %
                     tuple(sum(b[k] for b in blocks) for k in ('data_pages', 'zero_pages', 'hole_pages')))
        parts.append('%d PAGES records with %d data pages' % (held['pages_records'], held['data_pages_sent']))
        parts.append('sums %s' % ('checked' if held['sums_checked'] else 'not checked'))
    parts.append('sections: %s' % (', '.join('%s/%d v%d (%s%d octets)' % (
        s['name'], s['instance'], s['version'], 'device, ' if s['device_state'] else '', s['content_bytes'])
        for s in sections) or 'none'))
    if held['disks']:
        parts.append('copied disks: %s' % ', '.join(map(_disk_in_words, held['disks'])))
    if held['bitmaps']:
        parts.append('bitmaps: %s' % ', '.join('%s of %s (%s%d granules of %d octets dirty)' % (
            b['name'], b['disk'], 'inconsistent, ' if b['inconsistent'] else '', b['dirty_granules'], b['granularity'])
            for b in held['bitmaps']))
    if held['trailing_bytes']:
        parts.append('%d octets after END, ignored' % held['trailing_bytes'])
    return '; '.join(parts)
