"""Random video networks, and a slow definition of seven methods that the product is held against."""
