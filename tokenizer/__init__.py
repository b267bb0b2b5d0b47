"""DNA text to token ids: the text policy, tokenizer training, and the tokenizer of our own checkpoints."""
