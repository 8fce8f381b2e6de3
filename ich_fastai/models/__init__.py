"The name of an architecture in, a network with its weights out."
from .weights import load_weights, read_weights, save_weights
from .catalog import IMAGENET_STATS, archs, create_model, find_arch, split_body_head
