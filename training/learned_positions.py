"""A baseline without ALiBi: the same network with BERT's learned positions (Devlin et al. 2019), for `bench length`.

    dnabert2 pretrain --corpus corpus --config training/recipes/smoke.json --learned_positions 128 --output_dir twin

A table of one row a position is added to the word embeddings, counted from 0 at [CLS], and every slope is zero. Beyond
its table the model has no positions and refuses the input; rows that training never reached stay as they were drawn.
Its folders are not for the Hub: `model_type` is another, and no class of DNABERT-2 finds its weights in them.
"""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from ..bert_layers.alibi import AlibiSlopes
from ..configuration_dnabert2 import DNABert2Config
from ..loading import load_model
from ..modeling_dnabert2 import DNABert2ForMaskedLM, DNABert2PreTrainedModel


class TooLong(ValueError):
    """Input beyond the last position that a model has."""


class LearnedPositionsConfig(DNABert2Config):
    """`DNABert2Config` and `max_position_embeddings`, the rows of the table; raises ValueError if that is below 1."""

    model_type = "dnabert2_learned"

    def __init__(self, max_position_embeddings: int = 128, **kwargs):
        if not isinstance(max_position_embeddings, int) or max_position_embeddings < 1:
            raise ValueError(f"max_position_embeddings must be a positive integer, not {max_position_embeddings!r}.")
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)


class NoSlopes(AlibiSlopes):
    """Slopes of zero: attention then knows nothing of distance."""

    @torch.no_grad()
    def reset_parameters(self):
        self.bits.zero_()


class LearnedPositionsForMaskedLM(DNABert2PreTrainedModel):
    """`DNABert2ForMaskedLM`, whose weights are here under `network.`, with a table of positions instead of ALiBi."""

    config_class = LearnedPositionsConfig
    base_model_prefix = "network"
    _tied_weights_keys = {
        "network.cls.predictions.decoder.weight": "network.bert.embeddings.word_embeddings.weight",
    }

    def __init__(self, config: LearnedPositionsConfig):
        PreTrainedModel.__init__(self, config)  # the parent's would make it a DNABert2Config, without the table's size
        self.network = DNABert2ForMaskedLM(config)
        self.network.bert.alibi = NoSlopes(config.num_attention_heads)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.network.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.network.get_output_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ):
        """
        As `DNABert2ForMaskedLM.forward`, for `input_ids` (batch, length) padded on the right.

        Raises:
            TooLong: if `length` exceeds the table.
        """
        length, positions = input_ids.shape[1], self.position_embeddings.num_embeddings
        if length > positions:
            raise TooLong(f"the input has {length:,} tokens, and the model {positions:,} learned positions: cut it.")
        if attention_mask is None:
            attention_mask = input_ids != self.config.pad_token_id
        embeddings = self.get_input_embeddings()(input_ids) + self.position_embeddings.weight[:length]
        return self.network(inputs_embeds=embeddings, attention_mask=attention_mask, labels=labels, **kwargs)


def load_masked_lm(name: str, **kwargs) -> DNABert2ForMaskedLM | LearnedPositionsForMaskedLM:
    """A masked language model by name, ours or, if its `config.json` says so, this baseline; as `load_model` else."""
    return load_model(
        LearnedPositionsForMaskedLM if _is_baseline(Path(name)) else "DNABert2ForMaskedLM", name, **kwargs
    )


def _is_baseline(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # which load_model explains
        return False
    return isinstance(config, dict) and config.get("model_type") == LearnedPositionsConfig.model_type
