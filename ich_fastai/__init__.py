"""From a folder of head CT DICOMs to a trained, honestly measured model for intracranial hemorrhage.

The packages follow a scan on its way: dicom, images, phantom, frames, clean, datasets, data, models, metrics, train,
plots, report, infer, export, studies; lessons explain how a convolutional network works.
"""
__version__ = "0.1.0"
