"A run in, a model folder out, with proof that it answers as the run did."
from .folder import export_run, learner_from
