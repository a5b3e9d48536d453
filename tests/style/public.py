# SPDX-License-Identifier: LGPL-2.1-or-later
"""The public names, read from the declarations in include/vmferry/*.h."""
import re

import tree


def top_level(content):
    """The header's declarations, without comments, preprocessor lines, bodies of structs and macros called without a semicolon."""
    content = re.sub(r'/\*.*?\*/', ' ', content, flags=re.S)
    content = re.sub(r'//[^\n]*', ' ', content)
    content = re.sub(r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*$', ' ', content, flags=re.M)
    content = re.sub(r'^G_\w+(?:\([^)]*\))?[ \t]*$', ' ', content, flags=re.M)
    while '{' in content:
        shorter = re.sub(r'\{[^{}]*\}', ' ', content)
        if shorter == content:
            raise ValueError('braces do not match')
        content = shorter
    return [' '.join(part.split()) for part in content.split(';')]


def names_in(content):
    functions, data = set(), set()
    for declaration in top_level(content):
        if not declaration or declaration.startswith('typedef'):
            continue
        function = re.search(r'\b(vmf_\w+) ?\(', declaration)
        variable = re.search(r'^extern .*?\b(vmf_\w+) ?(?:\[[^\]]*\])?$', declaration)
        if variable:
            data.add(variable.group(1))
        elif function:
            functions.add(function.group(1))
    return functions, data


def headers():
    return [path for path in tree.files('.h', folders=('include',))]


def names():
    """(functions, data) of all headers."""
    functions, data = set(), set()
    for path in headers():
        more_functions, more_data = names_in(tree.text(path))
        functions |= more_functions
        data |= more_data
    return functions, data


def map_text():
    functions, data = names()
    lines = ['# The public symbols; made from include/vmferry/*.h by scripts/update-map.', 'VMFERRY_0 {', '  global:']
    lines += [f'    {name};' for name in sorted(data) + sorted(functions)]
    lines += ['  local:', '    *;', '};', '']
    return '\n'.join(lines)
