"Label tables in, one checked table per data set out, split by patient and searched for leaks."
from .leaks import audit_leakage, near_duplicates
from .table import (SPLITS, add_labels, check_folds, check_frame, label_counts, patient_folds, read_labels,
    rsna_labels, shuffle_labels, split_by_patient, split_by_slice)
