"The pictures: as the script draws them, all of them used, each with words for who cannot see it."
import json, re, subprocess, sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
IMAGES = sorted((ROOT/'images').glob('*'))

def _markdown():
    "The text of every notebook, and the README if it has been made."
    for p in sorted((ROOT/'nbs').glob('*.ipynb')):
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
    same = image.read_bytes() == (fresh/image.name).read_bytes() # compared here, so that a failure does not print both files
    assert same, f'images/{image.name} is not what tools/draw_images.py draws; run: make images'

@pytest.mark.parametrize('image', IMAGES, ids=lambda p: p.name)
def test_picture_holds_text_a_title_and_no_date(image):
    svg = image.read_text(encoding='utf-8')
    names = {o.tag.split('}')[1] for o in ElementTree.fromstring(svg).iter()}
    assert 'text' in names and 'title' in names and 'metadata' not in names

@pytest.mark.parametrize('p, alt, target', REFERENCES, ids=IDS)
def test_reference_exists_and_has_alt_text(p, alt, target):
    assert (p.parent/target).is_file(), f'{p.name} shows {target}, which is not there'
    assert len(alt.split()) >= 3, f'{p.name} shows {target} without saying what is to be seen'

@pytest.mark.parametrize('image', IMAGES, ids=lambda p: p.name)
def test_picture_is_used(image):
    used = {(p.parent/target).resolve() for p, _, target in REFERENCES}
    assert image.resolve() in used, f'no notebook shows images/{image.name}'
