"""The pretrain verb, end to end on a tiny network: outputs, interruptions, losses that are not finite, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corpora import TINY, swap_two_tokens
from transformers import TrainerCallback

from dnabert2 import DNABert2ForMaskedLM
from dnabert2.cli import main
from dnabert2.tokenizer.files import load_tokenizer
from dnabert2.training import pretrain as pretrain_module
from dnabert2.training.arguments import read_settings
from dnabert2.training.corpus_stream import Corpus
from dnabert2.training.evaluation import mask_held_out, read_held_out, score_held_out
from dnabert2.training.pretrainer import PARTIAL, list_checkpoints, rotate

RECIPES = Path(pretrain_module.__file__).parent / "recipes"


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory, pretrain_words):
    output = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", *pretrain_words(corpus, output, report_to="tensorboard")]) == 0
    return output


def test_what_a_run_leaves(run, losses):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == 12 and metrics["parameters"] > 100_000 and metrics["provenance"]
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list(run.glob("runs/*/events.out.tfevents*")) or list(run.rglob("events.out.tfevents*"))
    logged = losses(run)
    assert [entry["step"] for entry in logged if "loss" in entry] == list(range(1, 13))
    assert [entry["step"] for entry in logged if "eval_loss" in entry] == [6, 12]
    scores = [entry["eval_loss"] for entry in logged if "eval_loss" in entry]
    assert scores[1] < scores[0] - 0.1 < logged[0]["loss"] - 0.1  # it learns
    named = [entry["neighbour_loss"] for entry in logged if "loss" in entry]
    assert 0 < sum(named[6:]) / 6 < sum(named[:3]) / 3 - 0.3
    assert metrics["evaluation"]["Animal_one_bits_per_base"] > 0
    assert metrics["checkpoints"] == ["checkpoint-8", "checkpoint-12"]
    rates = [entry["tokens_per_second"] for entry in metrics["history"] if "loss" in entry]
    assert all(rate > 0 for rate in rates) and all(0 < e["mfu"] < 1 for e in metrics["history"] if "loss" in e)
    assert not list(run.glob("*.tmp")) and not list(run.glob(".*"))


def test_the_evaluation_is_the_saved_models(run, corpus):
    tokenizer = load_tokenizer(run)
    model = DNABert2ForMaskedLM.from_pretrained(run)
    held_out = mask_held_out(read_held_out(Corpus.open(str(corpus)), 8), tokenizer, 32, 0.15)
    scores = score_held_out(model, held_out, 16, torch.device("cpu")).metrics()
    assert scores == pytest.approx(json.loads((run / "metrics.json").read_text())["evaluation"], rel=1e-5)


def test_the_folder_is_a_hub_folder(run, tmp_path):
    """A fresh interpreter without our package fills a mask."""
    code = f"""
import sys
sys.modules["dnabert2"] = None
from transformers import AutoModelForMaskedLM, AutoTokenizer
model = AutoModelForMaskedLM.from_pretrained({str(run)!r}, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained({str(run)!r}, trust_remote_code=True)
print(model(**tokenizer("ACGT[MASK]ACGT", return_tensors="pt")).logits.shape[-1])
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "4096"


def test_killed_at_any_step_it_continues_bit_for_bit(corpus, tmp_path, pretrain_words, losses):
    """With dropout: its random numbers go on too."""
    config = json.dumps({**TINY, "hidden_dropout_prob": 0.1})
    run = tmp_path / "whole"
    assert main(["pretrain", *pretrain_words(corpus, run, config_overrides=config)]) == 0
    words = pretrain_words(corpus, tmp_path / "run", config_overrides=config)
    command = [sys.executable, "-m", "dnabert2", "pretrain", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for last in ("step 3 of", "step 7 of", "step 12 held out"):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith(last):
                process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "".join(said)
        assert not (tmp_path / "run" / "metrics.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "continuing from" in done.stdout
    assert losses(tmp_path / "run") == losses(run)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, tmp_path / "run")]
    assert weights[0] == weights[1]


def test_killed_before_its_record_it_trains_no_further(run, corpus, tmp_path, pretrain_words, losses):
    output = tmp_path / "run"
    shutil.copytree(run, output)
    (output / "metrics.json").unlink()
    settings = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**settings, "output_dir": str(output)}))
    assert main(["pretrain", *pretrain_words(corpus, output)]) == 0
    assert losses(output) == losses(run)
    assert json.loads((output / "metrics.json").read_text())["steps"] == 12
    assert (output / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["checkpoint-500/model.safetensors", "config.json"])
def test_what_is_not_ours_is_left_alone(corpus, tmp_path, pretrain_words, capsys, name):
    theirs = tmp_path / "theirs" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    assert main(["pretrain", *pretrain_words(corpus, tmp_path / "theirs")]) == 2
    assert "holds a model that is not of this command" in capsys.readouterr().err
    assert theirs.read_bytes() == b"theirs"


def test_another_corpus_under_the_same_name_is_noticed(corpus, tmp_path, pretrain_words, with_callback, capsys):
    here = tmp_path / "corpus"
    shutil.copytree(corpus, here)
    with_callback(StopAfter(5, interrupt))
    assert main(["pretrain", *pretrain_words(here, tmp_path / "run")]) == 130
    manifest = json.loads((here / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    (here / "manifest.json").write_text(json.dumps(manifest))
    assert main(["pretrain", *pretrain_words(here, tmp_path / "run")]) == 2
    assert "other settings (corpus_sha256)" in capsys.readouterr().err
    (here / "manifest.json").write_text("[]")
    assert main(["pretrain", *pretrain_words(here, tmp_path / "run")]) == 2
    assert "not the manifest of a corpus" in capsys.readouterr().err


def test_a_damaged_shard_is_named_out_of_a_worker_too(corpus, tmp_path, pretrain_words, capfd):
    here = tmp_path / "corpus"
    shutil.copytree(corpus, here)
    for path in (here / "train").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:200])
    words = pretrain_words(here, tmp_path / "run", eval_strategy="no", dataloader_num_workers=1)
    assert main(["pretrain", *words]) == 2
    [error] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert error.endswith("build or download it again.") and "train-0000" in error and "Traceback" not in error


class StopAfter(TrainerCallback):
    def __init__(self, step, act=lambda model: None):
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.act(model)


@pytest.fixture
def with_callback(monkeypatch):
    """Function: have a callback in the next run."""

    original = pretrain_module.Pretrainer

    def use(callback):
        class Watched(original):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.add_callback(callback)

        monkeypatch.setattr(pretrain_module, "Pretrainer", Watched)

    return use


def interrupt(model):
    raise KeyboardInterrupt


def test_leftovers_of_a_kill_are_no_checkpoints(
    run, corpus, tmp_path, pretrain_words, losses, with_callback, monkeypatch
):
    """Interrupted in-process after step 9, with a half-written and a half-deleted folder lying about."""
    output = tmp_path / "run"
    with_callback(StopAfter(9, interrupt))
    assert main(["pretrain", *pretrain_words(corpus, output)]) == 130
    assert [path.name for path in list_checkpoints(output)] == ["checkpoint-4", "checkpoint-8"]
    shutil.copytree(output / "checkpoint-8", output / PARTIAL / "checkpoint-12")
    (output / PARTIAL / "checkpoint-12" / "optimizer.pt").write_bytes(b"half")
    shutil.copytree(output / "checkpoint-4", output / ".deleted-checkpoint-4")
    monkeypatch.undo()
    # With other micro-batches: sums in another order, else the same.
    assert main(["pretrain", *pretrain_words(corpus, output, per_device_train_batch_size=2)]) == 0
    assert not list(output.glob(".*"))
    for ours, theirs in zip(losses(output), losses(run), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(corpus, tmp_path, pretrain_words, with_callback, capsys):
    def poison(model):
        with torch.no_grad():
            model.bert.embeddings.LayerNorm.weight[0] = float("nan")

    output = tmp_path / "run"
    with_callback(StopAfter(6, poison))
    assert main(["pretrain", *pretrain_words(corpus, output)]) == 1
    error = capsys.readouterr().err
    assert "step 7, process 0, micro-batch 0: the loss is nan; its 4 sequences" in error
    assert f"The last good checkpoint is {output}/checkpoint-4" in error and "Traceback" not in error
    listed = json.loads((output / "not-finite-step-7-process-0.json").read_text())
    assert listed["step"] == 7 and len(listed["sequences"]) == 4
    assert all(name.startswith(("Animal one chr", "Bacterium two NC_1")) for name in listed["sequences"])

    # The gradient alone: it never reaches the weights.
    def poison_gradient(model):
        model.bert.embeddings.LayerNorm.weight.register_hook(lambda gradient: gradient * float("inf"))

    with_callback(StopAfter(6, poison_gradient))
    assert main(["pretrain", *pretrain_words(corpus, output)]) == 1
    assert "step 7: the gradient is not finite. The last good" in capsys.readouterr().err
    # At a step that saves, before the next loss could show it.
    with_callback(StopAfter(8, poison))
    assert main(["pretrain", *pretrain_words(corpus, output)]) == 1
    assert "step 8: a weight is not finite" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(output)] == ["checkpoint-4"]


def test_checkpoints_are_renamed_before_they_are_deleted(tmp_path, monkeypatch):
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-notes").mkdir()

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        rotate(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-10"]


def test_going_on_with_a_checkpoint(run, corpus, tmp_path, pretrain_words, losses):
    """Ours, and one in the published layout: with a learning rate of 0, the weights come out as they went in."""
    model = DNABert2ForMaskedLM.from_pretrained(run)
    published = tmp_path / "published"
    published.mkdir()
    torch.save(dict(model.state_dict()), published / "pytorch_model.bin")
    shutil.copyfile(run / "tokenizer.json", published / "tokenizer.json")
    config = model.config.to_dict() | {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    config["auto_map"] = {"AutoModelForMaskedLM": "bert_layers.BertForMaskedLM"}
    (published / "config.json").write_text(json.dumps(config))
    for name, folder in (("ours", run), ("published", published)):
        options = {"config_overrides": None, "model_name_or_path": folder, "learning_rate": 0.0, "max_steps": 4}
        output = tmp_path / f"{name}-further"
        assert main(["pretrain", *pretrain_words(corpus, output, eval_steps=4, **options)]) == 0
        after = DNABert2ForMaskedLM.from_pretrained(output).state_dict()
        assert all(torch.equal(value, after[key]) for key, value in model.state_dict().items())
        scores = [entry for entry in losses(output) if "eval_loss" in entry]
        assert scores[0]["eval_loss"] == pytest.approx(losses(run)[-1]["eval_loss"], rel=1e-5)


def test_dropout(run, corpus):
    """By default what the configuration says, of a new network and of a checkpoint; the option goes before both."""
    tokenizer = load_tokenizer(run)
    for source in (
        {"model_name_or_path": str(run)},
        {"config_overrides": TINY},
        {"config_overrides": TINY, "learned_positions": 40},
    ):
        usual = pretrain_module.build_model(pretrain_module.ModelArguments(**source), tokenizer)
        assert usual.config.hidden_dropout_prob == TINY["hidden_dropout_prob"] == 0.0
        model = pretrain_module.build_model(
            pretrain_module.ModelArguments(hidden_dropout_prob=0.3, **source), tokenizer
        )
        rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert model.config.hidden_dropout_prob == 0.3 and 0.3 in rates and rates <= {0.0, 0.3}


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"torch_compile": True, "torch_compile_backend": "aot_eager"}, 1e-4),
        ({"attn_implementation": "eager"}, 1e-4),
        ({"gradient_checkpointing": True}, 1e-5),
        ({"bf16": True}, 0.02),
        ({"bf16": True, "low_precision_layer_norm": False}, 0.02),
        ({"dataloader_num_workers": 1}, 0),
    ],
)
def test_other_ways_to_compute_the_same(run, corpus, tmp_path, pretrain_words, losses, options, tolerance):
    words = pretrain_words(corpus, tmp_path / "run", eval_strategy="no", save_strategy="no", **options)
    assert main(["pretrain", *words]) == 0
    expected = [entry["loss"] for entry in losses(run) if "loss" in entry]
    found = [entry["loss"] for entry in losses(tmp_path / "run") if "loss" in entry]
    assert found == pytest.approx(expected, rel=tolerance, abs=0)


def test_the_published_recipe():
    """Appendix of the paper: what the recipe must say, and that every recipe is one."""
    recipe = read_settings(RECIPES / "dnabert2-117m.json")
    published = {
        "mlm_probability": 0.15,
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "weight_decay": 1e-5,
        "learning_rate": 5e-4,
        "warmup_steps": 30_000,
        "max_steps": 500_000,
        "global_batch_size": 4096,
        "max_length": 128,
        "config_overrides": {},
        "lr_scheduler_type": "linear",
    }
    assert {key: recipe[key] for key in published} == published and recipe["bf16"]
    for path in sorted(RECIPES.glob("*.json")):
        settings = read_settings(path)
        if "mlm_probability" in settings or "global_batch_size" in settings:
            words = ["--config", str(path), "--corpus", "c", "--output_dir", "o", "--use_cpu", "true"]
            model_args, corpus_args, args = pretrain_module.parse_arguments(words)
            assert args.max_steps == settings["max_steps"] and args.save_steps % args.logging_steps == 0
            assert model_args.config_overrides == settings.get("config_overrides")
            assert corpus_args.global_batch_size % args.per_device_train_batch_size == 0


def test_the_parts_of_mini_hold_out_the_same():
    """Or a later part would train on what the bundled checkpoint is measured on."""
    corpora = [read_settings(path) for path in sorted(RECIPES.glob("*-corpus.json"))]
    drawing = ("passes", "max_passes", "group_weights", "output")
    held_out = [{key: value for key, value in c.items() if key not in drawing} for c in corpora]
    assert len(corpora) == 2 and held_out[0] == held_out[1] and held_out[0]["held_out"]


def test_bad_input(run, corpus, tmp_path, pretrain_words, capsys):
    output = tmp_path / "out"

    def fails_with(message, **options):
        assert main(["pretrain", *pretrain_words(corpus, output, **options)]) == 2
        captured = capsys.readouterr().err
        assert message in captured and captured.count("error:") == 1 and "Traceback" not in captured
        assert not (output / "run.json").exists()

    fails_with("give either --model_name_or_path", model_name_or_path=run)
    fails_with("--hidden_dropout_prob 1.0: must be", hidden_dropout_prob=1)
    fails_with("no such folder; build a corpus", corpus=tmp_path / "absent")
    fails_with("no multiple of 1 processes times --per_device_train_batch_size 3", per_device_train_batch_size=3)
    fails_with("--save_steps 4 must be a multiple of --logging_steps 3", logging_steps=3)
    fails_with("--max_steps 0: must be an integer of at least 1", max_steps=0)
    fails_with("--mlm_probability 1.5", mlm_probability=1.5)
    fails_with("--gradient_accumulation_steps follows", gradient_accumulation_steps=2)
    fails_with("'hiden' is no value", config_overrides='{"hiden": 3}')
    fails_with("--config_overrides is not a JSON object", config_overrides="[3]")
    fails_with("vocabulary ends at 99", config_overrides='{"vocab_size": 100}')
    fails_with("--load_best_model_at_end does not go with", load_best_model_at_end=True, eval_steps=4)
    fails_with("--save_only_model does not go with", save_only_model=True)
    fails_with("--resume_from_checkpoint does not go with", resume_from_checkpoint=run)
    fails_with("--dataloader_num_workers 2: give 0 or 1", dataloader_num_workers=2)
    fails_with("--global_batch_size 0: must be at least 1", global_batch_size=0)
    fails_with("--max_length 2: must be at least 3", max_length=2)
    fails_with("--seed -1: must be at least 0", seed=-1)
    fails_with("--neighbour_weight and --short_steps must be at least 0", short_steps=-1)
    fails_with("--attn_implementation nonsense", attn_implementation="nonsense")
    fails_with("cannot be written", output_dir=run / "config.json" / "below")
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"initial_embeddings": "speling"}')
    fails_with("initial_embeddings is 'speling'; it must be one of random, spelling", config=recipe)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    swap_two_tokens(other)
    fails_with("built with another tokenizer", config_overrides=None, model_name_or_path=other)
    assert main(["pretrain", *pretrain_words(corpus, run, report_to="tensorboard")]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert main(["pretrain", "--config"]) == 2
    assert "--config names no file" in capsys.readouterr().err


def test_sharding_without_gpus(corpus, tmp_path, pretrain_words, capsys):
    assert main(["pretrain", *pretrain_words(corpus, tmp_path / "run", fsdp="full_shard")]) == 2
    error = capsys.readouterr().err
    # transformers 4 says so itself.
    assert "--fsdp shards over GPUs" in error or "no available devices found" in error
    assert error.count("error:") == 1 and "Traceback" not in error
