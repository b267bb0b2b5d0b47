# Copyright 2026 The DNABERT-2 developers. Licensed under the Apache License, Version 2.0.
"""DNABERT-2: a BERT encoder for DNA with byte-pair tokens, symmetric ALiBi and a gated MLP.

    from transformers import AutoModel, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained("path/or/hub-id", trust_remote_code=True)
    model = AutoModel.from_pretrained("path/or/hub-id", trust_remote_code=True)
    hidden = model(**tokenizer("ACGTAGCATCGGATCTATCT", return_tensors="pt")).last_hidden_state   # (1, tokens, 768)

Method: Zhou et al., DNABERT-2 (ICLR 2024), on MosaicBERT (Portes et al., NeurIPS 2023). Parameter names and numbers
are those of the published checkpoint. Everything the classes share is in `DNABert2PreTrainedModel`; the parts are in
`bert_layers`.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import logging

from .bert_layers.alibi import AlibiSlopes
from .bert_layers.attention import PACKED_BACKENDS, PADDED_BACKENDS, attention_function
from .bert_layers.checkpoints import checkpoint_errors, refuse_foreign_weights, refuse_other_shapes, save_code_beside
from .bert_layers.embeddings import DNABert2Embeddings
from .bert_layers.encoder import DNABert2Encoder
from .bert_layers.heads import DNABert2MLMHead, DNABert2Pooler, mean_of_tokens
from .bert_layers.losses import IGNORE_INDEX, sequence_loss, token_loss
from .bert_layers.triton_backend import default_implementation, triton_or_fallback
from .bert_layers.unpadding import SequenceLayout, packed_layout, padded_layout
from .configuration_dnabert2 import DNABert2Config

if TYPE_CHECKING:  # transformers 4 copies to its cache only the files that this one names
    from .bert_layers.alibi_kernels import forward_kernel  # noqa: F401
    from .bert_layers.flash_alibi import alibi_attention  # noqa: F401
    from .bert_layers.flex import flex_attention  # noqa: F401
    from .bert_layers.kernel_configs import kernel_config  # noqa: F401
    from .bert_layers.skipping import key_spans  # noqa: F401
    from .bert_layers.span_kernels import span_kernel  # noqa: F401
    from .bert_layers.windows import windowed_attention  # noqa: F401

logger = logging.get_logger(__name__)

# What `config.json` of a Hub folder tells the Auto classes.
AUTO_MAP = {
    "AutoConfig": "configuration_dnabert2.DNABert2Config",
    "AutoModel": "modeling_dnabert2.DNABert2Model",
    "AutoModelForMaskedLM": "modeling_dnabert2.DNABert2ForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_dnabert2.DNABert2ForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_dnabert2.DNABert2ForTokenClassification",
}


class DNABert2PreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving shared by all classes; see `transformers.PreTrainedModel`."""

    config_class = DNABert2Config
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # losses take num_items_in_batch
    _no_split_modules = ["DNABert2Embeddings", "DNABert2Layer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Published checkpoints hold a masked-LM head and no pooler; users' own hold what they trained.
    _keys_to_ignore_on_load_unexpected = [r"^cls\.", r"^(bert\.)?pooler\."]

    def __init__(self, config, *args, **kwargs):
        if _is_foreign(config):
            config = DNABert2Config.from_stock(config)
        super().__init__(config, *args, **kwargs)

    def _init_weights(self, module: nn.Module):
        # torch.nn.init, not in-place writes: transformers 5 guards these functions for weights it has already loaded.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
            if getattr(module, "padding_idx", None) is not None and not getattr(
                module.weight, "_is_hf_initialized", False
            ):
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, AlibiSlopes):
            module.reset_parameters()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        As in transformers, with four differences: a stock `BertConfig` handed in as `config` is converted, a
        checkpoint that is damaged raises one OSError that names it, so does one that lacks weights of the encoder,
        which transformers would only warn of, and weights of other shapes raise a RuntimeError that names it and them.
        """
        config = kwargs.get("config")
        if hasattr(config, "to_dict") and _is_foreign(config):
            kwargs["config"] = DNABert2Config.from_stock(config)
        wants_info = kwargs.pop("output_loading_info", False)
        ignores_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        with checkpoint_errors(pretrained_model_name_or_path):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **kwargs,
            )
        if not ignores_shapes:
            refuse_other_shapes(pretrained_model_name_or_path, info["mismatched_keys"])
        if wants_info:  # the caller looks at the missing keys
            return model, info
        if kwargs.get("state_dict") is None:
            refuse_foreign_weights(pretrained_model_name_or_path, info["missing_keys"])
        return model

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers; a model loaded as remote code saves that code too, so that the folder loads anywhere."""
        is_remote_code = save_code_beside(__file__, save_directory)
        if is_remote_code:
            self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)

    def _get_key_renaming_mapping(self, checkpoint_keys, key_mapping=None, from_task=False, to_task=False):
        # Of transformers 4, which takes a checkpoint without the `bert.` prefix for one without a head.
        if to_task:
            to_task, key_mapping = False, {**(key_mapping or {}), r"^(?=(embeddings|encoder|pooler)\.)": "bert."}
        return super()._get_key_renaming_mapping(checkpoint_keys, key_mapping, from_task, to_task)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        requested_attention = requested_attention or default_implementation()
        if requested_attention == "triton":  # unknown to transformers
            return requested_attention
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    def get_input_embeddings(self) -> nn.Module:
        return getattr(self, self.base_model_prefix, self).embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module):
        getattr(self, self.base_model_prefix, self).embeddings.word_embeddings = value

    def _real_tokens(self, input_ids, attention_mask) -> torch.Tensor | None:
        """A bool mask (batch, length) from what the caller gave, or None if every token is real."""
        if attention_mask is not None:
            return attention_mask != 0
        if input_ids is not None and self.config.pad_token_id is not None:
            return input_ids != self.config.pad_token_id
        return None

    def _flag(self, name: str, value: bool | None) -> bool:
        return value if value is not None else bool(getattr(self.config, name, None))


class DNABert2Model(DNABert2PreTrainedModel):
    """
    The encoder, with a pooler unless `add_pooling_layer=False`.

    The published checkpoint has no pooler: `pooler_output` of a model loaded from it comes from new, random weights,
    which the loading report says. Use the mask-weighted mean of `last_hidden_state` as the embedding of a sequence.
    """

    def __init__(self, config: DNABert2Config, add_pooling_layer: bool = True):
        super().__init__(config)
        config = self.config
        self.alibi = AlibiSlopes(config.num_attention_heads)
        self.embeddings = DNABert2Embeddings(config)
        self.encoder = DNABert2Encoder(config)
        self.pooler = DNABert2Pooler(config) if add_pooling_layer else None
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """
        Args:
            input_ids: (batch, length) int64.
            attention_mask: (batch, length), non-zero for real tokens, on any side; derived from the pad id if missing.
            token_type_ids: (batch, length) int64, segments; all 0 if missing.
            inputs_embeds: (batch, length, hidden) word embeddings instead of `input_ids`.

        Returns:
            `last_hidden_state` (batch, length, hidden), exactly zero at pads; `pooler_output` (batch, hidden) or None;
            on request `hidden_states`, layers + 1 tensors like the first, and `attentions`, one (batch, heads, length,
            length) a layer.

        Raises:
            ValueError: if neither or both inputs are given, the mask does not fit them, or (on a CPU) an id is not in
                the vocabulary.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        output_attentions = self._flag("output_attentions", output_attentions)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, and not both.")
        # Of the inputs, not of the weights, which may be offloaded.
        backend = self._backend(output_attentions, (input_ids if input_ids is not None else inputs_embeds).device)
        layout = self._layout(backend, input_ids, attention_mask, inputs_embeds)
        hidden = self.embeddings(
            *(None if x is None else layout.gather(x) for x in (input_ids, token_type_ids, inputs_embeds))
        )
        hidden, hidden_states, attentions = self.encoder(
            hidden,
            self.alibi(),
            layout,
            attention_function(backend),
            output_hidden_states=self._flag("output_hidden_states", output_hidden_states),
            output_attentions=output_attentions,
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden, layout.mask),
            hidden_states=hidden_states,
            attentions=attentions,
        )
        return output if return_dict else output.to_tuple()

    def _backend(self, output_attentions: bool, device: torch.device) -> str:
        """The configured backend, or the one that can do what this call asks for, with one warning that says why."""
        name = self.config._attn_implementation
        if output_attentions and name != "eager":
            logger.warning_once(f'Attention maps come from "eager" attention, used here instead of "{name}".')
            return "eager"
        if name == "flex_attention" and torch.is_grad_enabled() and device.type == "cpu":
            logger.warning_once('flex_attention has no backward on a CPU: outside torch.no_grad(), "sdpa" is used.')
            return "sdpa"
        if name == "triton":
            is_autocast = torch.is_autocast_enabled(device.type)
            return triton_or_fallback(
                device,
                torch.get_autocast_dtype(device.type) if is_autocast else self.embeddings.word_embeddings.weight.dtype,
                self.config.hidden_size // self.config.num_attention_heads,
                self.config.attention_probs_dropout_prob if self.training else 0.0,
                torch.is_grad_enabled(),
            )
        return name

    def _layout(self, backend, input_ids, attention_mask, inputs_embeds) -> SequenceLayout:
        batch_size, length = (input_ids if input_ids is not None else inputs_embeds).shape[:2]
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if input_ids is not None and input_ids.device.type == "cpu" and not tracing and input_ids.numel():
            low, high = input_ids.aminmax()
            if low < 0 or high >= self.embeddings.word_embeddings.num_embeddings:
                raise ValueError(
                    f"input_ids holds {int(low)}..{int(high)}, but the vocabulary has ids 0 to "
                    f"{self.embeddings.word_embeddings.num_embeddings - 1}: use the tokenizer this model was saved "
                    f"with."
                )
        if attention_mask is not None and attention_mask.shape != (batch_size, length):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but the input needs ({batch_size}, "
                f"{length})."
            )
        mask = self._real_tokens(input_ids, attention_mask)
        # Packing reads how long each sequence is, which a traced graph must not depend on.
        if backend in PACKED_BACKENDS and not (tracing and backend in PADDED_BACKENDS):
            if mask is None:
                reference = input_ids if input_ids is not None else inputs_embeds
                mask = torch.ones((batch_size, length), dtype=torch.bool, device=reference.device)
            return packed_layout(mask)
        return padded_layout(mask, batch_size, length)


class DNABert2ForMaskedLM(DNABert2PreTrainedModel):
    """The encoder with the masked-LM head, whose decoder shares the word embeddings."""

    # transformers 5 reads target and source, transformers 4 the targets.
    _tied_weights_keys = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}
    _keys_to_ignore_on_load_unexpected = [r"^(bert\.)?pooler\."]

    def __init__(self, config: DNABert2Config):
        super().__init__(config)
        self.bert = DNABert2Model(self.config, add_pooling_layer=False)
        self.cls = DNABert2MLMHead(self.config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Module):
        self.cls.predictions.decoder = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        labelled_only: bool = False,
    ) -> MaskedLMOutput | tuple:
        """
        Inputs as in `DNABert2Model.forward`. `labels` (batch, length) int64: -100 is ignored, every other id counts.
        `labelled_only`, with labels: run the head on the labelled positions alone, as pretraining does.

        Returns:
            `loss` if there are labels (0 if all are ignored), `logits` (batch, length, vocabulary) of every position,
            or (labelled, vocabulary) with `labelled_only`.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_attentions, output_hidden_states, True
        )
        hidden = encoded.last_hidden_state
        if labelled_only and labels is not None:
            is_labelled = labels != IGNORE_INDEX
            hidden, labels = hidden[is_labelled], labels[is_labelled]
        logits = self.cls(hidden)
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        output = MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return output if return_dict else output.to_tuple()


class DNABert2ForSequenceClassification(DNABert2PreTrainedModel):
    """
    [CLS] -> pooler -> dropout -> linear: single-label, multi-label or regression by `config.problem_type`.

    With `config.classifier_pooling="mean"` the mean over the real tokens takes the place of [CLS] and its pooler.
    """

    _keys_to_ignore_on_load_unexpected = [r"^cls\."]

    def __init__(self, config: DNABert2Config):
        super().__init__(config)
        self.num_labels = self.config.num_labels
        self.bert = DNABert2Model(self.config, add_pooling_layer=self.config.classifier_pooling == "cls")
        self.dropout = nn.Dropout(_classifier_dropout(self.config))
        self.classifier = nn.Linear(self.config.hidden_size, self.config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> SequenceClassifierOutput | tuple:
        """
        Inputs as in `DNABert2Model.forward`; `labels` as in `bert_layers.losses.sequence_loss`.

        Returns:
            `loss` if there are labels, `logits` (batch, num_labels).
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_attentions, output_hidden_states, True
        )
        pooled = encoded.pooler_output
        if pooled is None:
            pooled = mean_of_tokens(encoded.last_hidden_state, self._real_tokens(input_ids, attention_mask))
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = sequence_loss(logits, labels, self.config.problem_type, num_items_in_batch)
        output = SequenceClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return output if return_dict else output.to_tuple()


class DNABert2ForTokenClassification(DNABert2PreTrainedModel):
    """
    A linear classifier on every token; with `config.bases_per_token` on every base a token may stand for.

    Byte pairs are up to that many bases long: of token t, output i is of its i-th base, and those beyond its length
    mean nothing (`genome.base_map` puts them back in a row).
    """

    def __init__(self, config: DNABert2Config):
        super().__init__(config)
        self.num_labels = self.config.num_labels
        self.bert = DNABert2Model(self.config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_classifier_dropout(self.config))
        outputs = self.config.num_labels * (self.config.bases_per_token or 1)
        self.classifier = nn.Linear(self.config.hidden_size, outputs)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> TokenClassifierOutput | tuple:
        """
        Inputs as in `DNABert2Model.forward`; `labels` (batch, length) or (batch, length, bases_per_token)
        int64, -100 is ignored.

        Returns:
            `loss` if there are labels, `logits` (batch, length, num_labels), or (batch, length, bases_per_token,
            num_labels).
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_attentions, output_hidden_states, True
        )
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        if self.config.bases_per_token:
            logits = logits.unflatten(-1, (self.config.bases_per_token, self.num_labels))
        loss = None if labels is None else token_loss(logits, labels, num_items_in_batch)
        output = TokenClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return output if return_dict else output.to_tuple()


def _is_foreign(config) -> bool:
    # Of the class: a stock configuration read from a folder of ours has "dnabert2" on the instance. By name, not by
    # isinstance: a model and a configuration may come from two copies of this code, the package's and a Hub folder's.
    return type(config).model_type != DNABert2Config.model_type


def _classifier_dropout(config: DNABert2Config) -> float:
    return 0.1 if config.classifier_dropout is None else config.classifier_dropout


__all__ = [
    "AUTO_MAP",
    "DNABert2ForMaskedLM",
    "DNABert2ForSequenceClassification",
    "DNABert2ForTokenClassification",
    "DNABert2Model",
    "DNABert2PreTrainedModel",
]
