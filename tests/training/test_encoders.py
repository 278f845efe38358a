"""Encoders and backbones of every kind start in train.py, are saved, and tag in a pipeline: each a folder made on the spot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import (
    AutoProcessor,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    BertweetTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    pipeline,
)

import train
from mner_data.synthetic_posts import synthetic_dataset
from processors import HamLearningImageProcessor, HamLearningProcessor
from tests.tiny import SENTENCES, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--data_path", "synthetic", "--synthetic_posts", "[8, 4, 4]", "--image_size", "64", "--vision", "resnet10t",
    "--vision_pretrained", "false", "--region_config", "{name: grid}", "--max_steps", "1", "--eval_strategy", "no",
    "--model_config", "{fusion_size: 32, num_iterations: 1, fusion_attention_heads: 2}", "--bf16", "false",
    "--calibrate", "false", "--per_device_train_batch_size", "4", "--use_cpu", "--disable_tqdm", "true",
]  # fmt: skip
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TWEETS = [*SENTENCES, "@USER says HTTPURL :smiling_face: don't", "everybody talks about Jordan tonight"]


def save_bertweet(folder: Path) -> Path:
    """As `vinai/bertweet-base` is stored: vocab.txt with counts, bpe.codes with a count in each line, no tokenizer.json."""
    folder.mkdir()
    words = Counter(word for sentence in TWEETS for word in sentence.split())
    spelled = {word: [*word[:-1], f"{word[-1]}</w>"] for word in words}
    merges = []
    for _ in range(2000):
        pairs: Counter = Counter()
        for word, count in words.items():
            for pair in zip(spelled[word], spelled[word][1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        (first, second), count = max(pairs.items(), key=lambda item: (item[1], item[0]))
        merges.append(f"{first} {second} {count}")
        for parts in spelled.values():
            place = 0
            while place < len(parts) - 1:
                if parts[place] == first and parts[place + 1] == second:
                    parts[place : place + 2] = [first + second]
                place += 1
    pieces = {part.removesuffix("</w>") if part.endswith("</w>") else f"{part}@@" for parts in spelled.values() for part in parts}
    characters = {character for word in words for character in word}
    pieces |= characters | {f"{character}@@" for character in characters}
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in sorted(pieces)), encoding="utf-8")
    (folder / "bpe.codes").write_text("".join(f"{merge}\n" for merge in merges), encoding="utf-8")
    vocab_size = len(pieces) + 5
    config = RobertaConfig(
        vocab_size=vocab_size, max_position_embeddings=130, pad_token_id=1, bos_token_id=0, eos_token_id=2, **SIZES
    )
    RobertaModel(config).save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | {"tokenizer_class": "BertweetTokenizer"}))
    return folder


def save_sentencepiece(folder: Path) -> Path:
    """As `microsoft/deberta-v3-large` is stored: spm.model and no tokenizer.json."""
    folder.mkdir()
    (folder / "text").write_text("\n".join(TWEETS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spm"), vocab_size=120, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    DebertaV2Model(DebertaV2Config(vocab_size=130, relative_attention=True, **SIZES)).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    return folder


def save_with(folder: Path, model, tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_t5(folder: Path) -> Path:
    tokenizer = tiny_tokenizer("xlm-roberta")
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    return save_with(folder, T5Model(config), tokenizer)


def save_bart(folder: Path) -> Path:
    tokenizer = tiny_tokenizer("roberta")
    config = BartConfig(vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0)  # fmt: skip
    return save_with(folder, BartModel(config), tokenizer)


def save_gpt2(folder: Path) -> Path:
    raw = tiny_tokenizer("roberta")._tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    return save_with(folder, GPT2Model(config), tokenizer)


def save_bert(folder: Path) -> Path:
    folder.mkdir()
    tokens = sorted(tiny_tokenizer("bert").get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("\n".join(token for token, _ in tokens), encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    return save_with(folder, BertModel(BertConfig(vocab_size=len(tokens), max_position_embeddings=64, **SIZES)), tokenizer)


ENCODERS = {
    "bertweet": (save_bertweet, "bertweet"),
    "deberta": (save_sentencepiece, "modern"),
    "t5": (save_t5, "paper"),
    "bart": (save_bart, "paper"),
    "gpt2": (save_gpt2, "paper"),
    "bert": (save_bert, "paper"),
}
POST = {"text": "@joe says Jordan scores https://t.co/abc again \U0001f600 unbelievable", "image": None}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_preset_starts_with_the_encoder_and_what_it_saves_tags(name, tmp_path):
    save, preset = ENCODERS[name]
    encoder = save(tmp_path / name)
    output = tmp_path / "out"
    length = ["--max_length", "32"] if preset == "paper" else []
    train.main([f"{ROOT}/configs/{preset}.yaml", *SMALL, "--text", str(encoder), "--output_dir", str(output), *length])
    ner = pipeline("mner", model=str(output), trust_remote_code=True)
    image = next(row["image"] for row in synthetic_dataset(8, 1) if row["image"] is not None)
    posts = [POST, POST | {"image": image}, {"text": "a " * 150}]
    assert [len(result) for result in ner(posts, batch_size=3)] == [len(ner(post)) for post in posts]
    processor = AutoProcessor.from_pretrained(output, trust_remote_code=True)
    words = POST["text"].split()
    positions = processor(text=[words])["word_positions"][0].tolist()
    assert positions == sorted(positions) and len(set(positions)) == len(words)
    if name == "bert":
        with pytest.raises(ValueError, match=r'pipeline\("mner"'):
            pipeline("token-classification", model=str(output), trust_remote_code=True)("Jordan is back")
    if name in ("t5", "bart"):
        assert not any("decoder" in key for key in ner.model.state_dict())


def test_bertweet_reads_handles_links_and_emoji_as_it_was_trained(tmp_path):
    encoder = save_bertweet(tmp_path / "bertweet")
    tokenizer = BertweetTokenizer.from_pretrained(encoder, normalization=True)
    processor = HamLearningProcessor(tokenizer=tokenizer, image_processor=HamLearningImageProcessor())
    words = ["@joe", "says", "https://t.co/abc", "\U0001f600", "Jordan", "\ufe0f"]
    features = processor(text=[words])
    tokens = [tokenizer.convert_ids_to_tokens(int(token)) for token in features["input_ids"][0, 0]]
    starts = features["word_positions"][0].tolist()
    spelled = ["".join(tokens[a:b]).replace("@@", "") for a, b in zip(starts, [*starts[1:-1], len(tokens) - 1], strict=False)]
    assert (tokens[0], tokens[-1]) == ("<s>", "</s>")
    assert (tokens[starts[0]], tokens[starts[2]], spelled[1], spelled[4]) == ("@USER", "HTTPURL", "says", "Jordan")
    assert len(tokens[starts[3] : starts[4]]) > 1, "the emoji is written by its name"

    # What is saved reads as it did, in a process that has none of this project.
    processor.save_pretrained(tmp_path / "first")
    code = "import sys, json; from transformers import AutoProcessor\n"
    code += "p = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True); p.save_pretrained(sys.argv[2])\n"
    code += f"print(json.dumps(p(text=[{words!r}])['input_ids'].tolist()))"
    for folder, again in (("first", "second"), ("second", "third")):
        command = [sys.executable, "-P", "-c", code, str(tmp_path / folder), str(tmp_path / again)]
        environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
        assert json.loads(ended.stdout.splitlines()[-1]) == features["input_ids"].tolist()


def test_an_image_size_that_the_backbone_cannot_read_is_named(tmp_path):
    encoder = save_bert(tmp_path / "bert")
    command = [f"{ROOT}/configs/paper.yaml", *SMALL, "--text", str(encoder), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="image_size: vit_tiny_patch16_224 cannot read images of 64 x 64 pixels; .* for 224"):
        train.main([*command, "--vision", "vit_tiny_patch16_224", "--max_length", "32"])
    assert torch.is_grad_enabled()
