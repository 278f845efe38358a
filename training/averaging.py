"""Exponential moving average of the weights (Polyak averaging): what a run ends with in place of its last step's."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_model, save_model
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

AVERAGE = "average.safetensors"


class WeightAverage(TrainerCallback):
    """Follows the weights and takes their place at the end of training; a resumed run goes on with its checkpoint's.

    Args:
        decay: how much of the average stays at each step: it spans some 1 / (1 − decay) steps.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay lies between 0 and 1, got {decay}")
        self.decay = decay
        self.average: AveragedModel | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.decay))
        if args.resume_from_checkpoint is not None:
            path = Path(args.resume_from_checkpoint, AVERAGE)
            if not path.is_file():
                raise ValueError(
                    f"{path.parent} holds no average: it was trained without ema_decay; leave it out here"
                )
            load_model(self.average.module, path, device=str(model.device))
            # The first update of a new average takes the weights as they are.
            self.average.n_averaged.fill_(state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.average.update_parameters(model)

    def save(self, checkpoint: str | Path):
        save_model(self.average.module, str(Path(checkpoint, AVERAGE)))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        model.load_state_dict(self.average.module.state_dict())
