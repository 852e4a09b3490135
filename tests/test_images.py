"The pictures: as the script draws them, all of them used, each with words for who cannot see it."
import json, re, subprocess, sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from picture import GRAD, INK, PALETTE, PARAM, VALUE
IMAGES = sorted((ROOT/'images').glob('*'))
NUMBER = re.compile(r'-?\d+(?:\.\d+)?(?:e-?\d+)?')

def _markdown():
    "The text of every notebook, and the README if it has been made."
    for p in sorted((ROOT/'nbs').glob('**/*.ipynb')):
        cells = json.loads(p.read_text(encoding='utf-8'))['cells']
        yield p, '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    if (ROOT/'README.md').exists(): yield ROOT/'README.md', (ROOT/'README.md').read_text(encoding='utf-8')

def _references():
    "File, alt text and target of every picture that stands in the text, in Markdown or in HTML; code is left out."
    for p, text in _markdown():
        text = re.sub(r'^(```|~~~).*?^\1|`[^`\n]*`', '', text, flags=re.M | re.S)
        for alt, target in re.findall(r'!\[([^\]]*)\]\(([^)\s]+)[^)]*\)', text): yield p, alt, target
        for tag in re.findall(r'<img\b[^>]*>', text):
            attr = dict(re.findall(r'(\w+)="([^"]*)"', tag))
            yield p, attr.get('alt', ''), attr.get('src', '')

REFERENCES = [o for o in _references() if not re.match(r'https?:|data:|attachment:', o[2])]
IDS = [f'{p.name}:{Path(target).name}' for p, _, target in REFERENCES]

@pytest.fixture(scope='session')
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    subprocess.run([sys.executable, ROOT/'tools'/'draw_images.py', folder], check=True, capture_output=True)
    return folder

def test_every_picture_is_drawn_by_the_script(fresh):
    assert [p.name for p in IMAGES] == sorted(p.name for p in fresh.iterdir()), 'run: make images'

@pytest.mark.parametrize('image', IMAGES, ids=lambda p: p.name)
def test_picture_is_up_to_date(image, fresh):
    "Numbers may differ by the rounding of another processor, and by no more than the eye sees: a tenth of a pixel."
    texts = [p.read_text(encoding='utf-8') for p in (image, fresh/image.name)]
    words, numbers = zip(*((NUMBER.sub('0', t), [float(o) for o in NUMBER.findall(t)]) for t in texts))
    # compared here, so that a failure does not print both files
    same = words[0] == words[1] and all(abs(a - b) < .1 for a,b in zip(*numbers))
    assert same, f'images/{image.name} is not what tools/draw_images.py draws; run: make images'

# What is in a picture, as a browser reads it

PHONE = 358 # pixels that a picture has on a phone 390 pixels wide

def _number(s): return float(re.match(r'[\d.]+', s)[0])

def _style(o): return dict(re.findall(r'([\w-]+): ([^;]+)', o.get('style', '')))

def _name(o): return o.tag.split('}')[1]

def _svg(image): return ElementTree.fromstring(image.read_text(encoding='utf-8'))

def _letters(root):
    "Each text with its style, and the box that it takes: left, top, right, bottom, in the widest of the fonts."
    for o in root.iter():
        if _name(o) != 'text': continue
        style, x, y = _style(o), float(o.get('x')), float(o.get('y'))
        size = _number(style['font-size'])
        font = FontProperties(family='DejaVu Sans', size=size, weight=style.get('font-weight', 400))
        width = TextToPath().get_text_width_height_descent(o.text, font, ismath=False)[0]
        left = x - width*{'start': 0, 'middle': .5, 'end': 1}[style['text-anchor']]
        box = left, y - .74*size, left + width, y + .2*size
        if turned := o.get('transform'):
            assert turned.startswith('rotate(-90 '), f'{o.text}: {turned}'
            box = x - .74*size, y - width/2, x + .2*size, y + width/2
        yield o.text, style, box

def _luminance(color):
    channels = [int(color[i:i+2], 16)/255 for i in (1, 3, 5)]
    return sum(k*(c/12.92 if c <= .04045 else ((c + .055)/1.055)**2.4) for k, c in zip((.2126, .7152, .0722), channels))

def _contrast(one, other):
    "Contrast of two colors, 1 to 21, as WCAG 2 defines it."
    lights = sorted((_luminance(one), _luminance(other)))
    return (lights[1] + .05)/(lights[0] + .05)

def _shapes(root):
    "The shapes in the order of painting: color inside or None, whether there is a line around, points of each part."
    for o in root.iter():
        if _name(o) != 'path' or 'd' not in o.attrib: continue
        style = _style(o)
        fill = style.get('fill', 'none')
        parts = [[float(n) for n in re.findall(r'-?[\d.]+', part)] for part in o.get('d').split('M')[1:]]
        yield None if fill == 'none' else fill, 'stroke' in style, [list(zip(part[::2], part[1::2])) for part in parts]

def _inside(point, points):
    "Is `point` in the box around all `points`?"
    return all(min(side) <= at <= max(side) for at, side in zip(point, zip(*points)))

def _ground(shapes, box):
    "Which of the shapes is painted last under the middle of the box."
    middle = (box[0] + box[2])/2, (box[1] + box[3])/2
    return [i for i, (fill, _, parts) in enumerate(shapes) if fill and _inside(middle, sum(parts, []))][-1]

def _crosses(a, b, box):
    "Does the line from `a` to `b` go through the box? Its parts between either pair of sides must overlap."
    low, high = 0., 1.
    for i in (0, 1):
        d, near, far = b[i] - a[i], box[i] - a[i], box[i+2] - a[i]
        if d == 0:
            if near >= 0 or far <= 0: return False
        else: low, high = max(low, min(near/d, far/d)), min(high, max(near/d, far/d))
    return low < high

each_picture = pytest.mark.parametrize('image', IMAGES, ids=lambda p: p.name)

@each_picture
def test_picture_holds_text_and_no_date(image):
    names = {_name(o) for o in _svg(image).iter()}
    assert 'text' in names and not names & {'metadata', 'image', 'script', 'foreignObject'}

@each_picture
def test_picture_says_what_it_is(image):
    root = _svg(image)
    title, desc = (next((o for o in root if _name(o) == name), ElementTree.Element(name)) for name in ('title', 'desc'))
    assert len((title.text or '').split()) >= 3, 'a title has three words, at least'
    assert len((desc.text or '').split()) >= 10, 'a description has ten words, at least'
    assert root.get('role') == 'img' and root.get('aria-labelledby').split() == [title.get('id'), desc.get('id')]

@each_picture
def test_picture_has_a_size(image):
    root = _svg(image)
    left, top, width, height = map(float, root.get('viewBox').split())
    assert (left, top) == (0, 0) and width < height*2.5, 'on a phone a wide picture is a small one'
    assert [float(root.get(k)) for k in ('width', 'height')] == pytest.approx([width*4/3, height*4/3], abs=.5)

@each_picture
def test_letters_are_legible_on_a_phone(image):
    root = _svg(image)
    scale = PHONE/float(root.get('viewBox').split()[2])
    assert root.get('font-family').endswith('sans-serif')
    for text, style, _ in _letters(root):
        size = _number(style['font-size'])*scale
        assert size >= 11, f'{text!r} is {size:.1f} pixels high on a phone'

@each_picture
def test_only_colors_of_the_palette(image):
    used = set(re.findall(r'#[0-9a-fA-F]{3,8}\b', image.read_text(encoding='utf-8')))
    assert used <= PALETTE, f'not in tools/picture.py: {sorted(used - PALETTE)}'

def test_palette_is_that_of_the_figures():
    assert (VALUE, GRAD, PARAM, INK) == ('#2a6f97', '#c1121f', '#6a994e', '#444444')

@each_picture
def test_letters_stand_out_from_their_ground(image):
    root = _svg(image)
    shapes = list(_shapes(root))
    for text, style, box in _letters(root):
        ground = shapes[_ground(shapes, box)][0]
        contrast = _contrast(style['fill'], ground)
        assert contrast >= 4.5, f'{text!r}: {style["fill"]} on {ground} has a contrast of {contrast:.2f}'

@each_picture
def test_no_line_goes_through_letters(image):
    root = _svg(image)
    shapes = list(_shapes(root))
    for text, _, box in _letters(root):
        for _, line, parts in shapes[_ground(shapes, box):]:
            hit = line and any(_crosses(a, b, box) for points in parts for a, b in zip(points, points[1:]))
            assert not hit, f'a line goes through {text!r}, or it is wider than its box'

@each_picture
def test_letters_stay_in_the_picture_and_off_each_other(image):
    root = _svg(image)
    width, height = map(float, root.get('viewBox').split()[2:])
    letters = [(text, box) for text, _, box in _letters(root)]
    for text, (left, top, right, bottom) in letters:
        assert 0 <= left and right <= width and 0 <= top and bottom <= height, f'{text!r} leaves the picture'
    for (a, one), (b, other) in combinations(letters, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, f'{a!r} and {b!r} overlap'

@pytest.mark.parametrize('p, alt, target', REFERENCES, ids=IDS)
def test_reference_exists_and_has_alt_text(p, alt, target):
    assert (p.parent/target).is_file(), f'{p.name} shows {target}, which is not there'
    assert len(alt.split()) >= 3, f'{p.name} shows {target} without saying what is to be seen'

@pytest.mark.parametrize('image', IMAGES, ids=lambda p: p.name)
def test_picture_is_used(image):
    used = {(p.parent/target).resolve() for p, _, target in REFERENCES}
    assert image.resolve() in used, f'no notebook shows images/{image.name}'
