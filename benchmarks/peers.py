"""The shortest honest way to do our work with each of the other libraries."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom

from .common import peers_needed

with peers_needed():
    import monai.data
    import torch
    from fastai.medical import imaging
    from monai.transforms import CropForeground, LoadImage, Resize, ScaleIntensityRange

FASTAI_WINDOWS = [imaging.dicom_windows.brain, imaging.dicom_windows.subdural, imaging.dicom_windows.brain_soft]
WINDOWS = [tuple(o) for o in FASTAI_WINDOWS]  # (width, level): brain, subdural, soft, as `clean_dicoms` takes them
SIZE, QUALITY = 256, 90

# --- fastai ---

def fix_pxrepr(ds: pydicom.Dataset) -> None:
    "The repair of wrapped 12-bit pixels that all RSNA kernels on fastai share."
    if ds.PixelRepresentation != 0 or ds.RescaleIntercept < -100: return
    px = ds.pixel_array + 1000
    px[px >= 4096] -= 4096
    ds.PixelData, ds.RescaleIntercept = px.tobytes(), -1000

def fastai_pixels(file: Path) -> torch.Tensor: # float32 HU
    "Read a file as the kernels do."
    ds = file.dcmread()
    fix_pxrepr(ds)
    return ds.scaled_px

def fastai_clean(
    files: list[Path],
    out: Path, # folder for the JPEGs
    bs: int = 4, # the batch size of the kernels on a CPU; 1 and 16 are slower
) -> None:
    "In the order of the kernels: read, repair, scale, mask, box, crop to 256, windows, JPEG. Nothing else is kept."
    for i in range(0, len(files), bs):
        px = torch.stack([fastai_pixels(o) for o in files[i:i + bs]])
        boxes = imaging.mask2bbox(px.mask_from_blur(imaging.dicom_windows.brain))
        small = imaging.crop_resize(px, boxes.reshape(2, 2, -1), SIZE)[:, 0]
        # bins=0: three windows. The kernels' third channel, binned by a histogram, costs fastai more.
        for file, o in zip(files[i:i + bs], small): o.save_jpg(out/file.name, FASTAI_WINDOWS, bins=0, quality=QUALITY)

def fastai_cut(
    file: Path,
    box: tuple[int, int, int], # y, x, side
    out: Path, # folder for the JPEG
) -> None:
    "Write fastai's image of a square that is given."
    y, x, side = box
    corners = torch.tensor([[[y], [x]], [[y + side], [x + side]]])
    small = imaging.crop_resize(fastai_pixels(file)[None], corners, SIZE)[0, 0]
    small.save_jpg(out/file.name, FASTAI_WINDOWS, bins=0, quality=QUALITY)

def fastai_box(file: Path) -> tuple[int, int, int, int]: # y0, y1, x0, x1, all inside the box
    "Return fastai's box around the head."
    low, high = imaging.mask2bbox(fastai_pixels(file).mask_from_blur(imaging.dicom_windows.brain))
    return int(low[0]), int(high[0]), int(low[1]), int(high[1])

def fastai_frame(
    files: list[Path],
    pixels: bool, # with statistics of the pixels
) -> pd.DataFrame:
    "Make one row per file, in this process: with workers fastai takes more CPU time, and can hang."
    return pd.DataFrame.from_dicoms(files, px_summ=pixels, n_workers=0, progress=False)

# --- pydicom, NumPy and OpenCV ---

def kaggle_clean(files: list[Path], out: Path) -> None:
    "Run the script of a hundred Kaggle notebooks in a lean form: float32, HU once; no repair, no mask, no crop."
    for file in files:
        ds = pydicom.dcmread(file)
        hu = ds.pixel_array.astype(np.float32) * np.float32(ds.RescaleSlope) + np.float32(ds.RescaleIntercept)
        channels = []
        for width, level in WINDOWS:
            low, high = level - width // 2, level + width // 2
            channels.append(((np.clip(hu, low, high) - low) / (high - low) * 255).astype(np.uint8))
        img = cv2.resize(np.dstack(channels), (SIZE, SIZE))
        cv2.imwrite(str(out/f'{file.stem}.jpg'), img[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])

TAGS = '''SOPInstanceUID PatientID StudyInstanceUID SeriesInstanceUID InstanceNumber ImagePositionPatient
    ImageOrientationPatient SliceLocation SliceThickness Rows Columns PixelSpacing BitsStored PixelRepresentation
    RescaleSlope RescaleIntercept WindowCenter WindowWidth Modality BodyPartExamined ImageType
    QualityControlImage'''.split()

def pydicom_frame(files: list[Path]) -> pd.DataFrame:
    "Read the elements of our header row with pydicom."
    rows = []
    for file in files:
        ds = pydicom.dcmread(file, stop_before_pixels=True)
        rows.append({o: ds.get(o) for o in TAGS})
    return pd.DataFrame(rows)

# --- MONAI ---

def monai_pixels(files: list[Path]) -> Iterator[np.ndarray]: # HU (rows, columns)
    "Read files as `monai_clean` does."
    load = LoadImage(image_only=True)
    for file in files: yield load(file).numpy().T

def monai_clean(lean: bool) -> Callable[[list[Path], Path], None]: # a function like `fastai_clean`
    """Run LoadImage, CropForeground, Resize and ScaleIntensityRange (once per window), and write a JPEG.
    lean: without the bookkeeping of `MetaTensor`, which is on by default; this is the fastest form of MONAI."""
    load, crop, resize = LoadImage(image_only=True, ensure_channel_first=True), CropForeground(), Resize((SIZE, SIZE))
    windows = [ScaleIntensityRange(l - w // 2, l + w // 2, 0, 255, clip=True) for w, l in WINDOWS]
    def clean(files: list[Path], out: Path) -> None:
        monai.data.set_track_meta(not lean)
        try:
            for file in files:
                px = resize(crop(load(file)))
                # MONAI's first axis is x
                img = torch.cat([o(px) for o in windows]).permute(2, 1, 0).byte().numpy()
                cv2.imwrite(str(out/f'{file.stem}.jpg'), img[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        finally: monai.data.set_track_meta(True)
    return clean
