"A folder of DICOMs in, a cleaned folder out: images, manifest, and a reason for every file that was refused."
from .folder import clean_dicoms, load_manifest, metadata_frame
