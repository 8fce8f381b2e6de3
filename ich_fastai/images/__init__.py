"Hounsfield units in, the small image that a network sees out; images and planes read back from the disk."
from .read import image_uri, overlay, read_grey, read_image, read_rgb
from .make import show, slice_image
