"""Byte-level tokens: ids 0-255 are the bytes of the text, 256 ends a document."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

NAME: Final = "byte"
END_OF_DOCUMENT: Final = 256
VOCAB_SIZE: Final = 257
TOKEN_DTYPE: Final = np.dtype("<u2")


def encode(text: bytes) -> NDArray[np.uint16]:
    """Token ids (len(text),) of a piece of text, without end-of-document."""
    return np.frombuffer(text, dtype=np.uint8).astype(TOKEN_DTYPE)


def decode(tokens: NDArray[np.integer]) -> bytes:
    """The bytes behind token ids; end-of-document tokens are left out.

    Raises:
        ValueError: an id that no byte or end-of-document has.
    """
    if tokens.size and (tokens.min() < 0 or tokens.max() >= VOCAB_SIZE):
        raise ValueError(f"token ids from {tokens.min()} to {tokens.max()}, expected 0 to {VOCAB_SIZE - 1}")
    text: bytes = tokens[tokens != END_OF_DOCUMENT].astype(np.uint8).tobytes()
    return text
