"""Draw every picture of `images/`: python tools/draw_images.py [folder]

One visual language. Values are blue with a thin solid line, parameters green with a thick one, gradients red and dashed, so that the
pictures can be read without color. All lengths are in points, y grows downwards, and 540 points are the whole width: text of 14 points is
still legible on a phone. The same bytes come out every time.
"""
import re, sys
from pathlib import Path

import matplotlib
matplotlib.rcdefaults()
matplotlib.use('svg')
import matplotlib.pyplot as plt
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

VALUE, GRAD, PARAM, INK, PALE = '#2a6f97', '#c1121f', '#6a994e', '#444444', '#767676'
LIGHT = {VALUE: '#e3eef5', GRAD: '#fdeced', PARAM: '#ebf3e5', INK: '#f1f1f1'}
TEXT_COLOR = {PARAM: '#4f7a36'} # the green of the parameters, dark enough for letters
WIDTH = 540
SMALL, TEXT, LARGE = 14, 16, 19

# The path of a batch, room by room; a later room is one more line here. The guard stands around all of them.
PATH = [
    '00 datasets',
    '02 normalization',
    '03 initialization',
    '04 forward',
    '05 backward',
    '06 modules',
    '07 autograd',
    '08 closures',
    '09 training',
    '10 library',
    '11 budgets',
    '12 tracing',
    '13 diagnosis',
    '14 adapters',
    '15 doctor',
]
GUARD = '01 checks'


class Picture:
    "A white panel with rounded corners, 540 points wide, to draw on."
    def __init__(self, title, height):
        self.title, self.height = title, height
        self.fig = plt.figure(figsize=(WIDTH/72, height/72), facecolor='none')
        self.ax = self.fig.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.ax.axis('off')
        self.box(0, 0, WIDTH, height, fill='#ffffff', lw=0, r=12, zorder=0)

    def add(self, patch):
        patch.set_clip_on(False)
        self.ax.add_patch(patch)

    def text(self, x, y, s, size=TEXT, color=INK, weight='normal', ha='center', **kw):
        "One line of text, centered at height `y`."
        self.ax.text(x, y + .36*size, s, size=size, color=TEXT_COLOR.get(color, color), weight=weight, ha=ha, va='baseline', zorder=9, **kw)

    def box(self, x, y, w, h, edge=INK, fill=None, dashed=False, lw=1.5, r=5, zorder=2):
        "A box with its upper left corner at `x, y`."
        self.add(FancyBboxPatch((x, y), w, h, boxstyle=f'round,pad=0,rounding_size={r}', fc=LIGHT[edge] if fill is None else fill,
                               ec=edge if lw else 'none', lw=lw, ls=(0, (4, 2.5)) if dashed else '-', zorder=zorder))

    def line(self, *points, color=INK, dashed=False, lw=2, zorder=3):
        self.ax.plot(*zip(*points), color=color, lw=lw, ls=(0, (3, 1.6)) if dashed else '-', solid_joinstyle='round', zorder=zorder, clip_on=False)

    def arrow(self, *points, color=VALUE, lw=2.2, head=8):
        "A line through `points` with a head at the last of them; that of a gradient is dashed."
        (x0, y0), (x1, y1) = points[-2:]
        d = ((x1-x0)**2 + (y1-y0)**2)**.5
        ux, uy = (x1-x0)/d, (y1-y0)/d
        bx, by = x1 - head*ux, y1 - head*uy
        self.line(*points[:-1], (bx + ux, by + uy), color=color, lw=lw, dashed=color == GRAD)
        tip = [(x1, y1), (bx - .5*head*uy, by + .5*head*ux), (bx + .5*head*uy, by - .5*head*ux)]
        self.add(Polygon(tip, closed=True, fc=color, ec='none', zorder=4))

    def matrix(self, x, y, rows, cols, cell, color, name='', values=None, strong=lambda i, j: True, size=LARGE, zorder=2):
        "A block of cells with its upper left corner at `x, y`, a name in its middle or values in its cells."
        lw = 2.6 if color == PARAM else 1.5
        for i in range(rows):
            for j in range(cols):
                self.add(Rectangle((x + j*cell, y + i*cell), cell, cell, fc=LIGHT[color] if strong(i, j) else '#ffffff',
                                   ec='#ffffff' if values is None else color, lw=1, zorder=zorder))
                if values is not None: self.text(x + (j+.5)*cell, y + (i+.5)*cell, values[i][j], size=min(TEXT, .52*cell), color=color if strong(i, j) else PALE)
        self.add(Rectangle((x, y), cols*cell, rows*cell, fc='none', ec=color, lw=lw, ls=(0, (4, 2.5)) if color == GRAD else '-', zorder=zorder + .5))
        if name: self.text(x + cols*cell/2, y + rows*cell/2, name, size=size, color=color, weight='bold')

    def save(self, path):
        "Write the SVG with text as text, nothing of today or of this machine in it, and coordinates in hundredths of a point."
        settings = {'svg.fonttype': 'none', 'svg.hashsalt': 'fb_pass', 'font.family': 'sans-serif', 'font.sans-serif': ['DejaVu Sans']}
        with matplotlib.rc_context(settings):
            self.fig.savefig(path, format='svg', transparent=True,
                             metadata={'Title': self.title, 'Date': None, 'Creator': None, 'Format': None, 'Type': None})
        plt.close(self.fig)
        svg = Path(path).read_text(encoding='utf-8')
        svg = re.sub(r' *<metadata>.*?</metadata>\n', '', svg, flags=re.S)
        svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', '', svg)
        svg = svg.replace("'DejaVu Sans', sans-serif", "Helvetica, Arial, 'DejaVu Sans', sans-serif")
        svg = re.sub(r'-?\d+\.\d{3,}', lambda m: f'{float(m[0]) + 0.:.2f}'.rstrip('0').rstrip('.'), svg)
        Path(path).write_text('\n'.join(o.rstrip() for o in svg.splitlines()) + '\n', encoding='utf-8', newline='\n')


# The path

COLS, ROOM_W, ROOM_H, GAP_X, GAP_Y, LEFT = 4, 108, 54, 20, 30, 24

def _slot(i, top):
    "Upper left corner of room `i`: four in a row, and every second row runs from right to left."
    row, col = divmod(i, COLS)
    if row % 2: col = COLS - 1 - col
    return LEFT + col*(ROOM_W + GAP_X), top + row*(ROOM_H + GAP_Y)

def _room(p, x, y, w, h, label, current):
    "A room with its number and its name; the current one is filled."
    number, name = label.split()
    p.box(x, y, w, h, edge=VALUE if current else INK, fill=VALUE if current else '#ffffff', lw=2.5 if current else 1.4, r=6, zorder=4)
    color = '#ffffff' if current else INK
    p.text(x + w/2, y + .28*h, number, size=SMALL, color=color)
    p.text(x + w/2, y + .69*h, name, size=15, color=color)

def _between(p, a, b):
    "Batch and gradient between two neighboring rooms whose corners are `a` and `b`."
    (xa, ya), (xb, yb) = a, b
    if ya == yb:
        start, end = (xa + ROOM_W + 2, xb - 2) if xa < xb else (xa - 2, xb + ROOM_W + 2)
        p.arrow((start, ya + .34*ROOM_H), (end, ya + .34*ROOM_H), color=VALUE)
        p.arrow((end, ya + .68*ROOM_H), (start, ya + .68*ROOM_H), color=GRAD)
    else:
        x = xa + ROOM_W/2
        p.arrow((x - 9, ya + ROOM_H + 2), (x - 9, yb - 2), color=VALUE)
        p.arrow((x + 9, yb - 2), (x + 9, ya + ROOM_H + 2), color=GRAD)

def _path_height(): return (len(PATH)//COLS + 1)*(ROOM_H + GAP_Y) + 54

def _draw_path(p, top, current=None):
    "The rooms inside the wall of the checks, from `top` down."
    guard = current == GUARD.split()[1]
    wall = _path_height() - 38
    p.box(LEFT - 14, top, WIDTH - 2*(LEFT - 14), wall, edge=VALUE if guard else INK, fill='#ffffff' if guard else '#fafafa', lw=3 if guard else 1.4, r=12, zorder=1)
    slots = [_slot(i, top + 18) for i in range(len(PATH) + 1)]
    for a, b in zip(slots, slots[1:-1]): _between(p, a, b)
    for (x, y), label in zip(slots, PATH): _room(p, x, y, ROOM_W, ROOM_H, label, label.split()[1] == current)
    x, y = slots[-1]
    p.arrow((x + 4, y + .28*ROOM_H), (x + 28, y + .28*ROOM_H), color=VALUE)
    p.arrow((x + 28, y + .69*ROOM_H), (x + 4, y + .69*ROOM_H), color=GRAD)
    p.text(x + 36, y + .28*ROOM_H, 'batch', size=SMALL, color=VALUE, ha='left')
    p.text(x + 36, y + .69*ROOM_H, 'gradient', size=SMALL, color=GRAD, ha='left')
    y = top + wall - 15
    p.box(WIDTH/2 - 132, y, 264, 30, edge=VALUE if guard else INK, fill=VALUE if guard else '#ffffff', lw=2.5 if guard else 1.4, r=6, zorder=4)
    p.text(WIDTH/2, y + 15, f'{GUARD}: guards every room', size=SMALL, color='#ffffff' if guard else INK, weight='bold' if guard else 'normal')

def path(current):
    p = Picture(f'The path of a batch; we are at {current}', _path_height())
    _draw_path(p, 12, current)
    return p

# A seven, to be read row by row
SEVEN = '''
..........
.########.
.########.
......##..
.....##...
.....##...
....##....
....##....
...##.....
..........
'''.split()

def hero():
    top = 262
    p = Picture('The path of a batch through a network, and of the gradient back', top + _path_height())
    mid, cell = 124, 10
    for i, row in enumerate(SEVEN):
        for j, o in enumerate(row):
            p.add(Rectangle((24 + j*cell, mid - 50 + i*cell), cell, cell, fc=VALUE if o == '#' else LIGHT[VALUE], ec='#ffffff', lw=.6, zorder=2))
    p.text(74, mid + 68, 'a digit', size=SMALL)
    xs, hs = [mid - 72 + 16*i for i in range(10)], [mid - 60 + 24*i for i in range(6)]
    x0, x1, x2 = 186, 322, 428
    for i, a in enumerate(xs):
        for j, b in enumerate(hs): p.line((x0, a), (x1, b), color=PARAM, lw=.3 + .3*((3*i + 5*j) % 4), zorder=1)
    for j, b in enumerate(hs): p.line((x1, b), (x2, mid), color=PARAM, lw=1 + .6*(j*j % 3), zorder=1)
    for i, a in enumerate(xs):
        p.add(Rectangle((x0 - 8, a - 8), 16, 16, fc=VALUE if i in (2, 3, 6) else LIGHT[VALUE], ec='#ffffff', lw=1, zorder=2))
    p.add(Rectangle((x0 - 8, mid - 80), 16, 160, fc='none', ec=VALUE, lw=1.5, zorder=3))
    for j, b in enumerate(hs): p.add(Circle((x1, b), 9.5, fc=VALUE if j in (0, 3, 4) else '#ffffff', ec=VALUE, lw=1.8, zorder=3))
    p.add(Circle((x2, mid), 11, fc=VALUE, ec=VALUE, lw=1.8, zorder=3))
    p.box(474, mid - 17, 50, 34, edge=INK, zorder=3)
    p.text(499, mid, 'loss')
    p.arrow((130, mid), (172, mid))
    p.arrow((442, mid), (471, mid))
    p.text(254, mid + 93, 'w1, b1', size=SMALL, color=PARAM)
    p.text(382, mid + 93, 'w2, b2', size=SMALL, color=PARAM)
    p.text(x0, mid + 93, 'x', color=VALUE)
    p.text(x1, mid + 93, 'relu', size=SMALL)
    y = 22
    p.arrow((74, y), (512, y), color=VALUE, lw=3, head=11)
    p.add(Rectangle((222, y - 11), 144, 22, fc='#ffffff', ec='none', zorder=4))
    p.text(294, y, 'forward: values', color=VALUE)
    y = top - 20
    p.arrow((512, y), (74, y), color=GRAD, lw=3, head=11)
    p.add(Rectangle((200, y - 11), 188, 22, fc='#ffffff', ec='none', zorder=4))
    p.text(294, y, 'backward: gradients', color=GRAD)
    _draw_path(p, top + 12)
    return p


# The network of one hidden layer

def _tensor(p, x, y, name, shape, color=VALUE, grad=False, w=80):
    "A tensor centered at `x, y`, its gradient in the lower half of the box."
    half = 46 if grad else 24
    p.box(x - w/2, y - half, w, 2*half, edge=color, lw=2.6 if color == PARAM else 1.5)
    for dy, label, c in [(-23 if grad else 0, name, color)] + ([(23, f'{name}.g', GRAD)] if grad else []):
        p.text(x, y + dy - 9, label, color=c, weight='bold')
        p.text(x, y + dy + 11, shape, size=SMALL)
    if grad: p.line((x - w/2 + 5, y), (x + w/2 - 5, y), color=GRAD, lw=1.2, dashed=True)

def network(grad):
    half, op = (46, 38) if grad else (24, 22)
    lane = 20 if grad else 0
    c = [60 + 100*i for i in range(5)]
    y0 = 14 + half; y1 = y0 + half + 44 + half; y2 = y1 + half + 46 + half; y3 = y2 + half + 44 + half
    p = Picture('Forward and backward pass of the network, with shapes' if grad else 'The network, with shapes', y3 + half + 14)
    def flow(a, b, dx=0):
        "Values from `a` to `b`, and the gradient back."
        (xa, ya), (xb, yb) = a, b
        if ya == yb:
            p.arrow((xa, ya - lane), (xb, yb - lane))
            if grad: p.arrow((xb, yb + lane), (xa, ya + lane), color=GRAD)
        else:
            p.arrow((xa - dx, ya), (xb - dx, yb))
            if grad: p.arrow((xb + dx, yb), (xa + dx, ya), color=GRAD)
    def tensor(i, y, name, shape): _tensor(p, c[i], y, name, shape, grad=grad)
    def operation(i, y, name):
        p.box(c[i] - 32, y - op, 64, 2*op, edge=INK, r=20)
        p.text(c[i], y, name)
    def param(x, w, y, name, shape, at, toward):
        _tensor(p, x, y, name, shape, color=PARAM, grad=grad, w=w)
        edge, end, d = y + toward*(half + 3), (y1 - op - 3 if toward > 0 else y2 + op + 3), 6.5 if grad else 0
        p.arrow((at - d, edge), (at - d, end), color=PARAM)
        if grad: p.arrow((at + d, end), (at + d, edge), color=GRAD)
    param(112, 88, y0, 'w1', '(784, 50)', 143, 1)
    param(208, 88, y0, 'b1', '(50,)', 177, 1)
    tensor(0, y1, 'x', '(n, 784)'); operation(1, y1, 'lin'); tensor(2, y1, 'l1', '(n, 50)'); operation(3, y1, 'relu'); tensor(4, y1, 'l2', '(n, 50)')
    for i in range(4): flow((c[i] + (35, 43)[i % 2 == 0], y1), (c[i+1] - (43, 35)[i % 2 == 0], y1))
    flow((c[4], y1 + half + 3), (c[4], y2 - op - 3), dx=8 if grad else 0)
    operation(4, y2, 'lin'); tensor(3, y2, 'out', '(n, 1)'); operation(2, y2, 'mse')
    for i in (4, 3, 2): flow((c[i] - (35, 43)[i == 3], y2), (c[i-1] + (43, 35)[i == 3], y2))
    _tensor(p, c[1], y2, 'loss', '()')
    if grad: p.text(c[1], y2 + 38, 'start with 1', size=SMALL, color=GRAD)
    param(414, 74, y3, 'w2', '(50, 1)', 441, -1)
    param(496, 62, y3, 'b2', '(1,)', 479, -1)
    _tensor(p, c[2], y3 - half + 24, 'targ', '(n,)')
    p.arrow((c[2], y3 - half - 3), (c[2], y2 + op + 3))
    legend = [('values', VALUE), ('parameters', PARAM)] + ([('gradients', GRAD)] if grad else [])
    for i, (s, color) in enumerate(legend):
        y = y3 - half + 14 + 24*i
        p.line((22, y), (48, y), color=color, lw=3.4 if color == PARAM else 2.2, dashed=color == GRAD)
        p.text(56, y, s, size=SMALL, color=color, ha='left')
    return p


# The gradients of a linear layer

DIMS = {'n': 4, 'n_in': 6, 'n_out': 3, '1': 1}

def _block(p, x, y, name, *dims, color, cell=15):
    "A tensor as a block of cells centered at `x, y`, its shape beneath. Returns its left, top, right and bottom."
    rows, cols = DIMS[dims[-2]] if len(dims) > 1 else 1, DIMS[dims[-1]]
    left, top = x - cols*cell/2, y - rows*cell/2
    p.matrix(left, top, rows, cols, cell, color, name if rows > 1 else '', size=TEXT)
    if rows == 1: p.text(x, top - 13, name, color=color, weight='bold')
    p.text(x, top + rows*cell + 14, f"({', '.join(dims)}{',' if len(dims) == 1 else ''})", size=SMALL)
    return left, top, left + cols*cell, top + rows*cell

def _product(p, xa, xb, y, a, b):
    "Two blocks to be multiplied; the dimension that they share is drawn thick."
    shared = a[2]
    l, t, r, _ = _block(p, xa, y, *a[:3], color=a[3])
    p.line((l, t), (r, t), lw=4.5, zorder=4)
    p.text((l + r)/2, t - 13, shared, size=SMALL, weight='bold')
    p.text((xa + xb)/2 - 4, y, '@', size=LARGE)
    l, t, _, bottom = _block(p, xb, y, *b[:3], color=b[3])
    p.line((l, t), (l, bottom), lw=4.5, zorder=4)
    p.ax.text(l - 7, (t + bottom)/2, shared, size=SMALL, color=INK, weight='bold', ha='center', va='baseline', rotation=90, rotation_mode='anchor', zorder=5)

def matmul_grad():
    p = Picture('The gradients of a linear layer, as blocks', 604)
    c = [78, 216, 370, 482]
    def result(y, name, *dims, color):
        _block(p, c[0], y, name, *dims, color=color)
        p.text(c[0] + 72, y, '=', size=LARGE)
    p.text(20, 24, 'forward', color=VALUE, weight='bold', ha='left')
    y = 92
    result(y, 'out', 'n', 'n_out', color=VALUE)
    _product(p, c[1], c[2], y, ('x', 'n', 'n_in', VALUE), ('w', 'n_in', 'n_out', PARAM))
    p.text(430, y, '+', size=LARGE)
    _block(p, c[3], y, 'b', 'n_out', color=PARAM)
    p.line((20, 172), (520, 172), lw=1)
    p.text(20, 194, 'backward', color=GRAD, weight='bold', ha='left')
    p.text(520, 194, 'g is out.g, with the shape of out', size=SMALL, color=GRAD, ha='right')
    y = 260
    result(y, 'x.g', 'n', 'n_in', color=GRAD)
    _product(p, c[1], c[2], y, ('g', 'n', 'n_out', GRAD), ('w.t()', 'n_out', 'n_in', PARAM))
    y = 392
    result(y, 'w.g', 'n_in', 'n_out', color=GRAD)
    _product(p, c[1], c[2], y, ('x.t()', 'n_in', 'n', VALUE), ('g', 'n', 'n_out', GRAD))
    y = 530
    result(y, 'b.g', 'n_out', color=GRAD)
    l, t, r, bottom = _block(p, c[1], y, '', 'n', 'n_out', color=GRAD)
    for i in range(3): p.arrow((l + 7.5 + 15*i, t + 6), (l + 7.5 + 15*i, bottom - 3), color=GRAD, lw=1.6, head=7)
    p.text(c[1], t - 13, 'g', color=GRAD, weight='bold')
    p.text(292, y - 11, 'g.sum(0): every column', size=SMALL, ha='left')
    p.text(292, y + 11, 'summed over the n rows', size=SMALL, ha='left')
    return p

def memory(*dims):
    "What a float32 tensor of this shape takes, in words."
    size = 4
    for d in dims: size *= d
    for unit, scale in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if size >= scale: return f'{size/scale:.3g} {unit}'

def outer_vs_matmul():
    n, n_in, n_out = 50_000, 784, 50
    p = Picture('The gradient of a weight matrix: a stack of outer products, or one matrix product', 532)
    p.text(20, 26, 'n outer products, then their sum', weight='bold', ha='left')
    y = 138
    _block(p, 54, y, '', 'n_in', '1', color=VALUE)
    p.text(54, y - 58, 'x[i]', color=VALUE, weight='bold')
    p.text(99, y + 3, '*', size=LARGE)
    _block(p, 150, y, 'g[i]', '1', 'n_out', color=GRAD)
    p.text(200, y, '=', size=LARGE)
    for i in range(5):
        x, top = 246 + 13*i, y - 71 + 13*i
        p.matrix(x, top, 6, 3, 15, GRAD, zorder=2 + i)
    p.text(294, y + 86, '(n, n_in, n_out)', size=SMALL)
    p.text(294, y + 108, memory(n, n_in, n_out), size=LARGE, weight='bold')
    p.text(396, y - 15, 'sum(0)', size=SMALL)
    p.arrow((364, y), (430, y), color=INK)
    _block(p, 476, y, 'w.g', 'n_in', 'n_out', color=GRAD)
    p.text(476, y + 86, memory(n_in, n_out), size=LARGE, weight='bold')
    p.line((20, 270), (520, 270), lw=1)
    p.text(20, 296, 'one matrix product: no stack', weight='bold', ha='left')
    y = 380
    _product(p, 96, 262, y, ('x.t()', 'n_in', 'n', VALUE), ('g', 'n', 'n_out', GRAD))
    p.text(376, y, '=', size=LARGE)
    _block(p, 476, y, 'w.g', 'n_in', 'n_out', color=GRAD)
    p.text(476, y + 86, memory(n_in, n_out), size=LARGE, weight='bold')
    p.text(20, y + 94, "x.t() @ g, or einsum('ij,ik->jk', x, g)", size=SMALL, ha='left')
    p.text(20, 502, f'n = {n:,}, n_in = {n_in}, n_out = {n_out}, float32', size=SMALL, ha='left')
    return p


# Broadcasting

def broadcast_trap():
    output, targ, cell = [1, 2, 3, 4], [2, 3, 4, 5], 28
    n = len(targ); side = n*cell
    p = Picture('Broadcasting: (n,1) - (n,) is (n,n)', 412)
    show = lambda o: f'{o:g}'.replace('-', '\u2212')
    left = [20, 166, 312]
    def equation(y, names, shapes, height):
        for x, name, shape in zip(left, names, shapes):
            p.text(x + side/2, y - 36, name, color=VALUE, weight='bold')
            p.text(x + side/2, y - 15, shape)
        p.text(149, y + height/2, '\u2212', size=LARGE)
        p.text(295, y + height/2, '=', size=LARGE)
    def copies(x, y, cells):
        "What broadcasting puts beside a column or below a row."
        p.box(x, y, side, side, edge=PALE, fill='none', dashed=True, lw=1.2, r=0, zorder=1)
        for i, j, o in cells: p.text(x + (j+.5)*cell, y + (i+.5)*cell, show(o), size=SMALL, color=PALE)
    def block(x, y, values, **kw):
        p.matrix(x, y, len(values), len(values[0]), cell, values=[[show(o) for o in row] for row in values], **kw)
    def verdict(y, word, diffs):
        for dy, s, kw in ((-32, word, dict(weight='bold')), (-9, 'mean of', dict(size=SMALL)), (9, 'squares', dict(size=SMALL)),
                          (34, f'{sum(o*o for o in diffs)/len(diffs):g}', dict(size=LARGE, weight='bold'))): p.text(480, y + dy, s, **kw)

    p.text(20, 26, 'The trap: a column minus a row', weight='bold', ha='left')
    y = 90
    equation(y, ('output', 'targ', ''), ('(n, 1)', '(n,)', '(n, n)'), side)
    copies(left[0], y, [(i, j, output[i]) for i in range(n) for j in range(1, n)])
    copies(left[1], y, [(i, j, targ[j]) for i in range(1, n) for j in range(n)])
    block(left[0], y, [[o] for o in output], color=VALUE)
    block(left[1], y, [targ], color=VALUE)
    grid = [[a - b for b in targ] for a in output]
    block(left[2], y, grid, color=INK, strong=lambda i, j: i == j)
    verdict(y + side/2, 'wrong', [o for row in grid for o in row])
    p.text(20, y + side + 20, 'gray: the copies that broadcasting adds', size=SMALL, color=PALE, ha='left')
    p.line((20, 246), (520, 246), lw=1)
    p.text(20, 272, 'What was meant: a row minus a row', weight='bold', ha='left')
    y = 340
    equation(y, ('output[:,0]', 'targ', ''), ('(n,)', '(n,)', '(n,)'), cell)
    diffs = [a - b for a, b in zip(output, targ)]
    block(left[0], y, [output], color=VALUE)
    block(left[1], y, [targ], color=VALUE)
    block(left[2], y, [diffs], color=INK)
    verdict(y + cell/2, 'right', diffs)
    return p


# Finite differences

def finite_difference():
    p = Picture('The central difference', 366)
    f = lambda x: .25*x**3 - .3*x + 1
    slope = lambda x: .75*x**2 - .3
    x, eps = 1.15, .8
    secant = (f(x+eps) - f(x-eps))/(2*eps)
    at = lambda a, b: (60 + 190*(a + .05), 318 - 82*(b - .3))
    lo, hi = .0, 2.38
    p.arrow((36, 318), (520, 318), color=INK, lw=1.4)
    p.line(*[at(lo + (hi - lo)*i/80, f(lo + (hi - lo)*i/80)) for i in range(81)], color=VALUE, lw=3)
    p.line(*[at(o, f(x) + slope(x)*(o - x)) for o in (x - .95, x + .965)], color=GRAD, lw=2.4, dashed=True)
    p.line(*[at(o, f(x-eps) + secant*(o - x + eps)) for o in (x - 1.0, x + 1.0)], color=INK, lw=2)
    for o, s in ((x-eps, 'x \u2212 eps'), (x, 'x'), (x+eps, 'x + eps')):
        px, py = at(o, f(o))
        p.line((px, py), (px, 318), lw=1, color=PALE)
        p.add(Circle((px, py), 6, fc='#ffffff' if o == x else VALUE, ec=VALUE, lw=2, zorder=5))
        p.text(px, 338, s, size=TEXT)
    px, py = at(x-eps, f(x-eps)); p.text(px - 12, py - 24, 'f(x \u2212 eps)', size=TEXT, color=VALUE)
    px, py = at(x+eps, f(x+eps)); p.text(px - 14, py - 4, 'f(x + eps)', size=TEXT, color=VALUE, ha='right')
    p.line((24, 30), (58, 30), color=GRAD, lw=2.4, dashed=True)
    p.text(68, 30, 'tangent: its slope is the gradient', size=TEXT, color=GRAD, ha='left')
    p.line((24, 58), (58, 58), color=INK, lw=2)
    p.text(68, 58, 'secant: its slope is', size=TEXT, ha='left')
    p.text(68, 82, '(f(x + eps) \u2212 f(x \u2212 eps)) / (2 eps)', size=TEXT, ha='left')
    return p


# Closures

def closures():
    p = Picture('Closures: every forward leaves a function behind that remembers the way back', 424)
    c, w, top, low, end = [134, 264, 394], 104, 88, 226, 362
    p.text(20, 26, 'forward: each layer computes, and leaves a function behind', size=SMALL, color=VALUE, ha='left')
    for x, y, name, color in ((38, top, 'X', VALUE), (38, low, 'Xg', GRAD)): p.text(x, y, name, size=LARGE, color=color, weight='bold')
    for x, name, kept in zip(c, ('Linear', 'Relu', 'Linear'), ('X and w', 'X > 0', 'X and w')):
        p.box(x - w/2, top - 28, w, 56, edge=VALUE)
        p.text(x, top - 10, name, color=VALUE, weight='bold')
        p.text(x, top + 12, 'forward', size=SMALL)
        p.arrow((x, top + 30), (x, low - 50), color=INK, lw=1.4)
        p.box(x - w/2, low - 48, w, 96, edge=GRAD, dashed=True)
        p.text(x, low - 30, 'backward', color=GRAD, weight='bold')
        p.box(x - w/2 + 8, low - 13, w - 16, 52, edge=VALUE, fill='#ffffff', lw=1.2)
        p.text(x, low + 3, 'keeps', size=SMALL)
        p.text(x, low + 23, kept, size=SMALL, color=VALUE, weight='bold')
    p.text(c[0] + 8, (top + low)/2 - 8, 'returns', size=SMALL, ha='left')
    p.box(472, top - 18, 52, 36, edge=INK)
    p.text(498, top, 'loss')
    stops = [56, *c, 498]
    for i, (a, b) in enumerate(zip(stops, stops[1:])):
        left, right = a + (w/2 + 3 if i else 0), b - (w/2 + 3 if i < 3 else 29)
        p.arrow((left, top), (right, top), color=VALUE)
        if i < 3: p.arrow((right, low), (left, low), color=GRAD)
    p.arrow((498, top + 20), (498, low), (c[2] + w/2 + 3, low), color=GRAD)
    p.text(506, low - 62, 'Yg', color=GRAD, weight='bold', ha='left')
    for x in (c[0], c[2]):
        p.arrow((x, low + 51), (x, end - 29), color=GRAD)
        p.text(x + 10, (low + end)/2 + 8, 'adds', size=SMALL, color=GRAD, ha='left')
        p.box(x - w/2, end - 26, w, 52, edge=PARAM, lw=2.6)
        p.text(x, end - 11, 'w.gradient', size=SMALL, color=PARAM)
        p.text(x, end + 11, 'b.gradient', size=SMALL, color=PARAM)
    p.text(520, 406, 'backward: call these functions, last one first', size=SMALL, color=GRAD, ha='right')
    return p


PICTURES = {f'path_{o.split()[1]}': lambda o=o: path(o.split()[1]) for o in (GUARD, *PATH)}
PICTURES |= {
    'path': hero,
    'network': lambda: network(False),
    'network_backward': lambda: network(True),
    'matmul_grad': matmul_grad,
    'outer_vs_matmul': outer_vs_matmul,
    'broadcast_trap': broadcast_trap,
    'finite_difference': finite_difference,
    'closures': closures,
}

def draw_all(folder):
    "Draw every picture into `folder`."
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items(): draw().save(folder/f'{name}.svg')

if __name__ == '__main__':
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent/'images'
    draw_all(folder)
    print(f'{len(PICTURES)} pictures in {folder.name}/')
