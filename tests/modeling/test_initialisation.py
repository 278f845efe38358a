"""At its initial weights the image side says as much as the text: a signal that starts small is not learned from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BertConfig

from modeling_hamlearning import HamLearningForTokenClassification
from tests.tiny_model import LABELS, random_batch, tiny_config
from training.labels import add_labels

NUM_POSTS = 8


def deviations(model: HamLearningForTokenClassification) -> dict[str, float]:
    """How far each layer's output differs from post to post, by the layer's name: its standard deviation over the posts."""
    found: dict[str, list[float]] = {}

    def keep(name: str):
        def hook(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor) and output.shape[0] == NUM_POSTS:
                found.setdefault(name, []).append(output.float().std(0).mean().item())

        return hook

    branch = model.model.image_branch
    layers = {name: layer for name, layer in branch.named_modules() if name}
    for name, layer in layers.items():
        layer.register_forward_hook(keep(name))
    batch = random_batch(num_posts=NUM_POSTS)
    # Noise looks alike to a backbone with random weights; its features stand for those of photos.
    batch["vision_features"] = torch.randn(NUM_POSTS, model.model.vision_encoder.channels[-1], 2, 2)
    model(**batch)
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize("fusion_size", [64, 128, 256, 512])
@torch.no_grad()
def test_no_layer_of_the_image_side_starts_faint(fusion_size):
    torch.manual_seed(0)
    text = BertConfig(vocab_size=60, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    model = HamLearningForTokenClassification(tiny_config(text_config=text, fusion_size=fusion_size)).eval()
    found = deviations(model)
    words = found["text_projection"]
    assert 0.3 < words < 3
    # What a post's own image gives to its words: every layer that writes into the words or into a level's memory.
    writes = {
        name: found[name] / words
        for name in found
        if name.endswith(("attention.output", "feed_forward.outer", "spatial.output", "image_embeddings", "fusion_gate.output"))
        and "relevance" not in name
    }
    assert len(writes) == 16
    faint = {name: round(ratio, 3) for name, ratio in writes.items() if not 0.1 < ratio < 3}
    assert not faint, faint


def test_the_classifier_starts_as_wide_as_its_inputs_and_labels_ask(tmp_path):
    text = BertConfig(vocab_size=60, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    model = HamLearningForTokenClassification(tiny_config(text_config=text))
    model.model.save_pretrained(tmp_path)
    with_new_head = HamLearningForTokenClassification.from_pretrained(tmp_path)
    for classifier in (model.classifier, with_new_head.classifier):
        glorot = (2 / (256 + len(LABELS))) ** 0.5
        assert classifier.weight.std().item() == pytest.approx(glorot, rel=0.1) and not classifier.bias.any()
    with torch.no_grad():
        model.classifier.weight.fill_(1.0)
    names = [*LABELS, *(f"B-{kind}" for kind in range(5))]
    add_labels(model, names)
    known, new = model.classifier.weight.split(len(LABELS))
    assert (known == 1).all() and new.std().item() == pytest.approx((2 / (256 + len(names))) ** 0.5, rel=0.1)
