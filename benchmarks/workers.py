"""The cost of worker processes, the memory of cleaning, and the start of `ich`. Needs Linux or macOS."""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pydicom

from .common import DATA, limit, memory_folder, phantom_files, quiet, row

LONG = 15  # times as many files in the long runs: 1.6 GB on the disk, deleted again
ICH = 'import sys; from ich_fastai.cli import main; sys.exit(main())'  # what the `ich` command is

LAUNCHER = '''
import json, os, subprocess, sys
p = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(p.pid, 0)
print(json.dumps([status, used.ru_utime + used.ru_stime]))
'''

def run(
    *args: str, # of a fresh Python
) -> float: # CPU seconds of it and all its children
    "Run Python to its end."
    command = [sys.executable, '-I', '-S', '-c', LAUNCHER, sys.executable, *args]
    p = subprocess.run(command, capture_output=True, text=True, check=True)
    status, cpu = json.loads(p.stdout)
    if status: raise RuntimeError(f'{" ".join(args)} failed:\n{p.stderr[-2000:]}')
    return cpu

def peaks(
    src: Path,
) -> tuple[float, float]: # of the main process, and of the larger of two workers, in MB
    "Watch the memory of `ich clean --workers 2`. Linux only."
    seen = {}
    with memory_folder() as tmp:
        options = '--workers', '2', '--min-brain', '0'
        p = subprocess.Popen([sys.executable, '-c', ICH, 'clean', str(src), str(Path(tmp)/'out'), *options],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while p.poll() is None:
            for pid in [p.pid, *_children(p.pid)]:
                try:
                    peak = re.search(r'VmHWM:\s+(\d+)', Path(f'/proc/{pid}/status').read_text())
                    command = Path(f'/proc/{pid}/cmdline').read_text()
                except OSError: continue  # it has ended
                if peak and (pid == p.pid or 'popen_loky' in command): seen[pid] = int(peak[1]) * 1024 / 1e6
            time.sleep(.02)
    return seen.pop(p.pid), max(seen.values())

def _children(pid: int) -> list[int]:
    found = []
    for o in Path(f'/proc/{pid}/task').glob('*/children'):
        try: found += [int(i) for i in o.read_text().split()]
        except OSError: continue
    return found + [k for o in found for k in _children(o)]

def clean(
    src: Path,
    workers: int,
) -> float: # CPU seconds
    "Run `ich clean` into a new folder, which is deleted again."
    with memory_folder() as tmp:
        used = run('-c', ICH, 'clean', str(src), str(Path(tmp)/'out'), '--workers', str(workers), '--min-brain', '0')
        counts = json.loads((Path(tmp)/'out'/'clean.json').read_text(encoding='utf-8'))
    if counts['written'] != len(list(src.iterdir())): raise RuntimeError(f'ich clean wrote {counts["written"]} images')
    return used

def copies(
    files: list[Path],
    folder: Path, # gets the copies
    times: int,
) -> Path: # the folder
    "Copy files again and again, each time as other patients: the last two digits of all ids change."
    folder.mkdir()
    for file in files:
        with quiet():  # pydicom warns of ids like RSNA's
            ds = pydicom.dcmread(file, stop_before_pixels=True)
            ids = [ds[o].value for o in ('SOPInstanceUID', 'PatientID', 'StudyInstanceUID', 'SeriesInstanceUID')]
        content = file.read_bytes()
        for i in range(times):
            head = content[:2048]  # all headers of the set are shorter
            for o in ids: head = head.replace(o.encode(), f'{o[:-2]}{i:02x}'.encode())
            (folder/f'{ids[0][:-2]}{i:02x}.dcm').write_bytes(head + content[2048:])
    return folder

def start_up(rounds: int) -> dict: # a row of the table
    "Measure the start of `ich clean --help`."
    ask = "import sys\nfrom ich_fastai.cli import main\ntry: main(['clean', '--help'])\nexcept SystemExit: "
    ask += "sys.exit('torch' in sys.modules)"  # status 1, which raises here, where torch was imported
    run('-c', ask)  # writes the byte code
    cpu = statistics.median(run('-c', ask) for _ in range(rounds))
    return limit('start-up of `ich clean --help`, without torch', cpu, 's CPU', .4)

def compare(
    rounds: int = 5,
    n: int = 200, # files of the short runs
) -> list[dict]: # rows of the table
    "Run `ich` again and again, in fresh processes."
    if sys.platform == 'win32':
        print('workers: left out, Windows does not tell what a process has used', file=sys.stderr)
        return []
    rows, few = [start_up(rounds)], phantom_files(n)
    used = {(workers, size): [] for workers in (1, 2) for size in (n, LONG * n)}
    with tempfile.TemporaryDirectory(dir=DATA) as tmp:
        folders = {n: few, LONG * n: copies(sorted(few.iterdir()), Path(tmp)/'many', LONG)}
        for i in range(rounds):
            for workers, size in list(used)[::-1 if i % 2 else 1]:
                used[workers, size].append(clean(folders[size], workers))
        main, worker = peaks(folders[LONG * n]) if sys.platform == 'linux' else (None, None)
    cpu = {k: statistics.median(v) for k, v in used.items()}
    # the difference of a long and a short run is images only: it leaves out what starting costs
    image = {o: (cpu[o, LONG * n] - cpu[o, n]) / ((LONG - 1) * n) for o in (1, 2)}
    one, two = image[1], image[2]
    # for this row the ratio says how many times as much we take, not how many times faster we are
    race = row('clean with 2 workers, starting not counted', 'the same in one process', two * 1000, one * 1000)
    race |= dict(at_most=1.05, ratio=round(two / one, 3), met=two / one <= 1.05)
    rows.append(race)
    for o in 1, 2: rows.append(limit(f'starting `ich clean --workers {o}`', cpu[o, n] - image[o] * n, 's CPU'))
    if worker:
        rows.append(limit(f'peak memory of a worker, {LONG * n} files', worker, 'MB', 150))
        rows.append(limit(f'peak memory of the main process, {LONG * n} files', main, 'MB'))
    return rows
