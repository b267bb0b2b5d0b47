"""Build the folder that goes on the Hugging Face Hub: weights, flat code, tokenizer, model card, licence.

    dnabert2 export --checkpoint runs/promoters --output hub/promoters
    dnabert2 export --checkpoint zhihan1996/DNABERT-2-117M --output hub/DNABERT-2-117M      # published layout, any CPU

The Hub's loader follows flat relative imports only, so the source tree's two import prefixes are rewritten and nothing
else: the exported code keeps its comments and line numbers. The folder is built beside its place, loaded through every
Auto class in a fresh interpreter, and only then moved there.
"""

import argparse
import json
import os
import string
import subprocess
import sys
import tempfile
from pathlib import Path

from ..atomic import write_whole
from ..bundled import locate
from ..errors import UserError, run_verb
from ..remote_code import write_code
from ..terminal import quiet_unless_terminal
from .checkpoints import WEIGHT_FILES, check_tokenizer, load_checkpoint
from .sentence_config import ARCHITECTURES, is_pooling, write_sentence_config

ROOT = Path(__file__).parents[1]
PIPELINE_TAGS = {
    "AutoModel": "feature-extraction",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}
POOLER_NOTES = {
    True: "These weights include one; it means something only if a classifier was trained on it.",
    False: "These weights have none: that of a loaded encoder is new and random until fine-tuned.",
}
SENTENCE_NOTE = """
With sentence-transformers these are `SentenceTransformer("{name}", trust_remote_code=True).encode(sequences)`.
"""


def export(checkpoint: str | Path, output: str | Path, overwrite: bool = False, check: bool = True) -> Path:
    """
    Build a Hub folder.

    Args:
        checkpoint: a folder with `config.json`, weights (safetensors or `pytorch_model.bin`) and `tokenizer.json`, of
            ours or in the published layout, or a Hub id.
        output: the folder to make. Its class and the dtype of its weights are the checkpoint's.
        overwrite: replace `output` if it is a Hub folder already.
        check: load the result in a fresh interpreter before it is moved to `output`.

    Returns:
        `output`.

    Raises:
        UserError: if the checkpoint cannot be used or `output` cannot be written; `output` is then as it was.
        RuntimeError: if the result does not load, which is a defect of ours.
    """
    output = Path(os.path.abspath(output))
    _check_output(output, overwrite)
    folder = find_checkpoint(checkpoint)
    if overwrite and output in folder.resolve().parents:
        raise UserError(f"{output}: the checkpoint lies in it and would be overwritten; choose another --output.")
    from safetensors import SafetensorError

    model = load_checkpoint(folder)
    tokenizer_json = check_tokenizer(folder, model.config)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.", suffix=".tmp") as scratch:
            # Transformers names the code's module after the folder, so it has its final name from the start.
            build = Path(scratch) / output.name
            build.mkdir()
            write_folder(model, tokenizer_json, build)
            if check:
                smoke_load(build)
            _move_into_place(build, output, Path(scratch) / "replaced")
    except (OSError, SafetensorError) as error:  # the latter for a disk that is full
        raise UserError(f"{output}: cannot be written ({error}); choose another --output or make room.") from error
    return output


def find_checkpoint(checkpoint: str | Path) -> Path:
    """
    A folder as it is, or that of a bundled name; anything else is taken for a Hub id and downloaded.

    Raises:
        UserError: if it is none of these.
    """
    checkpoint = locate(checkpoint)
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if Path(checkpoint).exists():
        raise UserError(f"{checkpoint}: a file; name the folder it is in.")
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "tokenizer.json", *(f"{Path(name).stem}*{Path(name).suffix}*" for name in WEIGHT_FILES)]
    try:
        return Path(snapshot_download(str(checkpoint), allow_patterns=patterns))
    except (OSError, ValueError) as error:  # no such id, no network, or a name that no id can have
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{checkpoint}: no such folder, and it could not be downloaded as a Hub id ({reason}); check the spelling."
        ) from error


def write_folder(model, tokenizer_json: Path, folder: Path):
    """Write everything a Hub folder holds into `folder`, which must exist."""
    from ..modeling_dnabert2 import AUTO_MAP
    from ..tokenizer.files import write_tokenizer

    model.config.auto_map = dict(AUTO_MAP)
    model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):  # written for the user's eyes only, unlike the rest
        path.chmod((folder / "config.json").stat().st_mode)
    write_tokenizer(tokenizer_json, folder)
    write_code(folder)
    write_whole(folder / "LICENSE", (ROOT / "LICENSE").read_text(encoding="utf-8"))
    architecture = type(model).__name__
    auto_class, embeds = _auto_class(architecture), architecture in ARCHITECTURES
    if embeds:
        write_sentence_config(folder, model.config.hidden_size)
    card = string.Template((Path(__file__).parent / "model_card.md").read_text(encoding="utf-8"))
    values = {
        "name": folder.name,
        "architecture": architecture,
        "auto_class": auto_class,
        "pipeline_tag": PIPELINE_TAGS[auto_class],
        "pooler": POOLER_NOTES[any("pooler." in key for key in model.state_dict())],
        "sentence_note": SENTENCE_NOTE.format(name=folder.name) if embeds else "",
    }
    write_whole(folder / "README.md", card.substitute(values))


def smoke_load(folder: Path):
    """Load `folder` through every Auto class in an interpreter that knows neither our package nor the network."""
    script = (Path(__file__).parent / "smoke_load.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as elsewhere:
        home = {"HF_HUB_OFFLINE": "1", "HF_HOME": elsewhere, "HF_MODULES_CACHE": f"{elsewhere}/modules"}
        result = subprocess.run(
            [sys.executable, "-c", script, str(folder)],
            cwd=elsewhere,  # with -c, Python looks for modules where it runs
            env={**os.environ, **home},
            capture_output=True,
            text=True,
        )
    if result.returncode:
        raise RuntimeError(f"the exported folder does not load:\n{result.stderr[-4000:]}")


def _check_output(output: Path, overwrite: bool):
    if output.is_dir():
        entries = list(output.iterdir())
        if not entries:
            return
        if not overwrite:
            raise UserError(f"{output}: the folder is not empty; choose another --output or add --overwrite.")
        folders = [path for path in entries if path.is_dir()]
        if not (output / "config.json").is_file() or not all(map(is_pooling, folders)):
            # A training run, a Git clone, a home folder: more than an export would be lost.
            raise UserError(f"{output}: not a plain Hub folder, so it is not overwritten; choose another --output.")
    elif output.exists():
        raise UserError(f"{output}: a file is in the way; choose another --output.")


def _move_into_place(build: Path, output: Path, replaced: Path):
    if output.is_dir():
        output.rename(replaced)
    try:
        build.rename(output)
    except BaseException:
        if replaced.is_dir():
            replaced.rename(output)
        raise


def _auto_class(architecture: str) -> str:
    from ..modeling_dnabert2 import AUTO_MAP

    return next(name for name, reference in AUTO_MAP.items() if reference.endswith(f".{architecture}"))


def _run(arguments: argparse.Namespace):
    quiet_unless_terminal()
    folder = export(arguments.checkpoint, arguments.output, arguments.overwrite)
    architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    auto_class = _auto_class(architecture)
    print(f"{folder}: {architecture}, loaded through every Auto class and ready to upload. To use it:\n")
    print(f"from transformers import {auto_class}, AutoTokenizer")
    print(f'tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)')
    print(f'model = {auto_class}.from_pretrained("{folder}", trust_remote_code=True)')


def main(argv: list[str] | None = None) -> int:
    """The `export` verb; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Build a Hugging Face Hub folder from a checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    required = {"required": True, "default": argparse.SUPPRESS}  # or the help says "default: None"
    parser.add_argument("--checkpoint", help="folder of a model, ours or as published, or a Hub id", **required)
    parser.add_argument("--output", help="folder to make; it appears when it is whole", **required)
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is a Hub folder already")
    return run_verb(_run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
