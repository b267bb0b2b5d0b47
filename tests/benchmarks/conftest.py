"""A corpus, for the benchmarks that read one."""

from corpora import corpus, genomes  # noqa: F401 (fixtures)
