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
    "test": {"matthews_correlation": 0.51234, "f1": 0.75, "accuracy": 0.76},
    "train_seconds": 61.4,
    "parameters": 1234567,
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
    assert "| 1,234,567 | 61 | 0.512 | 0.750 | 0.760 |" in lines
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
