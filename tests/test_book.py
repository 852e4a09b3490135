"The order of the book, and what stands at the top of every notebook: badges, neighbors, what installs it elsewhere."
import json, re, shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from badges import refresh, with_install, with_opening
from book import (Page, cells, companion, hosts, install_lines, length, lesson_table, notebooks, opening_line, pages,
                  place, root, seen_from, settings, title_of, tools_table, words)

CFG = settings()
STEMS = [o.stem for o in pages()]
each_page = pytest.mark.parametrize('stem', STEMS)

def test_sidebar_names_every_notebook_once_and_in_order():
    assert STEMS == [*notebooks()], 'nbs/sidebar.yml and the notebooks in nbs/ differ'
    assert STEMS[0] == 'index'
    for part in ('Lesson', 'Deeper'):
        numbers = [o.number for o in pages() if o.part == part]
        assert numbers == sorted(numbers) and all(numbers), f'{part}: rooms are read in the order of their numbers'

def test_a_deeper_page_stands_beside_its_room():
    for o in pages():
        if o.part != 'Deeper': continue
        assert (room := companion(o)) and room.part == 'Lesson' and room.name == o.name, o.stem
        text = '\n'.join(cells(room.stem, 'markdown'))
        assert f'](deeper/{o.stem[7:]}.ipynb' in text, f'{room.stem} has no link to {o.stem}'

HOUR = [o.stem for o in pages() if o.part == 'Lesson' and o.number <= '07']

def test_the_lesson_takes_an_hour():
    "By the rate of tools/book.py: what is folded or hidden is not counted."
    found = {o: length(o) for o in HOUR}
    assert len(HOUR) == 8 and sum(o.minutes for o in found.values()) <= 60, found
    assert sum(o.words for o in found.values()) <= 9000
    long = {k: o for k,o in found.items() if o.words > 1100 or o.cells > 30}
    assert not long, f'a room has at most 1,100 words and 30 cells of code that are seen: {long}'

def test_the_network_has_a_checked_gradient_in_45_minutes():
    assert sum(length(o).minutes for o in HOUR if o <= '05_backward') <= 45

def test_the_rooms_after_it_take_25_minutes_each():
    "That on a GPT, where all of them meet, takes 30."
    long = {o.stem: m for o in pages() if o.part == 'Lesson' and (
        m := length(o.stem).minutes) > (30 if o.stem == '18_gpt' else 25)}
    assert not long, long

def test_what_is_hidden_or_folded_or_an_exercise_is_not_counted(tmp_path):
    def code(source, **jupyter): return dict(cell_type='code', source=source, metadata=dict(jupyter=jupyter))
    def md(source): return dict(cell_type='markdown', source=source, metadata={})
    cells = [md('# One two\n\nthree'), code('v = 1', source_hidden=True), code('#| hide\nx = 1'),
             code('#| default_exp x'),
             code('#| code-summary: "Solution"\n#| code-fold: true\ny = 1'), code('#| export\nz = 1\n\nw = 2'),
             md('<details><summary>Solution</summary>so</details>'),
             md('## Exercises\n\nto do'), code('answer = None'),
             md('## Checks')]
    (tmp_path/'a.ipynb').write_text(json.dumps(dict(cells=cells)))
    found = length('a', tmp_path)
    assert found == (4, 1, 2) and found.minutes == pytest.approx(4/240 + 2/25)

def test_words_are_counted_as_a_reader_reads_them():
    assert words('# One two\n\nthree $a + b$, `four_4`') == 5
    assert words('![not this](../x.svg)\n\n[one](two.html)\n\n| a | b |\n|---|---|\n$$\nx\n$$') == 4

def numbers(text):
    "The numbers with a point, or of four digits and more, as they are written; no years, versions, or rough numbers."
    text = re.sub(r'\b(?:some|about|nearly) \d[\d,]*', ' ', text, flags=re.IGNORECASE)
    text = re.sub(r'https?://\S+|arXiv[: ]\S+|section [\d.]+|`[^`]*`|\$[^$]*\$|\b(?:19|20)\d\d\b', ' ', text)
    return re.findall(r'(?<![\w.,-])\d+\.\d+(?![\w.])|(?<![\w.,])\d{1,3}(?:,\d{3})+(?![\w,]|\.\d)', text)

def rounds_to(said, value):
    digits = len(said.partition('.')[2])
    return abs(value - float(said.replace(',', ''))) <= .5000001*10**-digits

@pytest.mark.parametrize('stem', STEMS[1:]) # the index says what is where, in words of its own
def test_numbers_of_the_prose_are_those_of_the_cells(stem):
    "A number that the text quotes is in a cell's output or in its code, perhaps there with more digits."
    nb = json.loads((root/'nbs'/f'{stem}.ipynb').read_text(encoding='utf-8'))
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    texts = [''.join(c['source']) for c in code]
    outputs = [o for c in code for o in c['outputs']]
    texts += [''.join(o.get('text', o.get('data', {}).get('text/plain', ''))) for o in outputs]
    known = [float(m.replace(',', '').replace('_', '')) for t in texts
             for m in re.findall(r'\d[\d_]*(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?', t)]
    known += [100*o for o in known] # a share, said in percent
    prose = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown')
    stale = [o for o in numbers(prose) if not any(rounds_to(o, k) for k in known)]
    assert not stale, f'no cell of {stem} computes or asserts these: {stale}'

def test_site_settings_name_only_what_is_there():
    site = yaml.safe_load((root/'nbs'/'_quarto.yml').read_text(encoding='utf-8'))
    assert site['metadata-files'] == ['nbdev.yml', 'sidebar.yml']
    for name in (site['format']['html']['css'], site['website']['favicon']): assert (root/'nbs'/name).is_file()
    assert (root/'nbs'/site['project']['resources'][0]).exists() or (root/site['project']['resources'][0]).is_dir()

@each_page
def test_opening_line_is_the_one_the_settings_give(stem):
    first = next(o for o in cells(stem, 'markdown') if o.startswith('# '))
    lines = [l for l in first.splitlines() if l.strip()]
    assert lines[1][0] == '>', 'the question stands as a quote under the title'
    after = next(l for l in lines if l[0] not in '#>')
    assert after == opening_line(stem), 'make badges'
    assert ''.join(cells(stem)).count('[![Open in Colab]') == 1

def linked_paths(stem):
    "Where in the repository the badges of a notebook lead, after a look at user, repository and branch."
    line = next(l for o in cells(stem, 'markdown') for l in o.splitlines() if l.startswith('[![Open'))
    for url in re.findall(r'\]\((https://[^)]+)\)', line):
        o = urlsplit(url)
        if o.netloc == 'colab.research.google.com': head, path = o.path, o.path.split('/blob/')[1].split('/', 1)
        else: head, path = o.path, [o.path.split('/')[-1], parse_qs(o.query)['urlpath'][0].removeprefix('lab/tree/')]
        assert f"/{CFG['user']}/{CFG['repo']}/" in head and path[0] == CFG['branch'], url
        yield path[1]

@each_page
def test_badges_lead_to_the_notebook(stem):
    paths = list(linked_paths(stem))
    assert paths == [f'nbs/{stem}.ipynb']*2
    for o in paths: assert (root/o).is_file()
    for image,_ in hosts.values():
        assert '</svg>' in (root/'nbs'/stem).parent.joinpath(seen_from(stem, image)).read_text(encoding='utf-8')

class Shell:
    "Stands in for the shell of a notebook."
    def __init__(self, name): self.name, self.ran = name, []
    def __repr__(self): return f'<{self.name}.Shell object>'
    def run_cell(self, code): self.ran += code.splitlines()

def run_setup(stem, name):
    "The commands that the first code cell of a notebook gives to the shell."
    shell = Shell(name)
    first = cells(stem, 'code')[0]
    assert first.startswith('#|') and install_lines(stem) in first, 'make badges'
    exec(first, {'get_ipython': lambda: shell})
    return shell.ran

@each_page
def test_first_cell_installs_on_colab_and_does_nothing_elsewhere(stem):
    assert not run_setup(stem, 'ipykernel.zmqshell')
    fetch, enter, install = run_setup(stem, 'google.colab._shell')
    *_, url, folder = fetch.split()
    assert fetch.startswith('!git clone') and url == CFG['git_url'] and f"-b {CFG['branch']} " in fetch
    entered = enter.removeprefix(f'%cd -q {folder}/')
    assert (root/entered/f"{stem.rpartition('/')[2]}.ipynb").is_file()
    assert (root/entered/install.removeprefix('%pip install -q ')/'setup.py').is_file()

def test_binder_installs_this_repository():
    lines = (root/'binder'/'requirements.txt').read_text(encoding='utf-8').splitlines()
    assert '-e .[dev]' in lines
    for o in lines:
        if o.startswith('-c '): assert (root/'binder'/o[3:]).is_file()
    tested = re.search(r'made on Python (\d+\.\d+)', (root/'constraints.txt').read_text(encoding='utf-8'))[1]
    assert (root/'binder'/'runtime.txt').read_text(encoding='utf-8').strip() == f'python-{tested}'

@pytest.fixture
def copy(tmp_path):
    def new(stem): return Path(shutil.copy(root/'nbs'/f'{stem}.ipynb', tmp_path))
    return new

@pytest.mark.parametrize('stem', ['index', '00_datasets', '05_backward', 'doctor/report'])
def test_writing_badges_changes_nothing_else_and_only_once(copy, stem):
    path = copy(stem)
    old = json.loads(path.read_text(encoding='utf-8'))
    assert not refresh(path, stem), 'make badges'
    nb = json.loads(path.read_text(encoding='utf-8'))
    for c in nb['cells']: # as it was before there were badges
        text = re.sub(r'\[!\[Open in Colab.*\n+', '', ''.join(c['source']))
        c['source'] = text.replace('\n' + install_lines(stem), '').splitlines(keepends=True)
    path.write_text(json.dumps(nb), encoding='utf-8')
    assert refresh(path, stem) and not refresh(path, stem)
    assert json.loads(path.read_text(encoding='utf-8')) == old

def test_a_cell_that_has_to_be_added_keeps_the_numbers_in_order(copy):
    path = copy('index')
    nb = json.loads(path.read_text(encoding='utf-8'))
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    nb['cells'].remove(code[0])
    for i,c in enumerate(code[1:], 1): c['execution_count'] = i
    path.write_text(json.dumps(nb), encoding='utf-8')
    assert refresh(path, 'index')
    after = json.loads(path.read_text(encoding='utf-8'))
    counts = [c['execution_count'] for c in after['cells'] if c['cell_type'] == 'code']
    assert counts == [*range(1, len(code)+1)]
    before = json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))
    assert [c.get('outputs') for c in after['cells']] == [c.get('outputs') for c in before['cells']]

def test_badges_go_into_sources_in_markdown_too():
    text = ('# The backward pass\n\n> How?\n> And why?\n\nText.\n\n```python\n#| default_exp backward\n```\n\n'
            '```python\n#| hide\nx = 1\n```\n')
    new = with_install(with_opening(text, '05_backward'), '05_backward')
    assert new == with_install(with_opening(new, '05_backward'), '05_backward')
    assert new.index('> And why?') < new.index('[![Open in Colab]') < new.index('Text.')
    lines = install_lines('05_backward')
    assert f'#| default_exp backward\n{lines}\n```' in new and new.count('google.colab') == 1

def test_a_notebook_without_a_question_is_refused():
    with pytest.raises(ValueError, match='question'): with_opening('# Title\n\nText.', '05_backward')

def test_a_page_without_a_place_is_refused():
    with pytest.raises(ValueError, match='sidebar.yml'): place('99_nowhere')

def test_place_names_the_neighbors():
    said = place('05_backward')
    for o in ('04_forward', '06_modules'): assert f'[{title_of(o)}]({o}.ipynb)' in said
    assert said.startswith('Lesson, room 05.') and '[Deeper](deeper/05_backward.ipynb)' in said
    assert 'Before' not in place(STEMS[1]) and 'Next' not in place(STEMS[-1])
    assert place('deeper/05_backward') == f"Deeper, beside room 05: [{title_of('05_backward')}](../05_backward.ipynb)."

def test_place_of_a_notebook_in_a_folder():
    "It has no number, and its links are seen from its folder."
    said = place('doctor/report')
    assert said.startswith('Tools.') and f"[{title_of('doctor/adapters')}](adapters.ipynb)" in said
    assert '](../' in place('doctor/plugin') and '](../badge_colab.svg)' in opening_line('doctor/report')
    page = next(o for o in pages() if o.stem == 'doctor/report')
    assert (page.name, page.room, page.module, page.label) == ('report', '', 'doctor.report', 'report')
    assert (Page('deeper/05_backward', 'Deeper').number, Page('05_backward', 'Lesson').name) == ('05', 'backward')

@each_page
def test_a_page_opens_on_its_title(stem):
    first = json.loads((root/'nbs'/f'{stem}.ipynb').read_text(encoding='utf-8'))['cells'][0]
    assert first['cell_type'] == 'markdown' and first['source'][0].startswith('# '), 'make badges'

def test_index_has_the_tables_of_all_notebooks():
    text = '\n'.join(cells('index', 'markdown'))
    assert lesson_table() in text and tools_table() in text, 'make badges'
    named = re.findall(r'\]\((\S+)\.ipynb\)', lesson_table() + tools_table())
    assert sorted(named) == sorted(STEMS[1:]) and '| `fb_pass.doctor.report` |' in tools_table()

def test_citation_says_what_the_settings_say():
    cite = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    ours = [CFG[k] for k in ('version', 'git_url', 'author')]
    assert [cite['version'], cite['url'], cite['authors'][0]['name']] == ours
    said = next(o for o in cells('index', 'markdown') if '## How to cite' in o)
    for part in (*ours, CFG['description'].split()[-1]): assert part in said
