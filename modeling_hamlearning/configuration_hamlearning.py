"""Configuration of HamLearning: one place for everything the paper leaves open."""

import transformers
from packaging import version

# Earlier versions cannot load the processor, or do not copy all files of a local model.
MIN_TRANSFORMERS = "5.10.4"
if version.parse(transformers.__version__) < version.parse(MIN_TRANSFORMERS):
    raise ImportError(
        f"expected transformers {MIN_TRANSFORMERS} or newer, got {transformers.__version__}: "
        f"run pip install --upgrade 'transformers>={MIN_TRANSFORMERS},<6'"
    )

from transformers import AutoConfig, PreTrainedConfig  # noqa: E402, what an old version lacks is imported after the check

LEVELS = ("global", "object", "spatial", "semantic")


class HamLearningConfig(PreTrainedConfig):
    r"""Configuration of [`HamLearningModel`] and [`HamLearningForTokenClassification`].

    Args:
        text_config (`dict` or `PreTrainedConfig`):
            Any Hugging Face text encoder. Defaults to BERT's own configuration.
        vision_config (`dict` or `PreTrainedConfig`):
            Any timm backbone, as a `TimmBackboneConfig` (`backbone` names it). Defaults to `resnet50`.
        fusion_size (`int`): Width d of the relevance and cross-modal stages.
        fusion_intermediate_size (`int`, *optional*): Width of their feed-forward layers; twice `fusion_size` if unset.
        fusion_attention_heads (`int`): Heads of every attention outside the two encoders.
        fusion_dropout (`float`): Dropout of every layer outside the two encoders.
        use_global, use_objects, use_spatial, use_semantic (`bool`):
            Whether that level's memory enters stages 2 and 3. All four off is the plain text tagger.
        use_relevance (`bool`): Whether a level is scaled by its measured relevance; 1 for every present level if not.
        relevance_loss_weight (`float`):
            Weight of an image-text matching loss (Radford et al. 2021, CLIP) in training: relevance is to tell a post's own
            image from those of the other posts of the batch, at every level, and is then learned from nothing else. With 0 it
            is learned from the tagging loss, as in the paper.
        grounding_loss_weight (`float`):
            Weight of the grounding loss in training: which region shows an entity, or that none does, is learned from posts
            whose entities have boxes. 0 is a model without the grounding head; it reports what an entity's first word attends.
        use_crf (`bool`): Linear-chain CRF over words; a softmax per word, still decoded to legal BIO, if not.
        min_entity_score (`float`):
            An entity of the best path is left out if its probability is lower: at 0.5 what is reported is more likely right
            than wrong. 0 leaves the best path as it is.
        num_iterations (`int`): Rounds N of the cross-modal Transformer pair.
        classifier_dropout (`float`): Dropout in front of the emission scores.
        image_dropout (`float`):
            Share of the posts with an image that a training step reads without it, so that the model is as good on posts
            that have none. `MnerTrainer` begins with it in the second half of training.

    The paper (AAAI 2024, doi 10.1609/aaai.v38i17.29831) fixes the stages and the levels; sizes are defaults.
    """

    model_type = "hamlearning"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    fusion_size: int = 256
    fusion_intermediate_size: int | None = None
    fusion_attention_heads: int = 8
    fusion_dropout: float = 0.1
    use_global: bool = True
    use_objects: bool = True
    use_spatial: bool = True
    use_semantic: bool = True
    use_relevance: bool = True
    relevance_loss_weight: float = 0.3
    grounding_loss_weight: float = 0.0
    use_crf: bool = True
    min_entity_score: float = 0.0
    num_iterations: int = 3
    classifier_dropout: float = 0.1
    image_dropout: float = 0.2

    def __post_init__(self, **kwargs):
        self.text_config = _as_config(self.text_config, "bert")
        self.vision_config = _as_config(self.vision_config, "timm_backbone", backbone="resnet50")
        self.fusion_intermediate_size = self.fusion_intermediate_size or 2 * self.fusion_size
        for name in ("fusion_size", "fusion_intermediate_size", "fusion_attention_heads", "num_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {getattr(self, name)}")
        if self.fusion_size % self.fusion_attention_heads:
            raise ValueError(
                f"fusion_size: expected a multiple of fusion_attention_heads ({self.fusion_attention_heads}), "
                f"got {self.fusion_size}"
            )
        if not 0 <= self.min_entity_score < 1:
            raise ValueError(f"min_entity_score: expected a probability from 0 to below 1, got {self.min_entity_score}")
        for name in ("image_dropout", "fusion_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        for name in ("relevance_loss_weight", "grounding_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        # Saving a model names only the class that is saved: a repo is to load as any of them, and as a pipeline.
        self.auto_map = {"AutoModel": "modeling_hamlearning.HamLearningModel"} | (kwargs.pop("auto_map", None) or {})
        self.custom_pipelines = kwargs.pop("custom_pipelines", None) or {
            "mner": {
                "impl": "pipeline_mner.MnerPipeline",
                "pt": ["AutoModelForTokenClassification"],
                "type": "multimodal",
            }
        }
        super().__post_init__(**kwargs)

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels whose memory enters stages 2 and 3."""
        switches = (self.use_global, self.use_objects, self.use_spatial, self.use_semantic)
        return tuple(level for level, on in zip(LEVELS, switches, strict=True) if on)

    @property
    def has_grounding(self) -> bool:
        """Whether the model has a grounding head: it needs a level that holds regions."""
        return self.grounding_loss_weight > 0 and any(level != "global" for level in self.levels)

    @property
    def label_names(self) -> list[str]:
        """The labels in the order of their ids."""
        return [self.id2label[index] for index in range(len(self.id2label))]


def _as_config(value, model_type: str, **defaults) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    values = dict(value or defaults)
    return AutoConfig.for_model(values.pop("model_type", model_type), **values)
