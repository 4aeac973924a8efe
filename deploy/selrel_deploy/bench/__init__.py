"""What an explanation costs: rows that run in turn in one process, ratios, parity, and the verdict against a budget."""
