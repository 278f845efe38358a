"""The model as `hub_scripts/export_onnx.py` writes it: its two ONNX graphs, run by onnxruntime, in front of its own CRF."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.utils import cached_file

from .configuration_hamlearning import HamLearningConfig
from .crf import HamLearningCRF
from .modeling_hamlearning import (
    HUB_OPTIONS,
    INPUTS,
    HamLearningForTokenClassification,
    HamLearningPreTrainedModel,
    HamLearningTokenClassifierOutput,
)

# The backbone is a graph of its own: a post without an image never runs it, and equal images are encoded once.
TAGGER_FILE, VISION_FILE = "model.onnx", "vision.onnx"
DTYPES = {"tensor(bool)": torch.bool, "tensor(int64)": torch.int64, "tensor(float)": torch.float32}


class HamLearningOnnxConfig(HamLearningConfig):
    """Configuration of an exported model: that of the model it was made of, under a type of its own for `AutoModel…` to go by."""

    model_type = "hamlearning-onnx"


class HamLearningOnnxForTokenClassification(HamLearningForTokenClassification):
    """[`HamLearningForTokenClassification`] on the CPU by onnxruntime, from a folder or Hub repo of an exported model.

    Same `forward`, `decode` and pipeline. It is not trained, and has no hidden states or attentions of the encoder to give.
    """

    config_class = HamLearningOnnxConfig

    def __init__(self, config: HamLearningOnnxConfig):
        HamLearningPreTrainedModel.__init__(self, config)
        self.crf = HamLearningCRF(config.label_names, learned=config.use_crf)
        if not config.use_crf:
            # transformers neither saves nor loads a model without a parameter, and takes its dtype and device from one.
            self.placeholder = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, source: str | Path, *args, **kwargs):
        """As every model's; the two graphs are read beside the weights of the CRF."""
        loaded = super().from_pretrained(source, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        model.tagger = _session(cached_file(source, TAGGER_FILE, **options))
        if model.config.levels:
            model.vision = _session(cached_file(source, VISION_FILE, **options))
        return loaded

    def get_input_embeddings(self) -> None:
        """They are in the graph."""

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values (P, 3, height, width) → the backbone's last feature map (P, C, rows, columns)."""
        (features,) = self.vision.run(None, {"pixel_values": pixel_values.float().cpu().numpy()})
        return torch.from_numpy(features).to(pixel_values.device)

    def emissions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_positions: Tensor | None = None,
        word_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        has_image: Tensor | None = None,
        image_sizes: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_label_ids: Tensor | None = None,
        region_mask: Tensor | None = None,
        vision_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> HamLearningTokenClassifierOutput:
        """Emission scores by the graph; the arguments are [`HamLearningModel.forward`]'s."""
        if output_attentions or output_hidden_states:
            raise ValueError("an exported model gives neither attentions nor hidden states: load the model it was made of")
        if word_positions is None:
            raise ValueError(f"word_positions is missing: {INPUTS}")
        input_ids = input_ids[:, None] if input_ids.ndim == 2 else input_ids
        num_posts, device = len(input_ids), input_ids.device
        if pixel_values is None and vision_features is None:
            has_image = torch.zeros(num_posts, dtype=torch.bool, device=device)
        elif has_image is None:
            has_image = torch.ones(num_posts, dtype=torch.bool, device=device)
        if vision_features is None:
            vision_features = self._vision_features(pixel_values, has_image.bool())
        region_boxes = torch.zeros(num_posts, 0, 4) if region_boxes is None else region_boxes
        num_regions = region_boxes.shape[1]
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "word_positions": word_positions,
            "word_mask": torch.ones_like(word_positions) if word_mask is None else word_mask,
            "has_image": has_image,
            "vision_features": vision_features,
            "image_sizes": torch.ones(num_posts, 2) if image_sizes is None else image_sizes,
            "region_boxes": region_boxes,
            "region_label_ids": torch.zeros(num_posts, num_regions, 0) if region_label_ids is None else region_label_ids,
            "region_mask": torch.ones(num_posts, num_regions) if region_mask is None else region_mask,
        }
        inputs["attention_mask"] = inputs["attention_mask"].reshape(input_ids.shape)
        feed = {
            graph_input.name: inputs[graph_input.name].detach().to("cpu", DTYPES[graph_input.type]).numpy()
            for graph_input in self.tagger.get_inputs()
        }
        logits, relevance, attention, *grounding = (torch.from_numpy(out).to(device) for out in self.tagger.run(None, feed))
        if self.config.levels == ("global",) and not has_image.any():
            # A graph's shape may not depend on whether any post has an image, as the model's does where no level holds regions.
            attention = attention.new_zeros(*attention.shape[:2], num_regions)
        return HamLearningTokenClassifierOutput(
            logits=logits, relevance=relevance, word_region_attention=attention, grounding_scores=next(iter(grounding), None)
        )

    def _vision_features(self, pixel_values: Tensor | None, has_image: Tensor) -> Tensor:
        """(B, C, rows, columns), of the posts that have an image; of one empty cell where none has."""
        if self.config.levels and has_image.any():
            feature_maps = self.get_image_features(pixel_values[has_image])
        else:
            channels = next(
                graph_input for graph_input in self.tagger.get_inputs() if graph_input.name == "vision_features"
            ).shape[1]
            feature_maps = torch.zeros(0, channels, 1, 1, device=has_image.device)
        return feature_maps.new_zeros(len(has_image), *feature_maps.shape[1:]).masked_scatter(
            has_image[:, None, None, None], feature_maps
        )


def _session(path: str):
    import onnxruntime  # an extra: only who runs an exported model needs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # An x86 processor without VNNI adds int8 products up in 16 bits, which overflow. There a slower, exact product is used.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
