"Exercises on the data: bytes, gray levels, pairs of images and labels."
import numpy as np
import torch
from fb_pass.datasets import DataError, parse_idx
from .asking import exercise

@exercise('00.4', 'Write the bytes of an IDX file with the three labels 7, 1, 4: `bytes([0, 0, 8, ...])`.',
    'Eleven bytes, and `parse_idx` reads them.', wrong=[
    ('four bytes', bytes([0, 0, 8, 1, 3, 7, 1, 4])), ('highest byte first', bytes([0, 0, 8, 1, 3, 0, 0, 0, 7, 1, 4])),
    ('magic number 2051', bytes([0, 0, 8, 3, 0, 0, 0, 3, 7, 1, 4])), ('the labels are', b'\0\0\x08\1\0\0\0\x03714')])
def label_file(answer):
    assert isinstance(answer, bytes), (f'Expected `bytes`, got {type(answer).__name__}: `bytes([0, 0, 8, 1])` are four '
        'of them.')
    try: labels = parse_idx(answer, 2049, 'Your file').tolist()
    except DataError as e: raise AssertionError(f'{e.args[0]}. After the magic number comes the length of the one '
        'axis, in four bytes, the highest byte first; then the labels.') from None
    assert labels == [7, 1, 4], f'It can be read, and the labels are {labels}.'

@exercise('00.1', 'Write `blend_mended(a, b)`, the mean of two arrays of `uint8`, without the bug.', 'First float, '
    'then arithmetic. That is why `get_data` converts before it divides.', wrong=[
    ('starts again at 0', lambda a, b: (a + b)/2), ('starts again at 0', lambda a, b: (a + b).astype(np.float32)/2),
    ('half a gray level', lambda a, b: a//2 + b//2), ('the mean', lambda a, b: a.astype(float) + b)])
def blend(answer):
    def blended(a, b): return np.asarray(answer(np.array(a, np.uint8), np.array(b, np.uint8)), float).tolist()
    got = blended([200, 10], [100, 20])
    assert got[0] != 22, ('Bytes 200 and 100 give 22: a byte ends at 255 and starts again at 0. Which operation comes '
        'first, the sum or the conversion?')
    assert got == [150, 15], f'Bytes [200, 10] and [100, 20] give {got}; the mean of 200 and 100 is 150.'
    got = blended([101], [100])
    assert got == [100.5], f'Bytes 101 and 100 give {got[0]}: half a gray level is lost. In which step?'

def _draws(x, y): i = torch.randint(len(x), (len(x),)); return x[i], y[i]

@exercise('00.3', 'Write `shuffle_pairs(x, y)`, which returns both in the same random order.', 'One order for both. '
    'With two different orders, the nearest mean would be right about once in ten.', wrong=[
    ('have come apart', lambda x, y: (x[torch.randperm(len(x))], y[torch.randperm(len(y))])),
    ('have come apart', lambda x, y: (x[torch.randperm(len(x))], y)), ('missing', _draws),
    ('still in the old order', lambda x, y: (x, y))])
def shuffle_pairs(answer):
    y = torch.arange(100); x = y[:,None].float().expand(100, 4)/256
    new = answer(x, y)
    pair = isinstance(new, (tuple, list)) and len(new) == 2 and all(isinstance(o, torch.Tensor) for o in new)
    assert pair, 'Return two tensors, the images and the labels.'
    got, want = [tuple(o.shape) for o in new], [tuple(x.shape), tuple(y.shape)]
    assert got == want, f'The shapes are {got[0]} and {got[1]}, expected {want[0]} and {want[1]}.'
    apart, missing = int((new[0][:,0]*256 != new[1]).sum()), 100 - len(new[1].unique())
    assert not apart, f'{apart} of 100 images and labels have come apart: draw the order once, and use it twice.'
    assert not missing, f'{missing} images are missing and others are there twice: `torch.randperm` takes each once.'
    assert not torch.equal(new[1], y), 'They are still in the old order.'
