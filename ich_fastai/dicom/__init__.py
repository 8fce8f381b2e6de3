"One DICOM file or a folder of them in, Hounsfield units out: headers, pixels, windows, series."
from .hounsfield import to_hu
from .slices import REASONS, open_slices, read_header, read_headers, read_hu, read_slice
from .windows import SHOWN, WINDOWS, brain_box, brain_tissue, crop_resize, hist_bins, hist_scaled, pct_window, window
