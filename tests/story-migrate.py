#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whole migrations between two machines, driven by the command: what is said, what it costs, who runs the guest afterwards."""
import json
import os
import re
import signal
import socket
import subprocess
import time

import story

GUEST = ('--guest', 'dirty=8M,set=4M')
SUMMARY = {'outcome', 'downtime_ns', 'guest_gap_ns', 'rounds', 'bytes_sent', 'total_ns', 'guest_errors', 'backend', 'verified',
           'downtime_stop_ns', 'downtime_ram_ns', 'downtime_state_ns', 'downtime_ready_ns', 'downtime_run_ns', 'channels',
           'channel_bytes', 'source', 'target', 'name', 'exit_code'}


def pair(stage, incoming=(), uri='tcp:127.0.0.1:0', source=GUEST):
    """A machine that works at host-a and one that waits at host-b."""
    target = stage.host('host-b').run('vm', *GUEST, '--incoming', uri, *incoming)
    machine = stage.host('host-a').run('vm', *source)
    if '--paused' not in source:
        story.wait_until(lambda: machine.status()['pages_written'] > 100, 'pages written')
    return machine, target


def migrate(machine, target, *options):
    return machine.host.vmferry('migrate', 'vm', target if isinstance(target, str) else target.uri, *options)


def lives(machine):
    before = machine.status()
    assert before['status'] == 'running' and before['guest_errors'] == 0, before
    story.wait_until(lambda: machine.status()['beats'] > before['beats'], 'beats')


def a_guest_moves(stage):
    source, target = pair(stage)
    beats = source.status()['beats']
    done = migrate(source, target, '--json')
    assert done.code == 0, done
    summary = done.lines[-1]
    assert summary['type'] == 'summary' and SUMMARY <= set(summary), SUMMARY - set(summary)
    assert (summary['outcome'], summary['verified'], summary['backend'], summary['guest_errors']) == ('completed', 'full', 'rv32', 0)
    assert 0 < summary['downtime_ns'] < summary['total_ns'] and summary['guest_gap_ns'] > 0 and summary['rounds'] >= 2
    assert (summary['source'], summary['exit_code'], summary['was_running']) == ('host-a', 0, True)
    assert {line['type'] for line in done.lines} <= {'status', 'event', 'summary'} and done.lines[0]['type'] == 'status'
    assert (done.lines[0]['verified'], done.lines[0]['outcome'], done.lines[0]['expected_downtime_ns']) == (None, None, None), done
    assert source.wait() == 0    # migrate has sent quit
    assert target.status()['beats'] >= beats
    lives(target)


def the_last_line_says_it_in_words(stage):
    source, target = pair(stage)
    done = migrate(source, target)
    assert done.code == 0 and done.stderr == '', done
    assert re.fullmatch(r'vmferry: vm now runs at \S+: downtime [\d.]+ [mu]?s \([\d.]+ [mu]?s for the guest\), \d+ rounds?, '
                        r'[\d.]+ \w+ sent in [\d.]+ m?s, verified: full\n', done.stdout), done


def channels_versions_memory_and_audits(stage):
    for index, (options, ram) in enumerate(((('--channels', '1', '--stream-version', '3', '--audit', 'before'), 'anon'),
                                            (('--channels', '2', '--stream-version', '2', '--audit', 'after'), 'memfd'),
                                            (('--channels', '4', '--audit', 'after'), 'memfd'), (('--audit', 'off'), 'anon'))):
        target = stage.host(f'b{index}').run('vm', *GUEST, '--incoming', 'tcp:127.0.0.1:0', '--ram', ram)
        source = stage.host(f'a{index}').run('vm', *GUEST, '--ram', ram)
        story.wait_until(lambda: source.status()['pages_written'] > 500, 'pages written')
        done = migrate(source, target, '--json', *options)
        assert done.code == 0, done
        summary = done.lines[-1]
        channels = int(options[1]) if options[0] == '--channels' else 2
        assert summary['channels'] == len(summary['channel_bytes']) == channels and all(summary['channel_bytes']), summary
        assert summary['stream_version'] == (2 if '2' in options[2:4] else 3)
        assert summary['verified'] == ('transport' if 'off' in options else 'full'), summary
        lives(target)


def lost_write(stage, seed, audit):
    """A guest moves whose log loses one write that matters: what migrate says, both machines, and which page it was."""
    source = stage.host(f'a-{audit}-{seed}').run('vm', '--guest', 'dirty=16M,set=8M', '--fault', f'log.lose-one:{seed}')
    target = stage.host(f'b-{audit}-{seed}').run('vm', '--guest', 'dirty=16M,set=8M', '--incoming', 'tcp:127.0.0.1:0')
    story.wait_until(lambda: source.status()['pages_written'] > 2048, 'a working set')
    done = migrate(source, target, '--json', '--keep', '--audit', audit)
    status = source.status()
    return done, source, target, (status['lost_write_block'], status['lost_write_page'])


def a_dirty_log_that_loses_a_write(stage):
    seen = set()
    for audit, how in (('before', (1, 'failed')), ('after', (3, 'failed'))):
        for seed in range(1, 40):
            done, source, target, (block, page) = lost_write(stage, seed, audit)
            verified = done.lines[-1]['verified'] if done.code != 1 else 'failed'
            seen.add((audit, done.code, verified))
            if verified == 'failed':
                said = ' '.join(str(line.get('message') or line.get('text') or '') for line in done.lines)
                assert 'dirty log rv32: ' in said and re.search(rf'{block}:? page {page}\b', said), (block, page, done)
            else:    # harmless, or written just while it was sent: then the target's sum differed, and it was sent again
                assert verified == 'full' and done.code == (3 if done.lines[-1]['chunks_mended'] else 0), done
            if done.code != 3:
                lives(source if done.code == 1 else target)
            source.host.vmferry('quit', 'vm')
            target.host.vmferry('quit', 'vm')
            if (audit, *how) in seen:
                break
        assert (audit, *how) in seen, seen


def kept_it_is_empty_and_stands(stage):
    source, target = pair(stage, source=('--guest', 'dirty=400M,set=12M'))
    story.wait_until(lambda: source.status()['pages_written'] > 3000, 'pages written')

    def resident():
        """KiB in the mapping of the guest's memory, known by its size: a sanitizer has memory of its own beside it."""
        with open(f'/proc/{source.process.pid}/smaps', encoding='utf-8') as smaps:
            return sum(map(int, re.findall(r'^Size: +16384 kB(?:\n.*)*?\nAnonymous: +(\d+)', smaps.read(), re.M)))
    before = resident()
    assert before > 8 << 10, before
    assert migrate(source, target, '--keep').code == 0
    assert source.status()['status'] == 'postmigrate' and not source.status()['running']
    story.wait_until(lambda: resident() == 0, 'memory given back')
    for verb in ('cont', 'stop'):
        refused = source.host.vmferry(verb, 'vm')
        assert refused.code == 1 and 'moved away' in refused.stderr, refused
    assert 'moved away' in migrate(source, 'tcp:127.0.0.1:1').stderr
    text = source.host.vmferry('status', 'vm').stdout
    assert 'postmigrate' in text and 'now runs at' in text, text
    assert source.host.vmferry('quit', 'vm').code == 0 and source.wait() == 0
    lives(target)


def a_paused_guest_arrives_paused(stage):
    source, target = pair(stage)
    assert source.host.vmferry('stop', 'vm').code == 0
    done = migrate(source, target)
    assert done.code == 0 and 'vm is now paused at' in done.stdout, done
    story.wait_until(lambda: target.status()['status'] == 'paused', 'arrival')
    assert target.host.vmferry('cont', 'vm').code == 0
    lives(target)


def a_target_that_is_told_to_keep_it_paused(stage):
    source, target = pair(stage, incoming=('--paused',))
    assert migrate(source, target).code == 0
    story.wait_until(lambda: target.status()['status'] == 'paused', 'arrival')
    assert target.host.vmferry('cont', 'vm').code == 0
    lives(target)


def from_host_to_host_and_back(stage):
    machine = stage.host('host-0').run('vm', *GUEST)
    for hop in range(1, 6):
        target = stage.host(f'host-{hop}').run('vm', *GUEST, '--incoming', 'tcp:127.0.0.1:0')
        assert migrate(machine, target).code == 0
        machine = target
        story.wait_until(lambda: machine.status()['status'] == 'running', 'arrival')
    lives(machine)


def it_can_be_cancelled(stage):
    for how in ('verb', 'interrupt'):
        target = stage.host(f'b-{how}').run('vm', *GUEST, '--incoming', 'tcp:127.0.0.1:0')
        source = stage.host(f'a-{how}').run('vm', '--guest', 'dirty=40M,set=12M')
        process = source.host.start('migrate', 'vm', target.uri, '--json', '--max-bandwidth', '1MB')
        story.wait_until(lambda: (source.status()['migration'] or {}).get('status') == 'active', 'the first round')
        if how == 'verb':
            cancelled = source.host.vmferry('cancel', 'vm')
            assert cancelled.code == 0 and 'cancelled' in cancelled.stdout, cancelled
        else:
            process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=story.PATIENCE_S)
        assert process.returncode == 1 and json.loads(stdout.splitlines()[-1])['outcome'] == 'cancelled', stdout
        lives(source)
        assert source.host.vmferry('cancel', 'vm').code == 1
        assert target.wait() == 1


def a_second_interrupt_abandons_the_wait(stage):
    for options in ((), ('--json',)):
        source = stage.host(f'a{len(options)}').run('vm', *GUEST)
        target = stage.host(f'b{len(options)}').run('vm', '--incoming', 'tcp:127.0.0.1:0')
        process = slow(source, target, *options)
        source.process.send_signal(signal.SIGSTOP)          # the machine does not even answer the cancel
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.35)                                # within 300 ms it is the same keystroke
        code, stdout, stderr = said(process)
        source.process.send_signal(signal.SIGCONT)
        assert code == 4, (code, stdout, stderr)
        if options:
            error, summary = [json.loads(line) for line in stdout.splitlines()][-2:]
            assert (error['type'], error['id']) == ('error', 'abandoned') and 'status --follow' in error['hint'], error
            assert [summary[key] for key in ('type', 'outcome', 'hold', 'verified', 'exit_code')] == \
                ['summary', 'held', 'unwatched', None, 4], summary
        else:
            assert 'no longer waiting' in stderr and 'status --follow' in stderr, stderr
            assert stdout.startswith(f'vmferry: vm runs at {source.host.name} until the migration has moved it to '), stdout
        source.host.vmferry('cancel', 'vm')
        lives(source)


def timeout_says_it_twice(stage):
    source, target = stage.host('a').run('vm', *GUEST), stage.host('b').run('vm', '--incoming', 'tcp:127.0.0.1:0')
    process = slow(source, target)
    source.process.send_signal(signal.SIGSTOP)              # so that the second comes before the cancel has ended
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.05)
    time.sleep(0.35)
    process.send_signal(signal.SIGTERM)
    source.process.send_signal(signal.SIGCONT)
    code, stdout, _ = said(process)
    assert code == 1 and 'cancelled' in stdout, (code, stdout)
    lives(source)


def a_stalled_target_slows_nobody(stage):
    """A guest that is throttled so that a migration gets on has its full speed while nothing gets through."""
    work = ('--guest', 'dirty=100M,set=512K')
    source, target = stage.host('a').run('vm', *work), stage.host('b').run('vm', *work, '--incoming', 'tcp:127.0.0.1:0')
    process = source.host.start('migrate', 'vm', target.uri, '--max-bandwidth', '1M', '--downtime-limit', '1ms')
    throttle = lambda: source.status()['throttle_percent']
    story.wait_until(lambda: throttle() > 0, 'the throttle')
    target.process.send_signal(signal.SIGSTOP)
    client = source.qmp()
    client.run('migrate-set-parameters', max_bandwidth=0)
    story.wait_until(lambda: throttle() == 0, 'the guest at its full speed')
    assert client.run('query-migrate')['status'] == 'active'
    client.run('migrate-set-parameters', max_bandwidth=1 << 20)
    target.process.send_signal(signal.SIGCONT)
    story.wait_until(lambda: throttle() > 0, 'the throttle again')
    assert source.host.vmferry('cancel', 'vm').code == 0
    assert said(process)[0] == 1 and throttle() == 0
    lives(source)


def limits_change_while_it_runs(stage):
    source, target = pair(stage, source=('--guest', 'dirty=8M,set=12M'))
    process = source.host.start('migrate', 'vm', target.uri, '--json', '--max-bandwidth', '100KB')
    client = source.qmp()
    story.wait_until(lambda: client.run('query-migrate').get('status') == 'active', 'the first round')
    client.run('migrate-set-parameters', max_bandwidth=0, downtime_limit=300)
    stdout, _ = process.communicate(timeout=story.PATIENCE_S)
    assert process.returncode == 0, stdout
    lives(target)


def does_not_converge(stage, name, limit=()):
    """Until it is cancelled, without a limit: the events and the summary."""
    work = ('--guest', 'dirty=100M,set=512K')
    target = stage.host(f'b-{name}').run('vm', *work, '--incoming', 'tcp:127.0.0.1:0')
    source = stage.host(f'a-{name}').run('vm', *work)
    story.wait_until(lambda: source.status()['pages_written'] > 1024, 'pages written')
    assert migrate(source, target, '--max-cpu-throttle', '100').code == 2
    process = source.host.start('migrate', 'vm', target.uri, '--max-bandwidth', '2M', '--max-cpu-throttle', '90', '--json', *limit)
    if not limit:
        story.wait_until(lambda: 'will not converge, because the guest writes ' in
                         ((source.status()['migration'] or {}).get('converge_reason') or ''), 'it in words')
        text = source.host.vmferry('status', 'vm').stdout
        assert 'expected downtime ' in text and 'guest throttled by 90 %' in text and 'cancel it or raise a limit' in text, text
        assert re.search(r'throttled by \d+ %: the guest wrote \S+ \S+/s, then ', text), text
        assert source.status()['throttle_percent'] == 90
        assert source.host.vmferry('cancel', 'vm').code == 0
    code, stdout, _ = said(process)
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert code == 1 and lines[-1]['outcome'] == ('failed' if limit else 'cancelled'), lines[-1]
    assert source.status()['throttle_percent'] == 0
    lives(source)
    return {line.get('id') for line in lines if line['type'] == 'event'}, lines[-1]


def it_does_not_converge(stage):
    events, summary = does_not_converge(stage, 'cancel')
    assert {'converge', 'converge.throttle'} <= events, events
    steps = summary['throttle_steps']
    assert steps and steps[-1]['percent'] > 50 and steps[-1]['dirty_after_bytes_per_second'] < 50 << 20, steps
    for seconds in (3, 9, 27):                              # how many rounds fit into a while is up to the host
        events, summary = does_not_converge(stage, f'{seconds}s', ('--timeout', f'{seconds}s'))
        steps = summary['throttle_steps']
        if 'converge.throttle' in events and steps and steps[-1]['percent'] > 50:
            break
    assert {'converge', 'converge.throttle'} <= events, events
    assert steps and steps[-1]['percent'] > 50 and steps[-1]['dirty_after_bytes_per_second'] < 50 << 20, steps


def it_waits_before_the_switchover(stage):
    """The guest runs meanwhile, at its full speed; told to go on, the migration is active until the guest can be stopped again."""
    source, target = pair(stage)
    process = source.host.start('migrate', 'vm', target.uri, '--pause-before-switchover')
    story.wait_until(lambda: (source.status()['migration'] or {}).get('status') == 'pre-switchover', 'pre-switchover')
    lives(source)
    qmp = source.qmp()
    done = source.host.vmferry('cont', 'vm')
    assert done.code == 0 and 'switching over' in done.stdout, done
    for status in ('active', 'device'):
        qmp.event('MIGRATION', status=status)
    _, stderr = process.communicate(timeout=story.PATIENCE_S)
    assert process.returncode == 0 and 'vmferry cont vm' in stderr, stderr
    lives(target)


def detached_and_followed(stage):
    source, target = pair(stage)
    done = migrate(source, target, '--detach', '--max-bandwidth', '4MB', '--downtime-limit', '5s')
    assert done.code == 0 and 'status --follow' in done.stdout, done
    followed = source.host.vmferry('status', 'vm', '--follow', '--json')
    assert followed.code == 0 and followed.lines[-1]['outcome'] == 'completed', followed
    assert source.status()['status'] == 'postmigrate'
    lives(target)


def a_dry_run_moves_nothing(stage):
    source, target = pair(stage)
    done = migrate(source, target, '--dry-run', '--json')
    assert done.code == 0 and done.lines[-1]['outcome'] == 'preflight-ok', done
    lives(source)
    other = stage.host('host-c').run('vm', *GUEST, '--incoming', 'tcp:127.0.0.1:0', '--memory', '32M')
    refused = migrate(source, other, '--dry-run', '--json')
    assert refused.code == 1 and refused.lines[-1]['outcome'] == 'preflight-refused', refused
    assert any(line['type'] == 'event' and line['id'] == 'incompatible' for line in refused.lines), refused
    assert refused.lines[-1]['incompatibilities'], refused
    assert 'at host-a: the target would not take it: memory' in migrate(source, other, '--dry-run').stdout
    assert migrate(source, target).code == 0      # both still wait, and the real run comes after
    lives(target)


def a_target_of_another_size_refuses(stage):
    source, _ = pair(stage)
    other = stage.host('host-c').run('vm', *GUEST, '--incoming', 'tcp:127.0.0.1:0', '--memory', '32M')
    done = migrate(source, other)
    assert done.code == 1 and 'memory' in done.stderr, done
    assert re.fullmatch(r'vmferry: vm still runs at host-a: the migration failed: the target would not take it: memory\.size: '
                        r'here 33554432, there 16777216; ram\.size: block ram: here 33554432, there 16777216\n', done.stdout), done
    done = migrate(source, stage.host('host-d').run('vm', '--incoming', 'tcp:127.0.0.1:0', '--memory', '32M'), '--json')
    assert done.lines[-1]['error']['cause'].startswith('the target would not take it: memory'), done
    lives(source)


def nobody_listens(stage):
    source, _ = pair(stage)
    done = migrate(source, 'tcp:127.0.0.1:1', '--json')
    assert done.code == 1, done
    assert [line['type'] for line in done.lines][-2:] == ['error', 'summary'], done
    assert done.lines[-2]['id'] == 'channel.connect' and done.lines[-1]['outcome'] == 'failed', done
    lives(source)
    done = migrate(source, 'tcp:127.0.0.1:1')
    assert done.stdout == 'vmferry: vm still runs at host-a: the migration failed: tcp:127.0.0.1:1: connect: Connection refused\n', done
    assert 'vmferry: hint: ' in done.stderr, done


def plaintext_stays_on_the_loopback(stage):
    source, _ = pair(stage)
    done = migrate(source, 'tcp:192.0.2.1:4444')
    assert done.code == 2 and '--insecure' in done.stderr, done
    refused = stage.host('host-c').vmferry('run', 'vm', '--incoming', 'tcp:0.0.0.0:0')
    assert refused.code == 2 and '--insecure' in refused.stderr and refused.stdout == '', refused


def strangers_do_not_end_it(stage):
    source, target = pair(stage)
    port = int(target.uri.rsplit(':', 1)[1])
    for words in (b'', b'GET / HTTP/1.0\r\n\r\n', bytes(4096), b'\xff' * 100000):
        with socket.create_connection(('127.0.0.1', port)) as stranger:
            stranger.sendall(words)
    assert migrate(source, target).code == 0
    lives(target)


def into_a_file_and_out_of_it(stage):
    path = os.path.join(stage.directory, 'stream')
    source = stage.host('host-a').run('vm', *GUEST)
    story.wait_until(lambda: source.status()['pages_written'] > 100, 'pages written')
    done = migrate(source, f'file:{path}')
    assert done.code == 0 and 'vm is written to' in done.stdout and 'stopped at host-a' in done.stdout, done
    assert source.status()['status'] == 'paused'
    assert source.host.vmferry('cont', 'vm').code == 0
    lives(source)
    target = stage.host('host-b').run('vm', *GUEST, '--incoming', f'file:{path}')
    story.wait_until(lambda: target.status()['status'] == 'running', 'the guest')
    lives(target)
    waiting = stage.host('host-c').run('vm', *GUEST, '--incoming', f'file:{path}', '--paused')
    story.wait_until(lambda: waiting.status()['status'] == 'paused', 'the guest')
    done = migrate(source, f'exec:cat > {path}2', '--one-way', '--then', 'cont')
    assert done.code == 0 and 'runs on at host-a' in done.stdout, done
    lives(source)
    done = migrate(source, f'file:{path}3', '--then', 'quit')
    assert done.code == 0 and source.wait() == 0, done
    again = stage.host('host-d').run('vm', *GUEST, '--incoming', f'exec:cat {path}2')
    story.wait_until(lambda: again.status()['status'] == 'running', 'the guest')


def a_damaged_file_is_refused(stage):
    path = os.path.join(stage.directory, 'stream')
    source = stage.host('host-a').run('vm', *GUEST)
    story.wait_until(lambda: source.status()['pages_written'] > 500, 'pages written')
    source.host.vmferry('stop', 'vm')    # each page goes into the file once: nothing mends what is damaged
    assert migrate(source, f'file:{path}').code == 0
    with open(path, 'r+b') as stream:
        size = stream.seek(0, 2)
        stream.seek(size // 2)
        byte = stream.read(1)
        stream.seek(size // 2)
        stream.write(bytes([byte[0] ^ 0x40]))
    process = stage.host('host-b').start('run', 'vm', '--backend', 'rv32', '--memory', '16M', *GUEST, '--incoming', f'file:{path}')
    stdout, stderr = process.communicate(timeout=story.PATIENCE_S)
    assert process.returncode == 1 and stderr.startswith('vmferry: ') and len(stdout.splitlines()) == 1, (stdout, stderr)


def over_a_unix_socket(stage):
    source, target = pair(stage, uri=f'unix:{stage.directory}/migration.sock')
    assert target.uri == f'unix:{stage.directory}/migration.sock'
    assert migrate(source, target, '--channels', '3').code == 0
    lives(target)


def over_a_command(stage):
    if subprocess.run(['sh', '-c', 'command -v socat'], capture_output=True).returncode:
        raise story.Skip('socat is not installed')
    source, target = pair(stage, uri=f'unix:{stage.directory}/migration.sock')
    done = migrate(source, f'exec:socat STDIO UNIX-CONNECT:{stage.directory}/migration.sock')
    assert done.code == 0, done
    lives(target)


def over_a_descriptor_that_was_passed(stage):
    source = stage.host('host-a').run('vm', *GUEST)
    target = stage.host('host-b').run('vm', *GUEST, '--incoming', 'defer')
    assert target.uri is None
    clients = [source.qmp(), target.qmp()]
    for client, end in zip(clients, socket.socketpair()):
        socket.send_fds(client.socket, [b'{"execute": "getfd", "arguments": {"fdname": "peer"}}'], [end.fileno()])
        assert client.answer() == {'return': {}}
        end.close()
    clients[1].run('migrate-incoming', uri='fd:peer')
    done = migrate(source, 'fd:peer')
    assert done.code == 0, done
    lives(target)


def progress_for_programs(stage):
    source, target = pair(stage)
    read_end, write_end = os.pipe()
    done = source.host.vmferry('migrate', 'vm', target.uri, f'--progress={write_end}', '--max-bandwidth', '4MB',
                               '--downtime-limit', '5s', pass_fds=(write_end,))
    os.close(write_end)
    assert done.code == 0, done
    with open(read_end, encoding='utf-8') as progress:
        lines = [json.loads(line) for line in progress]
    assert lines and all(line['type'] == 'status' and line['name'] == 'vm' and 'ram_remaining_bytes' in line for line in lines)


def slow(machine, target, *options):
    """A migration that does not end by itself, under way."""
    process = machine.host.start('migrate', 'vm', target.uri, '--max-bandwidth', '200KB', *options)
    story.wait_until(lambda: (target.status()['migration'] or {}).get('status') == 'active', 'the first round')
    return process


def said(process):
    stdout, stderr = process.communicate(timeout=story.PATIENCE_S)
    return process.returncode, stdout, stderr


def a_target_that_dies(stage):
    for number in (signal.SIGKILL, signal.SIGTERM):
        source, target = stage.host(f'a{number}').run('vm', *GUEST), stage.host(f'b{number}').run('vm', '--incoming', 'tcp:127.0.0.1:0')
        process = slow(source, target)
        target.process.send_signal(number)
        code, stdout, stderr = said(process)
        assert code == 1 and f'vm still runs at a{number:d}' in stdout and stderr, (code, stdout, stderr)
        if number == signal.SIGKILL:
            assert stdout.endswith(': the migration failed: the connection to the target was cut\n'), stdout
        assert target.wait() == (-9 if number == signal.SIGKILL else 0)
        lives(source)


def a_source_that_dies(stage):
    for options in ((), ('--json',)):
        source = stage.host(f'a{len(options)}').run('vm', *GUEST)
        target = stage.host(f'b{len(options)}').run('vm', '--incoming', 'tcp:127.0.0.1:0')
        process = slow(source, target, *options)
        source.process.kill()
        code, stdout, stderr = said(process)
        assert code == 4, (code, stdout, stderr)
        if options:
            error, summary = [json.loads(line) for line in stdout.splitlines()][-2:]
            assert (error['type'], error['id']) == ('error', 'control.lost') and 'vmferry status' in error['hint'], error
            assert [summary[key] for key in ('type', 'outcome', 'hold', 'verified', 'exit_code')] == \
                ['summary', 'held', 'died-with-source', None, 4], summary
            assert (summary['source'], summary['uri']) == (source.host.name, target.uri) and summary['backend'] == 'rv32', summary
        else:
            assert 'process has gone' in stderr and 'vmferry: hint: ' in stderr, stderr
            assert stdout.startswith('vmferry: vm ended at a0, and its guest with it: '), stdout
            assert target.uri in stdout or stdout.endswith(' at b0\n'), stdout        # by name, once the target has said it
        assert target.wait() == 1 and 'vmferry: ' in target.process.stderr.read()


def a_source_that_dies_in_the_switchover(stage):
    source = stage.host('a').run('vm', *GUEST)
    target = stage.host('b').run('vm', '--incoming', 'tcp:127.0.0.1:0', '--fault', 'target.send.ready.due=stop')
    process = source.host.start('migrate', 'vm', target.uri, '--switchover-timeout', '60s')
    story.wait_until(lambda: story.is_stopped(target.process.pid), 'SIGSTOP')    # it has all; READY does not come
    assert source.status()['migration']['status'] == 'device'
    source.process.kill()
    code, stdout, stderr = said(process)
    assert code == 4 and stdout.startswith('vmferry: vm is gone from a and may run at '), (code, stdout, stderr)
    source.wait()
    target.process.send_signal(signal.SIGCONT)
    held = target.host.vmferry('status', 'vm', '--follow')
    assert held.code == 4 and held.stdout.startswith('vm: finish-migrate at b'), held
    assert 'stands still and may run at the source' in held.stdout, held
    assert target.status()['migration']['outcome'] == 'held' and target.status()['incoming_uri'] is None
    refused = target.host.vmferry('cont', 'vm')
    assert refused.code == 4 and "READY was sent and the source's decision did not come" in refused.stderr, refused
    assert target.host.vmferry('quit', 'vm').code == 4 and target.host.vmferry('quit', 'vm', '--force').code == 0 and target.wait() == 4


def nobody_listens_after_it_came(stage):
    source, target = pair(stage)
    assert target.status()['incoming_uri'] == target.uri and 'incoming: ' in target.host.vmferry('status', 'vm').stdout
    assert migrate(source, target).code == 0
    assert target.status()['incoming_uri'] is None and 'incoming: ' not in target.host.vmferry('status', 'vm').stdout


def a_source_that_is_told_to_quit(stage):
    source, target = stage.host('a').run('vm', *GUEST), stage.host('b').run('vm', '--incoming', 'tcp:127.0.0.1:0')
    process = slow(source, target)
    assert source.host.vmferry('quit', 'vm').code == 0
    code, stdout, _ = said(process)
    assert code == 1 and 'vm ended at a, and its guest with it' in stdout, (code, stdout)
    assert source.wait() == 0 and target.wait() == 1


def a_peer_that_does_not_read(stage):
    source, target = stage.host('a').run('vm', *GUEST), stage.host('b').run('vm', '--incoming', 'tcp:127.0.0.1:0')
    process = slow(source, target)
    story.wait_until(lambda: (source.status()['migration'] or {}).get('round', 0) >= 1, 'pages on their way')
    target.process.send_signal(signal.SIGSTOP)
    client = source.qmp()
    client.run('migrate-set-parameters', max_bandwidth=0)
    story.wait_until(lambda: stuck(client), 'acknowledgements that stay away')
    assert source.host.vmferry('cancel', 'vm').code == 0
    code, stdout, _ = said(process)
    assert code == 1 and 'cancelled' in stdout, (code, stdout)
    lives(source)


def stuck(client):
    """Whether nothing was sent for a while."""
    before = client.run('query-migrate')['x-vmferry']
    time.sleep(0.2)
    after = client.run('query-migrate')['x-vmferry']
    assert not after['ended'], after
    return before['bytes_sent'] == after['bytes_sent'] > 0


def one_at_a_time(stage):
    source, target = stage.host('a').run('vm', *GUEST), stage.host('b').run('vm', '--incoming', 'tcp:127.0.0.1:0')
    process = slow(source, target)
    second = migrate(source, 'tcp:127.0.0.1:1')
    assert second.code == 1 and 'in progress' in second.stderr, second
    client = source.qmp()
    assert 'in progress' in client.command('migrate-set-capabilities', capabilities=[])['error']['desc']
    assert client.run('query-migrate')['ram']['total'] > 16 << 20
    source.host.vmferry('cancel', 'vm')
    assert said(process)[0] == 1
    again = stage.host('c').run('vm', *GUEST, '--incoming', 'tcp:127.0.0.1:0')
    assert migrate(source, again).code == 0
    lives(again)


def paused_while_it_moves(stage):
    source, target = stage.host('a').run('vm', *GUEST), stage.host('b').run('vm', '--incoming', 'tcp:127.0.0.1:0')
    process = slow(source, target)
    assert source.host.vmferry('stop', 'vm').code == 0
    source.qmp().run('migrate-set-parameters', max_bandwidth=0)
    code, stdout, _ = said(process)
    assert code == 0 and 'vm is now paused at' in stdout, (code, stdout)
    story.wait_until(lambda: target.status()['status'] == 'paused', 'arrival')


story.run(a_guest_moves, the_last_line_says_it_in_words, channels_versions_memory_and_audits,
          a_dirty_log_that_loses_a_write, kept_it_is_empty_and_stands,
          a_paused_guest_arrives_paused, a_target_that_is_told_to_keep_it_paused, from_host_to_host_and_back, it_can_be_cancelled,
          a_second_interrupt_abandons_the_wait, limits_change_while_it_runs, a_stalled_target_slows_nobody, it_does_not_converge,
          it_waits_before_the_switchover, detached_and_followed,
          a_dry_run_moves_nothing, a_target_of_another_size_refuses, nobody_listens, plaintext_stays_on_the_loopback,
          strangers_do_not_end_it, into_a_file_and_out_of_it, a_damaged_file_is_refused, over_a_unix_socket, over_a_command,
          over_a_descriptor_that_was_passed, progress_for_programs, a_target_that_dies, a_source_that_dies, a_source_that_is_told_to_quit,
          timeout_says_it_twice, a_source_that_dies_in_the_switchover, nobody_listens_after_it_came,
          a_peer_that_does_not_read, one_at_a_time, paused_while_it_moves)
