"""VCF for tests: records as text, files packed in every way, and the words of a command that scores them."""

import gzip
from pathlib import Path

import pysam

HEADER = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
CONTEXT = 25
PACKINGS = ("plain", "gzip", "bgzip")


def record(pos, ref: str, alt: str, chrom: str = "chr1", more=("100", "PASS", "AC=1")) -> str:
    return "\t".join([chrom, str(pos), ".", ref, alt, *more])


def write_vcf(path: Path, records: list[str], header=(HEADER,)) -> str:
    path.write_text("\n".join([*header, *records]) + "\n")
    return str(path)


def pack(path: Path, how: str, content: bytes) -> str:
    if how == "plain":
        path.write_bytes(content)
    elif how == "gzip":
        path.write_bytes(gzip.compress(content))
    else:
        with pysam.BGZFile(str(path), "wb") as handle:
            handle.write(content)
    return str(path)


def other(base: str, by: int = 1) -> str:
    """Another base."""
    return "ACGT"[("ACGT".index(base) + by) % 4]


def score_words(vcf, fasta, output, *more) -> list[str]:
    """Words of `dnabert2 score-variants`."""
    options = {"model": "mini", "vcf": vcf, "fasta": fasta, "output": output, "context": CONTEXT, "device": "cpu"}
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return ["score-variants", *given, *map(str, more)]
