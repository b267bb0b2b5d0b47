"""What a fine-tuned model says of sequences: logits, and what they mean.

    predictor = Predictor(load_predictor("runs/tata"))
    predictor.columns(["ACGT...", "TTGACA..."])       # {"prediction": ["promoter", ...], "probability_other": ...}

Any folder of `dnabert2 finetune` will do, adapters of `--lora` and classifiers of bases among them, and so will any
sequence classifier of `architectures/rows.json`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ..architectures.adapters import BASE_FILE, load_adapted
from ..architectures.encoding import fit_tokenizer, max_tokens
from ..architectures.models import architecture_of, load_any_tokenizer, load_trained_classifier
from ..bundled import locate
from ..errors import UserError
from ..genome.base_map import scatter_base_logits, spread
from ..genome.strands import reverse_complement
from ..genome.windows import tokenize
from ..precision import resolve_dtype
from .batches import default_batch_tokens
from .models import Loaded, fingerprint
from .rows import Row, check_windows, rows_of, run_rows, token_rows

RUN_FILE = "run.json"  # the options of a run, in its folder


def load_predictor(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """
    A classifier in evaluation mode.

    Args:
        name: the output folder of `dnabert2 finetune`, adapters among them, or a Hub id; other arguments as
            `models.load_encoder`.

    Raises:
        UserError: if there is none of this name, or it has no trained head.
    """
    folder, precision = Path(locate(name)), resolve_dtype(dtype, device)
    backend = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if (folder / BASE_FILE).is_file() and not (folder / "config.json").is_file():
        model = load_adapted(folder, trust_remote_code)
        if attn_implementation is not None:
            model.get_base_model().set_attn_implementation(attn_implementation)
        base = model.get_base_model().name_or_path
        architecture = architecture_of(base, trust_remote_code)
        identity = {"model": name, **fingerprint(str(folder)), "base": fingerprint(base)}
    else:
        architecture = architecture_of(name, trust_remote_code)
        model = load_trained_classifier(name, architecture, trust_remote_code, dtype=precision, **backend)
        identity = {"model": name, **fingerprint(name)}
    tokenizer = load_any_tokenizer(str(folder) if folder.is_dir() else name, architecture, trust_remote_code)
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    fit_tokenizer(tokenizer, network)
    if _without_token_types(folder):
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    identity["dtype"] = str(precision).removeprefix("torch.")
    model = model.to(device=device, dtype=precision).eval()
    return Loaded(model, tokenizer, architecture, identity, max_tokens(architecture, network.config))


def _without_token_types(folder: Path) -> bool:
    """Whether `dnabert2 finetune --no_token_types` made the folder, which trains both of a pair with the same type."""
    path = folder / RUN_FILE
    try:
        return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("no_token_types"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend it, or remove it.") from error


@dataclass(frozen=True)
class Kind:
    """
    What a model's outputs are.

    Attributes:
        name: "single_label_classification", "multi_label_classification", "regression" or "base_classification".
        labels: names of classes or outputs, in the order of their ids.
    """

    name: str
    labels: tuple[str, ...]

    @classmethod
    def of(cls, config, is_token_classifier: bool) -> "Kind":
        """By a model's configuration."""
        labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
        if is_token_classifier:
            return cls("base_classification", labels)
        if config.problem_type is not None:
            return cls(config.problem_type, labels)
        return cls("regression" if len(labels) == 1 else "single_label_classification", labels)

    def schema(self) -> pa.Schema:
        """Columns behind `id`."""
        probability, number, word = pa.float32(), pa.float32(), pa.string()
        if self.name == "base_classification":
            probability, word = pa.list_(probability), pa.list_(word)
        if self.name in ("single_label_classification", "base_classification"):
            columns = [("prediction", word), *((f"probability_{label}", probability) for label in self.labels)]
        elif self.name == "regression":
            columns = [(name, number) for name in self._numbers()]
        else:
            columns = [
                column
                for label in self.labels
                for column in ((f"prediction_{label}", pa.int8()), (f"probability_{label}", probability))
            ]
        return pa.schema([("id", pa.string()), *columns])

    def _numbers(self) -> list[str]:
        return ["prediction"] if len(self.labels) == 1 else [f"prediction_{label}" for label in self.labels]

    def columns(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Logits (rows or bases, outputs) -> columns of `schema`, of bases a number or word each."""
        scores = torch.from_numpy(logits).double()
        if self.name == "regression":
            return {name: logits[:, i] for i, name in enumerate(self._numbers())}
        if self.name == "multi_label_classification":
            probabilities, columns = scores.sigmoid().float().numpy(), {}
            for i, label in enumerate(self.labels):
                columns[f"prediction_{label}"] = (logits[:, i] > 0).astype(np.int8)
                columns[f"probability_{label}"] = probabilities[:, i]
            return columns
        probabilities = scores.softmax(dim=-1).float().numpy()
        names = np.array(self.labels, dtype=object)
        columns = {"prediction": names[logits.argmax(axis=-1)]}
        return columns | {f"probability_{label}": probabilities[:, i] for i, label in enumerate(self.labels)}


class Predictor:
    """
    Args:
        loaded: of `load_predictor`.
        window: tokens that are read at once, special ones included; a longer sequence's logits are the mean over its
            windows, those of bases are each from the window that has more around it. None reads sequences whole.
        overlap: tokens that two windows share at least.
        rc_average: the mean of the logits of both strands.
        batch_tokens: tokens of a batch.

    Attributes:
        kind: what the outputs are.

    Raises:
        UserError: if windows overlap so much that they get nowhere, or the model is none that reads them.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        window: int | None = None,
        overlap: int = 0,
        rc_average: bool = False,
        batch_tokens: int | None = None,
    ):
        check_windows(window, overlap)
        if window is not None and not loaded.is_ours:
            raise UserError(f"--window {window}: {loaded.architecture.name} reads sequences whole; leave it out.")
        self.loaded, self.window, self.overlap, self.rc_average = loaded, window, overlap, rc_average
        self.batch_tokens = batch_tokens or default_batch_tokens(loaded.device)
        model = loaded.model
        self.config = (model.get_base_model() if hasattr(model, "get_base_model") else model).config
        self.per_base = getattr(self.config, "bases_per_token", None) is not None
        self.kind = Kind.of(self.config, self.per_base or type(model).__name__.endswith("ForTokenClassification"))

    def logits(self, sequences: list[str], pairs: list[str] | None = None) -> np.ndarray | list[np.ndarray]:
        """(sequences, outputs) float32; of a classifier of bases one (bases, classes) a sequence."""
        if pairs is not None and self.window is not None:
            raise UserError(f"--window {self.window}: pairs of sequences are read whole; leave it out.")
        of = self._of_bases if self.kind.name == "base_classification" else self._of_sequences
        made = of(sequences, pairs)
        if not self.rc_average:
            return made
        seconds = None if pairs is None else [reverse_complement(s) for s in pairs]
        other = of([reverse_complement(s) for s in sequences], seconds)
        if self.kind.name == "base_classification":
            return [(here + there[::-1]) / 2 for here, there in zip(made, other, strict=True)]
        return (made + other) / 2

    def columns(self, sequences: list[str], pairs: list[str] | None = None) -> dict[str, list]:
        """Columns of `kind.schema()` behind `id`; of bases lists, one entry a base."""
        logits = self.logits(sequences, pairs)
        if self.kind.name != "base_classification":
            return {name: list(values) for name, values in self.kind.columns(logits).items()}
        found = self.kind.columns(np.concatenate(logits))
        ends = np.cumsum([len(rows) for rows in logits])[:-1]
        return {name: [part.tolist() for part in np.split(values, ends)] for name, values in found.items()}

    def _run(self, inputs: dict) -> torch.Tensor:
        outputs = self.loaded.model(**inputs)
        return outputs["logits"] if isinstance(outputs, dict) else outputs[0]

    def _of_sequences(self, sequences: list[str], pairs: list[str] | None) -> np.ndarray:
        rows = rows_of(self.loaded, sequences, pairs, window=self.window, overlap=self.overlap)
        sums = np.zeros((len(sequences), self.config.num_labels))
        counts = np.zeros((len(sequences), 1))
        for some, logits, _ in run_rows(self.loaded, rows, self._run, self.batch_tokens):
            of = np.array([row.sequence for row in some])
            np.add.at(sums, of, logits.cpu().numpy())
            np.add.at(counts, of, 1)
        return (sums / counts).astype(np.float32)

    def _of_bases(self, sequences: list[str], pairs: list[str] | None) -> list[np.ndarray]:
        if pairs is not None:
            raise UserError("this model has a class for every base and reads single sequences; leave the pairs out.")
        tokenizer = self.loaded.tokenizer
        all_tokens = tokenize(tokenizer, sequences)
        rows: list[Row] = []
        for i, tokens in enumerate(all_tokens):
            rows += token_rows(tokenizer, i, tokens.ids, self.window, self.overlap)
        spread_out = scatter_base_logits if self.per_base else spread
        found = [np.empty((len(sequence), self.config.num_labels), dtype=np.float32) for sequence in sequences]
        for some, logits, _ in run_rows(self.loaded, rows, self._run, self.batch_tokens):
            for row, values in zip(some, logits.cpu().numpy(), strict=True):
                start, stop = max(row.keep.start, 1), min(row.keep.stop, len(row) - 1)  # no special tokens
                spans = all_tokens[row.sequence].spans[row.first + start - 1 : row.first + stop - 1]
                low, high = spans[0, 0], spans[-1, 1]
                found[row.sequence][low:high] = spread_out(values[start:stop], spans - low, high - low)
        return found
