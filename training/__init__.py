"""Fine-tuning, and what it needs to read tables and score predictions."""
