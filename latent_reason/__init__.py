"""A latent scratchpad for Hugging Face language models: recursive reasoning over frozen states.

Start at `recursion.py` for the algorithm and at `LatentReasoner` for its use with a language
model. Names below are loaded when they are first used, so that the import stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "FrozenLLM": "llm",
    "HRMConfig": "config",
    "LatentReasoner": "latent_reasoner",
    "LatentReasonerConfig": "config",
    "PuzzleModel": "puzzles.model",
    "PuzzleModelConfig": "config",
    "Reasoner": "reasoner",
    "ReasonerConfig": "config",
    "TRMConfig": "config",
    "embedded_base": "loading",
    "load_puzzle_model": "puzzles.folder",
    "solve": "puzzles.solving",
    "solve_arc": "puzzles.arc_solving",
}
__all__ = sorted(_MODULES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module 'latent_reason' has no attribute {name!r}")
    return getattr(import_module(f"latent_reason.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
