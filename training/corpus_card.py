"""The dataset card of a corpus: what `load_dataset` needs to know, and what a reader wants to."""


def corpus_card(manifest: dict) -> str:
    """README.md of a corpus folder, from its manifest."""
    splits = manifest["splits"]
    files = "\n".join(f"      - split: {split}\n        path: {split}/*.parquet" for split in splits)
    head = f"---\ntags:\n  - biology\n  - dna\nconfigs:\n  - config_name: default\n    data_files:\n{files}\n---\n"
    rows = "\n".join(
        f"| {split} | {group} | {counts['rows']:,} | {counts['tokens']:,} | {counts['bases']:,} |"
        for split, total in splits.items()
        for group, counts in total["groups"].items()
    )
    species = sorted({source["species"] for source in manifest["sources"]})
    settings = manifest["settings"]
    return f"""{head}
# Tokenised genomes for pretraining DNABERT-2

Windows of {settings["window_tokens"]} byte-pair tokens ([CLS] and [SEP] not included) from {len(manifest["sources"])}
files of {len(species)} species, shuffled, built by `dnabert2 build-corpus`. `manifest.json` has every source file
with its checksum, every record and whether it is held out, the settings, and each shard's checksum and counts. Whole
records are held out, never windows of a record that also trains.

| split | group | windows | tokens | bases |
| --- | --- | ---: | ---: | ---: |
{rows}

Columns: `input_ids`; `species`, `group`, `accession`; `start` and `end`, 0-based and half-open, on the forward strand;
`strand`, `-` where the window is the reverse complement of these bases. `tokenizer/` holds the tokenizer.

```python
from datasets import load_dataset

rows = load_dataset("path/or/hub-id", split="train", streaming=True)
```
"""
