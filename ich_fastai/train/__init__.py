"A data set in, a trained and measured run out."
from .learners import binary_learner, multiclass_learner, multilabel_learner
from .measure import grey_baseline, predict_frame
from .one_call import train_binary, train_multiclass, train_multilabel
from .folds import cross_validate
