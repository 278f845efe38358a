"""The two baselines of the controlled experiments. Batches, trainer and metric are the same as for HamLearning.

Shapes: B posts, N windows, S sub-tokens, W words, H width of the text encoder, C channels of the backbone, L labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput


class PlainTagger(nn.Module):
    """The usual token classification: cross-entropy on a word's first sub-token, without a CRF.

    Args:
        tagger: any `AutoModelForTokenClassification`.

    The encoder has the same name as HamLearning's, so that the trainer gives encoder and classifier their own learning rates.
    """

    # Tells the Trainer to pass the number of labelled words of the whole batch.
    accepts_loss_kwargs = True

    def __init__(self, tagger: PreTrainedModel):
        super().__init__()
        self.text_encoder = tagger.base_model
        # Dropout and classifier, in their order. Weights that a module holds twice could not be saved.
        self.head = nn.Sequential(*(layer for layer in tagger.children() if layer is not tagger.base_model))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, word_positions: Tensor, labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None, **unused,
    ) -> TokenClassifierOutput:  # fmt: skip
        """input_ids, attention_mask (B, N, S), word_positions (B, W), labels (B, W) → loss, logits (B, W, L)."""
        output = self.text_encoder(input_ids=input_ids.flatten(0, 1), attention_mask=attention_mask.flatten(0, 1))
        per_token = self.head(output.last_hidden_state)
        return _output(_per_word(per_token, input_ids, word_positions), labels, num_items_in_batch)

    def decode(self, outputs: TokenClassifierOutput, word_mask: Tensor) -> list[list[int]]:
        return _decode(outputs.logits, word_mask)


class PooledTagger(nn.Module):
    """One image vector, the mean of the backbone's last feature map, beside every word, and a small classifier.

    Args:
        text_encoder: any text encoder.
        vision_encoder: any backbone that returns `feature_maps`. It is not trained.
    """

    accepts_loss_kwargs = True

    def __init__(self, text_encoder: PreTrainedModel, vision_encoder: PreTrainedModel, num_labels: int):
        super().__init__()
        self.text_encoder = text_encoder
        self.vision_encoder = vision_encoder.requires_grad_(False).eval()
        width, channels = text_encoder.config.hidden_size, vision_encoder.channels[-1]
        self.image_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(0.1)
        self.inner = nn.Linear(width + channels, width)
        self.classifier = nn.Linear(width, num_labels)

    def train(self, mode: bool = True):
        super().train(mode)
        self.vision_encoder.eval()
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, word_positions: Tensor, has_image: Tensor,
        pixel_values: Tensor | None = None, vision_features: Tensor | None = None, labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None, **unused,
    ) -> TokenClassifierOutput:  # fmt: skip
        """As [`PlainTagger.forward`], with pixel_values (B, 3, height, width) or vision_features (B, C, rows, columns)."""
        output = self.text_encoder(input_ids=input_ids.flatten(0, 1), attention_mask=attention_mask.flatten(0, 1))
        words = _per_word(output.last_hidden_state, input_ids, word_positions)
        image = words.new_zeros(len(words), self.image_norm.normalized_shape[0])
        if has_image.any():
            if vision_features is None:
                with torch.no_grad():
                    vision_features = self.vision_encoder(pixel_values).feature_maps[-1]
            image = self.image_norm(vision_features.mean((2, 3)).to(words.dtype)) * has_image[:, None]
        joined = torch.cat([words, image[:, None].expand(-1, words.shape[1], -1)], dim=-1)
        logits = self.classifier(self.dropout(nn.functional.gelu(self.inner(self.dropout(joined)))))
        return _output(logits, labels, num_items_in_batch)

    def decode(self, outputs: TokenClassifierOutput, word_mask: Tensor) -> list[list[int]]:
        return _decode(outputs.logits, word_mask)


def _per_word(per_token: Tensor, input_ids: Tensor, word_positions: Tensor) -> Tensor:
    """Vectors of the sub-tokens (B·N, S, H) → vector of each word's first sub-token (B, W, H); 0 for a word without one."""
    per_post = per_token.unflatten(0, input_ids.shape[:2]).flatten(1, 2)
    index = word_positions.clamp(min=0)[..., None].expand(-1, -1, per_post.shape[-1])
    return per_post.gather(1, index) * (word_positions >= 0)[..., None]


def _output(logits: Tensor, labels: Tensor | None, num_items_in_batch) -> TokenClassifierOutput:
    loss = None
    if labels is not None:
        total = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        loss = total / ((labels >= 0).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
    return TokenClassifierOutput(loss=loss, logits=logits)


def _decode(logits: Tensor, word_mask: Tensor) -> list[list[int]]:
    return [labels[mask].tolist() for labels, mask in zip(logits.argmax(-1), word_mask.bool(), strict=True)]
