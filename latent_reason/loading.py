"""Loading a base and its tokenizer from the Hub or a folder; which pairs do not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from latent_reason.errors import ConfigError, first_line

EMBEDDED = "embedded"
"""Name of the base shipped with this package, the same on every machine."""
WHERE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Options that say where files come from, for the tokenizer as for the weights."""


def embedded_base() -> str:
    """Return the folder of the small causal LM shipped with this package."""
    return str(Path(__file__).parent / "embedded")


def load_base(name: str, **kwargs: Any) -> tuple[Any, Tokenizer, str]:
    """Return a model, its tokenizer and the name to find them again, a folder as absolute path.

    Args:
        name: see `FrozenLLM.load`.
        kwargs: see `FrozenLLM.load`.

    Raises:
        ConfigError: if there is no such model, it is no causal LM, weights are missing or have
            other shapes, or an option is unknown or needs a library that is not installed.
    """
    default = "auto" if torch.cuda.is_available() else torch.float32
    kwargs.setdefault("dtype", kwargs.pop("torch_dtype", default))
    folder = os.path.abspath(os.path.expanduser(name))
    if name in (EMBEDDED, embedded_base()):
        name, source = EMBEDDED, embedded_base()
    elif os.path.isdir(folder):
        name = source = folder
    elif name.startswith((".", "/", "~")):
        raise ConfigError(f"base {name}: no such folder; give a folder or a Hub name")
    else:
        source = name
    where = {key: kwargs[key] for key in WHERE if key in kwargs}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)
        model, info = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, output_loading_info=True, **kwargs
        )
    except (ImportError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise ConfigError(
            f"base {name}: cannot be loaded as a causal language model ({first_line(error)}); "
            "give a Hub name or a folder with config.json, weights and tokenizer"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"base {name}: its weights lack {', '.join(missing[:3])} ({len(missing)} missing); "
            "give a causal language model with its output layer"
        )
    return model, tokenizer, name


def check_tokenizer(tokenizer: Tokenizer, rows: int, name: str) -> None:
    """Refuse a tokenizer that does not fit a base with so many rows in its embedding table.

    Special tokens without a row pass, since many bases have some that no text contains.

    Raises:
        ConfigError: it has no end-of-text token, or plain text or the end may get a token without
            a row.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"base {name}: its tokenizer has no end-of-text token (eos_token)")
    added = tokenizer.added_tokens_decoder
    special = {number for number, token in added.items() if token.special}
    special.discard(int(tokenizer.eos_token_id))
    beyond = {number for number in tokenizer.get_vocab().values() if number >= rows} - special
    if beyond:
        raise ConfigError(
            f"base {name}: its tokenizer has tokens up to {max(beyond)}, its embedding table "
            f"{rows} rows; give the tokenizer that the base was trained with"
        )
