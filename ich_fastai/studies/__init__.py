"""Settings, runs and frames in, the tables, plots and sentences of the study notebooks out.

Import from the modules (`ich_fastai.studies.grid`): the face hands nothing on, because some of them need no torch."""
