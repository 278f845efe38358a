"""Train a small model on synthetic posts, in under a minute on a CPU: `python -m examples.train_from_python`."""

from mner_data.loading import dataset_labels
from mner_data.synthetic_posts import synthetic_splits
from training.arguments import MnerTrainingArguments, ModelArguments
from training.build import build
from training.collator import MnerCollator
from training.metric import ComputeMnerMetrics
from training.trainer import MnerTrainer

data = synthetic_splits([200, 40])  # or load_splits("my_data")[0] of mner_data.loading
labels = dataset_labels(data["train"])
encoders = ModelArguments("from_scratch", text_config={"num_hidden_layers": 2, "hidden_size": 96}, vision="resnet10t")
encoders.vision_pretrained, encoders.image_size = False, 32
model, processor = build(encoders, data, labels)
options = MnerTrainingArguments("outputs/from_python", learning_rate=5e-4, train_sampling_strategy="random")
splits = {"train_dataset": data["train"], "eval_dataset": data["validation"], "processing_class": processor}
trainer = MnerTrainer(model, options, MnerCollator(processor), **splits, compute_metrics=ComputeMnerMetrics(labels))
trainer.train()
trainer.save_model()
