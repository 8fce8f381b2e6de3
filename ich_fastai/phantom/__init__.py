"A seed in, a synthetic head CT study with known bleeds out, as RSNA-style DICOM files."
from .study import Study, make_study
from .files import write_patient, write_phantom
