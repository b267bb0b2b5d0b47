"""Publishing: the flat folder that the Hugging Face Hub and `trust_remote_code=True` load from."""
