#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Installs the build into an empty directory, then builds and runs examples/embedder.c against nothing but what was installed.

usage: installed.py BUILD-DIRECTORY
"""
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    print('$', shlex.join(str(part) for part in command))
    print(done.stdout, end='')
    if done.returncode:
        raise SystemExit(f'exit status {done.returncode}')
    return done.stdout


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(prefix='vmferry-') as name:
        stage = pathlib.Path(name, 'stage')
        run('meson', 'install', '-C', build, '--no-rebuild', '--quiet', '--destdir', stage)
        [description] = stage.rglob('vmferry.pc')
        if '${pcfiledir}' not in description.read_text(encoding='utf-8'):
            print('this build was configured for its final place: meson configure -Dpkgconfig.relocatable=true')
            return 77
        public = {path.name for path in (ROOT / 'include' / 'vmferry').glob('*.h')}
        installed = {path.name for path in stage.rglob('*.h') if path.parent.name == 'vmferry'}
        if public != installed:
            raise SystemExit(f'headers installed or not as they should: {sorted(public ^ installed)}')
        environment = dict(os.environ, PKG_CONFIG_PATH=str(description.parent), LD_LIBRARY_PATH=str(description.parents[1]))
        flags = shlex.split(run('pkg-config', '--cflags', '--libs', 'vmferry', env=environment))
        if any(f'{ROOT}/' in flag for flag in flags):
            raise SystemExit('the flags point into the source tree')
        program = pathlib.Path(name, 'embedder')
        run('cc', '-std=gnu11', '-Wall', '-Wextra', '-Wno-unused-parameter', '-Werror', '-O2', '-o', program,
            ROOT / 'examples' / 'embedder.c', *flags, env=environment)
        output = run(program, env=environment, timeout=60)
        for expected in ('verified: full', 'is whole'):
            if expected not in output:
                raise SystemExit(f'"{expected}" is not in what the example says')


if __name__ == '__main__':
    sys.exit(main())
