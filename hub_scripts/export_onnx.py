"""Export a trained model to ONNX: `python -m hub_scripts.export_onnx MODEL_DIR OUT [--int8]`.

OUT loads as MODEL_DIR does (`pipeline("mner", model=OUT, trust_remote_code=True)`) and is run by onnxruntime on the CPU. Its
`model.onnx` goes from sub-tokens, feature maps and regions to the emission scores, with every dimension free; `vision.onnx`
makes the feature maps of pictures. The CRF is the model's own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor, nn
from torch.export import Dim
from transformers.utils import logging

from modeling_hamlearning import (
    LEVELS,
    HamLearningForTokenClassification,
    HamLearningOnnxConfig,
    HamLearningOnnxForTokenClassification,
)
from modeling_hamlearning.onnx_hamlearning import TAGGER_FILE, VISION_FILE
from processors import HamLearningProcessor

OPSET = 20
# Numbers of a row that share a scale, and onnxruntime's name for products of 8-bit by 8-bit numbers.
BLOCK, INT8 = 128, 4
OUTPUTS = ["logits", "relevance", "word_region_attention"]
# A protobuf holds no more.
MOST_BYTES = 2**31


class Tagger(nn.Module):
    """`forward` of the model up to the emissions, with nothing in it that depends on the values of its inputs but one branch:
    whether any post has an image.
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        # A window of padding is encoded too, and read by nobody.
        hidden = self.head.model.text_encoder(
            input_ids=input_ids.flatten(0, 1), attention_mask=attention_mask.flatten(0, 1)
        ).last_hidden_state
        # One word, region and label token more than there are, all padding: the graph meets no dimension of 0.
        word_positions, word_mask = (
            nn.functional.pad(word_positions, (0, 1), value=-1),
            nn.functional.pad(word_mask, (0, 1)),
        )
        words = self.head.model.word_pooling(hidden.unflatten(0, input_ids.shape[:2]).flatten(1, 2), word_positions)
        region_boxes = nn.functional.pad(region_boxes, (0, 0, 0, 1))
        region_mask = nn.functional.pad(region_mask, (0, 1))
        pad = self.head.config.text_config.pad_token_id or 0
        region_label_ids = nn.functional.pad(region_label_ids, (0, 1, 0, 1), value=pad)

        side = word_mask, vision_features, image_sizes, region_boxes, region_label_ids, region_mask
        if self.head.config.levels:
            fused, relevance, attention = torch.cond(has_image.any(), self._seen, self._unseen, (words, *side))
            words = torch.where(has_image[:, None, None], fused, words)
            relevance = relevance * has_image[:, None]
            attention = attention * has_image[:, None, None]
        else:
            _, relevance, attention = self._unseen(words, *side)
        return self.head.classifier(words)[:, :-1], relevance, attention[:, :-1, :-1]

    def _seen(self, words: Tensor, word_mask: Tensor, *side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vision_features, image_sizes, region_boxes, region_label_ids, region_mask = side
        inputs = self.head.model.prepare_image_inputs(
            slice(None), vision_features, False, image_sizes, region_boxes, region_label_ids, region_mask
        )
        memories = self.head.model.image_branch.memories(**inputs)
        return self.head.model.image_branch(words, word_mask, memories, False)[:3]

    def _unseen(self, words: Tensor, word_mask: Tensor, *side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posts, places = word_mask.shape
        return words.clone(), words.new_zeros(posts, len(LEVELS)), words.new_zeros(posts, places, side[-1].shape[1])


class Vision(nn.Module):
    def __init__(self, model: HamLearningForTokenClassification):
        super().__init__()
        self.head = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head.get_image_features(pixel_values)


def export(model_dir: str | Path, folder: str | Path):
    """Write the exported model to an empty folder.

    Raises:
        ValueError: the folder is not empty, or the model too large for one ONNX file.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
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
        _write(Vision(model), {"pixel_values": (pixel_values, (0,))}, folder / VISION_FILE, ["vision_features"])
        channels = model.model.vision_encoder.channels[-1]
        # Weights that the other graph does not read would be written to it all the same.
        del model.model.vision_encoder
    _write(Tagger(model), _example(channels), folder / TAGGER_FILE, OUTPUTS)


def quantize(folder: str | Path):
    """8-bit weights for the matrix products of both encoders, whose inputs are rounded as they come. Convolutions stay, and so
    does the image side.
    """
    for path in Path(folder).glob("*.onnx"):
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch, path.name)
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared)
            shapes = {weights.name: weights.dims for weights in graph.graph.initializer}
            products = [node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in shapes]
            # What goes into a product that narrows has passed an activation and has a long tail: one range for the whole batch
            # is too coarse for it, so that it is rounded in blocks. The others are faster without.
            wide = [node.name for node in products if shapes[node.input[1]][0] <= shapes[node.input[1]][1]]
            if len(wide) < len(products):
                in_blocks = MatMulNBitsQuantizer(
                    graph, bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8, nodes_to_exclude=wide
                )
                in_blocks.process()
                in_blocks.model.save_model_to_file(str(prepared), False)
            quantize_dynamic(prepared, path, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8, per_channel=True)


def _example(channels: int) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """A small batch and the free dimensions of each of its tensors: none of the free ones is 0 or 1, which are kept as such."""
    posts, windows, length, words, regions, tokens, rows, columns = 3, 2, 8, 5, 4, 2, 6, 7
    whole = torch.long
    return {
        "input_ids": (torch.ones(posts, windows, length, dtype=whole), (0, 1, 2)),
        "attention_mask": (torch.ones(posts, windows, length, dtype=whole), (0, 1, 2)),
        "word_positions": (torch.ones(posts, words, dtype=whole), (0, 1)),
        "word_mask": (torch.ones(posts, words, dtype=torch.bool), (0, 1)),
        "has_image": (torch.ones(posts, dtype=torch.bool), (0,)),
        "vision_features": (torch.randn(posts, channels, rows, columns), (0, 2, 3)),
        "image_sizes": (torch.ones(posts, 2), (0,)),
        "region_boxes": (torch.rand(posts, regions, 4), (0, 1)),
        "region_label_ids": (torch.ones(posts, regions, tokens, dtype=whole), (0, 1, 2)),
        "region_mask": (torch.ones(posts, regions, dtype=torch.bool), (0, 1)),
    }


def _write(part: nn.Module, example: dict[str, tuple[Tensor, tuple[int, ...]]], path: Path, outputs: list[str]):
    size = sum(tensor.numel() * tensor.element_size() for tensor in part.state_dict().values())
    if size > MOST_BYTES:
        raise ValueError(f"{path.name}: {size / 2**30:.1f} GiB of weights; an ONNX file holds 2")
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
    # Every node comes with a stack trace: megabytes, and paths of this machine.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(path), external_data=False)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", help="output folder of train.py")
    parser.add_argument("out", help="an empty or a new folder")
    parser.add_argument("--int8", action="store_true", help="matrix products with 8-bit weights")
    options = parser.parse_args(arguments)
    export(options.model_dir, options.out)
    if options.int8:
        quantize(options.out)
    print(f"written: {options.out}")


if __name__ == "__main__":
    logging.set_verbosity_error()
    try:
        main()
    except ValueError as error:
        sys.exit(f"export_onnx: {error}")
