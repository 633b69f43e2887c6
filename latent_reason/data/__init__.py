"""Training and test data; this package itself loads neither torch nor transformers."""

from latent_reason.data.jsonl import find_leaks, read_jsonl, write_jsonl
from latent_reason.data.tasks import TASKS, Example

__all__ = ["TASKS", "Example", "find_leaks", "read_jsonl", "write_jsonl"]
