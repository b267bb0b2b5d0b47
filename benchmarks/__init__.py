"""Speed and memory, side by side with other ways to compute the same; results/*.json hold what was measured."""
