"""The emoji world: a small text-to-image model that ships with the package, its concepts, its judge, its training."""

from pathlib import Path

from .concepts import BACKGROUNDS, NEIGHBOURS, STYLES, Concept, concepts, names, neighbours

MODEL_DIR = Path(__file__).parent / "model"

__all__ = ["BACKGROUNDS", "MODEL_DIR", "NEIGHBOURS", "STYLES", "Concept", "concepts", "names", "neighbours"]
