"""Tags posts with AutoGluon's multimodal NER predictor of random weights: `python benchmarks/autogluon_peer.py FOLDER`.

`python -m benchmarks.speed --parts peer --autogluon PYTHON` starts it, with the Python of an environment that has
`autogluon.multimodal` in place of this project. `FOLDER` holds `posts.json`, a list of texts and image files, and `tokenizer`.
For every line of input it tags all the posts and writes how many CPU and wall seconds that took.
"""

import argparse
import inspect
import json
import sys
import time
from pathlib import Path

import pandas
import torch
from autogluon.multimodal import MultiModalPredictor
from autogluon.multimodal.models import timm_image
from autogluon.multimodal.models.fusion import base, fusion_ner
from transformers import AutoModel, AutoTokenizer, BertConfig, DebertaV2Config

# deberta-v3-base, the predictor's own choice.
DEBERTA = DebertaV2Config(
    vocab_size=128100, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
    type_vocab_size=0, pos_att_type=["p2c", "c2p"], relative_attention=True, position_buckets=256,
    norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False, pooler_hidden_size=768,
)  # fmt: skip
OWN_CHOICE = (DEBERTA, "swin_base_patch4_window7_224")
# The encoders of `base_model`.
SAME = (BertConfig(), "resnet50")
# A length that no tweet reaches. As shipped it is 512, to which every text is padded.
MAX_LENGTH = 64


def accept_old_names():
    """Version 1.6.3 cannot build this predictor: it calls two classes by names of arguments that they no longer have."""
    for module, name, old, new in (
        (base.AbstractMultimodalFusionModel, "__init__", "loss_weight", "aux_loss_weight"),
        (fusion_ner, "MLP", "dropout_prob", "dropout"),
    ):
        called = getattr(module, name)
        if old not in inspect.signature(called).parameters:

            def renamed(*args, called=called, old=old, new=new, **kwargs):
                return called(*args, **{new if key == old else key: value for key, value in kwargs.items()})

            setattr(module, name, renamed)


def without_download(create_model):
    """timm's `create_model`, random weights in place of those from the Hub."""
    return lambda name, pretrained=False, **kwargs: create_model(name, pretrained=False, **kwargs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--same", action="store_true", help="BERT-base and ResNet-50 in place of the predictor's own choice")
    options = parser.parse_args()
    torch.set_num_threads(1)
    accept_old_names()
    timm_image.create_model = without_download(timm_image.create_model)
    text_config, vision = SAME if options.same else OWN_CHOICE
    own_folder = options.folder / ("same" if options.same else "own_choice")
    text_encoder = own_folder / "text_encoder"
    AutoModel.from_config(text_config).save_pretrained(text_encoder)
    AutoTokenizer.from_pretrained(options.folder / "tokenizer").save_pretrained(text_encoder)
    posts = pandas.read_json(options.folder / "posts.json")
    # It can only tag once it has been trained: one step, on labels that say nothing.
    labelled = posts.head(4)
    labels = [
        json.dumps([{"entity_group": kind, "start": 0, "end": len(text.split()[0])}])
        for kind, text in zip(["B-PER", "B-LOC"] * 2, labelled["text"], strict=True)
    ]
    labelled = labelled.assign(label=labels)
    predictor = MultiModalPredictor(problem_type="ner", label="label", path=str(own_folder / "model"), verbosity=0)
    predictor.fit(
        labelled,
        tuning_data=labelled,
        column_types={"text": "text_ner", "image": "image_path"},
        hyperparameters={
            "model.ner_text.checkpoint_name": str(text_encoder),
            "model.ner_text.max_text_len": MAX_LENGTH,
            "model.timm_image.checkpoint_name": vision,
            "optim.max_epochs": 1,
            "env.accelerator": "cpu",
            "env.num_workers": 0,
            "env.num_workers_inference": 0,
            "env.per_gpu_batch_size": 4,
            "env.inference_batch_size_ratio": 4,
        },
    )
    print("ready", flush=True)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        predictor.predict(posts)
        print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]), flush=True)


if __name__ == "__main__":
    main()
