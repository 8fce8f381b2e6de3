"A model folder and a scan in, an answer out, without torch."
from .folder import ModelError, ModelFolder, read_folder
from .predict import Model, answer, load_model, predict_slices, predict_study
