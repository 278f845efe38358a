"""The processor as it lies on the Hub: words, pictures and regions to tensors."""

from .image_loading import ImageError, content_key, load_image
from .image_processing_hamlearning import HamLearningImageProcessor
from .processing_hamlearning import HamLearningProcessor
from .region_extraction import (
    REGION_EXTRACTORS,
    GridRegionExtractor,
    ObjectDetectionRegionExtractor,
    PrecomputedRegionExtractor,
)
from .word_splitting import split_words

HamLearningImageProcessor.register_for_auto_class("AutoImageProcessor")
HamLearningProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "REGION_EXTRACTORS",
    "GridRegionExtractor",
    "HamLearningImageProcessor",
    "HamLearningProcessor",
    "ImageError",
    "ObjectDetectionRegionExtractor",
    "PrecomputedRegionExtractor",
    "content_key",
    "load_image",
    "split_words",
]
