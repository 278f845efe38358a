"""The labels of a trained model and those of data: matched by name, and new ones added."""

from __future__ import annotations

import torch
from datasets import ClassLabel, Dataset, List
from torch import nn

from mner_data.loading import dataset_labels
from mner_data.readers import DataError
from modeling_hamlearning import HamLearningForTokenClassification
from modeling_hamlearning.crf import HamLearningCRF


def match_labels(rows: Dataset, label_names: list[str], where: str) -> Dataset:
    """Rows whose label ids are those of a model, matched by name.

    Args:
        label_names: the model's labels in the order of their ids.
        where: what the rows are, for the message.

    Raises:
        DataError: the model does not have a label that the rows use.
    """
    names = dataset_labels(rows)
    if names == label_names:
        return rows
    used = sorted({names[tag] for tags in rows["ner_tags"] for tag in tags})
    if unknown := [name for name in used if name not in label_names]:
        raise DataError(
            f"{where}, field ner_tags: the model does not have the labels {', '.join(unknown)}; "
            f"expected some of {', '.join(label_names)}"
        )
    ids = {tag: label_names.index(name) for tag, name in enumerate(names) if name in label_names}
    tags = [[ids[tag] for tag in row_tags] for row_tags in rows["ner_tags"]]
    feature = List(ClassLabel(names=label_names))
    return rows.remove_columns("ner_tags").add_column("ner_tags", tags, feature=feature)


def add_labels(model: HamLearningForTokenClassification, label_names: list[str]) -> list[str]:
    """Give a trained model the labels that it lacks, behind its own.

    Every score of its own labels stays: the rows of the classifier, and the CRF's scores of their starts, ends and transitions.
    The new rows of the classifier start as those of a new layer, and the new scores of the CRF at 0.

    Returns:
        The labels that were added.
    """
    new = [name for name in label_names if name not in model.config.label_names]
    if not new:
        return []
    known, names = model.config.num_labels, [*model.config.label_names, *new]
    trained, trained_crf = model.classifier, model.crf
    model.classifier = nn.Linear(trained.in_features, len(names)).to(trained.weight)
    model.crf = HamLearningCRF(names, learned=model.config.use_crf).to(trained.weight.device)
    model._init_weights(model.classifier)
    with torch.no_grad():
        model.classifier.weight[:known], model.classifier.bias[:known] = trained.weight, trained.bias
        for score, trained_score in zip(model.crf.parameters(), trained_crf.parameters(), strict=True):
            score[(slice(known),) * score.ndim] = trained_score
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {name: index for index, name in enumerate(names)}
    return new
