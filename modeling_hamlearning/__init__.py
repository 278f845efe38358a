"""HamLearning as it lies on the Hub: configuration, model, CRF, pipeline."""

from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification

from .configuration_hamlearning import LEVELS, HamLearningConfig
from .crf import HamLearningCRF
from .modeling_hamlearning import (
    HamLearningForTokenClassification,
    HamLearningModel,
    HamLearningModelOutput,
    HamLearningTokenClassifierOutput,
)
from .onnx_hamlearning import HamLearningOnnxConfig, HamLearningOnnxForTokenClassification
from .pipeline_mner import MnerPipeline
from .relations import RELATION_NAMES, inverse_relation, spatial_relations

AutoConfig.register("hamlearning", HamLearningConfig)
AutoModel.register(HamLearningConfig, HamLearningModel)
AutoModelForTokenClassification.register(HamLearningConfig, HamLearningForTokenClassification)
AutoConfig.register("hamlearning-onnx", HamLearningOnnxConfig)
AutoModelForTokenClassification.register(HamLearningOnnxConfig, HamLearningOnnxForTokenClassification)
HamLearningConfig.register_for_auto_class()
HamLearningModel.register_for_auto_class("AutoModel")
HamLearningForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
HamLearningOnnxConfig.register_for_auto_class()
HamLearningOnnxForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")

__all__ = [
    "LEVELS",
    "RELATION_NAMES",
    "HamLearningCRF",
    "HamLearningConfig",
    "HamLearningForTokenClassification",
    "HamLearningModel",
    "HamLearningModelOutput",
    "HamLearningOnnxConfig",
    "HamLearningOnnxForTokenClassification",
    "HamLearningTokenClassifierOutput",
    "MnerPipeline",
    "inverse_relation",
    "spatial_relations",
]
