"The `ich` command: exit status, one line on errors, no torch for reading."
import os
import subprocess
import sys

import pytest

CLI = [sys.executable, '-c', 'from ich_fastai.cli import main; raise SystemExit(main())']


def ich(*args, **kw): return subprocess.run(CLI + [str(o) for o in args], capture_output=True, text=True, **kw)


def test_help_is_quick_and_light():
    code = ("import sys, time, os; t = time.process_time(); sys.argv = ['ich', 'clean', '--help']\n"
            "from ich_fastai.cli import main\ntry: main()\nexcept SystemExit: pass\n"
            "print('torch' in sys.modules, 'pandas' in sys.modules, time.process_time(), file=sys.stderr)")
    torch, pandas, seconds = subprocess.run([sys.executable, '-c', code], capture_output=True,
                                            text=True).stderr.split()[-3:]
    assert torch == pandas == 'False' and float(seconds) < .4


@pytest.mark.parametrize('command', 'demo phantom meta clean audit train report submit'.split())
def test_every_command_has_help(command):
    r = ich(command, '--help')
    assert r.returncode == 0 and 'usage' in r.stdout


def test_wrong_usage():
    assert ich().returncode == 2
    assert ich('celan').returncode == 2
    assert ich('train', 'binary', 'x', '--epochs', 'many').returncode == 2


def test_errors_are_one_line(tmp_path):
    (tmp_path/'empty').mkdir()
    for args in (['clean', tmp_path/'none', tmp_path/'o'], ['clean', tmp_path/'empty', tmp_path/'o'],
                 ['audit', 'phanton'], ['meta', tmp_path/'none', tmp_path/'o.parquet'],
                 ['report', 'no_such_run', '--results', tmp_path], ['phantom', tmp_path/'p', '--patients', '0']):
        r = ich(*args)
        assert r.returncode == 1, args
        assert len(r.stderr.strip().splitlines()) == 1 and r.stderr.startswith('ich '), r.stderr
    assert 'Traceback' in ich('clean', tmp_path/'none', tmp_path/'o', '--debug').stderr


def test_phantom_clean_audit_meta(tmp_path):
    env = os.environ | dict(PYTHONUTF8='1')
    assert ich('phantom', tmp_path/'p', '--patients', '5', '--workers', '1', env=env).returncode == 0
    src = tmp_path/'p'/'stage_2_train'
    r = ich('clean', src, tmp_path/'c', '--labels', tmp_path/'p'/'stage_2_train.csv', '--size', '64', '--format', 'png',
            '--windows', 'brain')
    assert r.returncode == 0 and '1 bad_pixels' in r.stdout, r.stderr
    r = ich('meta', src, tmp_path/'m.parquet', '--no-pixels')
    assert r.returncode == 0 and (tmp_path/'m.parquet').exists()
    r = ich('audit', tmp_path/'c')
    assert r.returncode == 0 and 'No leak' in r.stdout, r.stderr


def test_audit_finds_a_leak(cleaned, tmp_path):
    import numpy as np
    from ich_fastai.datasets import open_dataset
    df = open_dataset(cleaned).frame
    df['split'] = np.resize(['train', 'valid', 'test'], len(df))
    df.to_parquet(tmp_path/'leak.parquet')
    r = ich('audit', tmp_path/'leak.parquet')
    assert r.returncode == 1 and 'LEAK' in r.stdout


def test_audit_of_classes_and_near_copies(cleaned, tmp_path):
    import numpy as np
    import pandas as pd
    from ich_fastai.datasets import open_dataset
    from PIL import Image
    fns = open_dataset(cleaned).frame.groupby('group').fn.nth(4).tolist()
    moved = np.roll(np.asarray(Image.open(fns[0])), 2, axis=1)
    Image.fromarray(moved).save(tmp_path/'copy.png')
    n = len(fns)
    pd.DataFrame(dict(fn=[*fns, str(tmp_path/'copy.png')], group=range(n + 1), label=['a', 'b'] * (n // 2) + ['a'],
                      split=['train'] * (n - 2) + ['valid'] * 2 + ['test'])).to_csv(tmp_path/'f.csv', index=False)
    r = ich('audit', tmp_path/'f.csv')
    assert r.returncode == 0 and 'No leak' in r.stdout, r.stdout + r.stderr
    r = ich('audit', tmp_path/'f.csv', '--near')
    assert r.returncode == 1 and '1 near_same' in r.stdout and 'copy.png' in r.stdout, r.stdout + r.stderr
