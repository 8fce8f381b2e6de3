"The name of a data set or a cleaned folder in, its checked table out."
from .files import Dataset
from .catalog import Opened, dataset_folder, datasets, frame_vocab, load_dataset, load_folder, open_dataset
