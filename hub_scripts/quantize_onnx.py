"""Give an exported model 8-bit weights: matrix products, and with a folder of images convolutions too."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from mner_data.readers import IMAGE_SUFFIXES
from modeling_hamlearning.onnx_hamlearning import DTYPES, TAGGER_FILE, VISION_FILE
from processors import HamLearningProcessor, ImageError, load_image

try:
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_dynamic, quantize_static
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
except ImportError as error:
    raise SystemExit(f"export_onnx needs the extra onnx ({error}): pip install -e '.[onnx]' in the checkout") from error

# How many numbers along a matrix row share one scale, and onnxruntime's code for 8-bit by 8-bit products.
BLOCK_SIZE, INT8_ACCURACY_LEVEL = 128, 4
# Images that tell the range of each layer's values, and what becomes int8 beside the convolutions: the activations that end
# them, and, in a network of convolutions alone, the additions between them.
CALIBRATION_IMAGES = 32
ACTIVATIONS, BETWEEN = ("Relu", "Clip", "MaxPool"), ("Add",)
# Texts of random sub-tokens that tell how large each channel of a product's input becomes.
SMOOTHING_TEXTS, SMOOTHING_LENGTH = 32, 30


def quantize(folder: str | Path, calibration_images: str | Path | None = None):
    """Give the matrix products of both encoders 8-bit weights, whose inputs are rounded at run time (the text encoder's after
    they are smoothed), and the convolutions 8-bit weights and values, by the range that the values have on a folder of images.

    Without such a folder the convolutions stay as they are. The image branch always does.

    Raises:
        ValueError: the folder holds no image, or one that cannot be read.
    """
    images = None if calibration_images is None else image_files(calibration_images)
    processor = HamLearningProcessor.from_pretrained(folder, trust_remote_code=True)
    for path in Path(folder).glob("*.onnx"):
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch, path.name)
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            if path.name == TAGGER_FILE:
                _smooth(prepared, processor.tokenizer)
            if has_products := _quantize_products(prepared, path):
                prepared.write_bytes(path.read_bytes())
            if path.name == VISION_FILE and images is not None:
                quantize_static(
                    prepared,
                    path,
                    _PixelValues(images, processor),
                    op_types_to_quantize=["Conv", *ACTIVATIONS, *(() if has_products else BETWEEN)],
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    per_channel=True,
                )


def _products(graph: onnx.ModelProto) -> tuple[list[onnx.NodeProto], dict[str, onnx.TensorProto]]:
    """The products of a matrix of weights, and the weights of the graph by their names."""
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    return [node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in weights], weights


def _smooth(path: Path, tokenizer: PreTrainedTokenizerBase):
    """Divide each channel of the products' inputs by a number, by which the matrix is multiplied (Xiao et al. 2023, SmoothQuant).

    The products stay the same. But a channel of large values no longer decides how coarsely the others are rounded.
    """
    graph = onnx.load(path)
    products, weights = _products(graph)
    largest = _largest_inputs(graph, sorted({node.input[0] for node in products}), tokenizer)
    nodes, replaced = list(graph.graph.node), set()
    for name, values in largest.items():
        readers = [node for node in products if node.input[0] == name]
        matrices = [onnx.numpy_helper.to_array(weights[node.input[1]]) for node in readers]
        columns = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
        scales = np.sqrt(_above_zero(values) / _above_zero(columns)).astype(np.float32)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(1 / scales, f"{name}_scales"))
        place = min(index for index, node in enumerate(nodes) if any(node is reader for reader in readers))
        nodes.insert(place, onnx.helper.make_node("Mul", [name, f"{name}_scales"], [f"{name}_scaled"]))
        for node, matrix in zip(readers, matrices, strict=True):
            scaled = f"{node.name}_weights"
            replaced.add(node.input[1])
            graph.graph.initializer.append(onnx.numpy_helper.from_array(matrix * scales[:, None], scaled))
            node.input[:] = [f"{name}_scaled", scaled]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    read = _names_that_are_read(graph.graph)
    for name in replaced - read:
        graph.graph.initializer.remove(weights[name])
    onnx.save(graph, path)


def _names_that_are_read(graph: onnx.GraphProto) -> set[str]:
    """The names of the tensors that a graph's nodes read, those of their branches included."""
    read = {name for node in graph.node for name in node.input}
    branches = (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return read.union(*map(_names_that_are_read, branches))


def _above_zero(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 1e-5 * values.max() + np.finfo(np.float32).tiny)


def _largest_inputs(graph: onnx.ModelProto, names: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, np.ndarray]:
    """By the name of a tensor of the graph the largest absolute value of each channel, over texts of random sub-tokens."""
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(len(tokenizer), size=(SMOOTHING_TEXTS, SMOOTHING_LENGTH))
    # As words, so that the special sub-tokens stand around them as they do around a text.
    texts = [tokenizer.decode(text_ids, skip_special_tokens=True) for text_ids in ids]
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=SMOOTHING_LENGTH, return_tensors="np")
    feed = {
        each.name: torch.zeros([size if isinstance(size, int) else 1 for size in each.shape], dtype=DTYPES[each.type]).numpy()
        for each in session.get_inputs()
    }
    # One post of as many windows.
    feed |= {name: encoded[name][None].astype(np.int64) for name in ("input_ids", "attention_mask")}
    values = session.run(names, feed)
    return {name: np.abs(value).reshape(-1, value.shape[-1]).max(axis=0) for name, value in zip(names, values, strict=True)}


def _quantize_products(prepared: Path, path: Path) -> bool:
    """Write the graph with its products of a matrix of weights in int8; whether it has any."""
    graph = onnx.load(prepared)
    products, weights = _products(graph)
    if not products:
        return False
    shapes = {name: tensor.dims for name, tensor in weights.items()}
    # The inputs of a narrowing product come out of an activation and have a few large values: one range for the
    # whole batch is too coarse for them, so they are rounded in blocks. The other products are faster without blocks.
    wide = [node.name for node in products if shapes[node.input[1]][0] <= shapes[node.input[1]][1]]
    if len(wide) < len(products):
        in_blocks = MatMulNBitsQuantizer(
            graph,
            bits=8,
            block_size=BLOCK_SIZE,
            is_symmetric=True,
            accuracy_level=INT8_ACCURACY_LEVEL,
            nodes_to_exclude=wide,
        )
        in_blocks.process()
        in_blocks.model.save_model_to_file(str(prepared), False)
    quantize_dynamic(prepared, path, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8, per_channel=True)
    return True


def image_files(folder: str | Path) -> list[Path]:
    """At most CALIBRATION_IMAGES images of a folder, evenly spaced by name.

    Raises:
        ValueError: the folder holds no image, or one of these cannot be read.
    """
    files = sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"calibration_images: expected a folder with images, got {folder}")
    files = files[:: -(-len(files) // CALIBRATION_IMAGES)]
    for file in files:
        try:
            load_image(file, target_size=(1, 1))
        except ImageError as error:
            raise ValueError(f"calibration_images, {file.name}, field image: {error}") from error
    return files


class _PixelValues(CalibrationDataReader):
    """Images one by one, as the vision graph takes them."""

    def __init__(self, files: list[Path], processor: HamLearningProcessor):
        self.files, self.processor = iter(tqdm(files, desc="calibration")), processor

    def get_next(self) -> dict[str, np.ndarray] | None:
        if (file := next(self.files, None)) is None:
            return None
        (image,), _ = self.processor.load_reduced_images([str(file)], names=[f"calibration_images, {file.name}"])
        return {"pixel_values": self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"].numpy()}
