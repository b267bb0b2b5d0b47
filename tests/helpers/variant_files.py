"""VCF for tests: records as text, and files packed in every way."""

import gzip
from pathlib import Path

import pysam

HEADER = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
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
