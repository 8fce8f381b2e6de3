"""Batches for training, from JPEGs and from planes of HU, against fastai's own loader of the same files."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_basics import Pipeline
from fastai.vision.augment import Resize
from fastai.vision.core import imagenet_stats

from ich_fastai.clean import clean_dicoms
from ich_fastai.data import make_dls, multilabel_block
from ich_fastai.datasets import load_folder
from ich_fastai.images import read_image

from .common import DATA, check, one_thread, phantom_files, quiet, row, timed

BS, SIZE = 64, 256
FASTAI = 'fastai ImageBlock DataLoaders, num_workers=0'

def frames(
    n: int, # files
    out: Path, # gets a folder for each of the two kinds
) -> tuple[pd.DataFrame, pd.DataFrame]: # of JPEGs and of planes; every image once to validate, often to train
    "Clean the phantom both ways."
    found, src, times = [], phantom_files(n), -(-600 // n)  # nine batches per epoch, so its start counts for little
    labels = DATA/'phantom'/'stage_2_train.csv'
    for form in 'jpg', 'hu':
        with quiet(): clean_dicoms(src, out/form, labels=labels, size=SIZE, min_brain=0, workers=1, format=form)
        df = load_folder(out/form)
        found.append(pd.concat([df.assign(split=o) for o in ['valid'] + ['train'] * times], ignore_index=True))
    return found

def loaders(
    df: pd.DataFrame,
    image: str, # see `data.blocks.IMAGE_KINDS`
    leave_out: tuple = (), # classes of batch transforms to remove; `object` removes all
    resize: bool = True,
) -> DataLoaders:
    "Make the loaders of training without augmentation, and without some transforms."
    dls = make_dls(df, multilabel_block(size=SIZE, tfms='none', image=image), BS).to(torch.device('cpu'))
    for dl in dls.loaders:
        dl.after_batch = Pipeline([o for o in dl.after_batch.fs if not isinstance(o, leave_out)])
        if not resize: dl.after_item = Pipeline([o for o in dl.after_item.fs if not isinstance(o, Resize)])
    return dls

def epoch(dls: DataLoaders) -> Callable[[], None]:
    "Return a function that goes through the training images once, in another order each time."
    def go():
        for _ in dls.train: pass
    return go

def largest(a: DataLoaders, b: DataLoaders) -> float:
    "Compute the largest difference of pixels and targets of the validation images."
    apart = 0
    for (x, y), (x0, y0) in zip(a.valid, b.valid, strict=True):
        x, x0 = x.float(), x0.float()
        apart = max(apart, float((x - x0).abs().max()), float((y - y0).abs().max()))
    return apart

def from_windows(dls: DataLoaders) -> float:
    "Compute the largest difference between the pixels of planes and the windows of `dicom.window`, in grey levels."
    mean, std = (torch.tensor(o).view(3, 1, 1) for o in imagenet_stats)
    fns, apart = iter(dls.valid_ds.items.fn), 0
    for x, _ in dls.valid:
        for o in x:
            grey = ((o * std + mean) * 255).permute(1, 2, 0).numpy()
            apart = max(apart, np.abs(grey - read_image(next(fns))).max())
    return float(apart)

def check_batches(ways: dict[str, DataLoaders], of: str) -> list[dict]: # rows of the table
    "Compare the batches of all ways before they are timed."
    pixels = largest(ways['fast_uint8'], ways['fastai_uint8'])
    floats = largest(ways['fast'], ways['fastai'])
    greys = from_windows(ways['hu'])
    labels = all(torch.equal(a[1], b[1]) for a, b in zip(ways['hu'].valid, ways['fastai'].valid, strict=True))
    found = f'at most {greys:.3f} grey levels apart; targets {"equal" if labels else "differ"}'
    return [
        check(f"uint8 pixels and targets against ImageBlock's, {of}", f'at most {pixels:g} apart', pixels == 0),
        check(f"normalised pixels and targets against ImageBlock's, {of}", f'at most {floats:g} apart', floats == 0),
        check(f"windows of planes against dicom.window, targets too, {of}", found, greys <= .501 and labels)]

def compare(
    rounds: int = 7,
    n: int = 200, # DICOM files that the images are made of
) -> list[dict]: # rows of the table
    "Compare outputs, then time epochs."
    one_thread()
    with tempfile.TemporaryDirectory(dir=DATA if DATA.exists() else None) as tmp:
        jpg, hu = frames(n, Path(tmp))
        ways = dict(  # as numbers arrive at the network, or without the last steps
            fast=loaders(jpg, 'fast'), fast_uint8=loaders(jpg, 'fast', object), hu=loaders(hu, 'hu'),
            fastai=loaders(jpg, 'fastai'), fastai_float=loaders(jpg, 'fastai', Normalize),
            fastai_bare=loaders(jpg, 'fastai', Normalize, resize=False),
            fastai_uint8=loaders(jpg, 'fastai', (IntToFloatTensor, Normalize)))
        rows = check_batches(ways, f'{n} images')
        images = len(ways['fast'].train) * BS
        seconds = timed({k: epoch(o) for k, o in ways.items()}, rounds)
        ms = {k: o / images * 1000 for k, o in seconds.items()}
    jpgs = f'shuffled batches of {BS} from {SIZE} px JPEGs'
    planes = 'the same from planes of HU, windowed and normalised float'
    plain = 'theirs: Resize, floats of 0 to 1 as ImageBlock makes them'
    def against(work, ours, theirs, note, at_least=None): return row(work, FASTAI, ms[ours], ms[theirs], at_least, note)
    return rows + [
        against(f'{jpgs}, uint8', 'fast_uint8', 'fastai_float', plain, 6),
        against(f'{jpgs}, uint8', 'fast_uint8', 'fastai_bare', 'theirs: no Resize'),
        against(f'{jpgs}, uint8', 'fast_uint8', 'fastai_uint8', 'theirs: Resize, IntToFloatTensor taken out'),
        against(f'{jpgs}, normalised float', 'fast', 'fastai', 'the same on both sides'),
        against(planes, 'hu', 'fastai_float', plain, 6),
        against(planes, 'hu', 'fastai', 'theirs normalised too')]
