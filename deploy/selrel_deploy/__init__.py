"""Explanations as static graphs, and the runtimes that run them. Public names load when they are first used."""

from selrel_kernels.lazy import lazy_names

__all__: list[str] = []

__getattr__, __dir__ = lazy_names(__name__, {}, globals())
