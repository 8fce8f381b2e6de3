"""Files, fair timing, rows of the table and the description of the machine, for all benchmarks."""

import contextlib
import gc
import importlib.metadata
import io
import logging
import math
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ich_fastai.core import n_cpus
from ich_fastai.phantom import write_phantom

ROOT = Path(__file__).parent.parent
RESULTS = ROOT/'results'/'bench'
DATA = RESULTS/'data'

class MissingPeer(Exception):
    "A library that we compare with is not installed."

def one_thread() -> None:
    "Switch off what the environment does not: OpenCV's own threads, and torch's."
    import cv2
    cv2.setNumThreads(1)
    try: import torch
    except ImportError as e: raise MissingPeer(_missing(e)) from e
    torch.set_num_threads(1)

def _missing(e: ImportError) -> str:
    return f"{e.name} cannot be imported ({e}); the benchmarks need:  pip install -e '.[bench]'"

@contextlib.contextmanager
def peers_needed() -> Iterator[None]:
    "Around imports: say what to install where one fails."
    with quiet():
        try: yield
        except ImportError as e: raise MissingPeer(_missing(e)) from e
    one_thread()  # an import may have changed it: fastai.medical.imaging sets OpenCV's threads

@contextlib.contextmanager
def quiet() -> Iterator[None]:
    "No progress bars, prints, logs or warnings: writing to a terminal would be timed too."
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter('ignore')
            yield
    finally: logging.disable(logging.NOTSET)

def phantom_files(
    n: int = 200, # how many
) -> Path: # a folder with nothing but that many readable files of 512 x 512
    "Make synthetic head CT in the three encodings of RSNA 2019, with explicit and implicit VR, once."
    folder = DATA/f'files-{n}'
    if folder.exists(): return folder
    # of eight patients four have unsigned 12 bits, three signed 16, one wrapped 12; two have implicit VR
    with quiet(): write_phantom(DATA/'phantom', patients=8, seed=19, n_slices=25)
    # the set has one file that is cut short, on which every peer fails
    files = sorted((DATA/'phantom'/'stage_2_train').glob('*.dcm'))
    whole = [o for o in files if o.stat().st_size > 2 * 512 * 512]
    if len(whole) < n: raise ValueError(f'The phantom set has {len(whole)} whole files, not {n}.')
    unfinished = DATA/f'files-{n}.part'
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for o in whole[:n]: shutil.copyfile(o, unfinished/o.name)
    return unfinished.rename(folder)

def memory_folder() -> tempfile.TemporaryDirectory:
    """Make a folder for the output, in memory if the system offers that. A new file on a disk takes 0.04 to 0.6 ms,
    depending on what was deleted shortly before; that says nothing about the code."""
    memory = Path('/dev/shm')
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2e9
    return tempfile.TemporaryDirectory(dir=memory if roomy else None)

def timed(
    functions: dict[str, Callable[[], object]], # name -> the work, without arguments
    rounds: int = 7, # that count; one more comes before them
) -> dict[str, float]: # name -> median CPU seconds of this process
    """Time several ways to do the same, in turn, so that a slow moment of the machine slows all of them.
    Work of less than a fifth of a second is done several times in a row, because the clock is not exact enough."""
    seconds, times = {k: [] for k in functions}, dict.fromkeys(functions, 1)
    with quiet():
        for i in range(rounds + 1):
            for name in list(functions)[::-1 if i % 2 else 1]:
                gc.collect()
                start = time.process_time()
                for _ in range(times[name]): functions[name]()
                seconds[name].append((time.process_time() - start) / times[name])
                if i == 0: times[name] = max(1, math.ceil(.2 / max(seconds[name][0], 1e-6)))
    return {k: statistics.median(v[1:]) for k, v in seconds.items()}

def row(
    work: str, # what is done
    yardstick: str, # the other library or call that does it
    ours_ms: float, # our CPU milliseconds per image or file
    yardstick_ms: float, # the yardstick's CPU milliseconds per image or file
    at_least: float|None = None, # how many times faster we must be; None: no limit
    note: str = '', # what a reader must know
) -> dict: # a row of the table
    "Make a row for a race."
    ratio = yardstick_ms / ours_ms
    return dict(work=work, yardstick=yardstick, ours_ms=round(ours_ms, 4), yardstick_ms=round(yardstick_ms, 4),
                ratio=round(ratio, 3), at_least=at_least, met=at_least is None or ratio >= at_least, note=note)

def limit(
    work: str, # what is measured
    value: float, # in `unit`
    unit: str, # of the value
    at_most: float|None = None, # largest value that is allowed; None: no limit
    note: str = '', # what a reader must know
) -> dict: # a row of the table
    "Make a row for a value that must not exceed a limit."
    met = at_most is None or value <= at_most
    return dict(work=work, value=round(value, 4), unit=unit, at_most=at_most, met=met, note=note)

def check(
    what: str, # what was compared with what
    found: str, # the outcome
    met: bool, # whether it is as it must be
) -> dict: # a row of the table
    "Make a row for outputs that were compared before anything was timed."
    return dict(check=what, found=found, met=bool(met))

def machine() -> dict:
    "Describe where this ran."
    versions = {}
    for o in 'numpy opencv-python-headless simplejpeg pydicom pandas pyarrow fastai kornia monai torch pillow'.split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError): versions[o] = importlib.metadata.version(o)
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9 if hasattr(os, 'sysconf') else float('nan')
    return dict(cpu=_cpu(), cores=n_cpus(), memory_gb=round(memory, 1), system=platform.platform(),
                python=platform.python_version(), packages=versions)

def _cpu() -> str:
    "Name the processor."
    if Path('/proc/cpuinfo').exists():
        lines = dict(o.split(':', 1) for o in Path('/proc/cpuinfo').read_text().splitlines() if ':' in o)
        lines = {k.strip(): v.strip() for k, v in lines.items()}
        return lines.get('model name') or lines.get('Model') or platform.machine()
    if platform.system() == 'Darwin':
        return subprocess.check_output(['sysctl', '-n', 'machdep.cpu.brand_string'], text=True).strip()
    return platform.processor()
