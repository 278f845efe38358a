"""Tables and plots of the controlled experiments, from the rows that are done."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from mner_data.synthetic_posts import best_f1_without_evidence
from training.curves import plt, save_figure

from .measures import calibration_error_by_chance
from .runner import read_rows

HEADINGS = {
    "levels": "Synthetic levels (synthetic)",
    "relevance": "Relevance (synthetic)",
    "text": "Real text without photos of its own (real text)",
    "paintings": "Real text with real photos (paintings)",
}
EXPLANATIONS = {
    "levels": "Every set's own level alone tells an entity's type. Grounding: how many of the entities report the region that "
    "decides their type (IoU of 0.5 or more); led: the region by which that one is found, in iterations the ball on the named "
    "side, in spatial the star in a frame. There two frames decide together: what is counted is the one with the star, and "
    "most of the rest report the other.",
    "relevance": "Half of the posts show another post's picture; the noises stand in place of posts' own pictures.",
    "text": "MiniLM, six epochs, batches of 16 in every row. On the other set Twitter2015's type OTHER is read as MISC. The "
    "plain recipe is Hugging Face's token classification; a rate beside it is a learning rate other than 1e-4. Ours reports "
    "entities from a score of 0.6 on, calibrated (on a tenth of train, which is not trained on) from 0.5 on.",
    "paintings": "A character encoder from scratch, EfficientNet-Lite0 frozen unless said otherwise.",
}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#56B4E9")
Rows = dict[tuple[str, str], list[dict[str, Any]]]


def write_report(results: Path):
    """`table.md` and the plots of every line of `runs.jsonl`."""
    sections: dict[str, Rows] = defaultdict(lambda: defaultdict(list))
    rows = read_rows(results)
    for row in rows:
        sections[row["section"]][row["data"], row["model"]].append(row)
    lines = [
        "# Controlled experiments",
        "",
        "Made by `python -m benchmarks.controlled`. F1 as default seqeval counts it, then strict IOB2, in percent: mean ± ",
        "standard deviation over the seeds, whose number stands beside. Scored after the last step.",
    ]
    for section, heading in HEADINGS.items():
        if section in sections:
            lines += ["", f"## {heading}", "", EXPLANATIONS[section], ""]
            lines += [*_table(section, sections[section]), *_measures(sections[section])]
    lines += ["", provenance(rows), ""]
    (results / "table.md").write_text("\n".join(lines))
    _plot_scores(sections.get("text", {}), results / "scores.png")
    plot_curves(sections.get("paintings", {}), results / "curves.png")


def provenance(rows: list[dict[str, Any]]) -> str:
    """How many rows, of which seeds, what they cost, when and with what they were made."""
    seeds = sorted({row["seed"] for row in rows})
    dates = sorted({row["date"] for row in rows})
    versions = sorted({", ".join(f"{name} {of}" for name, of in row["versions"].items()) for row in rows})
    hours = sum(row["cpu_seconds"] for row in rows) / 3600
    of_seeds = f"seeds {', '.join(map(str, seeds))}"
    return f"{len(rows)} rows, {of_seeds}, {hours:.1f} CPU hours; {', '.join(dates)}; {'; '.join(versions)}."


def spread(values: list[float], scale: float = 100, digits: int = 2) -> str:
    mean = scale * statistics.fmean(values)
    deviation = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


def _table(section: str, rows: Rows) -> list[str]:
    ceiling = section == "levels"
    head = ["data", "model", *(["best without it"] if ceiling else []), "scored on", "F1", "strict F1", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (data, model), of_seeds in rows.items():
        for name in of_seeds[0]["scores"]:
            scores = [row["scores"][name] for row in of_seeds]
            cells = [data, model, *([f"{100 * best_f1_without_evidence(data):.1f}"] if ceiling else []), name]
            cells += [spread([of_seed[metric] for of_seed in scores]) for metric in ("f1", "f1_strict")]
            lines.append("| " + " | ".join([*cells, str(len(of_seeds))]) + " |")
    return lines


def _measures(rows: Rows) -> list[str]:
    lines = []
    for (data, model), of_seeds in rows.items():
        for measure in sorted(of_seeds[0]["measures"]):
            values = [row["measures"][measure] for row in of_seeds]
            if measure == "calibration":
                exact = statistics.fmean(calibration_error_by_chance(value["bins"]) for value in values)
                error = spread([value["ece"] for value in values], 1, 3)
                lines.append(
                    f"- {data}, {model}: expected calibration error of the entities' score: {error}; "
                    f"exact scores would have {exact:.3f}"
                )
            elif measure == "relevance":
                shown = ", ".join(f"{level} {spread([v[level] for v in values], 1, 3)}" for level in values[0])
                lines.append(f"- {data}, {model}: AUC of relevance, own against swapped pictures: {shown}")
            elif measure == "f1_by_min_score":
                shown = ", ".join(f"{least} {spread([v[least] for v in values])}" for least in values[0])
                lines.append(f"- {data}, {model}: F1 by the least score of an entity: {shown}")
            else:
                lines.append(f"- {data}, {model}: {measure}: {spread(values, 1, 3)}")
    return ["", *lines] if lines else []


def _plot_scores(rows: Rows, path: Path):
    """Whether entities are as often right as their score says, and what F1 is left when those of a low score are not reported."""
    shown = {key: of_seeds for key, of_seeds in rows.items() if "calibration" in of_seeds[0]["measures"]}
    if not shown:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    left.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1)
    for index, ((data, model), of_seeds) in enumerate(shown.items()):
        color = COLORS[index % len(COLORS)]
        bins = [of_bin for row in of_seeds for of_bin in row["measures"]["calibration"]["bins"]]
        sizes = [4 + of_bin["count"] / 8 for of_bin in bins]
        points = [of_bin["score"] for of_bin in bins], [of_bin["right"] for of_bin in bins]
        left.scatter(*points, s=sizes, color=color, alpha=0.6, linewidths=0, label=f"{data}, {model}")
        by_least = [row["measures"]["f1_by_min_score"] for row in of_seeds]
        f1 = [statistics.fmean(of_seed[least] for of_seed in by_least) for least in by_least[0]]
        right.plot([float(least) for least in by_least[0]], f1, color=color, marker=".")
    left.set(xlabel="score of the entity", ylabel="share that is right", title="Calibration on validation text")
    right.set(xlabel="least score that is reported", ylabel="F1", title="Validation")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    save_figure(figure, path)


def plot_curves(rows: Rows, path: Path):
    """Training loss and validation F1 over epochs, the mean of the seeds (Figure 4 of the paper)."""
    shown = {
        model: of_seeds
        for (_, model), of_seeds in rows.items()
        if any("eval_f1" in log for row in of_seeds for log in row["curve"])
    }
    if not shown:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for index, (model, of_seeds) in enumerate(shown.items()):
        style = {"color": COLORS[index % len(COLORS)], "linestyle": ("-", "--", ":")[index // len(COLORS)]}
        for axes, metric in ((left, "loss"), (right, "eval_f1")):
            by_epoch: dict[float, list[float]] = defaultdict(list)
            for row in of_seeds:
                for log in row["curve"]:
                    if metric in log:
                        by_epoch[round(log["epoch"], 2)].append(log[metric])
            epochs = sorted(by_epoch)
            axes.plot(epochs, [statistics.fmean(by_epoch[epoch]) for epoch in epochs], label=model, marker=".", **style)
    left.set(xlabel="epoch", ylabel="loss a word", title="Training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="F1", title="Validation")
    right.legend(frameon=False, fontsize=7, handlelength=3.5)
    save_figure(figure, path)
