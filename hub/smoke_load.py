"""Load a Hub folder as a stranger does, through every Auto class, and run each model once.

`dnabert2 export` hands this text to a fresh interpreter (`python -c`) in which our package must stay unknown; by hand:

    python path/to/hub/smoke_load.py HUB_FOLDER
"""

import sys

import torch
import transformers

AUTO_MODELS = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
)


def smoke_load(folder: str):
    """Raises whatever loading raises, or RuntimeError if something else than the folder's own code answers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(["ACGTACGTTTGACA", "ACG"], padding=True, return_tensors="pt")
    if set(inputs) != {"input_ids", "token_type_ids", "attention_mask"}:
        raise RuntimeError(f"the tokenizer emits {sorted(inputs)}")
    loaded = [transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)]
    for auto_class in AUTO_MODELS:
        model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            output = model(**inputs)[0]
        if not output.isfinite().all():
            raise RuntimeError(f"{auto_class} computes numbers that are not finite")
        loaded.append(model)
    for thing in loaded:
        if not type(thing).__module__.startswith("transformers_modules."):
            raise RuntimeError(f"{type(thing)} does not come from the folder")
    if "dnabert2" in sys.modules:
        raise RuntimeError("the folder's code imports the dnabert2 package")


if __name__ == "__main__":
    smoke_load(sys.argv[1])
