"Exercises on convolution: gradients on paper, a backward that sums blocks, and a transposed convolution."
import torch, torch.nn.functional as F
from fb_pass.checks import autograd_grad
from .asking import ask, exercise, rand, rands

def kernel_grad_on_paper():
    "Measured: the gradient of the kernel of the first exercise."
    x = torch.tensor([[1., 0., 2.], [0., 3., 0.], [4., 0., 5.]])[None,None]
    g,w = torch.tensor([[1., 0.], [0., -1.]]),torch.zeros(1, 1, 2, 2)
    got = autograd_grad(lambda w: (F.conv2d(x, w)*g).sum(), w)
    return tuple(tuple(int(v) for v in row) for row in got[0,0])

def parameters_of_both():
    "Counted: a convolution from 8 to 16 channels by 3x3, and a linear layer between images of the same sizes."
    conv,linear = torch.nn.Conv2d(8, 16, 3, padding=1),(8*14*14, 16*14*14)
    return sum(p.numel() for p in conv.parameters()), linear[0]*linear[1] + linear[1]

def _enlarge(x): return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

@exercise('23.2', 'Write `enlarge_grad(g)`: from the gradient of the enlarged image, that of the image.',
    'Every pixel was used four times, and what is used several times adds up its gradients.', slips={
    'A sum, not a mean: each of the four uses has its own share in the loss.': lambda g: F.avg_pool2d(g, 2),
    'All four pixels of a block came from one, not only the first of them.': lambda g: g[:,:,::2,::2],
    'The largest of four is no sum: why should the other three not count?': lambda g: F.max_pool2d(g, 2)}, wrong=[
    ('shape', lambda g: g)])
def enlarge_grad(answer):
    x,g = rands((2, 3, 4, 5), (2, 3, 8, 10))
    want = autograd_grad(lambda x: (_enlarge(x)*g).sum(), x)
    yield ask(answer(g), want, 'x.g', 'To which pixel does each entry of `g` belong?', values=dict(g=g))

def _back(g, w): return F.conv2d(F.pad(g, (w.shape[3]-1,)*2 + (w.shape[2]-1,)*2), w.flip(2, 3).transpose(0, 1))

@exercise('23.4', 'Write `transposed(g, w)`, the gradient of the image of a convolution, without `conv_transpose2d`, '
    '`fold` or autograd.', 'The border makes room for the pixels at the edge, the kernel is turned, and the channels '
    'change places.', slips={
    'Turn the kernel: the first weight of a patch belongs to the last place that a pixel has in it.':
        lambda g, w: F.conv2d(F.pad(g, (w.shape[3]-1,)*2 + (w.shape[2]-1,)*2), w.transpose(0, 1)),
    'Turned by 180 degrees, that is along rows and columns; along one of them it is a mirror image.':
        lambda g, w: F.conv2d(F.pad(g, (w.shape[3]-1,)*2 + (w.shape[2]-1,)*2), w.flip(3).transpose(0, 1))}, wrong=[
    ('border', lambda g, w: F.conv2d(g, w.flip(2, 3).transpose(0, 1))), ('tensor', lambda g, w: None)])
def transposed(answer):
    for shape,size in (((2, 3, 6, 7), (4, 3, 3, 2)), ((1, 1, 5, 5), (2, 1, 3, 3))):
        w = rand(*size)
        g = rand(shape[0], size[0], shape[2] - size[2] + 1, shape[3] - size[3] + 1)
        got = answer(g, w)
        assert isinstance(got, torch.Tensor), 'Return the gradient, a tensor.'
        want = _back(g, w)
        assert got.shape == want.shape, (f'The image is {tuple(want.shape)}, and the answer {tuple(got.shape)}. `g` is '
            'smaller than the image: it needs a border of zeros, as wide as a kernel less one.')
        yield ask(got, want, 'x.g', 'Which weight meets which entry of `g`?', values=dict(g=g, w=w))
