"""A plot of a training run: loss and F1 over epochs (Figure 4 of the paper)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first, since there may be no screen)
from matplotlib.figure import Figure  # noqa: E402


def plot_curves(log_history: list[dict[str, Any]], path: str | Path) -> Path:
    """Draw training loss, validation loss and validation F1 from the Trainer's `log_history`."""
    train = [(log["epoch"], log["loss"]) for log in log_history if "loss" in log]
    evaluations = [log for log in log_history if "eval_loss" in log]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    if train:
        left.plot(*zip(*train, strict=True), color="#0072B2", label="train")
    if evaluations:
        epochs = [log["epoch"] for log in evaluations]
        left.plot(epochs, [log["eval_loss"] for log in evaluations], "o-", color="#D55E00", label="validation")
        for name, color, label in (("eval_f1", "#009E73", "F1"), ("eval_f1_strict", "#CC79A7", "F1, strict IOB2")):
            if name in evaluations[0]:
                right.plot(epochs, [log[name] for log in evaluations], "o-", color=color, label=label)
        right.legend(frameon=False)
    if train or evaluations:
        left.legend(frameon=False)
    left.set(xlabel="epoch", ylabel="loss per word", title="Loss")
    right.set(xlabel="epoch", ylabel="F1", title="Validation")
    save_figure(figure, path)
    return Path(path)


def save_figure(figure: Figure, path: str | Path):
    """Write a figure, its axes without the lines at the top and the right."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
