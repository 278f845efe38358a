"""The processor as it lies on the Hub: words, images and regions to tensors."""

from .image_loading import ImageError, content_key, load_image, load_reduced
from .image_processing_hamlearning import HamLearningImageProcessor, resize_target
from .processing_hamlearning import HamLearningProcessor
from .region_extraction import (
    REGION_EXTRACTORS,
    REGION_FIELDS,
    AnchorRegionExtractor,
    GridRegionExtractor,
    JoinedRegionExtractor,
    ObjectDetectionRegionExtractor,
    PrecomputedRegionExtractor,
)
from .word_splitting import split_words

HamLearningImageProcessor.register_for_auto_class("AutoImageProcessor")
HamLearningProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "REGION_EXTRACTORS",
    "REGION_FIELDS",
    "AnchorRegionExtractor",
    "GridRegionExtractor",
    "HamLearningImageProcessor",
    "HamLearningProcessor",
    "ImageError",
    "JoinedRegionExtractor",
    "ObjectDetectionRegionExtractor",
    "PrecomputedRegionExtractor",
    "content_key",
    "load_image",
    "load_reduced",
    "resize_target",
    "split_words",
]
