"""Low-rank adapters (Hu et al. 2022, LoRA) in the text encoder's linear layers, merged into its weights after training."""

from __future__ import annotations

from transformers.utils import is_peft_available

from modeling_hamlearning import HamLearningForTokenClassification


def add_lora(model: HamLearningForTokenClassification, rank: int):
    """Freeze the text encoder and put adapters of this rank into its linear layers. Everything else trains as before.

    Returns:
        PEFT's model of the encoder, whose `merge_and_unload()` leaves an encoder without adapters.

    Raises:
        ImportError: PEFT is not installed.
    """
    if not is_peft_available():
        raise ImportError("lora_rank needs PEFT: pip install -e '.[lora]' in the checkout")
    from peft import LoraConfig, get_peft_model

    # The scale is that of PEFT's own examples: twice the rank.
    return get_peft_model(model.model.text_encoder, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
