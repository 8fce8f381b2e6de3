"A module imports only from lower-numbered notebooks; every module has a notebook and every notebook its module."
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def modules():
    "module -> rank of its notebook"
    found = {}
    for fn in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        name = re.search(r'#\|\s*default_exp (\w+)', fn.read_text(encoding='utf-8'))
        assert name, f'{fn.name} exports to no module'
        found[name[1]] = fn.name.split('_')[0]
    return found


def imports(text):
    return set(re.findall(r'^\s*from (?:ich_fastai)?\.?(\w+) import', text, re.M))


def test_one_notebook_one_module():
    files = {o.stem for o in (ROOT/'ich_fastai').glob('*.py')} - {'__init__', '_modidx'}
    assert files == set(modules())


def test_imports_point_down():
    rank = modules()
    for name, number in rank.items():
        for other in imports((ROOT/'ich_fastai'/f'{name}.py').read_text(encoding='utf-8')) & set(rank):
            assert rank[other] < number, f'{name} ({number}) imports {other} ({rank[other]})'


def test_the_rule_can_fail():
    assert imports('from .train import train_binary') == {'train'}
    assert imports('def f():\n    from .cli import main') == {'cli'}


def test_length():
    for fn in (ROOT/'ich_fastai').glob('*.py'):
        if fn.name != '_modidx.py': assert len(fn.read_text(encoding='utf-8').splitlines()) <= 300, fn.name
