#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks the documents: their markup is sound, every page is reached from the index, and what they name exists.

A name of a file or folder of ours in double backquotes, a ":doc:" and a public symbol are looked up.
"""
import re
import sys

import public
import tree

try:
    import docutils.core
    import docutils.nodes
    import docutils.parsers.rst.roles
    import docutils.utils
except ImportError:
    print('python3-docutils is not installed')
    sys.exit(77)

PATH = re.compile(r'``((?:%s)/[\w./-]*|README\.md)``' % '|'.join(tree.FOLDERS))
DOC = re.compile(r':doc:`(?:[^`<]*<)?([\w./-]+)>?`')
SYMBOL = re.compile(r'\b(vmf_\w+)\(\)')


def markup(path):
    """docutils' own complaints. :doc: is Sphinx's, so it is taught here."""
    complaints = []

    def role(name, rawtext, text, lineno, inliner, options=None, content=None):
        return [docutils.nodes.literal(rawtext, text)], []

    class Collector:
        def write(self, text):
            complaints.extend(line for line in text.splitlines() if line.strip())

    docutils.parsers.rst.roles.register_local_role('doc', role)
    docutils.core.publish_doctree(tree.text(path), source_path=str(path),
                                  settings_overrides={'warning_stream': Collector(), 'report_level': 2, 'halt_level': 5})
    return complaints


def main():
    pages = tree.files('.rst', folders=('docs',))
    functions, data = public.names()
    macros = {name for path in public.headers() for name in re.findall(r'^#define (vmf_\w+)\(', tree.text(path), re.M)}
    index = set(DOC.findall(tree.text('docs/index.rst')))
    findings = []
    for path in pages:
        content = tree.text(path)
        findings += markup(path)
        findings += [f'{path}: {name} is not in the tree' for name in sorted(set(PATH.findall(content)))
                     if not (tree.ROOT / name).exists()]
        findings += [f'{path}: :doc:`{name}` is no page' for name in sorted(set(DOC.findall(content)))
                     if not (tree.ROOT / path.parent / (name + '.rst')).is_file()]
        findings += [f'{path}: {name}() is not public' for name in sorted(set(SYMBOL.findall(content)) - functions - data - macros)]
        name = str(path.relative_to('docs').with_suffix(''))
        if name != 'index' and name not in index:
            findings.append(f'{path}: not in docs/index.rst')
    content = tree.text('README.md')
    findings += [f'README.md: {name} is not in the tree'
                 for name in sorted(set(re.findall(r'(?:\]\(|`\.?/?)((?:%s)/[\w./-]+)' % '|'.join(tree.FOLDERS), content)))
                 if not (tree.ROOT / name).exists()]
    return tree.finish(findings, f'{len(pages)} pages')


if __name__ == '__main__':
    sys.exit(main())
