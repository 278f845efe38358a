"""Pictures to pixels: resized to one size, never cropped, so that a box means the same place before and after."""

from __future__ import annotations

from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class HamLearningImageProcessor(TorchvisionBackend):
    """Resizes to `size` (`{"height": …, "width": …}`, without keeping the aspect), rescales, normalises."""

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
