"The order of the book, and what stands at the top of every notebook: badges, neighbors, what installs it elsewhere."
import json, re, shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from badges import refresh, with_install, with_opening
from book import (Page, cells, hosts, install_lines, notebooks, opening_line, pages, place, reading_minutes, root,
                  seen_from, settings, table, title_of)

CFG = settings()
STEMS = [o.stem for o in pages()]
each_page = pytest.mark.parametrize('stem', STEMS)

def test_sidebar_names_every_notebook_once_and_in_order():
    assert STEMS == [*notebooks()], 'nbs/sidebar.yml and the notebooks in nbs/ differ'
    numbered = [o.stem for o in pages() if o.room]
    assert STEMS[0] == 'index' and numbered == sorted(numbered), 'rooms are read in the order of their numbers'

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
    assert 'Room 05, in the part *The walk*' in said
    assert 'Before' not in place(STEMS[1]) and 'Next' not in place(STEMS[-1])

def test_place_of_a_notebook_in_a_folder():
    "It has no number, and its links are seen from its folder."
    said = place('doctor/report')
    assert said.startswith('In the part *The doctor*.') and f"[{title_of('doctor/adapters')}](adapters.ipynb)" in said
    assert '](../' in said and '](../badge_colab.svg)' in opening_line('doctor/report')
    page = next(o for o in pages() if o.stem == 'doctor/report')
    assert (page.name, page.room, page.module, page.label) == ('report', '', 'doctor.report', 'report')

def test_reading_time_is_of_an_honest_size():
    for o in pages():
        if o.part: assert 5 <= reading_minutes(o.stem) <= 240
    assert Page('05_backward', 'The walk').name == 'backward'

def test_index_has_the_table_of_all_notebooks():
    assert table() in '\n'.join(cells('index', 'markdown')), 'make badges'
    assert len(table().splitlines()) == len(STEMS) + 1 and '| `fb_pass.doctor.report` |' in table()

def test_pictures_of_the_path_know_every_notebook():
    from draw_images import GUARD, PATH
    drawn = {o.split()[1] for o in (GUARD, *PATH)}
    shown = {m for o in STEMS for m in re.findall(r'images/path_(\w+)\.svg', '\n'.join(cells(o, 'markdown')))}
    assert shown <= drawn, f'name in PATH of tools/draw_images.py: {shown - drawn}'

def test_citation_says_what_the_settings_say():
    cite = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    ours = [CFG[k] for k in ('version', 'git_url', 'author')]
    assert [cite['version'], cite['url'], cite['authors'][0]['name']] == ours
    said = next(o for o in cells('index', 'markdown') if '## How to cite' in o)
    for part in (*ours, CFG['description'].split()[-1]): assert part in said
