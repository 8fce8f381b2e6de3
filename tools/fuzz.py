"""Damaged DICOMs by the thousand: no crash, no hang, bounded memory, every file accounted for.

    python tools/fuzz.py [HOW_MANY] [SEED]

Bytes are flipped, lengths changed, pieces cut out and put in, files cut short. The files come from the phantom in
every encoding, and from the odd files of ICH_REAL_DATA if it is set. A child process reads them. So a crash of a
decoder is seen and its file is named.
"""
import faulthandler
import io
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

SECONDS, MEGABYTES, BATCH = 20, 1024, 1000  # a file, a process, files in a process
TAGS_OF_LENGTH = [b'\x10\x00\x02\x00\x00\x00', b'\xff\xff\xff\xff', b'\xff\xff\xff\x7f', b'\x00\x00\x00\x00',
                  b'\xff\xff', b'SQ\x00\x00\xff\xff\xff\xff']


def seeds(real: Path|None) -> list[bytes]:
    "Whole files to damage: a phantom slice in every encoding, a multi-frame file, and the odd ones."
    import numpy as np
    import pydicom
    from pydicom.uid import (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian,
                             JPEG2000Lossless, JPEGLSLossless,
                             RLELossless)
    from ich_fastai.phantom import write_phantom
    logging.getLogger('pydicom').setLevel(logging.ERROR)  # it warns of ids that are no UIDs
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as d:
        write_phantom(Path(d)/'p', patients=3, seed=5, size=128, n_slices=8, workers=1)
        found = [o.read_bytes() for o in sorted((Path(d)/'p'/'stage_2_train').iterdir())]
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
                   JPEG2000Lossless, JPEGLSLossless):
        ds = pydicom.dcmread(io.BytesIO(found[1]))
        list(ds.iterall())  # parse all values, so that they are written in the new byte order
        if syntax.is_encapsulated: ds.compress(syntax, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian: ds.PixelData = np.frombuffer(ds.PixelData, '<u2').astype('>u2').tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        out = io.BytesIO()
        pydicom.dcmwrite(out, ds, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian,
                         force_encoding=True)
        found.append(out.getvalue())
    return found + [o.read_bytes() for o in sorted(real.glob('*.dcm')) if o.stat().st_size < 60_000] if real else found


def mutant(rng: random.Random, raw: bytes) -> bytes:
    "One file, damaged in up to four places; most of them in the header, where lengths and sizes stand."
    m = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if len(m) < 200: break
        i = rng.randrange(len(m)) if rng.random() < .3 else rng.randrange(128, min(len(m), 2500))
        kind = rng.randrange(7)
        if kind == 0: m[i] = rng.randrange(256)
        elif kind == 1: m[i] ^= 1 << rng.randrange(8)
        elif kind == 2: del m[i:i + rng.choice([1, 2, 4, 8, 100])]
        elif kind == 3: m[i:i] = rng.randbytes(rng.choice([1, 2, 4, 8, 100]))
        elif kind == 4: m[i:i + 4] = rng.choice(TAGS_OF_LENGTH)
        elif kind == 5: del m[i:]
        else:
            j = rng.randrange(len(m))
            m[i:i + 16] = m[j:j + 16]
    return bytes(m)


def read_all(folder: Path) -> None:
    "In a child process: read the files of a folder, each against a time limit."
    import pydicom
    from ich_fastai.dicom import REASONS
    from ich_fastai.dicom.plain import plain_tags
    from ich_fastai.images.make import clean_file
    from ich_fastai.dicom.source import find_files, open_source
    from ich_fastai.dicom.tags import pydicom_tags
    warnings.simplefilter('ignore')
    opts = dict(size=32, windows=('brain',), crop=True, min_brain=0., format='jpg', quality=90,
                refuse=('contrast', 'bone'))
    src = open_source(folder)
    for i, name in enumerate(find_files(src)):
        (folder.parent/'at').write_text(str(i))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        slices = list(clean_file(src, name, opts))
        assert slices, f'{name}: nothing became of it'
        for o, data in slices:
            assert (data is not None) == (o['status'] == 'written') and o.get('reason',
                'unreadable') in REASONS, f'{name}: {o}'
        raw = (folder/name).read_bytes()
        if (found := plain_tags(raw, len(raw))) is not None:
            tags, start, n = found
            ds = pydicom.dcmread(io.BytesIO(raw))
            assert (tags, raw[start:start + n]) == (pydicom_tags(ds),
                                                    ds.PixelData), f'{name}: the short reader and pydicom differ'
        faulthandler.cancel_dump_traceback_later()
    if Path('/proc/self/status').exists():  # what getrusage tells would include the parent's memory
        used = int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1]) >> 10
        assert used < MEGABYTES, f'{used} MB of memory'
        print(used)


def fuzz(n: int, seed: int = 0, real: Path|None = None, keep: Path = Path('fuzz_failures')) -> dict:
    "Read `n` damaged files; returns counts, raises AssertionError where one did harm. That file is kept in `keep`."
    from ich_fastai.clean import clean_dicoms
    from ich_fastai.core import DataError, read_json
    rng, whole, counts, megabytes = random.Random(seed), seeds(real), dict(found=0, written=0, blank=0,
        quarantined=0), 0
    for first in range(0, n, BATCH):
        with tempfile.TemporaryDirectory() as d:
            folder = Path(d)/'files'
            folder.mkdir()
            for i in range(first, min(first + BATCH, n)):
                (folder/f'{i:06d}.dcm').write_bytes(mutant(rng, rng.choice(whole)))
            r = subprocess.run([sys.executable, __file__, '--child', str(folder)], capture_output=True, text=True)
            if r.returncode:
                name = sorted(o.name for o in folder.iterdir())[int((Path(d)/'at').read_text())]
                keep.mkdir(exist_ok=True)
                shutil.copy(folder/name, keep/name)
                raise AssertionError(f'{keep/name} (exit status {r.returncode}):\n{r.stderr[-2000:]}')
            megabytes = max(megabytes, int(r.stdout or 0))
            try: clean_dicoms(folder, Path(d)/'out', size=32, min_brain=0., workers=1)
            except DataError: pass  # not one good file
            about = read_json(Path(d)/'out'/'clean.json')
            assert about['files'] == len(list(folder.iterdir())) and about['found'] == sum(about[o] for o in ('written',
                'blank', 'quarantined', 'skipped'))
            for o in counts: counts[o] += about[o]
        print(f'{min(first + BATCH, n)} of {n} damaged files', counts, f'{megabytes} MB', file=sys.stderr, flush=True)
    return counts


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']: read_all(Path(sys.argv[2]))
    else:
        data = Path(os.environ.get('ICH_REAL_DATA', Path(__file__).parent.parent.parent/'shared'/'data'))/'dicom_odd'
        many, seed = int((sys.argv[1:] or [10000])[0]), int((sys.argv[2:] or [0])[0])
        print(fuzz(many, seed, data if data.is_dir() else None))
