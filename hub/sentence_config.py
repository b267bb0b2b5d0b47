"""What sentence-transformers reads in a Hub folder: the encoder, then the mean over all its tokens.

    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("hub/mini", trust_remote_code=True)
    model.encode(["ACGTAGCATCGGATCTATCT", "TTGACA"])                    # (2, 384), the vectors of `dnabert2 embed`

[CLS] and [SEP] count and pads do not, which is the published convention. Sequences are not cut: neither this file nor
the tokenizer knows a longest one.
"""

import json
from pathlib import Path

from ..atomic import write_whole

POOLING = "1_Pooling"  # the one folder in a Hub folder, named as sentence-transformers would name it
ARCHITECTURES = ("DNABert2Model", "DNABert2ForMaskedLM")  # classifiers are no embedders
# Classes and keys by the names of old releases, which new ones know as well.
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": POOLING, "type": "sentence_transformers.models.Pooling"},
]
# Published checkpoints have no pooler, and a new one would be random and unused.
TRANSFORMER = {"max_seq_length": None, "do_lower_case": False, "model_args": {"add_pooling_layer": False}}


def write_sentence_config(folder: Path, hidden_size: int):
    """Write `modules.json` and the configuration of its two modules into `folder`."""
    files = {
        "modules.json": MODULES,
        "sentence_bert_config.json": TRANSFORMER,
        f"{POOLING}/config.json": {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": True},
    }
    for name, content in files.items():
        write_whole(folder / name, json.dumps(content, indent=2) + "\n")


def is_pooling(path: Path) -> bool:
    """Whether a path in a Hub folder is the pooling's folder and holds nothing else."""
    return path.name == POOLING and {entry.name for entry in path.iterdir()} <= {"config.json"}
