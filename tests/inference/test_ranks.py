"""What a process makes of its launcher's environment."""

import pytest
import torch

from dnabert2.cli import main
from dnabert2.errors import UserError
from dnabert2.inference.ranks import Ranks


def test_one_process_unless_a_launcher_says_otherwise(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    alone = Ranks.from_environment()
    assert alone == Ranks(0, 1, 0) and alone.is_first
    alone.join()
    alone.wait_for_all()  # for none
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == Ranks(5, 8, 1) and not Ranks.from_environment().is_first


def test_every_process_has_its_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Ranks(3, 4, 3).device("auto") == "cpu" and Ranks().device("cpu") == "cpu"
    with pytest.raises(UserError, match="--device cuda: there is no GPU that this torch can use"):
        Ranks().device("cuda")
    with pytest.raises(UserError, match="--device abacus: torch knows no such device"):
        Ranks().device("abacus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Ranks(rank, 4, rank).device("auto") for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert Ranks(1, 2, 1).device("cuda") == "cuda:1" and Ranks(1, 2, 1).device("cuda:0") == "cuda:0"
    with pytest.raises(UserError, match=r"--device cuda:2: there are only 2 GPUs, counted from 0"):
        Ranks().device("cuda:2")


def test_standard_input_cannot_be_shared(monkeypatch, tmp_path, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["embed", "--model", "mini", "--input", "-", "--output", str(tmp_path / "out.parquet")])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: --input -: several processes cannot share standard input; give files.",
        "(process 1 of 2)",
    ]
