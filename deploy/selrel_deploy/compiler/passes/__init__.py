"""Passes over a graph of plain operations, one idea per file; ``compiler.pipelines`` says in which order."""
