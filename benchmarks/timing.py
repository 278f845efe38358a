"""What the benchmarks of speed share: the model and posts that are timed, and how times become ratios."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BertConfig

from mner_data.readers import read_conll
from mner_data.synthetic_posts import synthetic_dataset
from modeling_hamlearning import HamLearningConfig, HamLearningForTokenClassification
from processors import HamLearningImageProcessor, HamLearningProcessor
from training.tokenizer import build_tokenizer

LABELS = ["O", *(f"{prefix}-{kind}" for kind in ("LOC", "MISC", "ORG", "PER") for prefix in "BI")]
BATCH_SIZE, NUM_REGIONS, IMAGE_SIZE, LABEL_TOKENS = 8, 5, 224, 2
# Twitter2017's training posts: words, and sub-tokens of an uncased WordPiece with the special ones, at 40 quantiles.
WORDS = (
    6, 8, 9, 9, 10, 10, 11, 11, 11, 12, 12, 12, 13, 13, 13, 14, 14, 14, 15, 15,
    15, 16, 16, 16, 17, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21, 22, 23, 24, 26, 29,
)  # fmt: skip
SUB_TOKENS = (
    9, 11, 12, 12, 13, 13, 14, 15, 15, 15, 16, 16, 16, 17, 17, 18, 18, 19, 19, 19,
    20, 20, 20, 21, 21, 22, 22, 23, 23, 24, 24, 25, 26, 26, 27, 29, 29, 30, 32, 36,
)  # fmt: skip


def posts_like_tweets(
    words: Sequence[int], sub_tokens: Sequence[int], num_regions: int = NUM_REGIONS, device: str = "cpu", seed: int = 0
) -> dict[str, Tensor]:
    """A batch of posts with an image each: random sub-tokens, pixels and boxes, in the shapes the processor makes."""
    generator = torch.Generator().manual_seed(seed)
    size, length, most = len(words), max(sub_tokens), max(words)
    counts = torch.tensor(words)[:, None]
    word_mask = torch.arange(most) < counts
    # Words begin evenly among the sub-tokens between the two special ones.
    step = (torch.tensor(sub_tokens)[:, None] - 2) / counts
    positions = (1 + torch.arange(most) * step).long()
    attention_mask = (torch.arange(length) < torch.tensor(sub_tokens)[:, None]).long()
    corners = torch.rand(size, num_regions, 2, 2, generator=generator).sort(dim=2).values
    batch = {
        "input_ids": torch.randint(1000, 20000, (size, 1, length), generator=generator),
        "attention_mask": attention_mask[:, None],
        "word_positions": positions.where(word_mask, -1),
        "word_mask": word_mask,
        "has_image": torch.ones(size, dtype=torch.bool),
        "pixel_values": torch.randn(size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator),
        "image_sizes": torch.tensor([[480.0, 640.0]]).repeat(size, 1),
        "region_boxes": corners.flatten(2),
        "region_label_ids": torch.randint(1000, 20000, (size, num_regions, LABEL_TOKENS), generator=generator),
        "region_mask": torch.ones(size, num_regions, dtype=torch.bool),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def tweet_batches(device: str) -> list[dict[str, Tensor]]:
    """The whole distribution once, in batches of like length."""
    starts = range(0, len(WORDS), BATCH_SIZE)
    return [posts_like_tweets(WORDS[i : i + BATCH_SIZE], SUB_TOKENS[i : i + BATCH_SIZE], device=device, seed=i) for i in starts]


def base_model(**switches) -> HamLearningForTokenClassification:
    """BERT-base and ResNet-50 under the model's own defaults, random weights."""
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    vision = {"model_type": "timm_backbone", "backbone": "resnet50", "out_indices": [-1]}
    config = HamLearningConfig(
        text_config=BertConfig(), vision_config=vision, id2label=names,
        label2id={name: index for index, name in names.items()}, **switches,
    )  # fmt: skip
    return HamLearningForTokenClassification(config)


def in_turn(actions: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of every action in every round, after one round that does not count."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for index in tqdm(range(rounds + 1), desc="rounds"):
        for name, action in actions.items():
            cpu, wall = time.process_time(), time.perf_counter()
            action()
            if device != "cpu":
                torch.cuda.synchronize()
            if index:
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return taken


def ratio(taken: dict, over: str, *under: str, device: str = "cpu") -> float:
    """Median over the rounds of one action's time over the sum of others'; wall time on a GPU, CPU time else."""
    clock = 0 if device == "cpu" else 1  # CPU or wall
    rounds = range(len(taken[over]))
    return statistics.median(taken[over][turn][clock] / sum(taken[name][turn][clock] for name in under) for turn in rounds)


def tag(model: HamLearningForTokenClassification, batches: list[dict[str, Tensor]]) -> Callable[[], None]:
    """Tags all the batches when it is called."""

    @torch.no_grad()
    def action():
        for batch in batches:
            model.decode(model(**batch), batch["word_mask"])

    return action


def bert_32_batch(device: str) -> dict[str, Tensor]:
    """A batch of plain BERT at length 32."""
    ids = torch.randint(1000, 20000, (BATCH_SIZE, 32), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def tweets(count: int) -> list[str]:
    """Texts of twitter2017 if `HAMLEARNING_DATA` has it, else of synthetic posts."""
    if folder := os.environ.get("HAMLEARNING_DATA"):
        rows = read_conll(Path(folder, "twitter2017", "valid.txt"))
    else:
        rows = synthetic_dataset(count, seed=1)
    return [" ".join(row["tokens"]) for row in islice(iter(rows), count)]


def word_processor(texts: list[str]) -> HamLearningProcessor:
    """A processor whose tokenizer has a token for each word of the texts."""
    tokenizer = build_tokenizer([word for text in texts for word in text.split()], kind="word", min_count=1)
    tokenizer.model_max_length = 512
    image_processor = HamLearningImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return HamLearningProcessor(image_processor=image_processor, tokenizer=tokenizer)
