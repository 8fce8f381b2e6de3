"""Run the benchmarks, print the table, save it, and end with status 1 if a line is not met."""

import argparse
import datetime
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import time

from ich_fastai.core import write_json
from ich_fastai.runs import git_state

from .common import RESULTS, MissingPeer, machine, one_thread

PARTS = 'cleaning', 'metadata', 'loaders', 'workers', 'predicting'

def arguments() -> argparse.Namespace:
    "Read the command line."
    p = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    p.add_argument('--only', nargs='+', choices=PARTS, default=PARTS,
                   help='run parts only; they are saved as latest-PART.md, and latest.md stays as it is')
    p.add_argument('--rounds', type=int, default=7, help='how often everything is timed; the table shows medians')
    p.add_argument('--quick', action='store_true', help='two rounds of 100 files, nothing saved')
    a = p.parse_args()
    if a.rounds < 1: p.error('--rounds must be at least 1')
    return a

def cells(row: dict) -> list[str]:
    "Write the cells of a row."
    if 'check' in row: return [f"same output: {row['check']}", row['found'], '', '', '', '', _met(row)]
    work = row['work'] + (f" ({row['note']})" if row.get('note') else '')
    if 'value' in row:
        ask = '' if row['at_most'] is None else f"<= {row['at_most']:g} {row['unit']}"
        return [work, '', f"{row['value']:.3g} {row['unit']}", '', '', ask, _met(row)]
    ask = f">= {row['at_least']:g}" if row.get('at_least') else f"<= {row['at_most']:g}" if row.get('at_most') else ''
    numbers = [f"{row['ours_ms']:.3f}", f"{row['yardstick_ms']:.3f}", f"{row['ratio']:.2f}x"]
    return [work, row['yardstick'], *numbers, ask, _met(row)]

def _met(row: dict) -> str:
    if 'check' not in row and not (row.get('at_most') or row.get('at_least')): return ''
    return 'yes' if row['met'] else 'NO'

HEADS = ['work', 'yardstick', 'ours, ms CPU', 'yardstick', 'ratio', 'asked for', 'met']

def table(rows: list[dict]) -> str:
    "Write all rows as a Markdown table that can also be read as text."
    lines = [HEADS, *map(cells, rows)]
    wide = [max(len(o[i]) for o in lines) for i in range(len(HEADS))]
    lines.insert(1, ['-' * o for o in wide])
    return '\n'.join('| ' + ' | '.join(c.ljust(w) for c, w in zip(o, wide)) + ' |' for o in lines)

def about(result: dict) -> str:
    "Describe the machine in one paragraph."
    m = result['machine']
    packages = ', '.join(f'{k} {v}' for k, v in m['packages'].items())
    code = (result['git']['revision'] or 'unknown')[:10] + (' with changes' if result['git']['dirty'] else '')
    return (f"{result['date']}, revision {code}. {m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, "
            f"{m['system']}, Python {m['python']}; {packages}.\n"
            f"CPU time, medians of {result['rounds']} rounds, all libraries in turn in one process with one thread.")

def save(
    result: dict, # what `main` measured
    parts: tuple, # the parts that ran; empty: all of them
) -> None:
    "Save the result under its own name and, with at least five rounds, as the latest one."
    short = hashlib.sha256(json.dumps(result).encode()).hexdigest()[:6]
    write_json(RESULTS/f"{result['date'][:10]}-{short}.json", result)
    if result['rounds'] < 5: return
    text = f"# Benchmarks\n\n{about(result)}\n\n{table(result['rows'])}\n"
    (RESULTS/f"latest{''.join(f'-{o}' for o in parts)}.md").write_text(text, encoding='utf-8', newline='\n')

def main() -> int: # 0 all met, 1 not, 2 could not be run
    a = arguments()
    RESULTS.mkdir(parents=True, exist_ok=True)
    options = dict(rounds=2, n=100) if a.quick else dict(rounds=a.rounds)
    rows = []
    try:
        one_thread()
        for o in a.only:
            if importlib.util.find_spec(f'.{o}', __package__) is None:
                print(f'{o}: not there yet', file=sys.stderr)
                continue
            start = time.monotonic()
            compare = importlib.import_module(f'.{o}', __package__).compare
            known = inspect.signature(compare).parameters
            found = compare(**{k: v for k, v in options.items() if k in known})
            print(f'{o}: {len(found)} lines in {time.monotonic() - start:.0f} s', file=sys.stderr, flush=True)
            rows += found
    except MissingPeer as e:
        print(f'benchmarks: {e}', file=sys.stderr)
        return 2
    now = datetime.datetime.now().isoformat(timespec='seconds')
    result = dict(date=now, git=git_state(), machine=machine(), rounds=options['rounds'], rows=rows)
    print(table(rows))
    print(f'\n{about(result)}')
    if not a.quick: save(result, () if tuple(a.only) == PARTS else a.only)
    missed = [o for o in rows if not o['met']]
    if missed: print(f'{len(missed)} of {len(rows)} lines are not met.', file=sys.stderr)
    return int(bool(missed))

if __name__ == '__main__': sys.exit(main())
