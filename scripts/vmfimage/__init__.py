# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fixed-ram image in Python: an independent reader and a small writer, both written from docs/fixed-ram-format.rst alone.

Nothing here is shared with the engine, so that the two can contradict each other. Records, static data and hashes are those of
vmfstream. Standard library only.
"""
