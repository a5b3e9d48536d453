#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images at rest, made of real guests: what is said of them, what is made of them, and guests that go on from what was made."""
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.dom.minidom

import story

GUEST = ('--guest', 'dirty=16M,set=4M')
VERIFY = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'scripts', 'verify-image')


def lives(machine, beats=20):
    before = machine.status()['beats']
    story.wait_until(lambda: machine.status()['beats'] > before + beats, 'beats')
    assert machine.status()['guest_errors'] == 0


def done(host, *args, code=0):
    result = host.vmferry(*args)
    assert result.code == code, (args, result)
    return result


def summary(host, *args, code=0):
    line = done(host, *args, '--json', code=code).lines[-1]
    assert line['type'] == 'summary', line
    return line


def moments(stage, n):
    """Images of one guest at n moments, as it runs on: every second one is saved, the others are made of streams."""
    host = stage.host('host-a')
    source = host.run('vm', *GUEST)
    paths = []
    for number in range(n):
        before = source.status()['pages_written']
        story.wait_until(lambda: source.status()['pages_written'] > before + 300, 'pages written')
        stream, image = (os.path.join(stage.directory, f'{kind}{number}') for kind in ('stream', 'image'))
        if number % 2:
            done(host, 'save', 'vm', image)
        else:
            done(host, 'migrate', 'vm', f'file:{stream}', '--then', 'cont')
            made = summary(host, 'convert', stream, image)
            assert made['format'] == 'image' and made['uri'] == f'file:{image}' and len(made['id']) == 32, made
        paths.append(image)
    return host, paths


def agree(host, path):
    """Both readers find it whole."""
    checked = summary(host, 'verify', path, '--parents')
    assert checked['whole'] and checked['sums_checked'] and checked['pages_checked'] > 0 and checked['pages_damaged'] == 0, checked
    subprocess.run([sys.executable, '-B', VERIFY, '--pages', path], check=True, stdout=subprocess.DEVNULL)


def goes_on(stage, name, *args):
    """A guest that arrives in this way runs, and finds its memory as it left it."""
    machine = stage.host(name).run('vm', *GUEST, *args)
    story.wait_until(lambda: machine.status()['status'] == 'running', 'the guest')
    lives(machine)


def is_restored(stage, name, path):
    host = stage.host(name)
    machine = story.Machine(host, 'vm', host.start('restore', path, 'vm', '--host-name', name))
    story.wait_until(lambda: machine.status()['status'] == 'running', 'the guest')
    lives(machine)


def what_is_said_of_an_image(stage):
    host, (path,) = moments(stage, 1)
    agree(host, path)
    (layer,) = summary(host, 'inspect', path)['layers']
    assert layer['architecture'] == 'rv32' and layer['runs'] and layer['ram_only'] and 'parent' not in layer, layer
    ram = max(layer['blocks'], key=lambda block: block['size_bytes'])
    assert ram['size_bytes'] == 16 << 20 and 300 < ram['used_pages'] == ram['layer_pages'] < 4096, ram
    fields = {section['name']: {field['name']: field['value'] for field in section['fields']} for section in layer['sections']}
    assert fields['beat']['beats'] > 0 and fields['beat']['errors'] == 0 and len(fields['cpu']['x']) == 32, fields
    assert 'pages_written' in done(host, 'inspect', path, '--fields').stdout
    assert 'pages_written' not in done(host, 'inspect', path).stdout
    rows = re.findall('^  [0-9a-f]{12}  ([·░▒▓█]+)$', done(host, 'inspect', path, '--map').stdout, re.M)
    assert len(rows) == len(layer['blocks']) and len(rows[layer['blocks'].index(ram)]) == 8 and set(''.join(rows)) & set('░▒▓█'), rows
    svg = os.path.join(stage.directory, 'map.svg')
    done(host, 'inspect', path, f'--map={svg}')
    failed = done(host, 'inspect', path, f'--map={svg}/nowhere/map.svg', code=1)
    assert failed.stdout == '' and 'nowhere' in failed.stderr, failed
    drawn = xml.dom.minidom.parse(svg).getElementsByTagName('rect')
    assert sum(square.getAttribute('class') == 'here' for square in drawn) == sum(
        shade != '·' for shade in ''.join(rows)), drawn


def guests_go_on_from_what_was_made(stage):
    host, (first, second, third) = moments(stage, 3)
    inside = [os.path.join(stage.directory, name) for name in ('layer2', 'layer3', 'flat', 'again', 'back')]
    layer2, layer3, flat, again, back = inside
    summary(host, 'rebase', second, layer2, '--parent', first)
    summary(host, 'rebase', third, layer3, '--parent', layer2)
    layers = summary(host, 'inspect', layer3)['layers']
    assert [layer['uri'] for layer in layers] == [f'file:{path}' for path in (layer3, layer2, first)], layers
    assert layers[0]['parent']['uri'] == 'file:layer2' and layers[0]['parent']['id'] == layers[1]['id'], layers
    assert os.stat(layer3).st_blocks < os.stat(third).st_blocks
    summary(host, 'flatten', layer3, flat)
    for path in (second, layer2, layer3, flat):
        agree(host, path)
    assert summary(host, 'diff', third, flat, '--read')['same'] and summary(host, 'diff', layer3, third)['same']
    summary(host, 'convert', layer3, back)
    summary(host, 'convert', back, again)
    assert summary(host, 'diff', again, third, '--read')['same']
    goes_on(stage, 'host-b', '--incoming', f'file:{back}')
    for number, path in enumerate((layer3, flat, again)):
        is_restored(stage, f'host-{"cde"[number]}', path)


def what_differs_is_named(stage):
    host, (first, second) = moments(stage, 2)
    differ = done(host, 'diff', first, second, '--json', code=3).lines
    runs = [line for line in differ if line.get('event') == 'pages']
    assert differ[-1]['type'] == 'summary' and not differ[-1]['same'] and differ[-1]['different_pages'] > 0, differ[-1]
    assert sum(line['pages'] for line in runs) == differ[-1]['different_pages'] and differ[-1]['other'] > 0
    assert any('section beat 0' in line['message'] for line in differ if line.get('event') == 'other'), differ
    text = done(host, 'diff', first, second, code=3).stdout
    assert 'RAM block ' in text and text.splitlines()[-1].startswith('different: '), text
    assert done(host, 'diff', first, first).stdout.splitlines()[-1].startswith('the same: ')


def layers_move_together_and_miss_their_parents(stage):
    host, (first, second) = moments(stage, 2)
    layer = os.path.join(stage.directory, 'layer')
    summary(host, 'rebase', second, layer, '--parent', first)
    elsewhere = os.path.join(stage.directory, 'elsewhere')
    os.mkdir(elsewhere)
    moved = [os.path.join(elsewhere, os.path.basename(path)) for path in (first, layer)]
    os.rename(first, moved[0])
    missing = done(host, 'flatten', layer, os.path.join(stage.directory, 'flat'), '--json', code=1).lines[-1]
    assert missing['id'] == 'image.parent', missing
    assert not os.path.exists(os.path.join(stage.directory, 'flat'))
    assert summary(host, 'inspect', layer)['parents_missing'] and 'its parents are not here' in done(host, 'inspect', layer).stdout
    assert not summary(host, 'verify', layer)['sums_checked']
    assert done(host, 'verify', layer, '--parents', '--json', code=1).lines[-1]['id'] == 'image.parent'
    assert summary(host, 'verify', layer, '--parents', '--parent', moved[0])['images'] == 2
    os.rename(layer, moved[1])
    agree(host, moved[1])


def damage_is_named_and_goes_no_further(stage):
    host, (path,) = moments(stage, 1)
    with open(path, 'rb') as file:
        octets = bytearray(file.read())
    layer = summary(host, 'inspect', path)['layers'][0]
    at = max(offset for offset in range(0, len(octets) * 3 // 4, 4096) if any(octets[offset:offset + 4096]))
    octets[at + 77] ^= 1
    with open(path, 'wb') as file:
        file.write(octets)
    lines = done(host, 'verify', path, '--json', code=1).lines
    assert lines[-1] == dict(lines[-1], type='summary', whole=False, pages_damaged=1, damaged=1), lines
    (damage,) = [line for line in lines if line.get('event') == 'damage']
    assert damage['id'] == 'image.page' and damage['block'] in [block['name'] for block in layer['blocks']], damage
    assert f'page {damage["page"]}' in done(host, 'verify', path, code=1).stdout
    for verb in ('flatten', 'convert'):
        out = os.path.join(stage.directory, 'out')
        failed = done(host, verb, path, out, '--json', code=1).lines[-1]
        assert failed['type'] == 'error' and failed['id'] == 'image.page' and not os.listdir(stage.directory).count('out'), failed
    octets[0] ^= 1
    with open(path, 'wb') as file:
        file.write(octets)
    assert done(host, 'inspect', path, '--json', code=1).lines[-1]['id'] == 'image.magic'
    octets[0] ^= 1
    octets[100] ^= 1    # of the commit block
    with open(path, 'wb') as file:
        file.write(octets)
    for verb, hints in (('inspect', True), ('verify', False)):
        failed = done(host, verb, path, '--json', code=1).lines[-1]
        assert failed['id'] == 'image.crc' and ("'vmferry verify'" in failed['hint']) == hints, failed
    with open(path, 'wb') as file:
        file.write(b'\xff' * 5000)
    assert "'vmferry convert'" in done(host, 'verify', path, code=1).stderr


def mistakes_are_told(stage):
    host = stage.host()
    nothing = os.path.join(stage.directory, 'nothing')
    for args in (('inspect',), ('verify', 'a', 'b'), ('verify', nothing, '--threads', '0'), ('verify', nothing, '--threads', '9'),
                 ('diff', 'a'), ('rebase', 'a', 'b'), ('flatten', 'a'), ('convert', 'a', 'b', 'c')):
        result = done(host, *args, code=2)
        assert result.stdout == '' and 'vmferry: ' in result.stderr, result
    for verb, operands in (('verify', 1), ('flatten', 2)):
        result = done(host, verb, *[nothing] * operands, '--threads', '9', code=2)
        assert f'vmferry: {verb}: --threads: ' in result.stderr, result
    for args in (('inspect', nothing), ('verify', nothing), ('diff', nothing, nothing), ('rebase', nothing, 'b', '--parent', nothing),
                 ('flatten', nothing, 'b'), ('convert', nothing, 'b')):
        assert done(host, *args, '--json', code=1).lines[-1]['id'] == 'io', args
    pipe = os.path.join(stage.directory, 'pipe')
    os.mkfifo(pipe)
    for path in (stage.directory, pipe, '/dev/null'):
        for args in (('inspect', path), ('verify', path), ('flatten', path, 'b'), ('convert', path, 'b'), ('diff', path, path)):
            assert done(host, *args, '--json', code=1).lines[-1]['id'] == 'io', args
    for name in ('tcp:127.0.0.1:99', 'unix:b', 'C:b', ''):
        for args in (('inspect', name), ('verify', name), ('verify', nothing, '--parent', name), ('flatten', nothing, name),
                     ('flatten', name, 'b'), ('convert', nothing, name), ('convert', name, 'b'), ('diff', name, nothing),
                     ('rebase', nothing, name, '--parent', nothing), ('rebase', nothing, 'b', '--parent', name),
                     ('restore', name, 'vm'), ('restore', nothing, 'vm', '--parent', name)):
            assert done(host, *args, '--json', code=2).lines[-1]['id'] == 'usage', args
    for args in (('inspect', nothing), ('verify', nothing), ('flatten', nothing, 'b'), ('convert', nothing, 'b'),
                 ('diff', nothing, nothing), ('rebase', nothing, 'b', '--parent', nothing), ('restore', nothing, 'vm')):
        assert '--io' in done(host, *args, '--io', 'foo', code=2).stderr, args
    assert done(host, 'inspect', 'nbd:unix:/nowhere', '--json', code=1).lines[-1]['type'] == 'error'


def names_with_a_colon(stage):
    host, (path,) = moments(stage, 1)
    os.rename(path, os.path.join(stage.directory, 'x:y'))
    for name in ('./x:y', 'file:x:y', os.path.join(stage.directory, 'x:y')):
        assert host.vmferry('inspect', name, cwd=stage.directory).code == 0, name
    assert host.vmferry('convert', './x:y', 'file:tcp:z', cwd=stage.directory).code == 0
    assert sorted(name for name in os.listdir(stage.directory) if ':' in name) == ['tcp:z', 'x:y']


def a_stream_to_stdout_is_nothing_else(stage):
    host, (path,) = moments(stage, 1)
    stream = os.path.join(stage.directory, 'stream')
    done(host, 'convert', path, stream)
    for out in ('/dev/stdout', 'fd:1'):
        for option in ((), ('--json',)):
            process = subprocess.Popen([stage.vmferry, 'convert', path, out, *option], env=host.environment, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, preexec_fn=story.die_with_parent)
            octets, told = process.communicate(timeout=story.PATIENCE_S)
            assert process.returncode == 0 and path.encode() in told, told
            assert len(octets) == os.path.getsize(stream) and b'made of' not in octets, out
            with open(os.path.join(stage.directory, 'caught'), 'wb') as file:
                file.write(octets)
            summary(host, 'convert', file.name, path + '-again')
            assert summary(host, 'diff', path, path + '-again', '--read')['same'], out


def a_stream_to_a_command(stage):
    host, (path,) = moments(stage, 1)
    out = os.path.join(stage.directory, 'stream')
    done(host, 'convert', path, f'exec:cat > {out}')
    summary(host, 'convert', out, path + '-again')
    assert summary(host, 'diff', path, path + '-again', '--read')['same']
    failed = done(host, 'convert', path, 'exec:head -c 100000 > /dev/null; exit 3', '--json', code=1).lines[-1]
    assert failed['type'] == 'error' and 'exit status 3' in failed['message'], failed


def an_image_is_not_written_over_itself(stage):
    host, (path,) = moments(stage, 1)
    before = os.stat(path)
    for args in (('flatten', path, path), ('rebase', path, path, '--parent', path), ('convert', path, path)):
        assert done(host, *args, '--json', code=2).lines[-1]['id'] == 'usage'
    os.symlink(path, path + '-link')
    assert done(host, 'flatten', path, path + '-link', '--json', code=2).lines[-1]['id'] == 'usage'
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns
    agree(host, path)
    os.rename(path, path + '.partial')      # nor where it has the name that the new one has meanwhile
    for args in (('flatten', path + '.partial', path), ('convert', path + '.partial', path)):
        assert done(host, *args, '--json', code=2).lines[-1]['id'] == 'usage'
    agree(host, path + '.partial')


def what_others_use_is_not_written(stage):
    """A machine's disk, a device that is mounted or holds something: said by name, and nothing of it has changed."""
    host, (path,) = moments(stage, 1)
    disk, stream, area = (os.path.join(stage.directory, name) for name in ('disk', 'stream', 'area'))
    done(host, 'convert', path, stream)
    stage.host('host-b').run('user', '--disk', f'root={disk},size=16M')
    ways = [('flatten', path), ('convert', path), ('convert', stream), ('rebase', path, '--parent', path)]
    before = os.stat(disk)
    for verb, *rest in ways:
        for force in ((), ('--force',)):
            refused = done(host, verb, rest[0], disk, *rest[1:], *force, '--json', code=1).lines[-1]
            assert refused['id'] == 'storage.locked' and disk in refused['message'], refused
    assert os.stat(disk).st_ino == before.st_ino and not os.path.exists(disk + '.partial')
    story.knows_signatures(stage)
    with open(area, 'wb') as file:
        file.truncate(64 << 20)
    with story.device_of(area) as device:
        for verb, *rest in ways:
            subprocess.run(['mkswap', '-q', device], check=True, stderr=subprocess.DEVNULL)
            with open(device, 'rb') as file:
                head = file.read(4096)
            with story.in_use(device):
                refused = done(host, verb, rest[0], device, *rest[1:], '--force', '--json', code=1).lines[-1]
            assert refused['id'] == 'io' and 'busy' in refused['message'], refused
            refused = done(host, verb, rest[0], device, *rest[1:], '--json', code=1).lines[-1]
            assert refused['id'] == 'disk.place' and '--force' in refused['hint'], refused
            with open(device, 'rb') as file:
                assert file.read(4096) == head, 'it was written all the same'
            done(host, verb, rest[0], device, *rest[1:], '--force')


def a_copy_that_fails_leaves_what_was_there(stage):
    host, (path,) = moments(stage, 1)
    out = os.path.join(stage.directory, 'out')
    with open(out, 'w', encoding='ascii') as file:
        file.write('what stood there before')
    os.truncate(path, os.path.getsize(path) - 4096)
    assert done(host, 'flatten', path, out, '--json', code=1).lines[-1]['id'] == 'image.layout'
    with open(out, encoding='ascii') as file:
        assert file.read() == 'what stood there before'


def an_interrupted_copy_leaves_what_was_there(stage):
    """In the middle of it, as its server is slow: killed, what it had is not under the name; asked to end, nothing is left of it."""
    if not shutil.which('nbdkit'):
        raise story.Skip('nbdkit is not installed')
    host, (path,) = moments(stage, 1)
    out, socket = (os.path.join(stage.directory, name) for name in ('out', 'nbd'))
    stage.processes.append(subprocess.Popen(['nbdkit', '-f', '-r', '-U', socket, '--filter=delay', 'file', path, 'rdelay=200ms'],
                                            preexec_fn=story.die_with_parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    story.wait_until(lambda: os.path.exists(socket), 'the server')
    uri = f'nbd+unix:///?socket={socket}'
    if host.vmferry('inspect', uri).code == 77:
        raise story.Skip('built without libnbd')
    with open(out, 'w', encoding='ascii') as file:
        file.write('what stood there before')
    for number, left in ((signal.SIGKILL, True), (signal.SIGINT, False)):
        process = host.start('flatten', uri, out)
        story.wait_until(lambda: os.path.exists(out + '.partial') and os.path.getsize(out + '.partial') > 0, 'a part of the copy')
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait() != 0
        assert os.path.exists(out + '.partial') == left
        with open(out, encoding='ascii') as file:
            assert file.read() == 'what stood there before'
        if left:
            os.unlink(out + '.partial')


story.run(what_is_said_of_an_image, guests_go_on_from_what_was_made, what_differs_is_named, layers_move_together_and_miss_their_parents,
          damage_is_named_and_goes_no_further, mistakes_are_told, names_with_a_colon, a_stream_to_stdout_is_nothing_else,
          a_stream_to_a_command, an_image_is_not_written_over_itself, what_others_use_is_not_written,
          a_copy_that_fails_leaves_what_was_there, an_interrupted_copy_leaves_what_was_there)
