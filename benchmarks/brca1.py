"""Variant scores against an experiment: loss of function in BRCA1 by saturation genome editing (Findlay et al. 2018).

    dnabert2 bench brca1 --model mini --variants BRCA1_SGE_Findlay2018_hg19.tsv --fasta hg19.fa --output brca1.json
    dnabert2 bench brca1 --model mini --variants ... --fasta ... --scores llr --limit 200              # CPU-sized

AUROC of loss-of-function variants against functional ones (intermediate ones are left out), with 95 % intervals of a
bootstrap that draws positions, whose variants are not independent. Scores of the model are read as they are meant: the
less likely or the more different, the worse. Beside them what needs no model: GC content, CpG, transversion and
distance to the exon's edge, each read in the direction that suits it better, and regressions on them, cross-validated
over positions, which have seen labels and so have more to go by than any score of the model.
"""

import csv
import re
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..errors import UserError
from ..genome.records import BadRecord
from ..genome.reference import Reference
from ..genome.strands import COMPLEMENT
from ..genome.variants import Variant, checked
from ..inference.models import load_masked_lm
from ..inference.variant_scores import VariantScorer
from ..inference.variants import haplotypes_of
from ..provenance import provenance
from ..training.resampling import draw_weights, ranked_column
from . import output, tables
from .variants import check_device

COLUMNS = ("chrom", "pos_hg19", "ref", "alt", "transcript_variant", "consequence", "func_class")
LOST, FUNCTIONAL = "LOF", "FUNC"
# Which way a score points to loss of function.
HARMFUL = {"llr": -1, "pseudo_likelihood": -1, "embedding_l2": 1, "embedding_cosine": 1}
CHANGE = re.compile(r"c\.[*-]?\d+(?P<offset>[+-]\d+)?(?P<ref>[ACGT])>(?P<alt>[ACGT])")
TRANSITIONS = ("AG", "GA", "CT", "TC")
FOLDS = 5
LEAST = 10  # variants of either class that a kind of consequence needs to be scored
CHUNK = 128


def run(options):
    """Body of `dnabert2 bench brca1`."""
    output.check_output(options.output)
    if options.resamples < 1:
        raise UserError("--resamples must be at least 1.")
    device = check_device(options.device)
    rows = read_table(options.variants, options.limit)
    reference = Reference(options.fasta)
    variants = [_variant(row, reference, options.variants) for row in rows]
    loaded = load_masked_lm(options.model, device=str(device), dtype=options.dtype)
    scorer = VariantScorer(loaded, scores=tuple(dict.fromkeys(options.scores)))
    start, found = time.perf_counter(), {name: [] for name in scorer.columns}
    for first in range(0, len(variants), CHUNK):
        some = [haplotypes_of(variant, reference, options.context) for variant in variants[first : first + CHUNK]]
        for name, values in scorer.score(some).items():
            found[name].append(values)
    seconds = time.perf_counter() - start
    scores = {name: HARMFUL[name] * np.concatenate(values) for name, values in found.items()}
    result = measure(rows, variants, scores, baselines(rows, variants, reference, options.context), options.resamples)
    result |= {
        "model": options.model,
        "identity": scorer.identity,
        "context": options.context,
        "seconds": round(seconds, 1),
        "provenance": provenance(device.type),
    }
    output.save(result, options.output)
    print(tables.brca1(result))


def read_table(path: Path, limit: int | None = None) -> list[dict]:
    """
    The rows of the experiment's table that are of one of the two classes.

    Raises:
        UserError: if it cannot be read, lacks a column or a class.
    """
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle, delimiter="\t")
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: has no column {', '.join(missing)}; give the table of Findlay et al. 2018.")
            rows = [row for row in reader if row["func_class"] in (LOST, FUNCTIONAL)]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    rows = rows[:: max(1, len(rows) // limit)] if limit else rows
    if {row["func_class"] for row in rows} != {LOST, FUNCTIONAL}:
        raise UserError(f"{path}: needs variants of both classes, {LOST} and {FUNCTIONAL}.")
    return rows


def _variant(row: dict, reference: Reference, path: Path) -> Variant:
    where = f"{path} ({row['chrom']}:{row['pos_hg19']})"
    variant = checked(Variant(row["chrom"], int(row["pos_hg19"]), row["ref"], row["alt"], where, 0), reference)
    if isinstance(variant, BadRecord):
        raise UserError(variant.describe())
    return variant


def baselines(rows: list[dict], variants: list[Variant], reference: Reference, context: int) -> dict[str, np.ndarray]:
    """What needs no model, by name, (variants,) each."""
    found = {name: [] for name in ("GC content", "CpG", "transversion", "distance to the exon's edge")}
    edges = exon_edges(rows)
    for variant in variants:
        around = haplotypes_of(variant, reference, context)
        text = around.left + around.right
        found["GC content"].append(sum(base in "GC" for base in text) / len(text))
        is_cpg = (around.ref == "C" and around.right[:1] == "G") or (around.ref == "G" and around.left[-1:] == "C")
        found["CpG"].append(float(is_cpg))
        found["transversion"].append(float(around.ref + around.alt not in TRANSITIONS))
        found["distance to the exon's edge"].append(float(np.abs(edges - variant.pos).min()))
    return {name: np.array(values) for name, values in found.items()}


def exon_edges(rows: list[dict]) -> np.ndarray:
    """
    The first and the last base of exons, in the genome's coordinates, from names such as c.213-6T>G.

    A name with an offset says how far the variant lies from the nearest exon's last (+) or first (-) base.
    """
    edges = set()
    for row in rows:
        match = CHANGE.fullmatch(row["transcript_variant"])
        if match and match["offset"]:
            # The transcript is on the other strand if its alleles are not the genome's.
            direction = 1 if match["ref"] == row["ref"] else -1
            edges.add(int(row["pos_hg19"]) - direction * int(match["offset"]))
    if not edges:
        raise UserError("no variant of the table lies in an intron by its transcript_variant, so there are no edges.")
    return np.array(sorted(edges))


def measure(
    rows: list[dict],
    variants: list[Variant],
    scores: dict[str, np.ndarray],
    trivial: dict[str, np.ndarray],
    resamples: int,
) -> dict:
    """
    AUROC with intervals of everything.

    Args:
        scores: of the model, higher for worse.
        trivial: of `baselines`.
    """
    lost = np.array([row["func_class"] == LOST for row in rows])
    positions = np.unique([variant.pos for variant in variants], return_inverse=True)[1]
    weights = np.concatenate(list(draw_weights(positions.max() + 1, resamples, seed=0)))[:, positions]

    def auroc(values: np.ndarray, chosen: np.ndarray | None = None) -> dict:
        chosen = np.ones(len(lost), dtype=bool) if chosen is None else chosen
        ones = np.ones((1, chosen.sum()))
        value = float(ranked_column(ones, lost[chosen], values[chosen])[0][0])
        drawn = ranked_column(weights[:, chosen], lost[chosen], values[chosen])[0]
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        return {"auroc": value, "interval": [float(low), float(high)]}

    entries = [{"name": name, "kind": "model", **auroc(values)} for name, values in scores.items()]
    for name, values in trivial.items():
        best = max((auroc(sign * values) | {"direction": sign} for sign in (1, -1)), key=lambda x: x["auroc"])
        entries.append({"name": name, "kind": "trivial", **best})
    types = np.array([_type(variant) for variant in variants])
    one_hot = (types[:, None] == np.unique(types)).astype(float)
    features = np.column_stack([one_hot, *trivial.values()])
    regressions = {"substitution type": one_hot, "all of these": features}
    if "llr" in scores:
        regressions["all of these, and llr"] = np.column_stack([features, scores["llr"]])
    for name, table in regressions.items():
        entries.append({"name": name, "kind": "regression", **auroc(_cross_validated(table, lost, positions))})
    kinds = {}
    consequences = np.array([row["consequence"] for row in rows])
    for kind in sorted(set(consequences)):
        chosen = consequences == kind
        if min((lost & chosen).sum(), (~lost & chosen).sum()) >= LEAST:
            kinds[kind] = {name: auroc(values, chosen) for name, values in scores.items()}
            kinds[kind]["counts"] = [int((lost & chosen).sum()), int((~lost & chosen).sum())]
    counts = {"lost": int(lost.sum()), "functional": int((~lost).sum()), "positions": int(positions.max() + 1)}
    return {"counts": counts, "resamples": resamples, "entries": entries, "consequences": kinds}


def _type(variant: Variant) -> str:
    """One of the six substitutions, read on the strand whose reference base is a pyrimidine."""
    pair = variant.ref + variant.alt
    if variant.ref in "AG":
        pair = pair.translate(COMPLEMENT)
    return pair


def _cross_validated(table: np.ndarray, lost: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """What a logistic regression says of each variant that was trained on other positions."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = GroupKFold(FOLDS)
    return cross_val_predict(model, table, lost, groups=positions, cv=folds, method="predict_proba")[:, 1]
