"""Feed damaged and malicious files to each reader of files, for minutes: `python tools/fuzz_files.py --minutes 10`.

A case is made from its number alone, so that `--first 1234 --minutes 0` repeats one. It fails if the reader crashes,
takes a minute, raises anything but a DataError or a ValueError of ours, or takes 200 MB beyond what the file holds.
"""
import argparse, gzip, os, pickle, pickletools, random, resource, select, shutil, struct
import subprocess, sys, time, traceback, zlib
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save
from fb_pass import datasets
from fb_pass.datasets import get_data, idx_bytes, read_idx, read_pickle, train_files
from fb_pass.library import load_weights, named_weights
from fb_pass.training import mlp

MB, allowed, patience = 1 << 20, 200, 60 # MB beyond the true data, seconds
numbers = [0, 1, 2, 7, 127, 128, 255, 256, 784, *(2**k - o for k in (15, 16, 24, 31, 32, 40, 63, 64) for o in (0, 1))]

def seeds():
    "Good files, unpacked, by reader."
    rng = np.random.RandomState(0)
    images, labels = rng.randint(0, 256, (30, 28, 28)).astype(np.uint8), rng.randint(0, 10, 30).astype(np.uint8)
    pair = (images.reshape(30, 784)/256).astype(np.float32), labels.astype(np.int64)
    pickles = [pickle.dumps((pair, pair, pair), k) for k in range(pickle.HIGHEST_PROTOCOL + 1)]
    return dict(idx=[idx_bytes(images), idx_bytes(labels)], pair=[idx_bytes(images)], pickle=pickles,
                weights=[save(dict(named_weights(mlp(5, 4, 3))))], sample=[datasets.unpack(datasets._sample_path())])

def opcode(r):
    "One instruction of a pickle with any argument."
    op = r.choice(pickletools.opcodes)
    def number(n, size): return (n % 256**size).to_bytes(size, 'little')
    if op.arg is None: arg = b''
    elif op.arg.n >= 0: arg = number(r.choice(numbers), op.arg.n)
    elif op.arg.n == pickletools.UP_TO_NEWLINE:
        names = [b'1', b'%d' % r.choice(numbers), b'numpy\nndarray', b'numpy\ndtype', b"'f4'", b'posix\nsystem']
        arg = r.choice(names) + b'\n'
    else:
        size = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(op.arg.n, 4)
        text = r.randbytes(r.choice([0, 1, 4, 200]))
        arg = number(len(text) if r.random() < .6 else r.choice(numbers), size) + text
    return op.code.encode('latin1') + arg

def spoil(r, data, others):
    "Good bytes with something wrong."
    i, j = sorted(r.randrange(r.choice([len(data), min(len(data), 400)]) + 1) for _ in range(2)) # often near the start
    number = struct.pack(r.choice('<>') + 'Q', r.choice(numbers) % 2**64)
    return r.choice([
        lambda: data[:i] + bytes([r.randrange(256)]) + data[i+1:], lambda: data[:i], lambda: data[:i] + data[j:],
        lambda: data[:j] + data[i:], lambda: data[:i] + number[-4:] + data[i+4:],
        lambda: data[:i] + number + data[i+8:],
        lambda: data[:i] + r.randbytes(r.choice([1, 8, 100])) + data[j:], lambda: data[:i] + r.choice(others)[j:],
        lambda: data])()

def bomb(r):
    "A small gzip file of much, and how much: a beginning, and a piece that is repeated many times."
    n = r.choice([8, 64, 300, 1500])*MB
    short, long = struct.pack('<I', n), struct.pack('<Q', n)
    start = r.choice([b'', bytes([0, 0, 8, 3]) + struct.pack('>3I', r.choice([60_000, n//784]), 28, 28), b'\x80\x04(',
                      b'\x80\x02X' + short + '\U0001f600'.encode(), b'\x80\x02T' + short, b'\x80\x04\x8e' + long,
                      b'\x80\x05\x96' + long, b'\x80\x04\x95' + long, b'V', b'I', b"S'", long])
    piece = r.choice([b'\0', b'a', b']', b'N', b'}', b'2', b')', b'1', b'K\1\x94', b'(', b'{"'])*(MB//4)
    z = zlib.compressobj(1, zlib.DEFLATED, 31)
    data = b''.join([z.compress(start), *(z.compress(piece) for _ in range(n//len(piece))), z.flush()])
    return data, len(start) + n

def make(r, good, bombs=.02):
    "One file, from a source of random numbers: its reader, the file, and how many bytes it holds."
    reader = r.choice([*good])
    others = good[r.choice([*good])]
    if r.random() < bombs:
        return reader, *bomb(r)
    if reader == 'pickle' and r.random() < .5:
        data = b'\x80\x04' + b''.join(opcode(r) for _ in range(r.randrange(1, 40))) + b'.'
    else: data = r.choice(good[reader])
    for _ in range(r.choice([1, 1, 2, 5])): data = spoil(r, data, others)
    held = len(data)
    if reader != 'weights' and r.random() < .6:
        data = gzip.compress(data, 1)
        if r.random() < .2: data = spoil(r, data, others)
    return reader, data, held + len(data)

def read(reader, path, good):
    "Give the file to its reader."
    if reader == 'idx': read_idx(path, random.choice([2051, 2049]))
    elif reader == 'pair':
        folder = path.parent/'pair'
        folder.mkdir(exist_ok=True)
        (folder/train_files[1]).write_bytes(good['idx'][1])
        shutil.copyfile(path, folder/train_files[0])
        get_data(folder)
    elif reader == 'pickle': read_pickle(path)
    elif reader == 'weights': load_weights(mlp(5, 4, 3), path)
    else:
        datasets._sample_path = lambda: path
        get_data(source='sample')

def outcome(reader, path, good):
    "'read' or 'refused', or what is wrong."
    try: read(reader, path, good)
    except ValueError as e:
        if 'fb_pass' in traceback.extract_tb(e.__traceback__)[-1].filename: return 'refused'
        return f'{type(e).__name__} that is not ours: {e}'
    except BaseException as e: return f'{type(e).__name__}: {e}'
    return 'read'

def memory(key):
    "MB of this process by /proc/self/status: VmRSS now, VmHWM at most since the last reset."
    return int(next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(key)).split()[1])/1024

def work(first, count):
    "Cases in this process; a line for each says what has come of it."
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30,)*2)
    good, real = seeds(), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1) # what get_data says
    with TemporaryDirectory() as folder:
        path = Path(folder)/'file'
        for i in range(first, first + count):
            random.seed(i)
            os.write(real, f'{i} '.encode())
            reader, data, held = make(random, good)
            path.write_bytes(data)
            del data
            Path('/proc/self/clear_refs').write_text('5') # VmHWM starts anew
            before, began = memory('VmRSS'), time.monotonic()
            said = outcome(reader, path, good)
            extra = memory('VmHWM') - before - min(held, 1 << 28)/MB
            seconds = time.monotonic() - began
            os.write(real, f'{reader} {extra:.0f} {seconds:.1f} {said.splitlines()[0][:200]}\n'.encode())

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--first', type=int, default=0, help='number of the first case')
    parser.add_argument('--work', type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work: return work(args.first, args.work)
    counts, most, longest, faults = Counter(), (0, ''), (0, ''), []
    i, end = args.first, time.monotonic() + 60*args.minutes
    while i == args.first or time.monotonic() < end and len(faults) < 10:
        command = [sys.executable, __file__, '--first', str(i), '--work', '2000' if args.minutes else '1']
        with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as p:
            case = b''
            while not args.minutes or time.monotonic() < end:
                if not select.select([p.stdout], [], [], patience)[0]: case += b'(it hangs)'; break
                if not (more := p.stdout.read(1 << 16)): case += b'(the process died)' if case else b''; break
                *lines, case = (case + more).split(b'\n')
                for o in lines:
                    number, reader, extra, seconds, said = o.decode().split(' ', 4)
                    i, fine = int(number) + 1, said in ('read', 'refused') and float(extra) <= allowed
                    counts[reader, said if fine else 'fault'] += 1
                    most, longest = max(most, (float(extra), number)), max(longest, (float(seconds), number))
                    if not fine: faults.append(f'case {number}, {reader}: {said}, {extra} MB')
            p.kill()
        if b'(' in case: faults.append(f'case {case.decode()}'); i += 1
    for reader in sorted({o for o,_ in counts}):
        print(f'{reader:8}', ', '.join(f'{counts[reader, o]:,} {o}' for o in ('read', 'refused', 'fault')))
    print(f'{sum(counts.values()):,} files; most memory beyond the true data: {most[0]:.0f} MB (case {most[1]}); '
          f'longest: {longest[0]:.1f} s (case {longest[1]})')
    print(*(faults or ['no fault']), sep='\n')
    sys.exit(bool(faults))

if __name__ == '__main__': main()
