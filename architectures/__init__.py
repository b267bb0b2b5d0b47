"""Any model of the Hugging Face ecosystem that reads DNA: what it asks for, and how it is loaded."""
