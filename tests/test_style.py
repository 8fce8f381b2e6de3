"Code fits a screen, notebooks show something, references resolve, and the words are those of the glossary."
import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)
LIBRARY = [o for o in NOTEBOOKS if o.parent.name not in ('studies', 'teaching') and o.name[0].isdigit()]
SOURCES = [fn for folder in ('tests', 'benchmarks', 'tools', 'ich_fastai/*') for fn in ROOT.glob(f'{folder}/*.py')
           if folder != 'ich_fastai/*' or fn.name == '__init__.py']
TEXTS = [*ROOT.glob('*.md'), *ROOT.glob('data/**/*.md')]
MODULES = sorted('.'.join(o.relative_to(ROOT/'ich_fastai').with_suffix('').parts)
                 for o in (ROOT/'ich_fastai').rglob('*.py') if o.name not in ('__init__.py', '_modidx.py'))
PACKAGES = {o.parent.name for o in (ROOT/'ich_fastai').glob('*/__init__.py')}
FILES = 'css csv dcm html ipynb jpg json jsonl key md npy onnx parquet png pth py safetensors txt zip'.split()
# what a reader stumbled over once, and what the glossary replaced
PHRASES = ('nothing was chosen by', 'likewise', 'whoever', 'unlike the training', 'counts for nothing',
           'the project report', 'validation side', 'test side', 'training side', 'drawing patients',
           'exclude each other', 'goes into the way', 'come in by a hole', 'gone on with', 'ask of you',
           'turn to be held out is dealt', 'straight line that is drawn', 'taken apart',
           'tell small differences from luck', 'a row a', 'a line a scan')


def cells(fn): return json.loads(fn.read_text(encoding='utf-8'))['cells']


def source(cell): return ''.join(cell['source'])


def is_export(cell): return cell['cell_type'] == 'code' and re.match(r'#\|\s*export\b', source(cell))


def ids(path): return '/'.join(path.relative_to(ROOT).parts[1:])


@pytest.mark.parametrize('fn', NOTEBOOKS, ids=ids)
def test_width_of_notebooks(fn):
    "120 characters of code, 160 of prose and tables."
    for cell in cells(fn):
        most = 120 if cell['cell_type'] == 'code' else 160
        for line in source(cell).split('\n'):
            assert len(line) <= most, f"{cell['id']}: {len(line)} characters: {line[:80]}"


@pytest.mark.parametrize('fn', SOURCES + TEXTS, ids=lambda o: o.name)
def test_width_of_files(fn):
    most = 120 if fn.suffix == '.py' else 160
    if fn.name == 'RESULTS.md': return  # is made of tables
    for n, line in enumerate(fn.read_text(encoding='utf-8').splitlines(), 1):
        assert len(line) <= most, f'line {n}: {len(line)} characters: {line[:80]}'


@pytest.mark.parametrize('name', MODULES)
def test_length_of_modules(name):
    "300 lines, a line of more than 110 characters counted as two."
    lines = (ROOT/'ich_fastai'/f"{name.replace('.', '/')}.py").read_text(encoding='utf-8').splitlines()
    assert sum(1 + max(0, len(o) - 1) // 110 for o in lines) <= 300


def body_lines(text):
    "Lines of a cell less those of signatures and of tables."
    lines, free = text.split('\n'), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef): free |= set(range(node.lineno, node.body[0].lineno))
    for node in ast.parse(text).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)): free |= set(range(node.lineno, node.end_lineno + 1))
    return len(lines) - len(free)


@pytest.mark.parametrize('fn', LIBRARY, ids=ids)
def test_cells_fit_a_screen(fn):
    for cell in filter(is_export, cells(fn)): assert body_lines(source(cell)) <= 60, cell['id']


@pytest.mark.parametrize('fn', LIBRARY, ids=ids)
def test_a_library_notebook_shows_something(fn):
    code = [o for o in cells(fn) if o['cell_type'] == 'code']
    assert any(o.get('outputs') and not re.match(r'#\|\s*hide', source(o)) for o in code)


def test_tables_and_signatures_are_free():
    text = 'TABLE = dict(\n    a=1,\n    b=2)\n\ndef f(\n    a, # one\n) -> int:\n    "Add."\n    return a + 1'
    assert body_lines(text) == 3


def texts(fn):
    "Prose of a notebook: Markdown, and docstrings and comments of what is exported."
    for cell in cells(fn):
        if cell['cell_type'] == 'markdown': yield cell['id'], source(cell)
        elif is_export(cell):
            found = re.findall(r'#(?!\|)(.*)|^\s*"((?:[^"\\]|\\.)*)"\s*$', source(cell), re.M)
            yield cell['id'], '\n'.join(a or b for a, b in found)


def names_of(module):
    package = importlib.import_module(f'ich_fastai.{module}')
    return {o for o in vars(package) if not o.startswith('__')}


@pytest.mark.parametrize('fn', NOTEBOOKS, ids=ids)
def test_references_resolve(fn):
    "`package.name` is in the face, `package.module.name` in the module; no module is named without its package."
    inner = {}
    for o in MODULES:
        if '.' in o: inner.setdefault(o.split('.')[-1], []).append(o)
    for at, text in texts(fn):
        for path in re.findall(r'`((?:ich_fastai\.)?\w+(?:\.\w+)+)', text):
            *way, name = path.removeprefix('ich_fastai.').split('.')
            if name in FILES or not way: continue
            if '.'.join([*way, name]) in MODULES: continue
            if way[0] in PACKAGES or way[0] in MODULES:
                module = '.'.join(way[:2]) if '.'.join(way[:2]) in MODULES else way[0]
                first = [*way, name][module.count('.') + 1]
                assert first in names_of(module), f'{at}: `{path}`'
            elif way[0] in inner and len(way) == 1:
                homes = [o for o in inner[way[0]] if name in names_of(o)]
                assert not homes, f'{at}: `{path}` is {homes[0]}.{name}'


@pytest.mark.parametrize('fn', [o for o in NOTEBOOKS if not o.name.startswith('5')], ids=ids)  # lessons stay
def test_words(fn):
    for at, text in texts(fn):
        text = re.sub(r'\s+', ' ', text)
        for phrase in PHRASES: assert not re.search(rf'\b{re.escape(phrase)}\b', text, re.I), f"{at}: '{phrase}'"


@pytest.mark.parametrize('fn', TEXTS, ids=lambda o: o.name)
def test_words_of_files(fn):
    if fn.name in ('CONTRIBUTING.md', 'RESULTS.md'): return  # one names these words, one is made of notebooks
    text = re.sub(r'\s+', ' ', fn.read_text(encoding='utf-8'))
    for phrase in PHRASES: assert not re.search(rf'\b{re.escape(phrase)}\b', text, re.I), phrase
