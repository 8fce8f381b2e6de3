"A module imports from lower floors, a face from its own folder; every module has its notebook."
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT/'ich_fastai'
LESSONS = 'lessons'  # exported by `nbs/teaching`, whose notebooks are read in any order


def number(name):
    "The number that a notebook or its folder begins with."
    return int(re.match(r'\d+(?=_)', name)[0])


def notebooks():
    "module -> its notebook"
    found = {}
    for fn in sorted((ROOT/'nbs').rglob('*.ipynb')):
        cells = [''.join(o['source']) for o in json.loads(fn.read_text(encoding='utf-8'))['cells']]
        name = [m[1] for o in cells if (m := re.match(r'#\|\s*default_exp ([\w.]+)', o))]
        if name: found[name[0]] = fn
    return found


def modules():
    "module -> its file; faces are left out"
    files = [o for o in PACKAGE.rglob('*.py') if o.name not in ('__init__.py', '_modidx.py')]
    return {'.'.join(o.relative_to(PACKAGE).with_suffix('').parts): o for o in files}


def floor(fn):
    "Where a notebook stands: the number of its folder, then its own."
    parts = fn.relative_to(ROOT/'nbs').parts
    return tuple(number(o) for o in parts) if parts[0] != 'teaching' else (99, number(parts[1]))


def imports(text, module):
    "Modules of the package, dotted and without its name, that a source imports anywhere."
    package, found = module.split('.')[:-1], set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {o.name.split('.', 1)[1] for o in node.names if o.name.startswith('ich_fastai.')}
        if not isinstance(node, ast.ImportFrom): continue
        base = (node.module or '').split('.') if node.module else []
        if node.level: base = package[:len(package) - node.level + 1] + base
        elif base[0] == 'ich_fastai': base = base[1:]
        else: continue
        found |= {'.'.join([*base, o.name]) for o in node.names} if not base else {'.'.join(base)}
    return found - {'__version__'}


RANK = {name: floor(fn) for name, fn in notebooks().items()}


def test_one_notebook_one_module():
    assert set(modules()) == set(RANK)


def test_no_two_on_a_floor():
    taken = [o for o in RANK.values() if o[0] != 99]
    assert len(set(taken)) == len(taken)
    for folder in {o.parent for o in notebooks().values()} - {ROOT/'nbs'}:
        if folder.name != 'teaching': assert re.fullmatch(r'\d\d_[a-z]+', folder.name), folder


@pytest.mark.parametrize('name', sorted(RANK))
def test_imports_point_down(name):
    packages = {o.split('.')[0]: RANK[o][0] for o in RANK}
    for other in imports(modules()[name].read_text(encoding='utf-8'), name):
        if other in RANK: assert RANK[other] < RANK[name], f'{name} {RANK[name]} imports {other} {RANK[other]}'
        else: assert packages[other] < RANK[name][0], f'{name} {RANK[name]} imports the package {other}'


@pytest.mark.parametrize('fn', sorted(PACKAGE.glob('*/__init__.py')), ids=lambda o: o.parent.name)
def test_a_face_only_hands_on(fn):
    "It says what goes in and what comes out, imports explicit names from its own folder, and defines nothing."
    text = fn.read_text(encoding='utf-8')
    said, *rest = ast.parse(text).body
    assert isinstance(said, ast.Expr) and isinstance(said.value.value, str)
    for node in rest:
        assert isinstance(node, ast.ImportFrom) and node.level == 1 and node.module, ast.unparse(node)
        assert f'{fn.parent.name}.{node.module}' in RANK and not any(o.name == '*' for o in node.names)
    assert len(text.splitlines()) <= 12


def test_the_rule_can_fail():
    assert imports('from .one_call import train_binary', 'train.folds') == {'train.one_call'}
    assert imports('from ..core import LABELS', 'train.folds') == {'core'}
    assert imports('from .. import train', 'studies.grid') == {'train'}
    assert imports('def f():\n    from ich_fastai.cli import main', 'demo') == {'cli'}
    assert imports('from ich_fastai import __version__', 'cli') == set()
    assert imports('import ich_fastai.train.folds', 'cli') == {'train.folds'}


@pytest.mark.parametrize('name', sorted(RANK))
def test_length(name):
    lines = modules()[name].read_text(encoding='utf-8').splitlines()
    assert len(lines) <= 300
