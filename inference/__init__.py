"""Answers from trained models: embeddings, predictions, variant effects."""
