"""A compiled graph in torch: operation by operation, or compiled to machine code."""
