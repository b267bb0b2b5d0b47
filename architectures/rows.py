"""The kinds of models that fine-tuning knows, as rows of data, and which of them a model is.

    match_architecture("InstaDeepAI/nucleotide-transformer-500m-human-ref", {"model_type": "esm", "vocab_size": 4105})

The rows are in `rows.json`, each with its sources. The first one with a rule for configurations that fits is
a model's, then the first with a pattern for names; a model of none gets DNA as it is, LoRA on all linear layers and no
length rule.
"""

import json
import re
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path

ROWS = Path(__file__).with_name("rows.json")


@dataclass(frozen=True)
class Architecture:
    """
    What a kind of model asks of its users.

    Attributes:
        name: for messages.
        code: "ours"; "stock", the classes of transformers, whatever code lies beside the weights; "remote", only the
            code of the model's own repository; "auto", whatever AutoModelForSequenceClassification finds.
        class_name: with "remote", the classifier's class, for repositories that do not name it in `auto_map`.
        kmer: overlapping k-mers joined by spaces instead of the sequence itself; 1 gives single letters.
        inputs: what the forward takes; None if only the model itself can tell, see `fit_tokenizer`.
        limit: where `max_tokens` is found: a value of the configuration, and how many of its positions are not used.
        pairs: whether the tokenizer takes two sequences.
        padding_side, pad_token, pad_token_id: what is set if the tokenizer or the configuration says otherwise or
            nothing.
        lora: ends of the names of the linear layers to adapt; None for all of them outside the head.
        lora_switches_off: an attribute of modules that is set to False for adapters to have an effect.
        head: ends of the names of the modules that are new in a classifier; None to take what is outside the base.
        packages: modules that the model's own code imports.
        tokenizer_options: for `AutoTokenizer.from_pretrained`.
    """

    name: str
    code: str = "auto"
    class_name: str | None = None
    kmer: int | None = None
    inputs: tuple[str, ...] | None = None
    limit: dict | None = None
    pairs: bool = True
    padding_side: str | None = None
    pad_token: str | None = None
    pad_token_id: int | None = None
    lora: tuple[str, ...] | None = None
    lora_switches_off: str | None = None
    head: tuple[str, ...] | None = None
    packages: tuple[str, ...] = ()
    tokenizer_options: dict = field(default_factory=dict)
    note: str = ""
    sources: tuple[str, ...] = ()

    def runs_code(self, trust_remote_code: bool) -> bool:
        """Whether code of the model's repository is run, where it has any and is trusted."""
        return trust_remote_code and self.code in ("remote", "auto")


@cache
def _rows() -> list[dict]:
    return json.loads(ROWS.read_text(encoding="utf-8"))


def match_architecture(name: str, config: dict) -> Architecture:
    """
    The architecture of a model by its name and the content of its `config.json`.

    Args:
        name: folder or Hub id.
        config: what `config.json` holds.
    """
    by_config = (row for row in _rows() for rule in row["match"] if "name" not in rule and _fits(rule, config))
    by_name = (row for row in _rows() for rule in row["match"] if "name" in rule and re.search(rule["name"], name))
    row = next(by_config, None) or next(by_name, None)
    if row is None:
        return Architecture(name=f"a model of type {config.get('model_type', 'unknown')}")
    known = {f.name for f in fields(Architecture)}
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items() if key in known}
    if "kmer_by_vocab_size" in row:
        values["kmer"] = row["kmer_by_vocab_size"][str(config["vocab_size"])]
    return Architecture(**values)


def _fits(rule: dict, config: dict) -> bool:
    if "model_type" in rule and config.get("model_type") != rule["model_type"]:
        return False
    if "vocab_size" in rule and config.get("vocab_size") not in rule["vocab_size"]:
        return False
    if "key" in rule and rule["key"] not in config:
        return False
    modules = (config.get("auto_map") or {}).values()
    return "auto_map" not in rule or any(re.search(rule["auto_map"], str(module)) for module in modules)
