"""Random ARC tasks for tests, and where the official ones are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latent_reason.data.arc_files import ArcPair, ArcTask

REPOSITORY = Path(__file__).parents[1]
FOLDER = next(
    (path for top in (REPOSITORY, REPOSITORY.parent) for path in top.glob("shared/data/arc")), None
)


def official(name: str) -> Path:
    assert FOLDER is not None
    return FOLDER / f"arc-agi_{name}_challenges.json.gz"


def random_grid(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 10, (height, width), dtype=np.uint8)


def make_task(name: str, num_train: int = 3, num_test: int = 1, seed: int = 0) -> ArcTask:
    generator = np.random.default_rng((seed, *name.encode()))

    def pair() -> ArcPair:
        height, width, high, wide = generator.integers(2, 12, 4)
        fresh = generator.integers(0, 2**31, 2)
        return ArcPair(random_grid(height, width, fresh[0]), random_grid(high, wide, fresh[1]))

    return ArcTask(
        name, tuple(pair() for _ in range(num_train)), tuple(pair() for _ in range(num_test))
    )
