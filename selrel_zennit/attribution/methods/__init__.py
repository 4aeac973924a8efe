"""The methods, one file per family; ``attribution.table`` names them."""
