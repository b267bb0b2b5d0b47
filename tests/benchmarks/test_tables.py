"""README tables are what the result files say, and nothing else changes on the page."""

import json
from pathlib import Path

import pytest

from dnabert2.benchmarks import tables

PROVENANCE = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3.11.1", "torch": "2.13.0", "transformers": "5.0.0", "dnabert2": "0.1.0"},
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "device": {"type": "cpu", "name": "A CPU", "capability": "AVX2"},
    "threads": 2,
}
MEASURED = {
    "shape": "1x512",
    "variant": "sdpa:float32",
    "status": "measured",
    "reason": None,
    "tokens_per_second": {"p20": 1000.0, "p50": 1234.5, "p80": 1300.0},
    "ratio_to_published": 1.256,
    "peak_memory_bytes_above_weights": 3 * 2**20,
}
ENCODER = {
    "results": [
        MEASURED,
        MEASURED | {"shape": "1x8192", "ratio_to_published": None},
        MEASURED | {"variant": "sdpa:bfloat16", "status": "skipped", "reason": "no instructions"},
    ],
    "provenance": PROVENANCE,
}
DEMO = {
    "seeds": 2,
    "starts": [
        {
            "start": "mini",
            "parameters": 1234567,
            "train_seconds": 61.4,
            "test": {
                "matthews_correlation": {"mean": 0.51234, "standard_deviation": 0.0123},
                "f1": {"mean": 0.75, "standard_deviation": 0.01},
                "accuracy": {"mean": 0.76, "standard_deviation": None},
            },
        }
    ],
    "provenance": PROVENANCE,
}
PAGE = """# Title
<!-- begin table: encoder-cpu -->
<!-- end table: encoder-cpu -->
between
<!-- begin table: demo -->
old | demo
<!-- end table: demo -->
end
"""


GOAL = {
    "goal": "forward",
    "sense": "at least",
    "target": 380,
    "unit": "TFLOP/s",
    "measured": 412.34,
    "where": "2,048 tokens, equal",
    "status": "met",
}


def attention_row(variant, length, tflops, direction="forward", layout="equal"):
    is_measured = tflops is not None
    return {
        "variant": variant,
        "length": length,
        "direction": direction,
        "layout": layout,
        "status": "measured" if is_measured else "failed",
        "reason": None if is_measured else "out of memory",
        "tflops": {"p50": tflops} if is_measured else None,
    }


ATTENTION = {
    "benchmark": "attention",
    "layouts": ["equal", "mixed"],
    "directions": ["forward", "both"],
    "goals": [GOAL, GOAL | {"goal": "backward", "measured": None, "where": None, "status": "not measured"}],
    "results": [
        attention_row("triton", 512, 300.04),
        attention_row("triton", 32768, 412.34),
        attention_row("published", 512, 40.0),
        attention_row("published", 32768, None),
        attention_row("triton", 512, 111.0, layout="mixed"),
        attention_row("triton", 512, 222.0, direction="both"),
        attention_row("flex_alibi", 512, None),
    ],
    "problems": [
        {"layout": "equal", "length": 512, "norms": {"computed_share": {"exact": [1.0, 0.5], "fp32": [0.5, 0.25]}}},
    ],
    "provenance": PROVENANCE,
}


@pytest.fixture
def page(tmp_path):
    """A README and a folder of results, as options."""
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "encoder-cpu.json").write_text(json.dumps(ENCODER))
    (tmp_path / "results" / "demo.json").write_text(json.dumps(DEMO))
    return tmp_path


def run(folder, *more):
    return tables.main(["--readme", str(folder / "README.md"), "--results", str(folder / "results"), *more])


def test_tables_are_written_and_the_rest_of_the_page_stays(page):
    assert run(page) == 0
    lines = (page / "README.md").read_text().splitlines()
    assert "| 1x512 | sdpa:float32 | 1,234 | 1.26 | 3 |" in lines
    assert "| 1x8192 | sdpa:float32 | 1,234 |  | 3 |" in lines
    assert "| mini | 1,234,567 | 61 | 0.512 ± 0.012 | 0.750 ± 0.010 | 0.760 |" in lines
    assert "old | demo" not in lines
    assert [line for line in lines if line in ("# Title", "between", "end")] == ["# Title", "between", "end"]
    note = next(line for line in lines if "encoder-cpu.json" in line)
    for part in (
        "A CPU (AVX2)",
        "2 threads",
        "torch 2.13.0",
        "transformers 5.0.0",
        "commit 0123456789;",
        "2026-01-02",
    ):
        assert part in note
    assert note.endswith("Not measured: sdpa:bfloat16: no instructions.")
    assert sorted(path.name for path in page.iterdir()) == ["README.md", "results"]


def test_check_tells_and_changes_nothing(page, capsys):
    assert run(page, "--check") == 1
    assert (page / "README.md").read_text() == PAGE
    assert "encoder-cpu, demo" in capsys.readouterr().err
    assert run(page) == 0
    assert run(page, "--check") == 0
    before = (page / "README.md").read_text()
    assert run(page) == 0
    assert (page / "README.md").read_text() == before


def test_a_modified_tree_is_admitted(page):
    modified = DEMO | {"provenance": PROVENANCE | {"git": {"commit": "0123456789abcdef", "dirty": True}}}
    (page / "results" / "demo.json").write_text(json.dumps(modified))
    run(page)
    assert "commit 0123456789, modified" in (page / "README.md").read_text()


def test_without_its_file_a_table_stays_as_it_is(page):
    (page / "results" / "demo.json").unlink()
    assert run(page) == 0
    assert "old | demo" in (page / "README.md").read_text()
    (page / "results" / "encoder-cpu.json").unlink()
    (page / "README.md").write_text("no markers, no results")
    assert run(page, "--check") == 0


@pytest.mark.parametrize(
    "text",
    [
        "nothing here",
        "<!-- begin table: encoder-cpu -->",
        "<!-- end table: encoder-cpu -->\n<!-- begin table: encoder-cpu -->",
        PAGE + "<!-- begin table: encoder-cpu -->",
    ],
)
def test_missing_markers_are_named(page, capsys, text):
    (page / "README.md").write_text(text)
    assert run(page) == 2
    assert "<!-- begin table: encoder-cpu -->" in capsys.readouterr().err
    assert (page / "README.md").read_text() == text


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"results": [{}]}'])
def test_an_unusable_result_is_named(page, capsys, text):
    (page / "results" / "encoder-cpu.json").write_text(text)
    assert run(page) == 2
    assert "encoder-cpu.json" in capsys.readouterr().err
    assert (page / "README.md").read_text() == PAGE


def test_a_missing_page_is_named(page, capsys):
    (page / "README.md").unlink()
    assert run(page) == 2
    assert "README.md cannot be read" in capsys.readouterr().err


def test_the_readme_of_this_repository_is_up_to_date():
    if not (Path(tables.ROOT) / "README.md").is_file():
        pytest.skip("there is no README.md yet")
    assert tables.main(["--check"]) == 0


def test_attention_has_goals_and_a_table_a_direction(page, capsys):
    (page / "results" / "attention-h200.json").write_text(json.dumps(ATTENTION))
    assert run(page) == 2  # it has no place yet
    assert "<!-- begin table: attention-h200 -->" in capsys.readouterr().err
    with open(page / "README.md", "a") as handle:
        handle.write("<!-- begin table: attention-h200 -->\n<!-- end table: attention-h200 -->\n")
    assert run(page) == 0
    lines = (page / "README.md").read_text().splitlines()
    assert "| forward | at least 380 TFLOP/s | 412 | 2,048 tokens, equal | met |" in lines
    assert not any("not measured |" in line for line in lines)
    begin = lines.index("| forward, equal: TFLOP/s | 512 | 32,768 |")
    assert lines[begin + 2 : begin + 5] == ["| triton | 300 | 412 |", "| published | 40 |  |", ""]
    assert "| fp32 | 37.5 |" in lines
    assert not any("111" in line or "222" in line for line in lines)  # on the terminal only
    assert any("Not measured: published: out of memory; flex_alibi: out of memory." in line for line in lines)
    assert run(page, "--check") == 0
    shown = tables.report(ATTENTION)
    assert "| triton | 111 |" in shown and "| triton | 222 |" in shown and "flex_alibi: out of memory." in shown


def test_layers_of_a_checkpoint_are_one_number():
    """The same FLOPs at 100 and at 300 TFLOP/s take as long as both at 150."""
    rows = [attention_row("triton", 512, speed) | {"source": f"layer {i}"} for i, speed in enumerate((100.0, 300.0))]
    assert "| triton | 150 |" in tables.attention(ATTENTION | {"results": rows, "goals": []})
    rows[1] = attention_row("triton", 512, None)
    assert "triton" not in tables.attention(ATTENTION | {"results": rows, "goals": []})


def test_an_encoder_result_with_training_steps_says_so():
    rows = [MEASURED | {"direction": direction} for direction in ("forward", "training")]
    shown = tables.encoder(ENCODER | {"results": rows, "goals": [GOAL]})
    assert "| training | 1x512 | sdpa:float32 | 1,234 | 1.26 | 3 |" in shown and "| 412 |" in shown


def test_a_pretraining_run_stands_below_those_it_went_on_from():
    def run(steps, **more):
        scores = {"loss": 6.5, "accuracy": 0.02, "bits_per_base": 1.9}
        recipe = {"global_batch_size": 64, "max_length": 128}
        known = {"steps": steps, "recipe": recipe, "evaluation": scores, "parameters": 1000}
        return known | {"tokens_per_second_median": 8192.0} | more

    lines = tables.pretraining(run(300, before=run(200, before=run(100)))).strip().splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["100 x 64", "200 x 64", "300 x 64"]
    assert lines[2].split("|")[3:6] == [" 0.8M ", " 8,192 ", " 0.0 "]
