"""Genomes: the map between bases and tokens."""
