"""A tiny network of ours with its tokenizer in a folder, under known weights; and what others of `helpers` make."""

import pytest
from finetuned_folders import folder_of  # noqa: F401 (a fixture)
from foreign_models import no_plots  # noqa: F401 (a fixture)

from dnabert2 import DNABert2ForMaskedLM
from dnabert2.tokenizer.files import OURS, write_tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, build):
    """The folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build(DNABert2ForMaskedLM, vocab_size=4096, hidden_size=32, num_attention_heads=2).save_pretrained(folder)
    write_tokenizer(OURS / "tokenizer.json", folder)
    return folder
