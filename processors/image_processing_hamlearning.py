"""Images to pixels: resized to one size, never cropped, so that a box means the same place before and after."""

from __future__ import annotations

from transformers import BaseImageProcessor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class HamLearningImageProcessor(TorchvisionBackend):
    """Resizes to `size` (`{"height": …, "width": …}`, without keeping the aspect), rescales, normalises.

    >>> image_processor = HamLearningImageProcessor(size={"height": 224, "width": 224})
    >>> image_processor(images=[Image.new("RGB", (640, 480))], return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 224, 224])
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True


def resize_target(image_processor: BaseImageProcessor) -> tuple[int, int] | None:
    """Height and width that an image processor resizes every image to; `None` for one that keeps sizes or aspects."""
    size = getattr(image_processor, "size", None)
    if not getattr(image_processor, "do_resize", False) or not size or not size.get("height") or not size.get("width"):
        return None
    return size["height"], size["width"]
