"Labels and probabilities in, metrics with intervals over patients out."
from .bootstrap import auc, auc_ci, interval, mean_auc, resamples, wilson
from .scores import accuracy_multi, report_card, report_table, rsna_log_loss, threshold_for_sensitivity
from .calibration import brier, calibration_table, ece, reliability
from .patients import by_group, level_table, operating_points
from .compare import compare_preds, paired_difference, say_compare, say_number, verdict
