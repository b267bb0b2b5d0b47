"""Recipes: the released scripts' rows, digit by digit, and what ours changes about them."""

import csv
import dataclasses
import json

import pytest

from dnabert2.errors import UserError
from dnabert2.gue_eval.recipes import MODEL_FAMILIES, family_of, main, recipe, recipe_names, seeds
from dnabert2.gue_eval.tasks import HERE, all_tasks, select
from dnabert2.training.finetune_arguments import DataArguments, FineTuningArguments, ModelArguments

OPTIONS = (ModelArguments, DataArguments, FineTuningArguments)


def released() -> list[dict]:
    with open(HERE / "data" / "gue_recipes.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("row", released(), ids=lambda row: f"{row['model']}-{row['dataset']}")
def test_published_is_the_released_row(row):
    found = recipe("published", row["dataset"], row["model"])
    assert found["max_length"] == int(row["model_max_length"]) and found["allow_truncation"]
    assert found["learning_rate"] == float(row["learning_rate"])
    assert found["num_train_epochs"] == float(row["num_train_epochs"])
    assert found["max_steps"] == (1000 if row["dataset"].startswith("mouse") else -1)
    assert found["warmup_steps"] == int(row["warmup_steps"])
    assert found["eval_steps"] == found["save_steps"] == int(row["eval_and_save_steps"])
    of_128 = row["dataset"] == "virus/covid" and row["model"] != "Nucleotide Transformer"
    assert found["global_batch_size"] == (128 if of_128 else 32)
    assert found.get("lora", False) == (row["model"] == "Nucleotide Transformer")


def test_published_in_full():
    assert recipe("published", "EMP/H3", "Nucleotide Transformer", gpu=True) == {
        "max_length": 100,
        "allow_truncation": True,
        "learning_rate": 1e-4,
        "num_train_epochs": 3.0,
        "max_steps": -1,
        "global_batch_size": 32,
        "weight_decay": 0.01,
        "lr_scheduler_type": "linear",
        "warmup_steps": 50,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 200,
        "save_steps": 200,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "pooling": "cls",
        "rc_augment": False,
        "plateau_restarts": 0,
        "seed": 42,
        "fp16": True,
        "lora": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": ["query", "value", "key", "dense"],
    }
    # Not in the row of this one, so the default of the released train.py.
    assert recipe("published", "virus/covid", "Nucleotide Transformer")["lora_alpha"] == 32
    assert "fp16" not in recipe("published", "EMP/H3")


@pytest.mark.parametrize("name", list(all_tasks()))
def test_robust_cuts_nothing_and_chooses_by_score(name):
    found = recipe("robust", name)
    assert found["max_length"] is None and not found["allow_truncation"]
    assert found["metric_for_best_model"] == all_tasks()[name].metric and found["greater_is_better"]
    assert found["pooling"] == "mean" and found["plateau_restarts"] > 0
    assert "fp16" not in found and "bf16" not in found


@pytest.mark.parametrize("name", list(all_tasks()))
def test_strands_are_those_of_the_table(name):
    """But for the one exception that recipes.py explains."""
    for size in (384, 768):
        found = recipe("robust", name, hidden_size=size)
        both = not all_tasks()[name].stranded or (name, size) == ("prom/prom_core_tata", 384)
        assert found["rc_augment"] == found.get("rc_average", False) == both


def test_robust_warm_up_is_a_part_of_the_run():
    task = all_tasks()["mouse/2"]
    steps = -(-2620 // 32) * recipe("robust", task)["num_train_epochs"]
    assert recipe("robust", task)["warmup_steps"] == round(0.06 * steps)
    assert recipe("robust", task, train_rows=64)["warmup_steps"] == round(0.06 * 2 * 15)
    assert recipe("robust", task, gpu=True)["bf16"] is True
    assert recipe("robust", task, fast_cpu=True)["bf16"] is True
    assert "bf16" not in recipe("published", "EMP/H3", fast_cpu=True)


def test_blocks_of_the_data_file_name_what_exists():
    blocks = json.loads((HERE / "recipes.json").read_text())
    for key in blocks["robust"]["tasks"]:
        assert select(key)
    assert list(blocks["robust"]["model_families"]) == list(MODEL_FAMILIES)
    assert {row["model"] for row in released()} == set(MODEL_FAMILIES)
    assert recipe_names() == ["robust", "published"]
    assert seeds("published") == [42] and len(seeds("robust")) == len(set(seeds("robust"))) >= 3


def test_settings_are_options_of_finetune():
    options = {field.name for group in OPTIONS for field in dataclasses.fields(group)}
    for name in recipe_names():
        for family in MODEL_FAMILIES:
            assert set(recipe(name, "tf/0", family, gpu=True)) <= options


def test_small_models_take_larger_steps():
    large, small = (recipe("robust", "tf/0", hidden_size=size, gpu=True) for size in (768, 384))
    assert large["learning_rate"] < small["learning_rate"] and large["bf16"] and "bf16" not in small
    assert "bf16" not in recipe("robust", "tf/0", hidden_size=384, gpu=True, fast_cpu=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("robost", "tf/0"), "did you mean robust"),
        (("mine", "tf/0"), "choose one of robust, published"),
        (("robust", "tf/7"), "did you mean"),
        (("robust", "tf"), "tf is 5 datasets"),
        (("robust", "tf/0", "GENA-LM"), "no model family"),
        (("published", "EPI/K562"), "use the recipe robust"),
    ],
)
def test_unknown_names_are_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        recipe(*arguments)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("mini", "DNABERT-2"),
        ("zhihan1996/DNABERT-2-117M", "DNABERT-2"),
        ("runs/dnabert2-40", "DNABERT-2"),
        ("zhihan1996/DNA_bert_6", "DNABERT k-mer"),
        ("models/dnabert3", "DNABERT k-mer"),
        ("InstaDeepAI/nucleotide-transformer-v2-50m-multi-species", "Nucleotide Transformer"),
        ("kuleshov-group/caduceus-ps", "DNABERT-2"),
    ],
)
def test_the_family_is_told_by_the_name(model, family):
    assert family_of(model) == family
    assert recipe("published", "tf/0", model=model) == recipe("published", "tf/0", family)


def test_a_recipe_is_a_copy():
    recipe("published", "tf/0", "Nucleotide Transformer")["lora_target_modules"].append("wrong")
    recipe("robust", "tf/0", "Nucleotide Transformer")["lora_target_modules"].append("wrong")
    for name in recipe_names():
        assert "wrong" not in recipe(name, "tf/0", "Nucleotide Transformer")["lora_target_modules"]


def test_command(capsys):
    assert main(["published", "tf/0"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe("published", "tf/0")
    assert main(["published", "fungi"]) == 2
    assert capsys.readouterr().err.startswith("error: fungi/species_20")
