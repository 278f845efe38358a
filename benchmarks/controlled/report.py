"""Tables and plots of the controlled experiments: `python -m benchmarks.controlled.report`.

Reads `benchmarks/results/controlled/runs.jsonl`. Writes `table.md` and the plots beside it, and the tables in README.md and
docs/benchmarks.md: each stands between `<!-- table NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mner_data.files import markdown_table
from mner_data.synthetic_posts import best_f1_without_evidence
from training.compare_runs import paired_bootstrap
from training.curves import plt, save_figure

from .experiments import (
    FULL,
    LEFT_OUT,
    OTHER_PLAIN_RATES,
    PLAIN,
    POOLED,
    REAL_TEXT,
    SWITCHED_OFF,
    TEXT_ALONE,
    WITHOUT_GROUNDING,
)
from .measures import calibration_error_by_chance
from .perturbations import NOISES
from .runner import read_runs

RESULTS = Path("benchmarks/results/controlled")
DOCUMENTS = (Path("README.md"), Path("docs/benchmarks.md"))
TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
HEADINGS = {
    "defaults": "Defaults (synthetic posts)",
    "levels": "Levels (synthetic posts)",
    "relevance": "Relevance (synthetic posts)",
    "text": "Text without images of its own (real text)",
    "paintings": "Text with its own images (real photos, labels by a language model)",
    "phototweets": "Tweets with their photos (real photos, labels by a language model)",
    "grounding": "Grounding (synthetic posts)",
}
EXPLANATIONS = {
    "defaults": "What a region looks like determines an entity's type. Every argument of the model but its width is at its "
    "default. The text encoder has two layers and starts from scratch; six epochs of 1,600 posts.",
    "levels": "In each set, one kind of evidence in the image determines an entity's type. `grounding` is the share of the "
    "entities that report the region which determines their type (IoU of 0.5 or more). `clue_grounding` is the same for the "
    "region that leads to it: in iterations the ball on the named side, in spatial the star in a frame. In spatial, two frames "
    "determine the type together. The one with the star is counted, and most of the other entities report the other frame.",
    "relevance": "Half of the posts carry another post's image. The noises replace or spoil the posts' own images.",
    "text": "MiniLM, six epochs, batches of 16 for every model. When a model is scored on the other set, Twitter2015's type "
    "OTHER is read as MISC. The plain recipe is cross-entropy on first sub-tokens; its learning rate is 1e-4 where no other "
    "stands beside it. HamLearning reports entities with a score of 0.6 or more. Calibrated on a tenth of train, which is then "
    "not trained on, it reports those of 0.5 or more.",
    "paintings": "A character encoder trained from scratch; EfficientNet-Lite0, frozen unless the name says otherwise.",
    "phototweets": "MiniLM; EfficientNet-Lite0, frozen unless the name says otherwise; YOLOv3-tiny's regions and the anchors "
    "unless the name says otherwise. The support of a photo says what it has to do with the post's entities: 2 shows one or "
    "tells its type, 1 is loosely related, 0 is unrelated or beside a post without entities. The region of an entity is what the "
    "model says; with the grounding loss that is taught, and else what its first word attends. `whole image`, `never shown` and "
    "`person` are rules for the same entities; the last is the largest person for a PER and else the whole image. Grounding "
    "accuracy is that of the entities with the right span; `region_recall` is the share of the shown entities that any region "
    "of their post shows.",
    "grounding": "Where the image shows an entity, or that it does not, learned with the grounding loss; `model` and the rules "
    "as above.",
}
EVIDENCE = {
    "global": "the scene",
    "object": "what a region looks like",
    "semantic": "the label of a region",
    "spatial": "how two equal regions lie to each other",
    "alignment": "a word that says which region belongs to which name",
    "iterations": "a word that leads to a region that leads to another region",
    "figure1b": "the image for one name, the words for the other",
}
ONE_ROUND, ONE_ROUND_NO_RELATIONS = SWITCHED_OFF["iterations"]
RULES = {
    "whole image": "the whole image",
    "never shown": "never shown",
    "person": "the largest person for a PER, else the whole image",
}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#56B4E9")
Runs = list[dict[str, Any]]


def main():
    write_report(RESULTS)
    tables = document_tables(read_runs(RESULTS))
    for document in DOCUMENTS:
        document.write_text(fill_tables(document.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(f"written: {RESULTS}, {', '.join(map(str, DOCUMENTS))}")


def write_report(results: Path):
    """Write `table.md` and the plots of every line of `runs.jsonl`."""
    runs = read_runs(results)
    lines = [
        "# Controlled experiments",
        "",
        "Made by `python -m benchmarks.controlled.report` from the lines of `runs.jsonl`, each of which names the command that "
        "made it (`benchmarks.proving_ground` is its former name). F1 as default seqeval counts it, then "
        "strict IOB2, in percent: mean ± standard deviation over the seeds. Scored after the last step.",
    ]
    for section, heading in HEADINGS.items():
        if section_runs := [run for run in runs if run["section"] == section]:
            lines += ["", f"## {heading}", "", EXPLANATIONS[section], "", _all_scores(section_runs), *_all_measures(section_runs)]
    lines += ["", provenance(runs), ""]
    (results / "table.md").write_text("\n".join(lines), encoding="utf-8")
    _plot_scores([run for run in runs if run["section"] == "text"], results / "scores.png")
    for section in ("paintings", "phototweets"):
        plot_curves([run for run in runs if run["section"] == section], results / f"curves-{section}.png")


def fill_tables(document: str, tables: dict[str, str]) -> str:
    """The document with the current tables between its markers.

    Raises:
        ValueError: a marker names no table.
    """

    def fill(match: re.Match) -> str:
        if match[2] not in tables:
            raise ValueError(f"<!-- table {match[2]} -->: expected one of {', '.join(tables)}")
        return f"{match[1]}{tables[match[2]]}\n{match[3]}"

    return TABLE.sub(fill, document)


def document_tables(runs: Runs) -> dict[str, str]:
    """The tables that the documents show, by their names."""
    return {
        "summary": _summary_table(runs),
        "defaults": _defaults_table(_select(runs, "defaults")),
        "levels": _levels_table(_select(runs, "levels")),
        "relevance": _relevance_table(_select(runs, "relevance")),
        "text": _text_table(_select(runs, "text")),
        "margin": _margin_table(_select(runs, "text")),
        "calibration": _calibration_table(_select(runs, "text")),
        "paintings": _paintings_table(_select(runs, "paintings")),
        "phototweets": _phototweets_table(_select(runs, "phototweets")),
        "phototweets-differences": _differences_table(_select(runs, "phototweets")),
        "grounding": _grounding_table(runs),
        "provenance": provenance(runs),
    }


def spread(values: Iterable[float | None], scale: float = 100, digits: int = 2) -> str:
    """Mean ± standard deviation of the values times `scale`, without those that are `None`; – without values."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    deviation = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.fmean(values):.{digits}f}{deviation}"


def provenance(runs: Runs) -> str:
    """How many runs, of which seeds, in which precision, what they cost, when and with which versions they were made."""
    seeds = sorted({run["seed"] for run in runs})
    dates = sorted({run["date"] for run in runs})
    versions = sorted({", ".join(f"{name} {version}" for name, version in run["versions"].items()) for run in runs})
    precisions = Counter(run.get("precision", "unknown precision") for run in runs)  # runs up to 0.2.0 do not say it
    hours = sum(run["cpu_seconds"] for run in runs) / 3600
    return (
        f"{len(runs)} runs ({', '.join(f'{count} in {name}' for name, count in sorted(precisions.items()))}), "
        f"seeds {', '.join(map(str, seeds))}, {hours:.1f} CPU hours; {', '.join(dates)}; {'; '.join(versions)}."
    )


def scores_frame(runs: Runs) -> pd.DataFrame:
    """Every score of every run: a line for each set that a run was scored on."""
    return pd.DataFrame(
        {name: run[name] for name in ("section", "data", "model", "seed")} | {"scored_on": scored_on} | scores
        for run in runs
        for scored_on, scores in run["scores"].items()
    )


def _select(runs: Runs, section: str) -> Runs:
    return [run for run in runs if run["section"] == section]


def _group(runs: Runs) -> dict[tuple[str, str], Runs]:
    """The runs of all seeds by data and model."""
    groups: dict[tuple[str, str], Runs] = {}
    for run in runs:
        groups.setdefault((run["data"], run["model"]), []).append(run)
    return groups


# The whole of the results: table.md


def _all_scores(runs: Runs) -> str:
    has_ceiling = runs[0]["section"] == "levels"
    lines = []
    for (data, model, scored_on), group in scores_frame(runs).groupby(["data", "model", "scored_on"], sort=False):
        ceiling = [f"{100 * best_f1_without_evidence(data):.1f}"] if has_ceiling else []
        lines.append([data, model, *ceiling, scored_on, spread(group["f1"]), spread(group["f1_strict"]), str(len(group))])
    ceiling = ["best F1 without the evidence"] if has_ceiling else []
    return markdown_table(["data", "model", *ceiling, "scored on", "F1", "strict F1", "seeds"], lines)


def _all_measures(runs: Runs) -> list[str]:
    lines = []
    for (data, model), group in _group(runs).items():
        for measure in sorted(group[0]["measures"].keys() - {"post_counts"}):
            lines.append(f"- {data}, {model}: {_describe(measure, [run['measures'][measure] for run in group])}")
    return ["", *lines] if lines else []


def _describe(measure: str, values: list) -> str:
    if measure == "calibration":
        by_chance = statistics.fmean(calibration_error_by_chance(value["bins"]) for value in values)
        error = spread([value["ece"] for value in values], 1, 3)
        return f"expected calibration error of the entities' score: {error}; by chance, exact scores would have {by_chance:.3f}"
    if measure == "relevance":
        areas = (f"{level} {spread([value[level] for value in values], 1, 3)}" for level in values[0])
        return f"area under the ROC curve of relevance, own against swapped images: {', '.join(areas)}"
    if measure == "f1_by_min_score":
        f1s = (f"{threshold} {spread(value[threshold] for value in values)}" for threshold in values[0])
        return f"F1 by `min_entity_score`: {', '.join(f1s)}"
    if isinstance(values[0], dict) and "grounding_accuracy" in values[0]:
        names = ("grounding_accuracy", "shown", "not_shown", "eeg_f1", "gmner_f1")
        return f"{measure}: " + ", ".join(f"{name} {spread((value[name] for value in values), 1, 3)}" for name in names)
    if measure == "f1_by_support":
        f1s = (
            f"{name} {spread((value[name][kind] for value in values), digits=1)} at {kind}"
            for name in values[0]
            for kind in values[0][name]
        )
        return f"F1 by the support of the photo: {', '.join(f1s)}"
    return f"{measure}: {spread(values, 1, 3)}"


# The tables of the documents


def _score_cell(runs: Runs, scored_on: str) -> Callable[..., str]:
    """A function that gives the spread of the F1 of a data set's model, – where there is no such run."""
    groups = _group(runs)

    def cell(data: str, model: str | None, metric: str = "f1", scored_on: str = scored_on) -> str:
        scores = [run["scores"].get(scored_on) for run in groups.get((data, model), [])]
        return spread((score[metric] for score in scores if score), digits=1)

    return cell


def _summary_table(runs: Runs) -> str:
    """The main results in a few lines, for README."""
    levels, groups = scores_frame(_select(runs, "levels")), _group(_select(runs, "text"))
    paintings = _score_cell(_select(runs, "paintings"), "own")
    full = levels[(levels["model"] == FULL) & (levels["scored_on"] == "test")].groupby("data")["f1"].mean()
    alone = levels[(levels["model"] == TEXT_ALONE) & (levels["scored_on"] == "test")].groupby("data")["f1"].mean()
    models = f"full model at least {100 * full.min():.1f}; text alone at most {100 * alone.max():.1f}"
    lines = [["synthetic", f"{len(full)} sets whose images tell types", models]]
    for data in REAL_TEXT:
        plain, ours = ({run["seed"]: run for run in groups.get((data, model), [])} for model in (PLAIN, TEXT_ALONE))
        seeds = sorted(plain.keys() & ours.keys())
        by_threshold = [ours[seed]["measures"]["f1_by_min_score"] for seed in seeds]
        f1 = [spread((plain[seed]["scores"]["valid"]["f1"] for seed in seeds), digits=1)]
        f1 += [spread((scores[threshold] for scores in by_threshold), digits=1) for threshold in ("0.0", "0.6")]
        models = f"plain recipe {f1[0]}; CRF {f1[1]}; CRF and threshold {f1[2]} (seeds: {len(seeds)})"
        lines.append(["real text without images", data.capitalize(), models])
    own, without = paintings("paintings", FULL), paintings("paintings", TEXT_ALONE, scored_on="none")
    lines.append(
        ["real photos, labels by a language model", "paintings", f"with the image {own}; model of the text alone {without}"]
    )
    return markdown_table(["posts", "task", "F1 in percent, mean ± deviation of the seeds"], lines)


def _defaults_table(runs: Runs) -> str:
    own, none = (_score_cell(runs, name) for name in ("test", "none"))
    lines = [[model, str(len(group)), own(data, model), none(data, model)] for (data, model), group in _group(runs).items()]
    return markdown_table(["defaults (synthetic posts, F1)", "seeds", "own image", "no image"], lines)


def _levels_table(runs: Runs) -> str:
    f1 = _score_cell(runs, "test")
    lines = []
    for scenario, evidence in EVIDENCE.items():
        models = SWITCHED_OFF[scenario]
        level_off = next((model for model in models if model.startswith("without") and model != ONE_ROUND_NO_RELATIONS), None)
        scene_alone = "scene alone" if "scene alone" in models else None
        cells = [f1(scenario, model) for model in (FULL, level_off, scene_alone, TEXT_ALONE, POOLED)]
        lines.append([evidence, *cells, f"{100 * best_f1_without_evidence(scenario):.1f}"])
    header = ["the evidence (synthetic posts, F1)", "all levels", "the level itself off", "all but the scene off", "text alone"]
    table = markdown_table([*header, "one image vector on every word", "best possible without the evidence"], lines)
    objects, relations = (f1(*key) for key in (("object", "without objects"), ("spatial", "without relations")))
    rounds = ", ".join(f1("iterations", model) for model in (ONE_ROUND, ONE_ROUND_NO_RELATIONS))
    return (
        f"{table}\n\nObjects and relations are redundant on these posts: without them, {objects} and {relations} remain, because "
        f"other levels hold the same information. One round is enough for the two hops, with and without relations ({rounds})."
    )


def _relevance_table(runs: Runs) -> str:
    f1 = _score_cell(runs, "own")
    sets = ("own", "swapped", *NOISES)
    lines = []
    for model in dict.fromkeys(run["model"] for run in runs):
        areas = [run["measures"]["relevance"]["mean"] for run in runs if run["model"] == model and "relevance" in run["measures"]]
        lines.append([model, *(f1("mixed", model, scored_on=scored_on) for scored_on in sets), spread(areas, 1, 3)])
    header = ["image (synthetic posts, F1)", "own", "another post's", *NOISES]
    return markdown_table([*header, "area under the ROC curve of relevance, own against another's"], lines)


def _text_table(runs: Runs) -> str:
    groups, f1 = _group(runs), _score_cell(runs, "valid")
    models = {f"plain recipe, learning rate 1e-4{_seeds(groups, PLAIN)}": PLAIN}
    for rate in OTHER_PLAIN_RATES:
        model = f"{PLAIN} {rate:.0e}"
        models[f"plain recipe, learning rate {rate:.0e}{_seeds(groups, model)}".replace("e-0", "e-")] = model
    models |= {
        f"HamLearning on the text alone, `min_entity_score: 0.6`{_seeds(groups, TEXT_ALONE)}": TEXT_ALONE,
        "the same, calibrated on a tenth of train, `min_entity_score: 0.5`": "text alone, calibrated",
        "HamLearning with an unrelated image beside every post, `min_entity_score: 0.6`": "unrelated images",
    }
    lines = [
        [heading, *(f"{f1(data, model)} ({f1(data, model, 'f1_strict')})" for data in REAL_TEXT)]
        for heading, model in models.items()
    ]
    return markdown_table(["real text, F1 (strict F1) on validation", *map(str.capitalize, REAL_TEXT)], lines)


def _seeds(groups: dict[tuple[str, str], Runs], model: str) -> str:
    """The number of seeds of a model, for each data set if they differ."""
    counts = [len(groups.get((data, model), [])) for data in REAL_TEXT]
    return f" (seeds: {counts[0] if len(set(counts)) == 1 else ' and '.join(map(str, counts))})"


def _margin_table(runs: Runs) -> str:
    """What CRF and threshold each add to the plain recipe, over the seeds that both models have."""
    groups = _group(runs)
    parts: dict[str, list[str]] = {name: [] for name in ("CRF", "threshold", "both", "both (strict F1)", "seed 0")}
    for data in REAL_TEXT:
        plain, ours = ({run["seed"]: run for run in groups.get((data, model), [])} for model in (PLAIN, TEXT_ALONE))
        seeds = sorted(plain.keys() & ours.keys())
        by_threshold = {seed: ours[seed]["measures"]["f1_by_min_score"] for seed in seeds}
        plain_scores = {seed: plain[seed]["scores"]["valid"] for seed in seeds}
        crf = [by_threshold[seed]["0.0"] - plain_scores[seed]["f1"] for seed in seeds]
        threshold = [by_threshold[seed]["0.6"] - by_threshold[seed]["0.0"] for seed in seeds]
        strict = [ours[seed]["scores"]["valid"]["f1_strict"] - plain_scores[seed]["f1_strict"] for seed in seeds]
        parts["CRF"].append(spread(crf, digits=1))
        parts["threshold"].append(spread(threshold, digits=1))
        parts["both"].append(spread([sum(pair) for pair in zip(crf, threshold, strict=True)], digits=1))
        parts["both (strict F1)"].append(spread(strict, digits=1))
        rates = [groups.get((data, model), []) for model in (PLAIN, *(f"{PLAIN} {rate:.0e}" for rate in OTHER_PLAIN_RATES))]
        best_plain = max(run["scores"]["valid"]["f1"] for same_rate in rates for run in same_rate if run["seed"] == 0)
        first = groups[data, TEXT_ALONE][0]
        parts["seed 0"].append(
            " + ".join(
                f"{100 * part:.1f}"
                for part in (
                    first["measures"]["f1_by_min_score"]["0.0"] - best_plain,
                    first["measures"]["f1_by_min_score"]["0.6"] - first["measures"]["f1_by_min_score"]["0.0"],
                )
            )
        )
    headings = {
        "CRF": "the CRF on words, every entity reported, over the plain recipe at 1e-4",
        "threshold": "`min_entity_score: 0.6` over none",
        "both": "both",
        "both (strict F1)": "both, by strict F1",
        "seed 0": "CRF + threshold over the plain recipe at the best of the three rates, seed 0 only",
    }
    lines = [[headings[name], *cells] for name, cells in parts.items()]
    return markdown_table(["real text, points of F1 on validation", *map(str.capitalize, REAL_TEXT)], lines)


def _calibration_table(runs: Runs) -> str:
    groups = _group(runs)
    lines = []
    for model in (TEXT_ALONE, "text alone, calibrated"):
        cells = []
        for data in REAL_TEXT:
            calibrations = [run["measures"]["calibration"] for run in groups[data, model]]
            by_chance = statistics.fmean(calibration_error_by_chance(calibration["bins"]) for calibration in calibrations)
            cells.append(f"{spread([calibration['ece'] for calibration in calibrations], 1, 3)} ({by_chance:.3f})")
        lines.append([model, *cells])
    header = "real text, expected calibration error of `score` (what exact scores would have by chance)"
    return markdown_table([header, *map(str.capitalize, REAL_TEXT)], lines)


def _paintings_table(runs: Runs) -> str:
    f1 = _score_cell(runs, "own")
    models = (PLAIN, TEXT_ALONE, POOLED, FULL, *LEFT_OUT, "another post's images", "backbone trained")
    sets = {"own": "own image", "swapped": "another post's image", "none": "no image"}
    lines = [[model, *(f1("paintings", model, scored_on=scored_on) for scored_on in sets)] for model in models]
    return markdown_table(["real photos, labels by a language model, F1 on validation", *sets.values()], lines)


def _phototweets_table(runs: Runs) -> str:
    groups = _group(runs)
    sets = {"own": "own photo", "swapped": "another post's photo", "none": "no photo"}
    lines = []
    for (_, model), group in groups.items():
        scores = [spread((run["scores"][name]["f1"] for run in group if name in run["scores"]), digits=1) for name in sets]
        shown = [run["measures"].get("f1_by_support", {}) for run in group]
        shown = [spread((f1["own" if "own" in f1 else "none"]["2"] for f1 in shown if f1), digits=1)]
        areas = [run["measures"]["relevance"]["mean"] for run in group if "relevance" in run["measures"]]
        lines.append([model, str(len(group)), *scores, *shown, spread(areas, 1, 2)])
    header = ["real tweets and photos, labels by a language model, F1 on validation", "seeds", *sets.values()]
    header += ["own photo, which shows an entity", "area under the ROC curve of relevance, own against another's"]
    return markdown_table(header, lines)


def _differences_table(runs: Runs) -> str:
    """Differences in F1 with a paired bootstrap over posts and seeds: what the photos add, and what they cost."""
    counts = {model: {run["seed"]: run["measures"]["post_counts"] for run in group} for (_, model), group in _group(runs).items()}
    cells: dict[str, list[str]] = {}
    header = ["points of F1, mean and 95 % interval, the same posts"]
    for model in (FULL, WITHOUT_GROUNDING):
        seeds = sorted(counts.get(model, {}).keys() & counts.get(TEXT_ALONE, {}).keys())
        if not seeds:
            continue
        header.append(f"{model} ({len(seeds)} seeds)")
        text = np.array([counts[TEXT_ALONE][seed]["none"] for seed in seeds])
        own, swapped, none = (np.array([counts[model][seed][name] for seed in seeds]) for name in ("own", "swapped", "none"))
        pairs = {
            "own photo − text alone": (own, text),
            "own photo − another post's photo, the same model": (own, swapped),
            "another post's photo − text alone": (swapped, text),
            "no photo − text alone": (none, text),
        }
        for name, (model_counts, other_counts) in pairs.items():
            difference, low, high = (100 * value for value in paired_bootstrap(other_counts, model_counts))
            cells.setdefault(name, []).append(f"{difference:+.1f} ({low:+.1f} to {high:+.1f})")
    return markdown_table(header, [[name, *row] for name, row in cells.items()])


def _grounding_table(runs: Runs) -> str:
    """Every model's regions, and on real photos those of the rules for the entities of the full model."""
    lines = []
    grounded = [run for run in runs if "region_recall" in run["measures"]]
    for (data, model), group in _group(grounded).items():
        for rule in ("model", *RULES) if (data, model) == ("phototweets", FULL) else ("model",):
            scores = [run["measures"][rule] for run in group]
            f1 = spread((next(iter(run["scores"].values()))["f1"] for run in group), digits=1) if rule == "model" else "–"
            names = ("grounding_accuracy", "shown", "not_shown", "gmner_f1", "eeg_f1")
            cells = [spread((score[name] for score in scores), digits=1) for name in names]
            lines.append([data, model if rule == "model" else f"rule: {RULES[rule]}", str(len(group)), f1, *cells])
    header = ["posts", "regions of", "seeds", "F1", "grounding accuracy given the right span", "of those shown"]
    return markdown_table([*header, "of those not shown", "GMNER F1", "EEG F1"], lines)


# Plots


def _plot_scores(runs: Runs, path: Path):
    """Whether entities are right as often as their scores say, and the F1 when entities of a low score are left out."""
    groups = {key: group for key, group in _group(runs).items() if "calibration" in group[0]["measures"]}
    if not groups:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    left.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1)
    for index, ((data, model), group) in enumerate(groups.items()):
        color = COLORS[index % len(COLORS)]
        bins = pd.DataFrame(bin for run in group for bin in run["measures"]["calibration"]["bins"])
        sizes = 4 + bins["count"] / 8
        left.scatter(bins["score"], bins["right"], s=sizes, color=color, alpha=0.6, linewidths=0, label=f"{data}, {model}")
        f1 = pd.DataFrame(run["measures"]["f1_by_min_score"] for run in group).mean()
        right.plot(f1.index.astype(float), f1, color=color, marker=".")
    left.set(xlabel="score of the entity", ylabel="share that is right", title="Calibration on validation text")
    right.set(xlabel="min_entity_score", ylabel="F1", title="Validation")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    save_figure(figure, path)


def plot_curves(runs: Runs, path: Path):
    """Plot training loss and validation F1 over epochs, the mean of the seeds (Figure 4 of the paper)."""
    logs = pd.DataFrame({"model": run["model"]} | log for run in runs for log in run["curve"])
    if "eval_f1" not in logs:
        return
    logs["epoch"] = logs["epoch"].round(2)
    models = logs[logs["eval_f1"].notna()]["model"].unique()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for index, model in enumerate(models):
        style = {"color": COLORS[index % len(COLORS)], "linestyle": ("-", "--", ":")[index // len(COLORS)]}
        model_logs = logs[logs["model"] == model]
        for axes, metric in ((left, "loss"), (right, "eval_f1")):
            mean = model_logs[model_logs[metric].notna()].groupby("epoch")[metric].mean()
            axes.plot(mean.index, mean, label=model, marker=".", **style)
    left.set(xlabel="epoch", ylabel="loss per word", title="Training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="F1", title="Validation")
    right.legend(frameon=False, fontsize=7, handlelength=3.5)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
