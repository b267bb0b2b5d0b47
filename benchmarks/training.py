"""A training step of the masked-language model in each variant, to be timed like a forward pass.

Half precision is what the Trainer makes of `bf16=True`: autocast over float32 weights, gradients and AdamW moments.
"""

import copy

import torch
from torch import nn

from ..bert_layers.losses import IGNORE_INDEX, token_loss
from ..configuration_dnabert2 import DNABert2Config
from ..modeling_dnabert2 import DNABert2ForMaskedLM
from ..precision import DTYPES
from .variants import PUBLISHED, Variant, benchmark_config, encoder_of

LABELLED = 0.15
LEARNING_RATE = 1e-4
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids, mask and labels, each (batch, length)


class TrainingStep:
    """One step on a batch: forward, loss, backward, AdamW. Dropout is the configuration's, so losses are random."""

    def __init__(self, model: DNABert2ForMaskedLM, variant: Variant):
        self.model, self.dtype = model.train(), DTYPES[variant.dtype]
        encoder = encoder_of(model.bert, variant)
        self.published = encoder if variant.backend == PUBLISHED else None
        is_cuda = model.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=is_cuda)

    @torch.inference_mode(False)  # whoever times steps times forward passes too
    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> None:
        try:
            self._loss(input_ids, attention_mask, labels).backward()
            self.optimizer.step()
        finally:  # also when memory ran out: gradients between steps would count as weights
            self.optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode(False)
    def gradient(self, batch: Batch) -> torch.Tensor:
        """The gradient of the loss without dropout, all parameters in one vector."""
        self.model.eval()
        parameters = [x for x in self.model.parameters() if x.requires_grad]
        gradients = torch.autograd.grad(self._loss(*batch), parameters, materialize_grads=True)
        self.model.train()
        return torch.cat([x.flatten() for x in gradients])

    def _loss(self, input_ids, attention_mask, labels) -> torch.Tensor:
        with torch.autocast(input_ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if self.published is None:
                return self.model(input_ids, attention_mask=attention_mask, labels=labels).loss
            return token_loss(self.model.cls(self.published(input_ids, attention_mask)), labels)


def build_training_steps(
    config: DNABert2Config, variants: list[Variant], device: torch.device, seed: int
) -> dict[Variant, TrainingStep]:
    """One step a variant, each with weights of its own that start out the same."""
    config = benchmark_config(config)
    torch.manual_seed(seed)
    weights = _build_model(config, "eager").state_dict()
    steps = {}
    for variant in variants:
        model = _build_model(config, variant.model_backend)
        model.load_state_dict(weights)
        steps[variant] = TrainingStep(model.to(device), variant)
    return steps


def _build_model(config: DNABert2Config, backend: str) -> nn.Module:
    return DNABert2ForMaskedLM._from_config(copy.deepcopy(config), attn_implementation=backend)


def draw_labels(input_ids: torch.Tensor, attention_mask: torch.Tensor, seed: int) -> torch.Tensor:
    """(batch, length) int64: the id of 15 % of the real tokens, at least one, and -100 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(input_ids.shape, generator=generator).to(input_ids.device)
    chance = chance.masked_fill(attention_mask == 0, 2.0)
    is_labelled = (chance < LABELLED) | (chance == chance.min())
    return input_ids.masked_fill(~is_labelled, IGNORE_INDEX)
