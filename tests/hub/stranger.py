"""What a stranger's interpreter does with a model: tests run this text with `python -c`, where our package is unknown.

Its one argument is JSON, `{"loads": [load, ...]}`. A load has `source` (folder or Hub id), `expected` (a file, see
`record`) and `auto_class` (the one it was saved from). With `save_to` (a folder) and `label`, every class is trained
a step and saved there, its own expectations beside it; with `stock`, a stock BertConfig is handed in and the Python of
the folder's model card is run as well.
"""

import json
import os
import re
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

NEW_LAYERS = {
    "AutoModel": ("pooler.",),
    "AutoModelForMaskedLM": ("cls.",),
    "AutoModelForSequenceClassification": ("bert.pooler.", "classifier."),
    "AutoModelForTokenClassification": ("classifier.",),
}
SEQUENCES = ["ACGTACGTTTGACAACCAGT", "ACGTT", "TTGACAN"]
PAIRS = ["ACGT", "GGTTAC", "T"]


def tokenize(tokenizer) -> dict:
    return dict(tokenizer(SEQUENCES, PAIRS, padding=True, return_tensors="pt"))


@torch.no_grad()
def record(model, inputs: dict, path: Path):
    """Write the inputs, the encoder's last hidden state and the model's own first output."""
    hidden = getattr(model, "bert", model)(**inputs).last_hidden_state
    save_file({**inputs, "hidden": hidden, "own": model(**inputs)[0].clone()}, path)


@torch.no_grad()
def compare(model, inputs: dict, expected: dict, own: bool):
    hidden = getattr(model, "bert", model)(**inputs).last_hidden_state
    torch.testing.assert_close(hidden, expected["hidden"], rtol=0, atol=1e-5)
    if own:
        torch.testing.assert_close(model(**inputs)[0], expected["own"], rtol=0, atol=1e-5)


def load_all(source: str, expected: dict, auto_class: str) -> tuple:
    """The tokenizer and a model through every Auto class, compared with what is expected of each."""
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=True)
    assert type(config).__name__ == "DNABert2Config" and config.model_type == "dnabert2"
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    inputs = tokenize(tokenizer)
    for name, value in inputs.items():
        assert torch.equal(value, expected[name]), f"{source}: {name}"
    assert {"input_ids", "token_type_ids", "attention_mask"} == set(inputs)
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (3, 4)
    assert tokenizer.model_max_length > 10**6 and tokenizer("ACGT").token_type_ids
    models = {}
    for name, new_layers in NEW_LAYERS.items():
        auto = getattr(transformers, name)
        model, info = auto.from_pretrained(source, trust_remote_code=True, output_loading_info=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        missing = [key for key in info["missing_keys"] if not key.startswith(new_layers)]
        # A classifier has no place in another class; heads of the published checkpoint are passed over in silence.
        spare = [key for key in info["unexpected_keys"] if not key.startswith("classifier.")]
        assert not missing and not spare and not info["mismatched_keys"], (source, name, info)
        if name == auto_class:
            unexpected_new = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
            assert not unexpected_new and not info["unexpected_keys"], (source, name, info)
        compare(model.eval(), inputs, expected, own=name == auto_class)
        models[name] = model
    return tokenizer, inputs, models


def check_stock_config(source: str, tokenizer, inputs: dict, expected: dict, save_to: Path):
    """The published README's work-around, and that it leaves this process's own BERT alone."""
    stock = transformers.BertConfig.from_pretrained(source)
    assert type(stock) is transformers.BertConfig
    for name in NEW_LAYERS:
        auto = getattr(transformers, name)
        model = auto.from_pretrained(source, config=stock, trust_remote_code=True).eval()
        assert type(model).__name__.startswith("DNABert2") and type(model.config).__name__ == "DNABert2Config"
        compare(model, inputs, expected, own=name == "AutoModelForMaskedLM")
        if name == "AutoModelForMaskedLM":
            save(model, tokenizer, inputs, save_to / f"stock-{name}")
    tiny = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    assert type(transformers.AutoModel.from_config(transformers.BertConfig(**tiny))) is transformers.BertModel


def run_card(card: Path, width: int):
    os.chdir(card.parent.parent)  # where the name in the card is the folder's
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", card.read_text(), flags=re.DOTALL):
        exec(block, scope)
    assert scope["outputs"].logits.shape[0] == 2 and scope["embeddings"].shape == (2, width)


def train_a_step(model, inputs: dict):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(**inputs)[0].float().square().mean().backward()
    optimizer.step()
    model.eval()


def save(model, tokenizer, inputs: dict, folder: Path):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record(model, inputs, folder.with_suffix(".safetensors"))


def main(job: dict):
    for load in job["loads"]:
        expected = load_file(load["expected"])
        tokenizer, inputs, models = load_all(load["source"], expected, load["auto_class"])
        if "save_to" in load:
            for name, model in models.items():
                if name != load["auto_class"]:  # that one is saved as it came
                    train_a_step(model, inputs)
                save(model, tokenizer, inputs, Path(load["save_to"]) / f"{load['label']}-{name}")
        if "stock" in load:
            check_stock_config(load["source"], tokenizer, inputs, expected, Path(load["save_to"]))
            run_card(Path(load["source"]) / "README.md", expected["hidden"].shape[-1])
    assert "dnabert2" not in sys.modules


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
