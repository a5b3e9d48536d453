# SPDX-License-Identifier: LGPL-2.1-or-later
"""The vmferry stream in Python: an independent reader and a small writer, both written from docs/stream-format.rst alone.

Nothing here is shared with the engine, so that the two can contradict each other. Standard library only; libxxhash is used
for speed where it is installed.
"""
