"""`gue report` on small records whose means, ranks and wins are worked out by hand: all is shown, failures too."""

import json
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from dnabert2.gue_eval.aggregate import aggregate
from dnabert2.gue_eval.records import load_records, published_auroc, published_scores
from dnabert2.gue_eval.report import headline_table, main
from dnabert2.gue_eval.statistics import holm

PROVENANCE = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3.11.1", "torch": "2.13.0"},
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "device": {"type": "cpu", "name": "A CPU"},
}


def run(model, task, score, seed=42, **changes):
    metric = "f1" if task == "virus/covid" else "matthews_correlation"
    record = {
        "benchmark": "gue",
        "model": model,
        "task": task,
        "recipe": "robust",
        "seed": seed,
        "status": "finished",
        "error": None,
        "metric": metric,
        "test": {metric: score, "accuracy": 0.9},
        "test_without_train": None,
        "restarts": [],
        "parameters": 1234,
        "settings": {"learning_rate": 1e-4, "seed": seed},
        "data": {"sha256": {"train": "abc"}},
        "provenance": PROVENANCE,
    }
    return record | changes


def failed(model, task, error, **changes):
    return run(model, task, None, **({"status": "failed", "error": error, "test": None} | changes))


def probe(model, task, auroc):
    protocols = {
        name: {"auroc": {"mean": auroc - loss, "standard_deviation": 0.01, "seeds": [auroc]}}
        for name, loss in (("full", 0), ("10-shot", 0.1), ("1-shot", 0.2))
    }
    keys = {"benchmark": "gue-probe", "model": model, "task": task, "status": "finished", "error": None}
    return keys | {"protocols": protocols, "provenance": PROVENANCE}


def save(folder, *records):
    folder.mkdir(exist_ok=True)
    start = len(list(folder.glob("*.json")))
    for i, record in enumerate(records, start=start):
        (folder / f"{i:03d}.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def report(tmp_path):
    """Records -> the pages and numbers of their report."""

    def make(*records, arguments=()):
        folder, output = save(tmp_path / "records", *records), tmp_path / "report"
        words = ["--results", str(folder), "--output", str(output), "--resamples", "200", *arguments]
        assert main(words) == 0
        texts = [(output / f"report.{kind}").read_text() for kind in ("md", "html", "json")]
        assert (output / "report.png").read_bytes()[:4] == b"\x89PNG"
        assert sorted(x.name for x in output.iterdir()) == [f"report.{x}" for x in ("html", "json", "md", "png")]
        return texts[0], texts[1], json.loads(texts[2])

    return make


# Worked by hand, at two decimals: tf/0 is a tie, beta lacks tf/2, gamma has tf/0 and tf/1 alone.
BY_HAND = [
    *(run("alpha", "tf/0", 0.60, 42), run("alpha", "tf/0", 0.62, 43), run("beta", "tf/0", 0.610001)),
    *(run("gamma", "tf/0", 0.1), run("gamma", "tf/1", 0.9)),
    *(run("alpha", "tf/1", 0.5), run("beta", "tf/1", 0.7)),
    *(run("alpha", "tf/2", 0.4), run("alpha", "mouse/0", 0.3), run("beta", "mouse/0", 0.2)),
]


def test_means_wins_and_ranks_by_hand():
    numbers = aggregate(BY_HAND, paper=False)
    first = numbers["datasets"][0]
    assert first["dataset"] == "tf/0" and first["best"] == ["alpha", "beta"]
    score = first["scores"]["alpha"]
    assert (score["mean"], score["standard_deviation"]) == pytest.approx((61.0, 2**0.5))
    assert score["seeds"] == [42, 43] and first["scores"]["beta"]["standard_deviation"] is None
    # alpha: half of tf/0, all of tf/2 and mouse/0; beta: half of tf/0; gamma: tf/1.
    assert numbers["wins"] == {"alpha": 2.5, "beta": 0.5, "gamma": 1.0}
    all_three, two, one = numbers["leagues"]
    # Over tf/0 and tf/1, which all have: ranks 1.5, 1.5, 3 and 3, 2, 1.
    assert all_three["datasets"] == ["tf/0", "tf/1"]
    assert [(x["name"], x["rank"], x["wins"]) for x in all_three["models"]] == [
        ("beta", 1.75, 0.5),
        ("gamma", 2.0, 1),
        ("alpha", 2.25, 0.5),
    ]
    assert [x["mean"] for x in all_three["models"]] == pytest.approx([65.5, 50.0, 55.5])
    assert two["datasets"] == ["tf/0", "tf/1", "mouse/0"] and len(two["models"]) == 2
    assert [x["rank"] for x in two["models"]] == pytest.approx([1.5, 1.5])
    assert len(one["datasets"]) == 4 and one["critical_difference"] is None
    groups = {group["group"]: group for group in numbers["groups"]}
    human = groups["Transcription Factor Prediction (Human)"]
    assert human["means"]["alpha"] == {"mean": pytest.approx((61 + 50 + 40) / 3), "datasets": 3}
    assert human["best"] == ["alpha"]  # gamma's mean over two of the three is not in the contest
    assert numbers["incomplete"] == {"beta": ["tf/2"], "gamma": ["tf/2", "mouse/0"]}


def test_labels_say_the_recipe_where_the_name_is_not_enough(report):
    markdown, _, numbers = report(
        *(run("mini", "tf/0", 0.1), run("mini", "tf/0", 0.2, recipe="published"), run("DNABERT-2", "tf/0", 0.3)),
        *(run("cnn", "tf/0", 0.3), probe("DNABERT-2", "tf/0", 0.9)),
    )
    labels = [model["label"] for model in numbers["models"]]
    assert labels == ["mini (robust)", "mini (published)", "DNABERT-2 (robust)", "cnn"]
    assert numbers["datasets"][0]["paper"]["DNABERT-2"] == 71.99 and "DNABERT-2 (here), full" in markdown


def test_probes_alone_make_a_report(tmp_path):
    died = failed("mini", "tf/1", "no") | {"benchmark": "gue-probe"}
    folder = save(tmp_path / "records", probe("mini", "tf/0", 0.9), died)
    assert main(["--results", str(folder), "--output", str(tmp_path / "report")]) == 0
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "No run of GUE is among the records." in markdown and "| tf/0 | **0.9000 ± 0.0100** |" in markdown


def test_pages_show_scores_gaps_and_failures(report):
    error = "The loss was not finite at step 12: lower the learning rate."
    markdown, html, numbers = report(
        *BY_HAND,
        failed("beta", "tf/2", error),
        run("delta", "virus/covid", 0.5, restarts=[{"seed": 41, "reason": "the device went away"}]),
    )
    row = next(line for line in markdown.splitlines() if line.startswith("| tf/0 | MCC"))
    assert "| 61.00 ± 1.41 (2) | 61.00 (1) | 10.00 (1) |" in row and row.endswith("| **71.99** | 69.12 |")
    assert "| 50.00 (2 of 2)" not in markdown and "50.00 (2 of 3)" in markdown
    assert "| virus/covid | F1 |" in markdown
    for page in (markdown, html):
        assert error in page and "the device went away" in page
        assert "beta has no result on tf/2, virus/covid." in page
        assert "splice/reconstructed" in page.split("Without a result:")[1]
        assert "0123456789, modified" in page
    assert numbers["failures"][0]["error"] == error and numbers["baseline"] == "DNABERT-2"
    # Ours lie below the paper's best, so the best of a row is the paper's.
    assert numbers["datasets"][0]["best"] == ["DNABERT-2"]


def test_papers_means_and_tests_against_it():
    table = published_scores()
    assert len(table) == 10 and all(len(column) == 28 for column in table.values())
    ours = {
        task: (score + shift) / 100 for (task, score), shift in zip(table["DNABERT-2"].items(), range(28), strict=True)
    }
    numbers = aggregate([run("ours", task, score) for task, score in ours.items()], baseline="DNABERT-2")
    everything = numbers["groups"][-1]["means"]
    assert everything["DNABERT-2"]["mean"] == pytest.approx(66.80, abs=0.005)
    assert everything["DNABERT (3-mer)"]["mean"] == pytest.approx(61.62, abs=0.005)
    tests = numbers["against"]
    assert [x["other"] for x in tests] == ["DNABERT-2", *(name for name in table if name != "DNABERT-2")]
    assert (tests[0]["higher"], tests[0]["lower"], tests[0]["datasets"]) == (27, 0, 28)
    assert tests[0]["mean_difference"] == pytest.approx(13.5)
    differences = [100 * ours[task] - score for task, score in table["NT-2500M-multi"].items()]
    multi = next(x for x in tests if x["other"] == "NT-2500M-multi")
    assert multi["p"] == pytest.approx(stats.wilcoxon(differences).pvalue, rel=0.05)  # exact there
    assert [x["p_holm"] for x in tests] == holm([x["p"] for x in tests])


def test_pairs_are_tested_over_seeds_and_rows(tmp_path):
    labels = [0, 1] * 50
    worse = [1 - x if i < 20 else x for i, x in enumerate(labels)]
    records = save(
        tmp_path,
        *(run(model, "tf/0", score, seed) for model, score in (("a", 1.0), ("b", 0.6)) for seed in (1, 2)),
        *(run("a", "tf/1", score, seed) for seed, score in ((1, 0.5), (2, 0.52))),
        *(run("b", "tf/1", score, seed) for seed, score in ((1, 0.3), (2, 0.31))),
    )
    for i in range(4):
        table = {"label": labels, "prediction": labels if i < 2 else worse, "probability_0": [0.5] * 100}
        pq.write_table(pa.table(table), tmp_path / f"{i:03d}.predictions.parquet")
    (pair,) = aggregate(load_records([records]), paper=False, resamples=500)["pairs"]
    first, second = pair["by_dataset"]
    assert first["bootstrap"]["difference"] == pytest.approx(40) and first["bootstrap"]["seeds"] == [2, 2]
    assert first["bootstrap"]["low"] > 20 and first["bootstrap_p_holm"] == pytest.approx(2 / 501)
    assert first["welch_p"] is None  # neither model varies
    assert second["bootstrap"] is None and "no predictions" in second["no_bootstrap"]
    welch = stats.ttest_ind([50, 52], [30, 31], equal_var=False).pvalue
    assert second["welch_p_holm"] == pytest.approx(welch)
    assert pair["bootstrap"] == {"tests": 1, "higher": 1, "lower": 0}
    other = pa.table({"label": labels[::-1], "prediction": labels})
    pq.write_table(other, tmp_path / "003.predictions.parquet")
    (pair,) = aggregate(load_records([records]), paper=False, resamples=500)["pairs"]
    assert "other labels" in pair["by_dataset"][0]["no_bootstrap"]


def test_floors_that_win_are_told(report):
    markdown, _, numbers = report(
        *(run("mini", "tf/0", 0.65), run("cnn", "tf/0", 0.70), run("majority", "tf/0", 0.0)),
        *(run("mini", "tf/1", 0.80), run("cnn", "tf/1", 0.50)),
    )
    assert [model["label"] for model in numbers["models"]] == ["mini", "cnn", "majority"]
    first, second = numbers["floors"]["datasets"]
    assert first["floors"] == ["cnn"] and first["beaten"][0] == "mini" and "DNABERT-2" not in first["beaten"]
    assert second["beaten"] == [] and numbers["floors"]["lost"]["mini"] == {"datasets": 1, "of": 2}
    assert "above at least one of these models on 1 of 2 data sets, and above every one on none." in markdown
    alone = aggregate([run("mini", "tf/0", 0.65), run("cnn", "tf/0", 0.70)], paper=False)
    assert alone["floors"]["datasets"][0]["above_all"]


def test_leakage_settings_and_data_are_told(report):
    without = {"rows_removed": 1600, "matthews_correlation": 0.55}
    markdown, _, numbers = report(
        run("mini", "mouse/2", 0.60, 42, test_without_train=without, settings={"epochs": 3}),
        run("mini", "mouse/2", 0.62, 43, test_without_train=without, settings={"epochs": 4}),
        run("mini", "mouse/3", 0.62, data={"sha256": {"train": "one"}}, recipe="published"),
        run("cnn", "mouse/3", 0.62, data={"sha256": {"train": "two"}}),
    )
    assert "| mouse/2 | mini (robust) | 1,600 | 2 | 61.00 | 55.00 | -6.00 |" in markdown
    assert "| mini (robust) | epochs | 3: 1 data set; 4: 1 data set | **mouse/2** |" in markdown
    assert [x["dataset"] for x in numbers["data"]] == ["mouse/3"] and "Not all models read the same" in markdown


def test_probes_beside_published(report):
    markdown, _, numbers = report(run("mini", "tf/0", 0.5), probe("mini", "tf/0", 0.9), probe("mini", "tf/1", 0.7))
    published = published_auroc()
    assert numbers["probes"]["datasets"][0]["best"] == ["mini"]
    row = f"| tf/0 | **0.9000 ± 0.0100** | 0.8000 ± 0.0100 | 0.7000 ± 0.0100 | {published['DNABERT-2']['tf/0']:.4f} |"
    assert row in markdown and "| mean, n = 2 | 0.8000 | 0.7000 | 0.6000 |" in markdown


def test_html_is_escaped_balanced_and_alone(report):
    attack = "<script>alert('x')</script> | **x**"
    markdown, html, _ = report(run(attack, "tf/0", 0.5), failed("b", "tf/1", "a <b>\nsecond line"))
    assert "<script" not in html and "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in html
    assert "<script" not in markdown and "&lt;script>alert('x')&lt;/script> \\| \\*\\*x\\*\\*" in markdown
    assert "a &lt;b> second line |" in markdown

    class Balance(HTMLParser):
        open_tags, sources = [], []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img"):
                self.open_tags.append(tag)
            self.sources += [value for key, value in attributes if key in ("src", "href")]

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    parser = Balance()
    parser.feed(html)
    assert parser.open_tags == [] and "//" not in html.replace("base64,", "").split("<style>")[1].split("</style>")[0]
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in parser.sources)
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_models_and_baseline_are_chosen(report):
    markdown, _, numbers = report(*BY_HAND, arguments=["--models", "beta,alpha", "--baseline", "beta", "--no_paper"])
    assert [model["label"] for model in numbers["models"]] == ["beta", "alpha"]
    assert numbers["paper_models"] == [] and [x["other"] for x in numbers["against"]] == ["beta"]
    assert "gamma" not in markdown and "paper" not in markdown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{broken", "line 1: not JSON"),
        (json.dumps({"benchmark": "gue"}), "'model' is None"),
        (json.dumps(run("m", "tf/0", None)), "test / matthews_correlation is None"),
        (json.dumps(run("m", "tf/0", 0.1, seed="x")), "'seed' is 'x'"),
        (json.dumps(run("m", "tf/0", float("nan"))), "is nan"),
        (json.dumps(run("m", "tf/0", 0.1, status="done")), "'status' is 'done'"),
        (json.dumps(BY_HAND[0]), "the same run (alpha, tf/0, robust, 42)"),
        (json.dumps(probe("m", "tf/0", 0.5) | {"protocols": {"full": {}}}), "full / auroc / mean is None"),
    ],
)
def test_damaged_records_are_named(tmp_path, capsys, text, expected):
    folder = save(tmp_path / "records", *BY_HAND)
    (folder / "z.json").write_text(text)
    assert main(["--results", str(folder), "--output", str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    assert expected in error and "z.json" in error and error.count("\n") == 1
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--models", "nobody"], "No record is of model 'nobody'; there are alpha"),
        (["--baseline", "nobody"], "--baseline nobody is not among the models: alpha, beta"),
        (["--resamples", "1"], "at least 100"),
        (["--output", __file__], "test_report.py cannot be a folder: it is a file; name another."),
    ],
)
def test_unusable_options(tmp_path, capsys, arguments, expected):
    folder = save(tmp_path / "records", *BY_HAND)
    assert main(["--results", str(folder), "--output", str(tmp_path / "report"), *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_other_files_are_left_alone(tmp_path, capsys):
    folder = save(tmp_path / "records", {"benchmark": "demo"}, ["gue"])
    (folder / "checkpoint-8").mkdir()
    (folder / "checkpoint-8" / "trainer_state.json").write_text("{half")
    assert load_records([folder]) == []
    assert main(["--results", str(folder), "--output", str(tmp_path / "report")]) == 2
    assert "There is no GUE record in" in capsys.readouterr().err
    assert main(["--results", str(tmp_path / "none"), "--output", str(tmp_path / "report")]) == 2
    save(folder / "below", BY_HAND[0])
    assert [x["model"] for x in load_records([folder, folder / "below"])] == ["alpha"]


def test_headline_table_by_hand():
    records = [run("mini", "tf/0", 0.70), run("mini", "tf/0", 0.72, 43), run("mini", "tf/1", 0.80)]
    assert headline_table([*records, failed("cnn", "tf/1", "no")], ["mini"]).splitlines() == [
        "| test score x 100 | mini | DNABERT-2 (paper) | best of the paper |",
        "| --- | ---: | ---: | ---: |",
        "| tf/0 | 71.00 ± 1.41 | **71.99** | **71.99 (DNABERT-2)** |",
        "| tf/1 | **80.00** | 76.06 | 76.06 (DNABERT-2) |",
        "| mean, n = 2 | **75.50** | 74.03 | 74.03 |",
    ]
