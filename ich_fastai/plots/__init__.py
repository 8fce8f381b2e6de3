"Runs, labels and images in, plots out, as matplotlib figures."
from .runs import (GREY, TRAIN, VALID, figure_uri, label_color, new_axes, plot_aucs, plot_curves, plot_label_counts,
    plot_lr_find, plot_reliability, plot_roc, plot_volumes)
from .classes import plot_confusion, plot_tradeoff
from .examples import load_gray, pick_images, show_grid, show_images
