"""The language of the pictures: a panel to draw on, and the colors, lines and letters that mean the same everywhere.

Values are blue with a thin solid line, parameters green with a thick one, gradients red and dashed, so that the
pictures can be read without color. All lengths are in units of which 450 are the whole width, y grows downwards. On a
phone the panel is some 358 pixels wide, and the smallest letters, of 14 units, are 11 pixels high there. The panel is
white, on a dark page too. The same bytes come out every time.
"""
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
matplotlib.rcdefaults()
matplotlib.use('svg')
import matplotlib.pyplot as plt
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline

VALUE, GRAD, PARAM, INK, PALE, WHITE = '#2a6f97', '#c1121f', '#6a994e', '#444444', '#6b6b6b', '#ffffff'
LIGHT = {VALUE: '#e3eef5', GRAD: '#fdeced', PARAM: '#ebf3e5', INK: '#f1f1f1', PALE: '#f1f1f1'}
LETTERS = {PARAM: '#446b2e', VALUE: '#245f82'} # green and blue dark enough for letters on their light grounds
GROUND = '#fafafa' # behind the rooms
WIDTH, SMALL, TEXT, LARGE = 450, 14, 16, 19
FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
SVG = 'http://www.w3.org/2000/svg'
DASHES = (0, (4, 2.5))

def blend(color, part):
    "The color between white and `color`."
    return '#' + ''.join(f'{round(255 + part*(int(color[i:i+2], 16) - 255)):02x}' for i in (1, 3, 5))

# All that may occur in a picture; a heat map has quarters of a color
PALETTE = {VALUE, GRAD, PARAM, INK, PALE, WHITE, GROUND, *LIGHT.values(), *LETTERS.values()}
PALETTE |= {blend(c, k/4) for c in (VALUE, GRAD) for k in (1, 2, 3)}

class Picture:
    "A white panel to draw on. `desc` says what is on it for readers who cannot see it, on one line or several."
    def __init__(self, title, desc, height):
        self.title, self.desc, self.height = title, ' '.join(desc.split()), height
        self.fig = plt.figure(figsize=(WIDTH/72, height/72), facecolor='none')
        self.ax = self.fig.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.ax.axis('off')
        self.box(0, 0, WIDTH, height, fill=WHITE, lw=0, r=12, zorder=0)

    def add(self, patch):
        patch.set_clip_on(False)
        self.ax.add_patch(patch)

    def text(self, x, y, s, size=TEXT, color=INK, weight='normal', ha='center', zorder=9, **kw):
        "One line of text, centered at height `y`."
        style = dict(size=size, color=LETTERS.get(color, color), weight=weight, zorder=zorder)
        self.ax.text(x, y + .36*size, s, ha=ha, va='baseline', **style, **kw)

    def note(self, x, y, s, **kw):
        "A small line of text that begins at `x`."
        self.text(x, y, s, size=SMALL, ha='left', **kw)

    def heading(self, y, s, **kw):
        "What the part of the picture below shows."
        self.text(16, y, s, weight='bold', ha='left', **kw)

    def upright(self, x, y, s, **kw):
        "A line of text that is read from below, its middle at `y`."
        style = dict(size=SMALL, color=INK, rotation=90, rotation_mode='anchor', zorder=9)
        self.ax.text(x, y, s, ha='center', va='baseline', **style, **kw)

    def box(self, x, y, w, h, edge=INK, fill=None, dashed=False, lw=1.5, r=5, zorder=2):
        "A box with its upper left corner at `x, y`."
        style = dict(fc=LIGHT[edge] if fill is None else fill, ec=edge if lw else 'none', lw=lw, zorder=zorder)
        rounded = f'round,pad=0,rounding_size={r}'
        self.add(FancyBboxPatch((x, y), w, h, boxstyle=rounded, ls=DASHES if dashed else '-', **style))

    def disk(self, x, y, r, fill=WHITE, edge=VALUE, lw=1.8, dashed=False, zorder=3):
        self.add(Circle((x, y), r, fc=fill, ec=edge, lw=lw, ls=DASHES if dashed else '-', zorder=zorder))

    def line(self, *points, color=INK, dashed=False, lw=2, zorder=3):
        style = dict(color=color, lw=lw, ls=(0, (3, 1.6)) if dashed else '-', solid_joinstyle='round', zorder=zorder)
        self.ax.plot(*zip(*points), clip_on=False, **style)

    def rule(self, y): self.line((16, y), (WIDTH - 16, y), lw=1)

    def arrow(self, *points, color=VALUE, lw=2.2, head=8):
        "A line through `points` with a head at the last of them; that of a gradient is dashed."
        (x0, y0), (x1, y1) = points[-2:]
        d = ((x1-x0)**2 + (y1-y0)**2)**.5
        ux, uy = (x1-x0)/d, (y1-y0)/d
        bx, by = x1 - head*ux, y1 - head*uy
        self.line(*points[:-1], (bx + ux, by + uy), color=color, lw=lw, dashed=color == GRAD)
        tip = [(x1, y1), (bx - .5*head*uy, by + .5*head*ux), (bx + .5*head*uy, by - .5*head*ux)]
        self.add(Polygon(tip, closed=True, fc=color, ec='none', zorder=4))

    def both(self, a, b, apart, **kw):
        "Values from `a` to `b`, and the gradient back, `apart` from each other: below, or right if `b` is below."
        (xa, ya), (xb, yb) = a, b
        dx, dy = (0, apart/2) if ya == yb else (apart/2, 0)
        self.arrow((xa - dx, ya - dy), (xb - dx, yb - dy), **kw)
        self.arrow((xb + dx, yb + dy), (xa + dx, ya + dy), **kw | dict(color=GRAD))

    def squares(self, corners, size, fill, zorder=2):
        "Squares of one color as one shape, by their upper left corners."
        if not corners: return
        around = (0, 0), (size, 0), (size, size), (0, size), (0, 0)
        outlines = [Outline([(x + dx, y + dy) for dx, dy in around], closed=True) for x, y in corners]
        self.add(PathPatch(Outline.make_compound_path(*outlines), fc=fill, ec='none', zorder=zorder))

    def frame(self, x, y, w, h, color, zorder=2.5):
        "The outline of a tensor, which tells what it is: thin, thick or dashed."
        lw, ls = 2.6 if color == PARAM else 1.5, DASHES if color == GRAD else '-'
        self.add(Rectangle((x, y), w, h, fc='none', ec=color, lw=lw, ls=ls, zorder=zorder))

    def matrix(self, x, y, rows, cols, cell, color, name='', zorder=2):
        "A block of cells with its upper left corner at `x, y`, and a name in its middle."
        corners = [(x + j*cell, y + i*cell) for i in range(rows) for j in range(cols)]
        self.add(Rectangle((x, y), cols*cell, rows*cell, fc=WHITE, ec='none', zorder=zorder))
        self.squares([(a + .5, b + .5) for a, b in corners], cell - 1, LIGHT[color], zorder=zorder + .1)
        self.frame(x, y, cols*cell, rows*cell, color, zorder=zorder + .5)
        if name: self.text(x + cols*cell/2, y + rows*cell/2, name, color=color, weight='bold')

    def table(self, x, y, values, cell, color, strong=lambda i, j: True):
        "A block of cells with a value in each; those that are not `strong` are pale."
        for i, row in enumerate(values):
            for j, o in enumerate(row):
                fill, ink = (LIGHT[color], color) if strong(i, j) else (WHITE, PALE)
                self.add(Rectangle((x + j*cell, y + i*cell), cell, cell, fc=fill, ec=color, lw=1, zorder=2))
                self.text(x + (j+.5)*cell, y + (i+.5)*cell, o, size=SMALL, color=ink)
        self.frame(x, y, len(values[0])*cell, len(values)*cell, color)

    def heat(self, x, y, values, cell, color):
        "A map of numbers around `x, y`: the stronger the color the larger; a negative one is hollow, with a minus."
        rows, cols = len(values), len(values[0])
        x, y, top = x - cols*cell/2, y - rows*cell/2, max(abs(o) for row in values for o in row)
        levels = {}
        for i, row in enumerate(values):
            for j, o in enumerate(row): levels.setdefault(round(4*o/top), []).append((x + j*cell + .3, y + i*cell + .3))
        for level, corners in sorted(levels.items()):
            fill = blend(color, level/4) if level > 0 else WHITE if level else LIGHT[color]
            self.squares(corners, cell - .6, fill)
            if level < 0:
                for a, b in corners:
                    self.box(a - 1.5, b - 1.5, cell + 2.4, cell + 2.4, edge=INK, fill=WHITE, lw=1.8, r=1, zorder=4)
                    self.line((a + 2, b + cell/2 - .3), (a + cell - 2.6, b + cell/2 - .3), lw=2, zorder=5)
        self.frame(x, y, cols*cell, rows*cell, color)

    def axes(self, x, y, w, h, right=False):
        "Axes for a curve, with their upper left corner at `x, y`; with `right`, the numbers stand on that side."
        ax = self.fig.add_axes((x/WIDTH, 1 - (y + h)/self.height, w/WIDTH, h/self.height), facecolor='none')
        ax.tick_params(labelsize=SMALL, labelcolor=INK, color=INK)
        if right: ax.yaxis.tick_right()
        ax.spines[['top', 'left' if right else 'right']].set_visible(False)
        for o in ax.spines.values(): o.set_color(INK)
        return ax

    def legend(self, x, y, *names):
        "What the lines mean, one below the other."
        for i, (name, color) in enumerate(names):
            lw = 3.4 if color == PARAM else 2.2
            self.line((x, y + 22*i), (x + 26, y + 22*i), color=color, lw=lw, dashed=color == GRAD)
            self.note(x + 34, y + 22*i, name, color=color)

    def save(self, path):
        "Write the SVG with text as text, with its title and description, and without date or anything of this machine."
        fonts = {'font.family': 'sans-serif', 'font.sans-serif': ['DejaVu Sans']}
        with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'fb_pass', **fonts}):
            self.fig.savefig(path, format='svg', transparent=True, metadata={'Date': None})
        plt.close(self.fig)
        Path(path).write_text(tidy(Path(path).read_text(encoding='utf-8'), self), encoding='utf-8', newline='\n')

def tidy(svg, picture):
    "What matplotlib wrote, with size, role, title and description; coordinates in hundredths, fonts named once."
    for name, uri in (('', SVG), ('xlink', 'http://www.w3.org/1999/xlink')): ElementTree.register_namespace(name, uri)
    root = ElementTree.fromstring(svg)
    for o in root.findall(f'{{{SVG}}}metadata') + root.findall(f'{{{SVG}}}title'): root.remove(o)
    root.attrib |= {'width': f'{WIDTH*4//3}', 'height': f'{picture.height*4/3:.0f}', 'role': 'img',
                    'aria-labelledby': 'title desc', 'font-family': FONTS}
    for i, name in enumerate(('title', 'desc')):
        o = ElementTree.Element(f'{{{SVG}}}{name}', id=name)
        o.text, o.tail = getattr(picture, name), '\n '
        root.insert(i, o)
    for o in root.iter():
        for key, value in o.attrib.items():
            value = re.sub(r'-?\d+\.\d{3,}', lambda m: f'{float(m[0]) + 0.:.2f}'.rstrip('0').rstrip('.'), value)
            o.set(key, ' '.join(value.replace("font-family: 'DejaVu Sans', sans-serif; ", '').split()))
        if o.get('transform', '').startswith('rotate(-0 '): del o.attrib['transform']
    return ElementTree.tostring(root, encoding='unicode') + '\n'
