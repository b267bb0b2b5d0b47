# Copyright 2026 The DNABERT-2 developers. Licensed under the Apache License, Version 2.0.
"""Configuration of the DNABERT-2 network.

    from dnabert2 import DNABert2Config, DNABert2ForMaskedLM
    model = DNABert2ForMaskedLM(DNABert2Config())                                      # 117M parameters
    model = DNABert2ForMaskedLM(DNABert2Config(hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
                                               intermediate_size=256))                 # runs on any CPU

The architecture is that of Zhou et al., "DNABERT-2: Efficient Foundation Model and Benchmark For Multi-Species Genome"
(ICLR 2024), itself MosaicBERT: a BERT encoder with ALiBi (Press et al. 2022) in place of position embeddings and a
gated MLP (Shazeer 2020).
"""

from transformers import PretrainedConfig

# What older configurations of this family carry and this network has no use for: positions come from ALiBi, whose
# bias is built for the length at hand, and the published auto_map points at code that no longer loads.
LEGACY_KEYS = ("max_position_embeddings", "position_embedding_type", "alibi_starting_size", "use_cache", "auto_map")
PUBLISHED_PAD_TOKEN_ID = 3


class DNABert2Config(PretrainedConfig):
    """
    Shape and training constants of a DNABERT-2 network; the defaults are those of DNABERT-2-117M.

    Args:
        vocab_size: entries of the byte-pair vocabulary, the five special tokens included.
        hidden_size: width of a token's vector; a multiple of `num_attention_heads`.
        num_hidden_layers: encoder blocks.
        num_attention_heads: attention heads a block; any number, ALiBi slopes exist for each.
        intermediate_size: width of the gated MLP, one half of `gated_layers`' output.
        hidden_act: kept for compatibility; the network computes the exact (erf) GELU and nothing else.
        hidden_dropout_prob: dropout after the embeddings, in the MLP and after each block's two projections.
        attention_probs_dropout_prob: dropout of attention weights. The published model trains without.
        type_vocab_size: segments, for sequence pairs. Row 0 is always added.
        initializer_range: standard deviation of new weights.
        layer_norm_eps: epsilon of every layer norm.
        classifier_dropout: dropout before the classifier; `None` means 0.1, as published.
        classifier_pooling: what a sequence classifier looks at: "cls", the pooler of the summary token, as published,
            or "mean", the mean over the real tokens, without a pooler.
        bases_per_token: for labels of bases: a token classifier gives every token so many outputs, one for each base
            it may stand for. `None`: one output a token.
        pad_token_id, unk_token_id, cls_token_id, sep_token_id, mask_token_id: special ids of the tokenizer. An
            attention mask that is not given is derived from `pad_token_id`.
        tie_word_embeddings: share the masked-LM decoder's weight with the word embeddings.

    Raises:
        ValueError: if heads do not divide the width, a size is not positive, or another activation or pooling is asked
            for.
    """

    model_type = "dnabert2"

    def __init__(
        self,
        vocab_size: int = 4096,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.0,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        classifier_dropout: float | None = None,
        classifier_pooling: str = "cls",
        bases_per_token: int | None = None,
        pad_token_id: int | None = PUBLISHED_PAD_TOKEN_ID,
        unk_token_id: int = 0,
        cls_token_id: int = 1,
        sep_token_id: int = 2,
        mask_token_id: int = 4,
        tie_word_embeddings: bool = True,
        **kwargs,
    ):
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
            "type_vocab_size": type_vocab_size,
        }
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, but is {value!r}.")
        if not isinstance(num_hidden_layers, int) or num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must be an integer of at least 0, but is {num_hidden_layers!r}.")
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({num_attention_heads})."
            )
        if hidden_act != "gelu":
            raise ValueError(f'hidden_act must be "gelu" (the exact erf form), but is {hidden_act!r}.')
        if classifier_pooling not in ("cls", "mean"):
            raise ValueError(f'classifier_pooling must be "cls" or "mean", but is {classifier_pooling!r}.')
        if bases_per_token is not None and (not isinstance(bases_per_token, int) or bases_per_token < 1):
            raise ValueError(f"bases_per_token must be a positive integer or None, but is {bases_per_token!r}.")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.classifier_dropout = classifier_dropout
        self.classifier_pooling = classifier_pooling
        self.bases_per_token = bases_per_token
        self.unk_token_id = unk_token_id
        self.mask_token_id = mask_token_id
        super().__init__(
            pad_token_id=pad_token_id,
            cls_token_id=cls_token_id,
            sep_token_id=sep_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )

    @classmethod
    def from_stock(cls, config: PretrainedConfig) -> "DNABert2Config":
        """
        The configuration of this network for another class's configuration of the same shape.

        Users' scripts hand a stock `BertConfig` in as `config=`, the published README's own work-around. A stock
        configuration that was never told the pad id says 0, which is [UNK] in this family, so 0 becomes 3.
        """
        values = config.to_dict()
        for key in (*LEGACY_KEYS, "model_type", "transformers_version"):
            values.pop(key, None)
        # Generation settings and the like are the other class's defaults, not this network's.
        known = {key: value for key, value in values.items() if key in cls().to_dict() or key in _COMMON_KEYS}
        if not known.get("pad_token_id"):
            known["pad_token_id"] = PUBLISHED_PAD_TOKEN_ID
        converted = cls(**known, name_or_path=getattr(config, "_name_or_path", ""))
        converted._attn_implementation = config._attn_implementation
        return converted

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Read a dictionary, ours or one of the published layout (`model_type` "bert" or none), dropping dead keys."""
        if not isinstance(config_dict, dict):
            raise ValueError(f"a configuration is a JSON object, but this is a {type(config_dict).__name__}.")
        if config_dict.get("model_type") != cls.model_type:
            config_dict = {key: value for key, value in config_dict.items() if key not in LEGACY_KEYS}
            config_dict["model_type"] = cls.model_type
            if not config_dict.get("pad_token_id"):
                config_dict["pad_token_id"] = PUBLISHED_PAD_TOKEN_ID
        return super().from_dict(config_dict, **kwargs)


# Keys every Hugging Face configuration may carry that a fresh one of ours does not print.
_COMMON_KEYS = {"id2label", "label2id", "problem_type", "architectures", "dtype", "torch_dtype", "return_dict"}
_COMMON_KEYS |= {"output_hidden_states", "output_attentions"}
