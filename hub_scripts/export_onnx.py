"""Export a trained model to ONNX: `python -m hub_scripts.export_onnx MODEL_DIR OUT [--int8 [--calibration_images DIR]]`.

OUT loads as MODEL_DIR does (`pipeline("mner", model=OUT, trust_remote_code=True)`) and is run by onnxruntime on the CPU. Its
`model.onnx` computes the emission scores from sub-tokens, feature maps and regions, for any size of each dimension; `vision.onnx`
computes the feature maps of images. The CRF is not exported: the loaded model decodes with its own. With `--int8`, matrix
products get 8-bit weights; convolutions too, if there are images to find the range of each layer's values with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.utils import logging

from modeling_hamlearning import (
    LEVELS,
    HamLearningForTokenClassification,
    HamLearningOnnxConfig,
    HamLearningOnnxForTokenClassification,
)
from modeling_hamlearning.grounding import ABSENT_SCORE
from modeling_hamlearning.onnx_hamlearning import TAGGER_FILE, VISION_FILE
from processors import HamLearningProcessor

from .quantize_onnx import image_files, quantize

OPSET = 20
OUTPUTS, GROUNDING_OUTPUT = ["logits", "relevance", "word_region_attention"], "grounding_scores"
# A protobuf file holds no more.
MAX_BYTES = 2**31


class TaggerGraph(nn.Module):
    """The model from sub-tokens and feature maps to the emissions, as one graph.

    A graph cannot depend on the values of its inputs. The one exception is a branch: whether any post has an image.
    """

    def __init__(self, model: HamLearningForTokenClassification):
        super().__init__()
        self.head = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_positions: Tensor,
        word_mask: Tensor,
        has_image: Tensor,
        vision_features: Tensor,
        image_sizes: Tensor,
        region_boxes: Tensor,
        region_label_ids: Tensor,
        region_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """Emissions (B, W, L), relevance (B, levels), word-region attention (B, W, K) and, with a grounding head, its scores
        (B, W, K + 1); inputs as in the model's `forward`.
        """
        # A window that is all padding is encoded too; no word position points into it.
        hidden = self.head.model.text_encoder(
            input_ids=input_ids.flatten(0, 1), attention_mask=attention_mask.flatten(0, 1)
        ).last_hidden_state
        # One word, region and label sub-token of padding is added, so that no dimension is 0 in the graph.
        word_positions, word_mask = (
            nn.functional.pad(word_positions, (0, 1), value=-1),
            nn.functional.pad(word_mask, (0, 1)),
        )
        words = self.head.model.word_pooling(hidden.unflatten(0, input_ids.shape[:2]).flatten(1, 2), word_positions)
        region_boxes = nn.functional.pad(region_boxes, (0, 0, 0, 1))
        region_mask = nn.functional.pad(region_mask, (0, 1))
        pad = self.head.config.text_config.pad_token_id or 0
        region_label_ids = nn.functional.pad(region_label_ids, (0, 1, 0, 1), value=pad)

        image_inputs = word_mask, vision_features, image_sizes, region_boxes, region_label_ids, region_mask
        if self.head.config.levels:
            fused, relevance, attention, *grounding = torch.cond(
                has_image.any(), self._with_image, self._without_image, (words, *image_inputs)
            )
            words = torch.where(has_image[:, None, None], fused, words)
            relevance = relevance * has_image[:, None]
            attention = attention * has_image[:, None, None]
        else:
            _, relevance, attention, *grounding = self._without_image(words, *image_inputs)
        outputs = [self.head.classifier(words)[:, :-1], relevance, attention[:, :-1, :-1]]
        for scores in grounding:
            # The region that was added stands before the last column, which is that of "not shown".
            scores = torch.cat([scores[:, :-1, :-2], scores[:, :-1, -1:]], dim=2)
            is_region = torch.arange(scores.shape[2], device=scores.device) < scores.shape[2] - 1
            outputs.append(scores.masked_fill(~has_image[:, None, None] & is_region, ABSENT_SCORE))
        return tuple(outputs)

    def _with_image(self, words: Tensor, word_mask: Tensor, *image_inputs: Tensor) -> tuple[Tensor, ...]:
        vision_features, image_sizes, region_boxes, region_label_ids, region_mask = image_inputs
        # As if every post had an image: what comes out for one without is replaced in `forward`.
        has_image = torch.ones(len(words), dtype=torch.bool, device=words.device)
        inputs = self.head.model.prepare_image_inputs(
            has_image, vision_features, image_sizes, region_boxes, region_label_ids, region_mask
        )
        fused, relevance, attention, _, grounding, _ = self.head.model.image_branch(words, word_mask, inputs)
        return (fused, relevance, attention) if grounding is None else (fused, relevance, attention, grounding)

    def _without_image(self, words: Tensor, word_mask: Tensor, *image_inputs: Tensor) -> tuple[Tensor, ...]:
        num_posts, num_words = word_mask.shape
        # Both branches have the same shapes: the other one gives no attention to regions that no level of the model holds.
        num_regions = 0 if self.head.config.levels == ("global",) else image_inputs[-1].shape[1]
        nothing = (
            words.clone(),
            words.new_zeros(num_posts, len(LEVELS)),
            words.new_zeros(num_posts, num_words, num_regions),
        )
        if not self.head.config.has_grounding:
            return nothing
        return *nothing, words.new_zeros(num_posts, num_words, num_regions + 1)


class VisionGraph(nn.Module):
    """The feature maps of images, as one graph."""

    def __init__(self, model: HamLearningForTokenClassification):
        super().__init__()
        self.head = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) of pixel values (B, 3, height, width)."""
        return self.head.get_image_features(pixel_values)


def export(model_dir: str | Path, folder: str | Path):
    """Write the exported model to an empty folder.

    Raises:
        ValueError: the folder is not empty, or the model too large for one ONNX file.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: expected an empty or a new folder")
    processor = HamLearningProcessor.from_pretrained(model_dir, trust_remote_code=True)
    model = HamLearningForTokenClassification.from_pretrained(model_dir, dtype=torch.float32).eval()
    settings = {name: value for name, value in model.config.to_dict().items() if name not in ("model_type", "auto_map")}
    exported = HamLearningOnnxForTokenClassification(HamLearningOnnxConfig(**settings))
    exported.crf.load_state_dict(model.crf.state_dict())
    exported.config.auto_map["AutoModel"] = "onnx_hamlearning.HamLearningOnnxForTokenClassification"
    exported.save_pretrained(folder)
    processor.save_pretrained(folder)

    channels = 1
    if model.config.levels:
        size = processor.image_processor.size
        pixel_values = torch.zeros(2, 3, size["height"], size["width"])
        _write(VisionGraph(model), {"pixel_values": (pixel_values, (0,))}, folder / VISION_FILE, ["vision_features"])
        channels = model.model.vision_encoder.channels[-1]
        # Otherwise the exporter would write these weights to the other graph as well, which does not use them.
        del model.model.vision_encoder
    outputs = [*OUTPUTS, GROUNDING_OUTPUT] if model.config.has_grounding else OUTPUTS
    _write(TaggerGraph(model), _example(channels), folder / TAGGER_FILE, outputs)


def _example(channels: int) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """A small batch, and the free dimensions of each tensor. No free dimension is 0 or 1: the exporter would fix those."""
    posts, windows, length, words, regions, tokens, rows, columns = 3, 2, 8, 5, 4, 2, 6, 7
    return {
        "input_ids": (torch.ones(posts, windows, length, dtype=torch.long), (0, 1, 2)),
        "attention_mask": (torch.ones(posts, windows, length, dtype=torch.long), (0, 1, 2)),
        "word_positions": (torch.ones(posts, words, dtype=torch.long), (0, 1)),
        "word_mask": (torch.ones(posts, words, dtype=torch.bool), (0, 1)),
        "has_image": (torch.ones(posts, dtype=torch.bool), (0,)),
        "vision_features": (torch.randn(posts, channels, rows, columns), (0, 2, 3)),
        "image_sizes": (torch.ones(posts, 2), (0,)),
        "region_boxes": (torch.rand(posts, regions, 4), (0, 1)),
        "region_label_ids": (torch.ones(posts, regions, tokens, dtype=torch.long), (0, 1, 2)),
        "region_mask": (torch.ones(posts, regions, dtype=torch.bool), (0, 1)),
    }


def _write(part: nn.Module, example: dict[str, tuple[Tensor, tuple[int, ...]]], path: Path, outputs: list[str]):
    size = sum(tensor.numel() * tensor.element_size() for tensor in part.state_dict().values())
    if size > MAX_BYTES:
        raise ValueError(f"{path.name}: expected at most 2 GiB of weights, as an ONNX file holds, got {size / 2**30:.1f}")
    with torch.no_grad():
        program = torch.onnx.export(
            part.eval(),
            kwargs={name: tensor for name, (tensor, _) in example.items()},
            dynamic_shapes={name: dict.fromkeys(free, Dim.DYNAMIC) for name, (_, free) in example.items()},
            input_names=list(example),
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    # The exporter gives every node a stack trace: megabytes, with paths of this machine.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(path), external_data=False)


def main(arguments: list[str] | None = None):
    """Export a model as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", help="output folder of train.py")
    parser.add_argument("out", help="an empty or a new folder")
    parser.add_argument("--int8", action="store_true", help="matrix products with 8-bit weights")
    parser.add_argument("--calibration_images", metavar="DIR", help="with --int8: a folder of images, for convolutions in int8")
    options = parser.parse_args(arguments)
    if options.calibration_images and not options.int8:
        raise ValueError("calibration_images: it is for --int8, which is not set")
    if options.calibration_images:
        image_files(options.calibration_images)  # the export takes long, and a wrong folder is no reason to repeat it
    export(options.model_dir, options.out)
    if options.int8:
        quantize(options.out, options.calibration_images)
        if options.calibration_images is None and Path(options.out, VISION_FILE).exists():
            print(f"the convolutions of {VISION_FILE} stay in 32 bits: give --calibration_images DIR to have them in 8")
    print(f"written: {options.out}")


def cli():
    """Entry point of the command line: one line for each error that the user can mend."""
    logging.set_verbosity_error()
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"export_onnx: {' '.join(str(error).split())}")


if __name__ == "__main__":
    cli()
