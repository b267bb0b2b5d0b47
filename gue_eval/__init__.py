"""GUE, the benchmark of 28 sequence classification tasks: its tasks as data, what runs them, and what reports them."""
