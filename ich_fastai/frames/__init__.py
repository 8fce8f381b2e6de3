"Label tables in, one checked table per data set out, split by patient and searched for leaks."
from .table import (SPLITS, add_labels, audit_leakage, check_frame, near_duplicates, read_labels, rsna_labels,
    shuffle_labels, split_by_patient, split_by_slice)
