"""Labelled data sets: methods, selections and networks measured on them."""
