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
text = {"text": "from_scratch", "text_config": {"num_hidden_layers": 2, "hidden_size": 96}}
encoders = ModelArguments(**text, vision="resnet10t", vision_pretrained=False, image_size=32)
model, processor = build(encoders, data, labels)
options = MnerTrainingArguments(output_dir="outputs/from_python", learning_rate=5e-4, train_sampling_strategy="random")
parts = {"processing_class": processor, "data_collator": MnerCollator(processor), "compute_metrics": ComputeMnerMetrics(labels)}
trainer = MnerTrainer(model=model, args=options, train_dataset=data["train"], eval_dataset=data["validation"], **parts)
trainer.train()
trainer.save_model()
