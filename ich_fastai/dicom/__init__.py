"One DICOM file or a folder of them in, Hounsfield units out: headers, pixels, windows, series."
from .hounsfield import to_hu
from .slices import open_slices
from .windows import (REASONS, WINDOWS, brain_box, brain_tissue, crop_resize, hist_bins, hist_scaled, pct_window,
    read_header, read_headers, read_hu, read_slice, window)
