"""Draw every picture of `images/`: python tools/draw_images.py [folder]

Where a picture shows numbers, the package computes them here, with a fixed seed. tools/picture.py says how to draw.
"""
import json, sys
from math import ceil, log10
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fb_pass.backward import lin_grad, relu_grad
from fb_pass.checks import autograd_grad, check_grad
from fb_pass.forward import lin, relu
from fb_pass.initialization import kaiming_normal
from fb_pass.modules import Model
from picture import DASHES, GRAD, INK, LARGE, LIGHT, PALE, PARAM, SMALL, VALUE, WHITE, Picture, blend


# The whole project in one look

# A seven of ten by ten pixels, to be read row by row: white, gray, blue
SEVEN = '''
..........
.########.
.########.
.....+##+.
.....##+..
....+##...
....##+...
...+##....
...##+....
..........
'''.split()

def _tiny_network():
    "A network of six hidden units that looks at the seven: its tensors, with the gradients by hand in `.g`."
    g = torch.Generator().manual_seed(3)
    x = torch.tensor([['.+#'.index(o)/2 for row in SEVEN for o in row]], dtype=torch.float64)
    w1, w2 = (kaiming_normal(*shape, generator=g).double() for shape in ((100, 6), (6, 1)))
    b1, b2, targ = (torch.tensor(o, dtype=torch.float64) for o in ([.1]*6, [0.], [7.]))
    model = Model(w1, b1, w2, b2)
    model(x, targ)
    model.backward()
    return x, w1, b1, w2, b2, targ

def hero():
    x, w1, b1, w2, b2, targ = _tiny_network()
    l2 = relu(lin(x, w1, b1))
    auto = autograd_grad(lambda w: ((lin(relu(lin(x, w, b1)), w2, b2)[:,0] - targ)**2).mean(), w1)
    check_grad(w1.g, auto, rtol=1e-12, name='w1.g')
    unit = w1.g.sum(0).argmax().item() # one whose gradient is positive, so that a wrong sign stands out
    faulty = w1.g.clone()
    faulty[54,unit] *= -1
    try: check_grad(faulty, auto, name='w1.g')
    except AssertionError: pass
    else: raise AssertionError('the check did not catch a wrong sign')

    p = Picture('Forward, backward, and the check', '''A digit becomes a column of numbers x, goes through w1 and b1,
        ReLU, w2 and b2 to the loss. Values go forward along solid blue arrows, gradients come back along dashed red
        ones. Below, the gradient w1.g as a map: by hand and by autograd it is the same, and with one wrong sign the
        check fails.''', 466)
    xs, mid, cell = [62, 150, 250, 335, 411], 132, 9
    p.heat(xs[0], mid, x.reshape(10, 10).tolist(), cell, VALUE)
    p.text(xs[0], mid + 62, 'a digit', size=SMALL)
    p.arrow((112, mid), (136, mid))
    ins, hidden = [mid - 72 + 16*i for i in range(10)], [mid - 62.5 + 25*i for i in range(6)]
    def weight(a, b, w, i, j, more=0.):
        p.line(a, b, color=PARAM, lw=.3 + 1.6*abs(w[i,j].item())/w.abs().max().item() + more, zorder=1)
    for i, a in enumerate(ins):
        for j, b in enumerate(hidden): weight((xs[1], a), (xs[2], b), w1, 10*i + 6, j)
        fill = {1.: VALUE, .5: blend(VALUE, .5), 0.: LIGHT[VALUE]}[x[0,10*i + 6].item()]
        p.box(xs[1] - 8, a - 8, 16, 16, edge=VALUE, fill=fill, lw=1, r=1)
    for j, b in enumerate(hidden):
        weight((xs[2], b), (xs[3], mid), w2, j, 0, more=.5)
        p.disk(xs[2], b, 8.5, fill=VALUE if l2[0,j] > 0 else WHITE)
        if w1.g[:,j].any(): # ReLU lets the gradient through
            p.disk(xs[2], b, 12, fill='none', edge=GRAD, dashed=True)
    p.disk(xs[3], mid, 8.5, fill=VALUE)
    p.disk(xs[3], mid, 12, fill='none', edge=GRAD, dashed=True)
    p.arrow((349, mid), (382, mid))
    p.box(386, mid - 17, 50, 34)
    p.text(xs[4], mid, 'loss')
    for i, s in ((200, 'w1, b1'), (300, 'w2, b2')): p.text(i, mid + 94, s, size=SMALL, color=PARAM)
    for y, word, names, color in ((26, 'forward', ['x', 'l2', 'out', 'loss'], VALUE),
                                  (258, 'backward', ['x.g', 'l2.g', 'out.g', '1'], GRAD)):
        p.text(xs[0], y, word, color=color, weight='bold')
        for at, s in zip(xs[1:], names): p.text(at, y, s, color=color)
        for a, b, s, t in zip(xs[1:], xs[2:], names, names[1:]):
            ends = (a + 6 + 4*len(s), y), (b - 6 - 4*len(t), y)
            p.arrow(*(ends if color == VALUE else ends[::-1]), color=color, lw=3, head=10)
    p.rule(282)
    p.heading(306, 'check')
    p.note(70, 306, 'w1.g, the part for one unit of l2')
    y, at = 374, [74, 225, 376]
    for a, w, name in zip(at, (w1.g, auto, faulty), ('by hand', 'by autograd', 'one wrong sign')):
        p.heat(a, y, w[:,unit].reshape(10, 10).tolist(), cell, GRAD)
        p.text(a, y + 66, name, size=SMALL)
    a = (at[0] + at[1])/2
    p.line((a - 13, y - 14), (a - 4, y - 4), (a + 14, y - 26), color=INK, lw=4.5)
    p.text(a, y + 12, 'equal', size=SMALL)
    a = (at[1] + at[2])/2
    for d in (-1, 1): p.line((a - 11, y - 15 - 11*d), (a + 11, y - 15 + 11*d), color=INK, lw=4.5)
    p.text(a, y + 12, 'caught', size=SMALL)
    return p


# The network of one hidden layer

def _tensor(p, x, y, name, shape, color=VALUE, grad=False, w=62):
    "A tensor centered at `x, y`, its gradient in the lower half of the box."
    half = 46 if grad else 24
    p.box(x - w/2, y - half, w, 2*half, edge=color, lw=2.6 if color == PARAM else 1.5)
    for dy, label, c in [(-23 if grad else 0, name, color)] + ([(23, f'{name}.g', GRAD)] if grad else []):
        p.text(x, y + dy - 9, label, color=c, weight='bold')
        p.text(x, y + dy + 11, shape, size=SMALL)
    if grad: p.line((x - w/2 + 5, y), (x + w/2 - 5, y), color=GRAD, lw=1.2, dashed=True)

NETWORK = '''x goes through a linear layer with w1 and b1 to l1, through ReLU to l2, through a second linear layer
    with w2 and b2 to out, and the mean squared error compares out with targ and gives the loss.'''
BACK = '''Beside each blue arrow a dashed red one leads back, from the loss, which starts with 1, to out.g, l2.g, l1.g
    and x.g, and from the linear layers to the gradients of their weights and biases. Each gradient has the shape of
    its tensor.'''

def network(grad):
    half, op = (46, 40) if grad else (24, 22)
    c = [45 + 90*i for i in range(5)]
    y0 = 14 + half; y1 = y0 + 2*half + 42; y2 = y1 + 2*half + 44; y3 = y2 + 2*half + 42
    p = Picture('Forward and backward pass of the network, with shapes' if grad else 'The network, with shapes',
                f'{NETWORK} {BACK if grad else "With the shape of each."}', y3 + half + 14)
    def flow(a, b, apart=40):
        "Values from `a` to `b`, and the gradient back."
        if grad: p.both(a, b, apart=apart)
        else: p.arrow(a, b)
    def operation(i, y, name):
        p.box(c[i] - 36, y - op, 72, 2*op, edge=INK, r=18)
        if not grad: return p.text(c[i], y, name)
        p.text(c[i], y - 20, name)
        p.text(c[i], y + 20, f'{name}_grad', size=SMALL, color=GRAD)
    def param(x, w, y, name, shape, at, toward):
        _tensor(p, x, y, name, shape, color=PARAM, grad=grad, w=w)
        start, end, d = y + toward*(half + 3), (y1 - op - 3 if toward > 0 else y2 + op + 3), 6.5 if grad else 0
        p.arrow((at - d, start), (at - d, end), color=PARAM)
        if grad: p.arrow((at + d, end), (at + d, start), color=GRAD)
    param(96, 80, y0, 'w1', '(784, 50)', 119, 1)
    param(180, 66, y0, 'b1', '(50,)', 154, 1)
    for i, name, n in ((0, 'x', 784), (2, 'l1', 50), (4, 'l2', 50)): _tensor(p, c[i], y1, name, f'(n, {n})', grad=grad)
    operation(1, y1, 'lin'); operation(3, y1, 'relu')
    def edge(i, row): return 33 if i % 2 == row else 38 # from the middle of a tensor or an operation to its arrow
    for i in range(4): flow((c[i] + edge(i, 0), y1), (c[i+1] - edge(i+1, 0), y1))
    flow((c[4], y1 + half + 3), (c[4], y2 - op - 3), apart=16)
    operation(4, y2, 'lin'); operation(2, y2, 'mse')
    _tensor(p, c[3], y2, 'out', '(n, 1)', grad=grad)
    _tensor(p, c[1], y2, 'loss', '()')
    for i in (4, 3, 2): flow((c[i] - edge(i, 1), y2), (c[i-1] + edge(i-1, 1), y2))
    if grad: p.text(c[1] - 4, y2 + 38, 'start with 1', size=SMALL, color=GRAD)
    param(354, 74, y3, 'w2', '(50, 1)', 382, -1)
    param(419, 46, y3, 'b2', '(1,)', 420, -1)
    _tensor(p, c[2], y3 - half + 24, 'targ', '(n,)')
    p.arrow((c[2], y3 - half - 3), (c[2], y2 + op + 3))
    p.legend(14, y3 - half + 12, ('values', VALUE), ('parameters', PARAM), *([('gradients', GRAD)] if grad else []))
    return p


# The gradients of a linear layer

DIMS = {'n': 4, 'n_in': 6, 'n_out': 3, '1': 1}

def _block(p, x, y, name, *dims, color, cell=15):
    "A tensor as a block of cells centered at `x, y`, its shape beneath. Returns its left, top, right and bottom."
    rows, cols = DIMS[dims[-2]] if len(dims) > 1 else 1, DIMS[dims[-1]]
    left, top = x - cols*cell/2, y - rows*cell/2
    narrow = rows == 1 or cols == 1
    p.matrix(left, top, rows, cols, cell, color, '' if narrow else name)
    if narrow: p.text(x, top - 13, name, color=color, weight='bold')
    p.text(x, top + rows*cell + 14, f"({', '.join(dims)}{',' if len(dims) == 1 else ''})", size=SMALL)
    return left, top, left + cols*cell, top + rows*cell

def _product(p, xa, xb, y, a, b):
    "Two blocks to be multiplied; the dimension that they share is drawn thick."
    shared = a[2]
    l, t, right, _ = _block(p, xa, y, *a[:3], color=a[3])
    p.line((l, t), (right, t), lw=4.5, zorder=5)
    p.text((l + right)/2, t - 13, shared, size=SMALL, weight='bold')
    l, t, _, bottom = _block(p, xb, y, *b[:3], color=b[3])
    p.line((l, t), (l, bottom), lw=4.5, zorder=5)
    p.upright(l - 7, (t + bottom)/2, shared, weight='bold')
    p.text((right + l - 18)/2, y, '@', size=LARGE)

def matmul_grad():
    p = Picture('The gradients of a linear layer, as blocks', '''Forward: out is x times w, and b is added to each of
        the n rows. Backward: x.g is g times w transposed, where n_out meets n_out; w.g is x transposed times g, where
        n meets n; b.g are the sums of the columns of g. What does not meet is the shape of the result.''', 668)
    p.heading(24, 'forward', color=VALUE)
    y = 96
    _block(p, 46, y, 'out', 'n', 'n_out', color=VALUE)
    p.text(88, y, '=', size=LARGE)
    _product(p, 151, 268, y, ('x', 'n', 'n_in', VALUE), ('w', 'n_in', 'n_out', PARAM))
    p.text(318, y, '+', size=LARGE)
    for i in range(1, 4): p.matrix(350, y - 30 + 15*i, 1, 3, 15, PALE)
    p.matrix(350, y - 30, 1, 3, 15, PARAM, zorder=4)
    p.text(372, y - 43, 'b', color=PARAM, weight='bold')
    p.text(372, y + 44, '(n_out,)', size=SMALL)
    p.note(402, y + 1, 'n', weight='bold')
    p.note(402, y + 17, 'times')
    p.rule(176)
    p.heading(200, 'backward', color=GRAD)
    p.text(434, 200, 'g is out.g, with the shape of out', size=SMALL, color=GRAD, ha='right')
    def result(y, name, *dims):
        _block(p, 70, y, name, *dims, color=GRAD)
        p.text(136, y, '=', size=LARGE)
    y = 268
    result(y, 'x.g', 'n', 'n_in')
    _product(p, 186, 316, y, ('g', 'n', 'n_out', GRAD), ('w.t()', 'n_out', 'n_in', PARAM))
    p.note(16, y + 72, 'n_out meets n_out. What is left has the shape of x.')
    y = 424
    result(y, 'w.g', 'n_in', 'n_out')
    _product(p, 196, 310, y, ('x.t()', 'n_in', 'n', VALUE), ('g', 'n', 'n_out', GRAD))
    p.note(16, y + 86, 'n meets n: the sum over the batch. Left: the shape of w.')
    y = 588
    result(y, 'b.g', 'n_out')
    l, t, r, bottom = _block(p, 190, y, '', 'n', 'n_out', color=GRAD)
    for i in range(3): p.arrow((l + 7.5 + 15*i, t + 6), (l + 7.5 + 15*i, bottom - 3), color=GRAD, lw=1.6, head=7)
    p.text(190, t - 13, 'g', color=GRAD, weight='bold')
    p.note(236, y, 'g.sum(0)', weight='bold')
    p.note(16, y + 64, 'b was added to n rows: n answers come back, and add up.')
    return p

def memory(*dims):
    "What a float32 tensor of this shape takes, in words."
    size = 4
    for d in dims: size *= d
    for unit, scale in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if size >= scale: return f'{size/scale:.3g} {unit}'

def outer_vs_matmul():
    n, n_in, n_out = 50_000, 784, 50
    many, one = memory(n, n_in, n_out), memory(n_in, n_out)
    p = Picture('The gradient of a weight matrix: a stack of outer products, or one matrix product', f'''Above: for
        each of {n:,} examples a table x[i] times g[i]; the stack of them takes {many}, and then it is summed. Below:
        one matrix product of x transposed and g gives the same table of {one} at once. Two bars compare the
        memory.''', 626)
    p.heading(26, 'n outer products, then their sum')
    y = 138
    _block(p, 42, y, 'x[i]', 'n_in', '1', color=VALUE)
    p.text(78, y + 3, '*', size=LARGE)
    _block(p, 118, y, 'g[i]', '1', 'n_out', color=GRAD)
    p.text(160, y, '=', size=LARGE)
    for i in range(5): p.matrix(184 + 12*i, y - 69 + 12*i, 6, 3, 15, GRAD, zorder=2 + i)
    p.text(232, y + 86, '(n, n_in, n_out)', size=SMALL)
    p.text(232, y + 108, many, size=LARGE, weight='bold')
    p.text(322, y - 15, 'sum(0)', size=SMALL)
    p.arrow((292, y), (352, y), color=INK)
    _block(p, 394, y, 'w.g', 'n_in', 'n_out', color=GRAD)
    p.text(394, y + 86, one, size=LARGE, weight='bold')
    p.rule(268)
    p.heading(294, 'one matrix product: no stack')
    y = 374
    _product(p, 76, 200, y, ('x.t()', 'n_in', 'n', VALUE), ('g', 'n', 'n_out', GRAD))
    p.text(290, y, '=', size=LARGE)
    _block(p, 394, y, 'w.g', 'n_in', 'n_out', color=GRAD)
    p.text(394, y + 86, one, size=LARGE, weight='bold')
    p.note(16, y + 86, "x.t() @ g, or einsum('ij,ik->jk', x, g)")
    p.rule(486)
    p.heading(510, 'memory of what is made')
    for y, s, share in ((540, f'the stack: {many}, {n:,} times as much', 1), (576, f'the matrix product: {one}', 1/n)):
        width = max(418*share, 1.6) # to scale, the second would not be seen at all
        p.box(16, y - 11, width, 22, edge=GRAD, dashed=share == 1, r=1)
        p.note(27, y, s)
    p.note(16, 606, f'n = {n:,}, n_in = {n_in}, n_out = {n_out}, float32')
    return p


# Initialization

def _moments(size, depth=50, width=256, n=200):
    "Mean squares of the activations after each layer and of their gradients, for weights of He's size times `size`."
    g = torch.Generator().manual_seed(42)
    acts, outs = [torch.randn(n, width, generator=g).double()], []
    ws = [kaiming_normal(width, width, generator=g).double()*size for _ in range(depth)]
    b = torch.zeros(width, dtype=torch.float64)
    for w in ws:
        outs.append(lin(acts[-1], w, b))
        acts.append(relu(outs[-1]))
    acts[-1].g = torch.randn(n, width, generator=g).double()
    for w, inp, mid, out in zip(ws[::-1], acts[-2::-1], outs[::-1], acts[:0:-1]):
        relu_grad(mid, out)
        lin_grad(inp, mid, w, b)
    return [[t.pow(2).mean().item() for t in ts] for ts in (acts, [a.g for a in acts])]

def kaiming_depth():
    p = Picture('The size of activations and gradients by depth, for three sizes of weights', '''Two charts over fifty
        layers, on a logarithmic scale. With weights of variance 2/n_in the mean of the squares stays near 1, forward
        for the activations and backward for the gradients. With half that variance it is halved in every layer, with
        twice that variance doubled.''', 630)
    p.heading(26, 'weights of variance 2/n_in keep the size')
    p.note(16, 48, 'fifty layers of 256 units with ReLU')
    sizes = [('4/n_in', 2**.5, 's'), ('2/n_in', 1., 'o'), ('1/n_in', .5**.5, '^')]
    runs = [_moments(size) for _, size, _ in sizes]
    for (_, size, _), (acts, grads) in zip(sizes, runs): # as described: size**2 in each of fifty layers, but for luck
        for o in (acts[-1]/acts[0], grads[0]/grads[-1]): assert abs(log10(o) - 100*log10(size)) < 1.5, f'{size}: {o}'
    ways = (102, VALUE, 'forward: activations'), (376, GRAD, 'backward: gradients')
    for way, (top, color, what) in enumerate(ways):
        p.heading(top - 18, f'{what}, mean of squares', size=SMALL, color=color)
        # names stand where the curves end
        ax_x, name_x, end, ha, ls = (86, 78, 0, 'right', DASHES) if way else (64, 372, -1, 'left', '-')
        ax = p.axes(ax_x, top, 300, 190, right=bool(way))
        ax.set(xlim=(0, 50), ylim=(-18, 18), xticks=range(0, 51, 10), yticks=(-15, 0, 15))
        ax.set(yticklabels=('1e\u221215', '1', '1e15'))
        for (name, _, mark), run in zip(sizes, runs):
            logs = [round(log10(o), 3) for o in run[way]]
            ax.plot(range(51), logs, color=color, lw=2.2, ls=ls, marker=mark, ms=8, mfc=WHITE, mew=1.8,
                    markevery=(5, 10), clip_on=False)
            p.text(name_x, top + 190*(.5 - logs[end]/36), name, size=SMALL, ha=ha)
        p.text(ax_x + 150, top + 226, 'layer', size=SMALL)
        ends = (ax_x + 178, top + 226), (ax_x + 240, top + 226)
        p.arrow(*(ends[::-1] if way else ends), color=color)
    return p


# Broadcasting

def broadcast_trap():
    output, targ, cell = [1, 2, 3, 4], [2, 3, 4, 5], 25
    n = len(targ); side = n*cell
    p = Picture('Broadcasting: (n,1) - (n,) is (n,n)', '''Above: the column output minus the row targ is stretched to
        a square of n times n differences, and the mean of their squares is wrong. Below: the row output[:,0] minus
        the row targ has n differences, and the mean is right.''', 402)
    show = lambda o: f'{o:g}'.replace('-', '\u2212')
    left = [16, 140, 264]
    def equation(y, names, shapes, height):
        for x, name, shape in zip(left, names, shapes):
            p.text(x + side/2, y - 36, name, color=VALUE, weight='bold')
            p.text(x + side/2, y - 15, shape, size=SMALL)
        p.text(128, y + height/2, '\u2212', size=LARGE)
        p.text(252, y + height/2, '=', size=LARGE)
    def copies(x, y, cells):
        "What broadcasting puts beside a column or below a row."
        p.box(x, y, side, side, edge=PALE, fill='none', dashed=True, lw=1.2, r=0, zorder=1)
        for i, j, o in cells: p.text(x + (j+.5)*cell, y + (i+.5)*cell, show(o), size=SMALL, color=PALE)
    def block(x, y, values, **kw): p.table(x, y, [[show(o) for o in row] for row in values], cell, **kw)
    def verdict(y, word, diffs):
        p.text(405, y - 32, word, weight='bold')
        for dy, s in ((-10, 'mean of'), (8, 'squares')): p.text(405, y + dy, s, size=SMALL)
        p.text(405, y + 33, f'{sum(o*o for o in diffs)/len(diffs):g}', size=LARGE, weight='bold')

    p.heading(26, 'The trap: a column minus a row')
    y = 92
    equation(y, ('output', 'targ', ''), ('(n, 1)', '(n,)', '(n, n)'), side)
    copies(left[0], y, [(i, j, output[i]) for i in range(n) for j in range(1, n)])
    copies(left[1], y, [(i, j, targ[j]) for i in range(1, n) for j in range(n)])
    block(left[0], y, [[o] for o in output], color=VALUE)
    block(left[1], y, [targ], color=VALUE)
    grid = [[a - b for b in targ] for a in output]
    block(left[2], y, grid, color=INK, strong=lambda i, j: i == j)
    verdict(y + side/2, 'wrong', [o for row in grid for o in row])
    p.note(16, y + side + 20, 'gray: the copies that broadcasting adds', color=PALE)
    p.rule(236)
    p.heading(262, 'What was meant: a row minus a row')
    y = 330
    equation(y, ('output[:,0]', 'targ', ''), ('(n,)', '(n,)', '(n,)'), cell)
    diffs = [a - b for a, b in zip(output, targ)]
    block(left[0], y, [output], color=VALUE)
    block(left[1], y, [targ], color=VALUE)
    block(left[2], y, [diffs], color=INK)
    verdict(y + cell/2, 'right', diffs)
    return p


# Finite differences

def finite_difference():
    p = Picture('The central difference', '''A curve with its tangent at x, dashed, and the line through its points at
        x minus eps and x plus eps. The two run almost parallel.''', 366)
    f = lambda x: .25*x**3 - .3*x + 1
    slope = lambda x: .75*x**2 - .3
    x, eps = 1.15, .8
    secant = (f(x+eps) - f(x-eps))/(2*eps)
    at = lambda a, b: (44 + 160*(a + .05), 318 - 82*(b - .3))
    lo, hi = .0, 2.38
    p.arrow((24, 318), (436, 318), color=INK, lw=1.4)
    p.line(*[at(lo + (hi - lo)*i/80, f(lo + (hi - lo)*i/80)) for i in range(81)], color=VALUE, lw=3)
    p.line(*[at(o, f(x) + slope(x)*(o - x)) for o in (x - .95, x + .965)], color=GRAD, lw=2.4, dashed=True)
    p.line(*[at(o, f(x-eps) + secant*(o - x + eps)) for o in (x - 1.0, x + 1.0)], color=INK, lw=2)
    for o, s in ((x-eps, 'x \u2212 eps'), (x, 'x'), (x+eps, 'x + eps')):
        px, py = at(o, f(o))
        p.line((px, py), (px, 318), lw=1, color=PALE)
        p.disk(px, py, 6, fill=WHITE if o == x else VALUE, lw=2, zorder=5)
        p.text(px, 338, s)
    px, py = at(x-eps, f(x-eps)); p.text(px - 12, py - 24, 'f(x \u2212 eps)', color=VALUE)
    px, py = at(x+eps, f(x+eps)); p.text(px - 14, py - 4, 'f(x + eps)', color=VALUE, ha='right')
    p.line((16, 30), (46, 30), color=GRAD, lw=2.4, dashed=True)
    p.text(54, 30, 'tangent: its slope is the gradient', color=GRAD, ha='left')
    p.line((16, 58), (46, 58), color=INK, lw=2)
    p.text(54, 58, 'secant: its slope is', ha='left')
    p.text(54, 82, '(f(x + eps) \u2212 f(x \u2212 eps)) / (2 eps)', ha='left')
    return p


# Closures

def closures():
    p = Picture('Closures: every forward leaves a function behind that remembers the way back', '''Three layers in a
        row. Each forward hands its output on and returns a function backward, drawn as a box that keeps what it
        needs: X and w, or where X was positive. From the loss the gradient Yg goes through these functions from the
        last to the first, and each linear one adds to weights.gradient and bias.gradient.''', 424)
    c, w, top, low, end = [102, 216, 330], 92, 88, 226, 362
    p.note(16, 26, 'forward: each layer leaves a function behind', color=VALUE)
    p.text(20, top, 'X', size=LARGE, color=VALUE, weight='bold')
    p.text(20, low, 'Xg', size=LARGE, color=GRAD, weight='bold')
    for x, name, kept in zip(c, ('Linear', 'Relu', 'Linear'), ('X and w', 'X > 0', 'X and w')):
        p.box(x - w/2, top - 28, w, 56, edge=VALUE)
        p.text(x, top - 10, name, color=VALUE, weight='bold')
        p.text(x, top + 12, 'forward', size=SMALL)
        p.arrow((x, top + 30), (x, low - 50), color=INK, lw=1.4)
        p.box(x - w/2, low - 48, w, 96, edge=GRAD, dashed=True)
        p.text(x, low - 30, 'backward', color=GRAD, weight='bold')
        p.box(x - w/2 + 8, low - 13, w - 16, 52, edge=VALUE, fill=WHITE, lw=1.2)
        p.text(x, low + 3, 'keeps', size=SMALL)
        p.text(x, low + 23, kept, size=SMALL, color=VALUE, weight='bold')
    p.note(c[0] + 8, (top + low)/2 - 10, 'returns')
    p.box(398, top - 18, 44, 36, edge=INK)
    p.text(420, top, 'loss')
    for a, b in ((37, c[0] - w/2 - 2), *((a + w/2 + 2, b - w/2 - 2) for a, b in zip(c, c[1:]))):
        p.arrow((a, top), (b, top))
        p.arrow((b, low), (a, low), color=GRAD)
    p.arrow((c[2] + w/2 + 2, top), (396, top))
    p.arrow((420, top + 20), (420, low), (c[2] + w/2 + 2, low), color=GRAD)
    p.text(412, low - 62, 'Yg', color=GRAD, weight='bold', ha='right')
    for x in (c[0], c[2]):
        p.arrow((x, low + 51), (x, end - 29), color=GRAD)
        p.note(x + 10, (low + end)/2 + 8, 'adds', color=GRAD)
        p.box(x - 62, end - 26, 124, 52, edge=PARAM, lw=2.6)
        p.text(x, end - 11, 'weights.gradient', size=SMALL, color=GRAD)
        p.text(x, end + 11, 'bias.gradient', size=SMALL, color=GRAD)
    p.text(434, 406, 'backward: call these functions, last one first', size=SMALL, color=GRAD, ha='right')
    return p


# Speed, as `make bench` has measured it

def speed():
    kept = json.loads((Path(__file__).resolve().parent.parent/'results'/'speed.json').read_text(encoding='utf-8'))
    case = kept['cases']['784-50-10, batch of 64']
    rows = sorted((o['median']/case['ours']['median'], k) for k, o in case.items())
    bars, most = 66, max(1., rows[-1][0])
    charts = [(name, kept['growth'][name]) for name in ('batch', 'width', 'depth')]
    top = bars + 30*len(rows) + 118
    times = ', '.join(f'{k} {r:.2f}' for r, k in rows)
    p = Picture('The time of one training step', f'''Above: bars for the time of one step of 784-50-10 with a batch of
        64, as multiples of ours: {times}. Below: how the time grows with the batch, the width and the depth, on
        logarithmic axes, for ours, readable and recorded, for torch, and for the products alone.''', top + 3*206 + 4)
    p.heading(26, 'one step of 784-50-10, batch of 64')
    p.note(16, 48, 'time as a multiple of ours')
    for i, (r, k) in enumerate(rows):
        y, mine = bars + 30*i, k.startswith('ours')
        p.note(16, y + 11, k, color=VALUE if mine else INK, weight='bold' if mine else 'normal')
        p.box(190, y, 200*r/most, 22, edge=VALUE if mine else PALE, fill=VALUE if mine else None, r=1)
        p.text(200 + 200*r/most, y + 11, f'{r:.2f}', size=SMALL, ha='left', color=VALUE if mine else INK)
    p.rule(top - 100)
    p.heading(top - 76, 'how the time grows')
    styles = {k: dict(color=color, marker=mark, ls=ls, lw=2, ms=7, mfc=WHITE, mew=1.6) for k, color, mark, ls in (
        ('ours', VALUE, 'o', '-'), ('ours, compile_step', VALUE, 'D', DASHES), ('torch eager', GRAD, 's', DASHES),
        ('all matrix products', PALE, '^', (0, (1, 2))))}
    for i, (k, style) in enumerate(styles.items()):
        x, y = 16 + 170*(i % 2), top - 52 + 26*(i//2)
        p.ax.plot([x, x + 22], [y]*2, markevery=[1], **style)
        p.note(x + 32, y, k, color=style['color'])
    for i, (name, o) in enumerate(charts):
        y = top + 206*i
        ax = p.axes(64, y, 300, 140)
        least = min(min(o[k]['seconds']) for k in styles)
        logs = {k: [log10(t/least) for t in o[k]['seconds']] for k in styles}
        for k, style in styles.items(): ax.plot(range(len(o['at'])), logs[k], clip_on=False, **style)
        tall = max(1, ceil(max(map(max, logs.values()))))
        ax.set(xlim=(0, len(o['at']) - 1), xticks=range(len(o['at'])), xticklabels=o['at'])
        ax.set(ylim=(0, tall), yticks=range(tall + 1), yticklabels=[f'{10**t}x' for t in range(tall + 1)])
        ax.tick_params(axis='x', pad=9)
        words = dict(batch='examples in a batch', width='hidden units', depth='hidden layers')
        p.text(214, y + 182, words[name], size=SMALL)
    return p


# The convolutional network

def _kept_cnn():
    path = Path(__file__).resolve().parent.parent/'results'/'cnn.json'
    return json.loads(path.read_text(encoding='utf-8'))['figures']

def _map(p, x, y, values, cell, top, gap=0.):
    "A map of numbers with its upper left corner at `x, y`, positive ones blue, negative ones red."
    levels = {}
    for i, row in enumerate(values):
        for j, o in enumerate(row): levels.setdefault(round(4*o/top), []).append((x + j*cell, y + i*cell))
    for level, corners in sorted(levels.items()):
        if level: p.squares(corners, cell - gap, blend(VALUE if level > 0 else GRAD, abs(level)/4))

def cnn_filters():
    filters = _kept_cnn()['filters']
    p = Picture('Filters of the first layer', '''The eight kernels of the first convolution after training, as maps of
        five by five weights, positive ones blue and negative ones red. Most of them have a positive and a negative
        side: they respond to strokes and edges of one direction.''', 282)
    p.heading(26, 'What the first layer looks for')
    top, cell = max(abs(v) for f in filters for row in f for v in row), 16
    for k, f in enumerate(filters):
        x, y = 32 + 104*(k % 4), 52 + 98*(k//4)
        _map(p, x, y, f, cell, top, gap=.6)
        p.frame(x, y, 5*cell, 5*cell, PARAM)
    p.note(16, 262, 'blue: positive weights; red: negative ones')
    return p

def cnn_wrong():
    wrong = _kept_cnn()['wrong']
    p = Picture('Wrong answers of the network', '''Twelve digits of the validation set that the network got wrong and
        was surest of. Below each stand its label, the answer of the network, and the probability that it gave.''', 474)
    p.heading(26, 'Surest, and wrong')
    cell = 3
    for k, o in enumerate(wrong):
        x, y = 24 + 106*(k % 4), 46 + 140*(k//4)
        _map(p, x, y, [o['pixels'][28*i:28*i+28] for i in range(28)], cell, 255)
        p.frame(x, y, 28*cell, 28*cell, VALUE)
        p.text(x + 14*cell, y + 28*cell + 14, f"{o['label']}, said {o['said']}", size=SMALL)
        p.text(x + 14*cell, y + 28*cell + 33, f"{100*o['sure']:.1f} %", size=SMALL, color=PALE)
    return p


PICTURES = {f.__name__: f for f in (hero, matmul_grad, outer_vs_matmul, kaiming_depth, broadcast_trap,
                                    finite_difference, closures, speed, cnn_filters, cnn_wrong)}
PICTURES |= {'network': lambda: network(False), 'network_backward': lambda: network(True)}

def draw_all(folder):
    "Draw every picture into `folder`."
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items(): draw().save(folder/f'{name}.svg')

if __name__ == '__main__':
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent/'images'
    draw_all(folder)
    print(f'{len(PICTURES)} pictures in {folder.name}/')
