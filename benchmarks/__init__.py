"""Speed of ich_fastai against what people use now: `python -m benchmarks`, see `--help`."""

import os

# Each library gets one thread. Libraries read these values at import, so this comes before any other import.
for _name in 'OMP', 'OPENBLAS', 'MKL', 'NUMEXPR':
    os.environ[f'{_name}_NUM_THREADS'] = '1'
os.environ['VECLIB_MAXIMUM_THREADS'] = '1'
