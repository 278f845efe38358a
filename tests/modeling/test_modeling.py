"""The model as a Hugging Face model: saved, loaded, trained, adapted."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    BertConfig,
    BitsAndBytesConfig,
    DebertaV2Config,
    ModernBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers.utils import logging

from modeling_hamlearning import HamLearningConfig, HamLearningCRF, HamLearningForTokenClassification, HamLearningModel
from tests.tiny_model import LABELS, random_batch, tiny_config, tiny_model

SWITCHES = ("use_global", "use_objects", "use_spatial", "use_semantic", "use_relevance", "use_crf")
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
TEXT_CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "xlm-roberta": XLMRobertaConfig(**SIZES),
    "deberta-v2": DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": ModernBertConfig(**SIZES, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
}


def train_step(model, batch):
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    model.eval()
    assert loss.isfinite()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("text", TEXT_CONFIGS)
def test_text_encoders_train_save_and_load(text, tmp_path):
    model = tiny_model(text_config=TEXT_CONFIGS[text])
    changed = train_step(model, random_batch())
    assert any("text_encoder" in name for name in changed) and any("vision_encoder" in name for name in changed)
    check_reload(model, tmp_path)


@pytest.mark.parametrize(
    "backbone, size",
    [("resnet10t", 64), ("convnext_atto", 64), ("vit_tiny_patch16_224", 224), ("swin_tiny_patch4_window7_224", 224)],
)
def test_backbones_train_save_and_load(backbone, size, tmp_path):
    model = tiny_model(backbone=backbone)
    changed = train_step(model, random_batch(num_posts=2, image_size=size))
    assert any("vision_encoder" in name for name in changed)
    check_reload(model, tmp_path, size)


@pytest.mark.parametrize("switch", [*SWITCHES, "all"])
def test_every_ablation_switch_trains_saves_and_loads(switch, tmp_path):
    off = SWITCHES if switch == "all" else (switch,)
    model = tiny_model(**dict.fromkeys(off, False))
    train_step(model, random_batch())
    check_reload(model, tmp_path)


@pytest.mark.parametrize("switches", list(itertools.product([True, False], repeat=4)))
def test_every_set_of_levels_has_gradients_everywhere(switches):
    """A parameter that never gets a gradient hangs DistributedDataParallel and is a part nobody uses."""
    model = tiny_model(**dict(zip(SWITCHES[:4], switches, strict=True)))
    batch = random_batch()
    batch["word_positions"][0, 0] = -1
    model(**batch).loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


def check_reload(model, folder, size=64):
    batch = random_batch(num_posts=2, image_size=size)
    with torch.no_grad():
        expected = model(**batch)
        model.save_pretrained(folder)
        loaded = HamLearningForTokenClassification.from_pretrained(folder)
        actual = loaded(**batch)
    assert torch.equal(actual.logits, expected.logits) and torch.equal(actual.relevance, expected.relevance)
    assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]


LOAD_ELSEWHERE = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification
folder, again, inputs, result = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True)
assert "modeling_hamlearning" not in sys.modules, "the project is importable here"
model.save_pretrained(again)
batch = torch.load(inputs, weights_only=True)
with torch.no_grad():
    torch.save({"logits": model(**batch).logits,
                "hidden": base(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state}, result)
"""


def test_saved_resaved_and_loaded_in_fresh_processes(tmp_path):
    """Bit for bit, with only the folder's files, twice: what a loaded model saves is whole again."""
    model, batch = tiny_model(), random_batch()
    torch.save(batch, tmp_path / "batch.pt")
    (tmp_path / "load.py").write_text(LOAD_ELSEWHERE)
    model.save_pretrained(tmp_path / "first")
    with torch.no_grad():
        expected = {
            "logits": model(**batch).logits,
            "hidden": model.model(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state,
        }
    for folder, again in (("first", "second"), ("second", "third")):
        arguments = [tmp_path / folder, tmp_path / again, tmp_path / "batch.pt", tmp_path / "result.pt"]
        environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / folder / "cache"), "HF_HUB_OFFLINE": "1"}
        # Sums are split by thread: as many there as here.
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        subprocess.run([sys.executable, "load.py", *arguments], cwd=tmp_path, env=environment, check=True)
        result = torch.load(tmp_path / "result.pt", weights_only=True)
        assert all(torch.equal(result[name], expected[name]) for name in expected)
    names = [{file.name for file in (tmp_path / folder).iterdir() if file.is_file()} for folder in ("first", "third")]
    assert names[0] == names[1] >= {"pipeline_mner.py", "crf.py", "relations.py", "model.safetensors"}


def test_config_round_trip(tmp_path):
    config = tiny_config(use_spatial=False, num_iterations=2)
    config.save_pretrained(tmp_path)
    loaded = HamLearningConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.levels == ("global", "object", "semantic")
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["vision_config"]["backbone"] == "resnet10t" and saved["custom_pipelines"]["mner"]


def test_wrong_configurations_are_named():
    with pytest.raises(ValueError, match="fusion_size: expected a multiple of .*, got 30"):
        tiny_config(fusion_size=30)
    for name in ("num_iterations", "fusion_attention_heads", "fusion_size", "fusion_intermediate_size"):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number of at least 1, got -1"):
            tiny_config(**{name: -1})
    with pytest.raises(ValueError, match="fusion_attention_heads: .*, got 0"):
        tiny_config(fusion_attention_heads=0)
    with pytest.raises(ValueError, match="fusion_dropout: expected a share from 0 to 1, got 2"):
        tiny_config(fusion_dropout=2.0)


def test_from_text_vision_pretrained_takes_the_encoders_weights(tmp_path):
    text = AutoModel.from_config(TEXT_CONFIGS["bert"])
    text.save_pretrained(tmp_path / "text")
    donor = tiny_model()
    weights = donor.model.vision_encoder._backbone.state_dict()
    save_file(weights | {"fc.weight": torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    for text_path in (tmp_path / "text", tmp_path / "text" / "model.safetensors"):
        for vision_weights in (tmp_path / "model.safetensors", tmp_path):
            model = HamLearningForTokenClassification.from_text_vision_pretrained(
                str(text_path), "resnet10t", label_list=LABELS, vision_weights=str(vision_weights),
                fusion_size=32, fusion_attention_heads=4,
            )  # fmt: skip
            own = model.model.text_encoder.state_dict()
            assert own and all(torch.equal(value, text.state_dict()[name]) for name, value in own.items())
            backbone = model.model.vision_encoder._backbone.state_dict()
            assert all(torch.equal(value, weights[name]) for name, value in backbone.items())
            assert model.config.id2label[1] == "B-PER" and model.config.num_labels == 5


def test_vision_weights_that_do_not_fit_are_refused(tmp_path):
    AutoModel.from_config(TEXT_CONFIGS["bert"]).save_pretrained(tmp_path / "text")
    save_file({"something.else": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors lacks"):
        HamLearningForTokenClassification.from_text_vision_pretrained(
            str(tmp_path / "text"), "resnet10t", label_list=LABELS, vision_weights=str(tmp_path / "other.safetensors")
        )


def test_a_model_made_in_bf16_decodes_very_many_types():
    """Above 256, bf16 does not hold every id: the best path went on with another label."""
    labels = ["O", *(f"{prefix}-T{number}" for number in range(300) for prefix in "BI")]
    model = HamLearningForTokenClassification.from_text_vision_pretrained(
        TEXT_CONFIGS["bert"], "resnet10t", label_list=labels, vision_pretrained=False,
        fusion_size=32, fusion_attention_heads=4, dtype=torch.bfloat16,
    )  # fmt: skip
    assert model.dtype == torch.bfloat16 and {p.dtype for p in model.crf.parameters()} <= {torch.float32}
    path = torch.tensor([[labels.index(label) for label in ("B-T200", "I-T200", "O")]])
    emissions = 20.0 * torch.nn.functional.one_hot(path, len(labels)).float()
    assert model.crf.decode(emissions, torch.ones(1, 3, dtype=torch.bool)) == path.tolist()


def test_a_text_encoders_code_is_not_run_and_its_weights_are_no_pickle(tmp_path):
    AutoModel.from_config(TEXT_CONFIGS["bert"]).save_pretrained(tmp_path / "text")
    (tmp_path / "text" / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    path = tmp_path / "text" / "config.json"
    auto_map = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))

    def load():
        return HamLearningForTokenClassification.from_text_vision_pretrained(
            str(tmp_path / "text"), "resnet10t", label_list=LABELS, vision_pretrained=False,
            fusion_size=32, fusion_attention_heads=4,
        )  # fmt: skip

    assert load() and not (tmp_path / "was_run").exists()
    weights = tmp_path / "text" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "text" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load()


def test_frozen_vision_keeps_its_weights_and_statistics():
    model = tiny_model()
    model.freeze_vision()
    before = {name: value.clone() for name, value in model.model.vision_encoder.state_dict().items()}
    changed = train_step(model, random_batch())
    assert changed and not any("vision_encoder" in name for name in changed)
    after = model.model.vision_encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_cached_vision_features_give_the_same_result():
    model, batch = tiny_model(), random_batch() | {"has_image": torch.tensor([True, False, True])}
    with torch.no_grad():
        features = model.model.get_image_features(batch["pixel_values"])
        expected = model(**batch).logits
        del batch["pixel_values"]
        torch.testing.assert_close(model(**batch, vision_features=features).logits, expected, rtol=0, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    batch, gradients = random_batch(), []
    for checkpointing in (False, True):
        model = tiny_model(fusion_dropout=0.0, classifier_dropout=0.0)
        model.config.text_config.hidden_dropout_prob = 0.0
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        model.model.text_encoder.config.attention_probs_dropout_prob = 0.0
        for layer in model.model.text_encoder.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
            assert all(layer.words.gradient_checkpointing for layer in model.model.image_branch.rounds)
        model(**batch).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)


def test_attention_implementations_agree_and_attentions_come_out(tmp_path):
    model, batch = tiny_model(), random_batch()
    model.save_pretrained(tmp_path)
    eager = HamLearningForTokenClassification.from_pretrained(tmp_path, attn_implementation={"text_config": "eager"})
    assert eager.model.text_encoder.config._attn_implementation == "eager"
    with torch.no_grad():
        output = eager(**batch, output_attentions=True, output_hidden_states=True)
        torch.testing.assert_close(output.logits, model(**batch).logits, rtol=0, atol=1e-5)
    assert len(output.attentions) == 2 and output.attentions[0].shape == (3, 2, 12, 12)
    assert len(output.hidden_states) == 3
    # 2 x 2 grid cells and three levels of three regions.
    assert [attention.shape for attention in output.cross_attentions] == [(3, 4, 6, 4 + 3 * 3)] * 3
    rounds = torch.stack(output.cross_attentions).mean(2)
    regions = rounds[..., 4:].unflatten(-1, (3, 3)).sum(-2)
    torch.testing.assert_close(output.word_region_attention, (regions / regions.sum(-1, keepdim=True)).mean(0))


def test_bf16_weights_keep_the_crf_in_fp32(tmp_path):
    model, batch = tiny_model(), random_batch()
    model.save_pretrained(tmp_path)
    half = HamLearningForTokenClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.text_encoder.dtype == torch.bfloat16 and half.crf.transition_scores.transitions.dtype == torch.float32
    assert torch.equal(half.crf.transition_constraint, model.crf.transition_constraint)
    output = half(**batch)
    assert output.loss.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(output.loss, model(**batch).loss, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_device_map_auto_loads(tmp_path):
    model, batch = tiny_model(), random_batch()
    model.save_pretrained(tmp_path)
    loaded = HamLearningForTokenClassification.from_pretrained(tmp_path, device_map="auto")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_resize_token_embeddings():
    model = tiny_model()
    model.resize_token_embeddings(70)
    assert model.get_input_embeddings().weight.shape == (70, 32) and model.config.text_config.vocab_size == 70
    batch = random_batch()
    batch["input_ids"][0, 0, 0] = 69
    assert model(**batch).loss.isfinite()


def test_lora_on_the_text_encoder():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        tiny_model(),
        peft.LoraConfig(target_modules=r".*text_encoder.*\.(query|value)", modules_to_save=["classifier"], r=2),
    )
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora" in name or "classifier" in name for name in trained)
    model(**random_batch()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_loss_is_a_mean_over_the_words_of_the_global_batch():
    model, batch = tiny_model(), random_batch(num_posts=4)
    batch["labels"][0, 2:] = -100
    batch["word_mask"][0, 2:] = False
    total = int((batch["labels"] >= 0).sum())
    with torch.no_grad():
        whole = model(**batch).loss
        parts = [
            model(**{name: value[half] for name, value in batch.items()}, num_items_in_batch=total).loss
            for half in (slice(0, 1), slice(1, 4))
        ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)


def test_another_label_set_gets_its_own_crf(tmp_path):
    """Fine-tuning on other types: the constraints follow the new labels, not the checkpoint's."""
    tiny_model().save_pretrained(tmp_path)
    labels = ["O", "B-A", "I-A"]
    model = HamLearningForTokenClassification.from_pretrained(
        tmp_path, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    fresh = tiny_model().crf.__class__(labels)
    assert torch.equal(model.crf.transition_constraint, fresh.transition_constraint)
    assert torch.equal(model.crf.begin, fresh.begin) and model.crf.transition_scores.transitions.isfinite().all()


@pytest.mark.parametrize("order", [[0, 2, 1, 4, 3], [4, 3, 2, 1, 0], [0, 3, 4, 1, 2]])
def test_constraints_follow_the_labels_in_another_order(tmp_path, order, caplog):
    """As many labels as the checkpoint has: its classifier is loaded, its constraints are not."""
    tiny_model().save_pretrained(tmp_path)
    names = [LABELS[index] for index in order]
    expected = HamLearningCRF(names)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    logging.enable_propagation()
    loaded = HamLearningForTokenClassification.from_pretrained(tmp_path, **labels, ignore_mismatched_sizes=True)
    exchanged = HamLearningForTokenClassification.from_pretrained(tmp_path)
    exchanged.config.id2label = dict(enumerate(names))
    exchanged(**random_batch())
    for model in (loaded, exchanged):
        for name in ("start_constraint", "transition_constraint", "begin"):
            assert torch.equal(getattr(model.crf, name), getattr(expected, name))
    assert "trained for other labels" in caplog.text and f"{LABELS[1]} → {names[1]}" in caplog.text


def test_decoding_follows_the_labels_that_the_config_has_now():
    """Also of scores that were computed before the labels were exchanged."""
    model, batch = tiny_model(), random_batch()
    with torch.no_grad():
        outputs = model(**batch)
    outputs.logits[..., 0] += 100  # O before, I-LOC now
    model.config.id2label = dict(enumerate(reversed(LABELS)))
    first = [model.config.id2label[path[0]] for path in model.decode(outputs, batch["word_mask"])]
    assert first == ["B-LOC"] * len(first)


def test_labels_as_trained_are_no_reason_to_warn(tmp_path, caplog):
    tiny_model().save_pretrained(tmp_path)
    logging.enable_propagation()
    HamLearningForTokenClassification.from_pretrained(tmp_path, id2label=dict(enumerate(LABELS)))
    assert "other labels" not in caplog.text


def test_a_model_of_version_0_1_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {name.replace("image_branch", "image_side"): tensor for name, tensor in weights.items()}
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="saved by HamLearning 0.1"):
        HamLearningForTokenClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["crf", "model.image_branch", "model.text_encoder", "model.word_pooling", "classifier"])
def test_a_part_kept_on_disk_gives_the_same(part, tmp_path):
    model, batch = tiny_model(grounding_loss_weight=0.3), random_batch()
    model.save_pretrained(tmp_path / "model")
    parts = ["crf", "classifier", "dropout", *(f"model.{name}" for name, _ in model.model.named_children())]
    device_map = dict.fromkeys(parts, "cpu") | {part: "disk"}
    on_disk = HamLearningForTokenClassification.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "disk"
    )
    with torch.no_grad():
        expected, actual = model(**batch), on_disk(**batch)
    assert torch.equal(actual.loss, expected.loss)
    assert on_disk.decode(actual, batch["word_mask"]) == model.decode(expected, batch["word_mask"])


def test_an_attention_implementation_is_for_the_text_encoder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for cls in (HamLearningForTokenClassification, AutoModelForTokenClassification):
        model = cls.from_pretrained(tmp_path, attn_implementation="flex_attention")
        assert model.model.text_encoder.config._attn_implementation == "flex_attention"


def test_peft_for_token_classification():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="TOKEN_CLS", target_modules=r".*text_encoder.*\.(query|value)", r=2)
    peft.get_peft_model(tiny_model(), config)(**random_batch()).loss.backward()


class IntegerLinear(torch.nn.Module):
    """A linear layer as quantizers leave it: its weight is of integers, its inputs are not."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.scale, self.bias = float(linear.weight.detach().abs().max()) / 127, linear.bias
        self.weight = torch.nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, inputs):
        assert inputs.is_floating_point(), f"expected floats, got {inputs.dtype}"
        return torch.nn.functional.linear(inputs, self.weight.to(inputs.dtype) * self.scale, self.bias)


def test_no_input_is_cast_to_the_type_of_a_quantized_weight():
    """With bitsandbytes itself: the next test, where it is installed."""
    model, batch = tiny_model(), random_batch()
    with torch.no_grad():
        expected = model(**batch).logits
        for module in list(model.model.modules()):
            for name, child in module.named_children():
                if type(child) is torch.nn.Linear:
                    setattr(module, name, IntegerLinear(child))
        logits = model(**batch).logits
    assert any(isinstance(module, IntegerLinear) for module in model.model.image_branch.modules())
    assert (logits - expected).abs().mean() < 0.1 * expected.std()


@pytest.mark.parametrize("precision", ["load_in_8bit", "load_in_4bit"])
def test_linear_layers_of_integers(tmp_path, precision):
    """Quantized weights of bitsandbytes, whose layers hold integers: inputs are not cast to their type."""
    pytest.importorskip("bitsandbytes")
    # The 4-bit kernels for the CPU take blocks of 64 inputs and 16 outputs only, so smaller layers are left out.
    skipped = [".*box_embedding", ".*relevance", "classifier"]
    text_config = BertConfig(vocab_size=60, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    tiny_model(text_config=text_config, fusion_size=64).save_pretrained(tmp_path)
    quantized = HamLearningForTokenClassification.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**{precision: True}, llm_int8_skip_modules=skipped), device_map="cpu"
    )
    with torch.no_grad():
        assert quantized(**random_batch()).logits.isfinite().all()


def test_auto_classes_know_the_model(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), HamLearningConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), HamLearningModel)


def test_an_old_transformers_is_told_what_is_needed(tmp_path):
    stub = tmp_path / "transformers"
    stub.mkdir()
    (stub / "__init__.py").write_text("__version__ = '4.57.1'\n")
    source = HamLearningConfig.__module__.replace(".", "/") + ".py"
    run = subprocess.run([sys.executable, source], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert run.returncode != 0 and "expected transformers 5.10.4 or newer, got 4.57.1" in run.stderr
