"""A tokenizer made from the training data, for a text encoder that is trained from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_tokenizer(
    words: Iterable[str], kind: str = "word", min_count: int = 2, lowercase: bool = True
) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose vocabulary is every word, or every character, that occurs at least `min_count` times.

    Args:
        kind: `"word"` or `"char"`.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in ("word", "char"):
        raise ValueError(f'tokenizer_config, kind: expected "word" or "char", got {kind!r}')
    units: Counter[str] = Counter()
    for word in words:
        word = word.lower() if lowercase else word
        units.update([word] if kind == "word" else word)
    known = sorted(unit for unit, count in units.items() if count >= min_count and not unit.isspace())
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*SPECIAL_TOKENS, *known]))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    if lowercase:
        raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = (
        pre_tokenizers.WhitespaceSplit()
        if kind == "word"
        else pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")])
    )
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    )
