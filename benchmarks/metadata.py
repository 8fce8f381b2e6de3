"""`metadata_frame`, with and without statistics of the pixels, against fastai's frame and a loop over pydicom."""

import numpy as np
import pandas as pd

from ich_fastai.clean import metadata_frame

from . import peers
from .common import check, phantom_files, quiet, row, timed

STATS = 'img_min img_max img_mean img_std img_pct_window'.split()
IDS = dict(sop='SOPInstanceUID', group='PatientID', study='StudyInstanceUID', series='SeriesInstanceUID',
           modality='Modality')
NUMBERS = dict(rows='Rows', columns='Columns', bits_stored='BitsStored', pixel_representation='PixelRepresentation',
               slope='RescaleSlope', intercept='RescaleIntercept', window_center='WindowCenter',
               window_width='WindowWidth')

def check_values(ours: pd.DataFrame, theirs: pd.DataFrame) -> list[dict]:
    "Check that both frames have the same rows, and the same values where fastai is correct."
    ours, theirs = ours.set_index('sop', drop=False), theirs.set_index('SOPInstanceUID', drop=False)
    refused = (ours.reason != '').sum()
    rows = [check('every file accounted for', f'{len(ours)} of {len(theirs)} rows, {refused} of them refused',
                  set(ours.index) == set(theirs.index) and not refused)]
    ours = ours.loc[theirs.index]
    same = [(ours[k].astype(str) == theirs[v].astype(str)).all() for k, v in IDS.items()]
    same += [(ours[k].astype(float) == theirs[v].astype(float)).all() for k, v in NUMBERS.items()]
    rows.append(check(f'{len(same)} columns of the header against from_dicoms', f'{sum(same)} equal', all(same)))
    # fastai takes stored values: it does not repair wrapped files, and it counts the -2000 outside the scan circle
    honest = (theirs.RescaleIntercept.astype(float) <= -100) & (theirs.img_min >= 0)
    a, b = ours[honest], theirs[honest]
    slope, intercept = b.RescaleSlope.astype(float), b.RescaleIntercept.astype(float)
    apart = {o: np.abs(a[o] - (b[o] * slope + intercept)).max() for o in STATS[:3]}
    apart['img_std'] = np.abs(a.img_std - b.img_std * slope).max()
    everywhere = theirs.RescaleIntercept.astype(float) <= -100
    apart['img_pct_window'] = np.abs(ours.img_pct_window - theirs.img_pct_window)[everywhere].max()
    worst = max(apart.values())
    what = f'statistics in HU against from_dicoms, {honest.sum()} files'
    return rows + [check(what, f'at most {worst:.1g} apart', worst < 1e-3)]

def compare(
    rounds: int = 7,
    n: int = 200, # files
) -> list[dict]: # rows of the table
    "Compare values, then race."
    src = phantom_files(n)
    files = sorted(src.iterdir())
    with quiet(): rows = check_values(metadata_frame(src, workers=1), peers.fastai_frame(files, pixels=True))
    ms = timed({'ours': lambda: metadata_frame(src, workers=1),
                'fastai': lambda: peers.fastai_frame(files, pixels=True),
                'our headers': lambda: metadata_frame(src, pixels=False, workers=1),
                'fastai headers': lambda: peers.fastai_frame(files, pixels=False),
                'pydicom': lambda: peers.pydicom_frame(files)}, rounds)
    ms = {k: v / n * 1000 for k, v in ms.items()}
    header = 'metadata frame, header only'
    return rows + [
        row('metadata frame with pixel statistics', 'from_dicoms(px_summ=True)', ms['ours'], ms['fastai'], 15),
        row(header, 'from_dicoms(px_summ=False)', ms['our headers'], ms['fastai headers'], 25),
        row(header, f'pydicom stop_before_pixels, {len(peers.TAGS)} elements', ms['our headers'], ms['pydicom'], 10)]
