"""Tokenizers of every family with a few hundred tokens, made on the spot."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    PreTrainedTokenizerFast,
)

SENTENCES = [
    "Jordan scores again on the court in Amazon park",
    "the river Amazon and the city of Lincoln, photographed by Michael Jordan",
    "unbelievable photographs: international basketball championships",
    "a person with a trophy, a bridge, a harbour and two dogs",
    "New York Knicks' game #NBA @joe https://t.co/abc 2017",
]
# A longer one is split.
LONGEST_WORD = 7
FAMILIES = ("bert", "roberta", "xlm-roberta", "deberta-v2", "modernbert")


@cache
def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A fast tokenizer of that family, trained on a few sentences."""
    if family == "bert":
        return _bert()
    if family in ("roberta", "modernbert"):
        return _byte_bpe(family)
    return _unigram(family)


def _bert() -> PreTrainedTokenizerFast:
    # Not trained: a trainer gives other ids in every process, and so every process another model.
    letters = sorted(set("".join(SENTENCES)) - {" "})
    words = sorted({word for sentence in SENTENCES for word in sentence.split() if 1 < len(word) <= LONGEST_WORD})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    raw = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    raw.add_special_tokens(tokens[:5])
    raw.normalizer = normalizers.BertNormalizer(lowercase=False)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def _byte_bpe(family: str) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    if family == "roberta":
        raw.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=True)
    else:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        cls_token="<s>", sep_token="</s>", mask_token="<mask>", model_max_length=64, add_prefix_space=True,
    )  # fmt: skip


def _unigram(family: str) -> PreTrainedTokenizerFast:
    first, last = ("<s>", "</s>") if family == "xlm-roberta" else ("[CLS]", "[SEP]")
    special = ["<pad>", first, last, "<unk>", "<mask>"]
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Metaspace()
    raw.train_from_iterator(SENTENCES, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>"))
    # The trainer orders tokens of equal score by chance.
    pieces = json.loads(raw.to_str())["model"]["vocab"]
    ordered = pieces[: len(special)] + sorted(pieces[len(special) :])
    raw.model = models.Unigram([(piece, score) for piece, score in ordered], unk_id=special.index("<unk>"))
    raw.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B {last}", special_tokens=[(first, 1), (last, 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", cls_token=first, sep_token=last,
        mask_token="<mask>", model_max_length=64,
    )  # fmt: skip
