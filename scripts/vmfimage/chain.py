# SPDX-License-Identifier: LGPL-2.1-or-later
"""An image with the parents that it stands on: finding them, and the guest's memory through all of them."""

import os

from vmfstream import wire
from vmfstream.faults import Fault, Report, require
from vmfstream.image import mix

from . import form
from .image import PIECE, Image
from .storage import Storage

_M64 = 0xFFFFFFFFFFFFFFFF


class Chain:
    """Images, the youngest first. @candidates: paths of files that may be parents, tried ahead of the names in the layers.
    @open_storage(path) can be something else than files."""

    def __init__(self, candidates=(), open_storage=Storage):
        self.candidates = list(candidates)
        self.open_storage = open_storage
        self.report = Report()
        self.images = []
        self.whole = False     # each parent was found

    def verify(self, path, pages=False):
        image = self._verify_one(path, pages)
        try:
            while image.shapes and image.header.parent is not None:
                image = self._next(image, pages)
            self.whole = all(image.readable and image.tail is not None and image.tail.switchover is not None for image in self.images)
        except Fault as fault:
            self.report.fault(image.header.parent.place, fault)
        if self.whole:
            self._check_sums()
        return self.report

    def _verify_one(self, path, pages):
        image = Image(self.open_storage(path), self.report)
        self.images.append(image)
        image.open()
        image.verify(pages)
        return image

    # Parents

    def _next(self, child, pages):
        require(len(self.images) < form.MAX_CHAIN, 'image.parent', 'more than %d images stand on each other' % form.MAX_CHAIN)
        parent = child.header.parent
        require(all(parent.id != image.commit.id for image in self.images), 'image.parent', 'the chain comes back to image %s' %
                parent.id.hex())
        image = self._verify_one(self._find(child), pages)
        if image.shapes:
            self._check_guest(child, image)
        return image

    def _find(self, child):
        """The path of the parent of @child."""
        parent = child.header.parent
        named = path_of(parent.name, child.storage.name)
        why = ['%s is no file' % parent.name] if named is None else []
        for path in self.candidates + ([named] if named else []):
            try:
                id, root = self._identity(path)
            except OSError as error:
                why.append('%s: %s' % (path, error.strerror))
                continue
            if (id, root) == (parent.id, parent.root) or (id is None and path == named):
                return path
            why.append('%s has another %s' % (path, 'root digest' if id == parent.id else 'id'))
        raise Fault('image.parent', '; '.join(why))

    def _identity(self, path):
        """Of a file that may be a parent. (None, None): it says none, and to open it will tell why."""
        storage = self.open_storage(path)
        try:
            commit, root = form.read_commit(storage.read(0, min(form.UNIT, storage.size)), storage.size)
            return commit.id, root
        except Fault:
            return None, None
        finally:
            storage.close()

    @staticmethod
    def _check_guest(child, parent):
        require(child.header.machine.architecture == parent.header.machine.architecture, 'image.parent',
                'the architecture is %s, the layer\'s %s' % (parent.header.machine.architecture, child.header.machine.architecture))
        require(child.header.static.blocks == parent.header.static.blocks, 'image.parent', 'RAM blocks are not those of the layer')
        held, below = ([(disk.name, disk.size) for disk in image.header.held_disks()] for image in (child, parent))
        require(not held or held == below, 'image.parent', 'the disks that it holds are not those of the layer')

    # Memory

    def _check_sums(self):
        if any(image.damaged for image in self.images):
            self.report.note('bitmaps or digests are damaged: the sums of memory are not checked')
            self.whole = False
            return
        for depth, image in enumerate(self.images):
            for shape, said in zip(image.shapes, image.tail.switchover.blocks):
                data, total = self._memory(depth, shape.block.index)
                self._compare(image, shape, said, data, total)

    def _compare(self, image, shape, said, data, total):
        place = image.tail.switchover.place
        if data != said.data:
            self.report.add(place, 'ram.counts', 'block %s: %d pages said to be not zeros, there are %d' %
                            (shape.block.name, said.data, data))
        if total != said.sum:
            self.report.add(place, 'ram.sum', 'sum of block %s: %016x said, %016x found' % (shape.block.name, said.sum, total))

    def _memory(self, depth, block):
        """Pages that are not zeros, and the block sum, of the guest of the image at @depth."""
        layers = [(image, image.shapes[block]) for image in self.images[depth:]]
        n_chunks = layers[0][1].n_chunks
        data = total = 0
        for piece in range(-(-n_chunks // PIECE)):
            holders = [(image, shape) for image, shape in layers if not image.piece_is_empty(shape, piece)]
            if holders:
                for chunk in range(piece * PIECE, min((piece + 1) * PIECE, n_chunks)):
                    pages, some = chunk_of(holders, chunk)
                    data += pages
                    total = total + some & _M64
        return data, total


def chunk_of(layers, number):
    """The pages that are not zeros and the chunk sum, @layers being (image, shape), the youngest first."""
    first = number * wire.CHUNK_PAGES
    open_bits = (1 << wire.CHUNK_PAGES) - 1
    pages = total = 0
    for image, shape in layers:
        chunk = image.chunk(shape, number)
        here = chunk.data & open_bits
        open_bits &= ~(chunk.data | chunk.zero)
        pages += here.bit_count()
        if here == chunk.data and here:
            total += sum(mix(first + page, digest) for page, digest in enumerate(chunk.digests) if digest)
        elif here:
            total += sum(mix(first + page, digest) for page, digest in enumerate(chunk.digests) if here >> page & 1)
    return pages, total & _M64


def path_of(name, child):
    """The path in a file: URI, as seen from the layer at @child; None: not a file."""
    scheme, colon, path = name.partition(':')
    if not colon or scheme != 'file' or not path:
        return None
    return os.path.join(os.path.dirname(child), path)
