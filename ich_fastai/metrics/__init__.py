"Labels and probabilities in, metrics with intervals over patients out."
from .scores import (accuracy_multi, auc, auc_ci, interval, report_card, report_table, resamples, rsna_log_loss,
    threshold_for_sensitivity, wilson)
from .calibration import brier, calibration_table, ece, reliability
from .patients import by_group, level_table, operating_points, paired_difference
