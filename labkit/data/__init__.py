"""Images with ground truth, real handwriting, your own folders, known sets and ten pictures that ship."""

from labkit.data.batch import ImageSet
from labkit.data.digits import digits
from labkit.data.folder import folder
from labkit.data.samples import samples
from labkit.data.sets import torchvision_set
from labkit.data.shapes import shapes

__all__ = ["ImageSet", "digits", "folder", "samples", "shapes", "torchvision_set"]
