"""`clean_dicoms` from DICOM files to JPEGs and a manifest, against three ways to make the JPEGs only."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.pixels import apply_rescale

from ich_fastai.clean import clean_dicoms, load_manifest
from ich_fastai.dicom import WINDOWS, brain_box, read_hu, window

from . import peers
from .common import check, memory_folder, phantom_files, quiet, row, timed

OURS = ('brain', 'subdural', 'soft')
WORK = 'clean: DICOM to 256 px three-window JPEG'

def ours(
    src: Path,
    out: Path,
    **kwargs, # of `clean_dicoms`
) -> dict: # the counts
    "Do all that `ich clean` does, in this process. No slice is blank, because the others write all of them."
    return clean_dicoms(src, out, workers=1, min_brain=0, **kwargs)

def honest(file: Path) -> bool:
    "Say whether the numbers in the file are what its header says, so that all libraries must get the same HU."
    ds = pydicom.dcmread(file, stop_before_pixels=True)
    return ds.PixelRepresentation == 1 or ds.RescaleIntercept <= -100

def check_pixels(files: list[Path]) -> list[dict]:
    "Compare HU with pydicom and MONAI, and windows with fastai, all at full size."
    pydicom_apart = monai_apart = grey_apart = 0
    for file, monai in zip(files, peers.monai_pixels(files)):
        ds, hu = pydicom.dcmread(file), read_hu(file)
        theirs = apply_rescale(ds.pixel_array, ds)
        inside = theirs > -1500  # scanners write lower values outside their circle, and we turn them into air
        pydicom_apart = max(pydicom_apart, np.abs(hu - theirs)[inside].max())
        monai_apart = max(monai_apart, np.abs(hu - monai)[inside].max())
        px = peers.fastai_pixels(file)
        for name, size in zip(OURS, peers.FASTAI_WINDOWS):
            grey = px.windowed(*size).numpy() * 255
            grey_apart = max(grey_apart, np.abs(window(hu, *WINDOWS[name]) - grey).max())
    n = f'{len(files)} files'
    return [check(f'HU against pydicom apply_rescale, {n}', f'at most {pydicom_apart:g} HU apart', pydicom_apart == 0),
            check(f'HU against MONAI LoadImage, {n}', f'at most {monai_apart:g} HU apart', monai_apart == 0),
            check(f'pixels of 3 windows against fastai windowed, {n}',
                  f'at most {grey_apart:.2f} of 255 grey levels apart', grey_apart <= 1)]

def check_boxes(files: list[Path]) -> list[dict]:
    "Compare our square with fastai's box: it must be as long as the longer side, and around the box."
    side_apart, outside = {}, {}
    for file in files:
        y0, y1, x0, x1 = peers.fastai_box(file)
        y, x, side = brain_box(read_hu(file))
        side_apart[file.stem] = abs(side - max(y1 - y0, x1 - x0) - 1)
        outside[file.stem] = max(y - y0, x - x0, y1 + 1 - y - side, x1 + 1 - x - side)
    worst = max(files, key=lambda o: max(side_apart[o.stem], outside[o.stem])).stem
    far = sum(max(side_apart[o], outside[o]) > 2 for o in side_apart)
    found = f'{far} over 2 px apart; {worst}: side off by {side_apart[worst]}, an edge {outside[worst]} px outside'
    return [check(f'brain box against fastai mask_from_blur + mask2bbox, {len(files)} files', found, far == 0)]

def check_images(files: list[Path], work: Path) -> list[dict]:
    "Compare whole clean folders: every file is in, and the images look like those of the others."
    right, rows = [o for o in files if honest(o)], []
    for crop in False, True:
        mine, other = work/f'mine-{crop}', work/f'other-{crop}'
        other.mkdir()
        counts = ours(files[0].parent, mine, crop=crop)
        images = load_manifest(mine).set_index('sop')  # the phantom's files have these names
        rows.append(check(f'every file accounted for, crop={crop}', f"{counts['written']} of {len(files)} written",
                          counts['found'] == counts['written'] == len(images) == len(files)))
        if crop:
            for o in right: peers.fastai_cut(o, images.crop[o.stem], other)
        else: peers.kaggle_clean(right, other)
        apart = [np.abs(_image(mine/images.fn[o.stem]) - _image(other/f'{o.stem}.jpg')).mean() for o in right]
        name = "fastai's crop_resize + save_jpg of our square" if crop else "the Kaggle script's"
        rows.append(check(f'JPEGs against {name}, {len(right)} files', f'mean difference {np.mean(apart):.1f}, '
                          f'of the worst file {max(apart):.1f} of 255 grey levels', max(apart) <= 5))
    return rows

def _image(fn: Path) -> np.ndarray: return cv2.imread(str(fn)).astype(np.int16)

def compare(
    rounds: int = 7,
    n: int = 200, # files
) -> list[dict]: # rows of the table
    "Compare outputs, then race."
    src = phantom_files(n)
    files = sorted(src.iterdir())
    right = [o for o in files if honest(o)]
    with memory_folder() as tmp, quiet():
        tmp = Path(tmp)
        def fresh() -> Path: return Path(tempfile.mkdtemp(dir=tmp))
        rows = check_pixels(right) + check_boxes(right) + check_images(files, fresh())
        monai, lean = peers.monai_clean(lean=False), peers.monai_clean(lean=True)
        ms = timed(dict(ours=lambda: ours(src, fresh()), fastai=lambda: peers.fastai_clean(files, fresh()),
                        kaggle=lambda: peers.kaggle_clean(files, fresh()), monai=lambda: monai(files, fresh()),
                        lean=lambda: lean(files, fresh())), rounds)
    ms = {k: v / n * 1000 for k, v in ms.items()}
    return rows + [
        row(WORK, 'fastai.medical.imaging in the order of the RSNA kernels: images only', ms['ours'], ms['fastai'], 12),
        row(WORK, 'the common Kaggle script: images only, no mask, no crop', ms['ours'], ms['kaggle'], 2.3),
        row(WORK, 'MONAI LoadImage, CropForeground, Resize, ScaleIntensityRange: images', ms['ours'], ms['lean'], 5),
        row(WORK, 'the same with meta tensors, as MONAI comes', ms['ours'], ms['monai'])]
