# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our side of a ratio, and the limit's. Each function makes one run and says what it cost."""
import os
import subprocess

from processes import BenchError, Child, Noise, wait_until_quiet

MIB = 1 << 20


class Machine:
    """Where the programs are, what memory is used, how long to wait for quiet."""

    def __init__(self, build, pages='4k', memory='anon', patience_s=5):
        self.guest = os.path.join(build, 'bench', 'bench-guest')
        self.limit = os.path.join(build, 'bench', 'raw-limit')
        self.image_limit = os.path.join(build, 'bench', 'raw-image')
        self.vmferry = os.path.join(build, 'tools', 'vmferry')
        self.pages, self.memory, self.patience_s = pages, memory, patience_s

    def kind(self):
        return [*(['--huge'] if self.pages == 'huge' else []), *(['--memfd'] if self.memory == 'memfd' else [])]

    def warm(self, size):
        """The memory that the target will touch first is at hand: the host took none of it back for want of use."""
        wait_until_quiet(self.patience_s)
        subprocess.run([self.limit, 'warm', f'--size={size + 256 * MIB}', *self.kind()], check=True)


def outcome(total_ns, cpu_ns, noise, **more):
    return dict(total_s=total_ns / 1e9, cpu_s=cpu_ns / 1e9, others_cpus=noise.others(cpu_ns / 1e9), **more)


def run_ours(machine, case, size, watch_memory=False):
    """One migration between two processes."""
    options = [f'--size={size}', f'--channels={case.channels}', f'--audit={case.audit}', *machine.kind(),
               *(['--watch-memory'] if watch_memory else [])]
    fill = [f'--fill={case.fill}', *([f'--touch={case.touch}', f'--piece={case.piece}'] if case.touch else [])]
    rounds = [f'--rounds={case.rounds}'] if case.rounds else []
    with Child(machine.guest, 'target', 'tcp:127.0.0.1:0', *options) as target:
        uri = target.line('listening')['uri']
        with Child(machine.guest, 'source', uri, *options, *fill, *rounds) as source:
            source.line('ready')
            if not watch_memory:
                machine.warm(case.travels(size))
            noise = Noise()
            source.go()
            sent, came = source.line('result'), target.line('result')
            done = outcome(sent['total_ns'], sent['cpu_ns'] + came['cpu_ns'], noise, source=sent, target=came)
    if sent['verified'] not in ('transport', 'full'):
        raise BenchError(f'{case.name}: verified: {sent["verified"]}')
    return done


def run_limit(machine, case, size):
    """The shortest program for the same work."""
    with Child(machine.limit, case.limit, f'--streams={case.channels}', f'--size={size}', *machine.kind()) as child:
        child.line('ready')
        machine.warm(size)
        noise = Noise()
        child.go()
        result = child.line('result')
        return outcome(result['total_ns'], result['cpu_ns'], noise)
