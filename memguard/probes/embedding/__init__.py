"""T3, embeddings: attributes read from frozen embeddings, members minus held-out patients, in probabilities."""

from __future__ import annotations

from memguard.probes.embedding.probe import EmbeddingProbe

__all__ = ["EmbeddingProbe"]
