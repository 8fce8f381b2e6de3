"Notebooks stay small, clean, and free of what belongs to one machine."
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)


@pytest.mark.parametrize('fn', NOTEBOOKS, ids=lambda o: o.stem)
def test_notebook(fn):
    limit = 1_000_000 if fn.parent.name in ('studies', 'teaching') else 307_200
    assert fn.stat().st_size <= limit, f'{fn.stat().st_size} bytes'
    assert not re.search(r'Untitled|-Copy\d', fn.name)
    nb = json.loads(fn.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        assert cell.get('execution_count') is None
        for out in cell.get('outputs', []):
            assert out['output_type'] != 'error'
            text = json.dumps({k: v for k, v in out.get('data', out).items() if not k.startswith('image/')})
            assert not re.search(r'/(home|root|work|Users)/', text), 'a path of one machine in an output'


@pytest.mark.parametrize('fn', [o for o in NOTEBOOKS if o.parent.name not in ('studies',
    'teaching') and o.name[0].isdigit()], ids=lambda o: o.stem)
def test_as_many_checks_as_exports(fn):
    cells = [''.join(o['source']) for o in json.loads(fn.read_text(encoding='utf-8'))['cells']
             if o['cell_type'] == 'code']
    exports = [o for o in cells if re.search(r'^#\|\s*export', o, re.M) and re.search(r'^(def|class|@dataclass)', o,
        re.M)]
    checks = [o for o in cells if re.search(r'^\s*(assert |test_\w+\()|: test_\w+\(|: assert ', o,
                                            re.M) and '#| export' not in o]
    assert len(checks) >= len(exports), f'{len(exports)} exported cells, {len(checks)} that check'


STUDIES = [o for o in NOTEBOOKS if o.parent.name == 'studies']


@pytest.mark.parametrize('fn', STUDIES, ids=lambda o: o.stem)
def test_a_study_defines_nothing(fn):
    "What a study needs belongs into the library, where it is tested."
    cells = [''.join(o['source']) for o in json.loads(fn.read_text(encoding='utf-8'))['cells']
             if o['cell_type'] == 'code']
    cells = [re.sub(r'^[%!].*', '', o, flags=re.M) for o in cells]
    for node in (o for c in cells for o in ast.walk(ast.parse(c))):
        assert not isinstance(node, (ast.FunctionDef, ast.ClassDef)), node.name
    assert any('assert' in o or 'test_eq(' in o for o in cells), 'no check in the form that runs in tests'


def test_cards():
    from ich_fastai.datasets import datasets
    for name in datasets: assert (ROOT/'data'/'cards'/f'{name}.md').stat().st_size > 500


def test_nothing_foreign_is_tracked():
    "Neither data nor weights nor pickles lie beside the sources."
    bad = [o for o in (ROOT/'ich_fastai').rglob('*') if o.suffix in ('.pkl', '.pth', '.dcm', '.ipynb')]
    assert not bad
