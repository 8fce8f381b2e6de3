"A table in, fastai DataBlocks and DataLoaders out."
from .blocks import binary_block, ich_tfms, image_kind, make_dls, multiclass_block, multilabel_block
