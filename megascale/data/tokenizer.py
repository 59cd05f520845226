"""Tokenizers: bytes, or byte-pair encoding from a `tokenizer.json` of the `tokenizers` library.

Byte-level tokens: ids 0-255 are the bytes of the text, 256 ends a document.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from megascale.errors import DataError

NAME: Final = "byte"
END_OF_DOCUMENT: Final = 256
VOCAB_SIZE: Final = 257
TOKEN_DTYPE: Final = np.dtype("<u2")
END_TEXT: Final = "<|endofdocument|>"
"""End of document in the tokenizers that `megascale data train-tokenizer` makes."""
_END_TEXTS: Final = (END_TEXT, "<|endoftext|>", "<|end_of_text|>", "</s>", "[SEP]")


class Tokenizer(Protocol):
    """Encodes documents as token ids.

    Attributes:
        name: "byte", or the path of its file.
        digest: digest of its file; "" for bytes.
        streams: whether pieces of a document may be encoded one by one.
    """

    name: str
    digest: str
    vocab_size: int
    end_of_document: int
    dtype: np.dtype[np.integer]
    streams: bool

    def encode(self, text: bytes) -> NDArray[np.integer]:
        """Token ids (n,) without end-of-document.

        Raises:
            UnicodeDecodeError: the tokenizer needs text, and this is not UTF-8.
        """


class ByteTokenizer:
    """One token per byte."""

    name = NAME
    digest = ""
    vocab_size = VOCAB_SIZE
    end_of_document = END_OF_DOCUMENT
    dtype: np.dtype[np.integer] = TOKEN_DTYPE
    streams = True

    def encode(self, text: bytes) -> NDArray[np.integer]:
        return encode(text)


class BpeTokenizer:
    """Byte-pair encoding from a `tokenizer.json`."""

    streams = False

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            DataError: it is missing, damaged or without an end-of-document token, or `tokenizers` is missing.
        """
        raw, library = _read(path), tokenizers_library()
        try:
            self._model = library.Tokenizer.from_str(raw.decode())
        except Exception as error:  # the library raises nothing more specific
            raise DataError(f"{path}: is no tokenizer.json: {error}") from error
        self.name, self.digest = str(path), f"sha256:{hashlib.sha256(raw).hexdigest()}"
        self.vocab_size: int = self._model.get_vocab_size(with_added_tokens=True)
        ids = [self._model.token_to_id(text) for text in _END_TEXTS]
        ends = [token for token in ids if token is not None]
        if not ends:
            raise DataError(f"{path}: has no token that ends a document; one of {', '.join(_END_TEXTS)}")
        self.end_of_document: int = ends[0]
        # Megatron's rule: two bytes where they are enough
        self.dtype: np.dtype[np.integer] = np.dtype("<u2" if self.vocab_size < 65_500 else "<i4")

    def encode(self, text: bytes) -> NDArray[np.integer]:
        ids = self._model.encode(text.decode(), add_special_tokens=False).ids
        return np.asarray(ids, dtype=self.dtype)

    def decode(self, tokens: NDArray[np.integer]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._model.decode(tokens.tolist(), skip_special_tokens=True))


def open_tokenizer(name: str) -> Tokenizer:
    """Open the tokenizer "byte", or that of a `tokenizer.json`.

    Raises:
        DataError: the tokenizer cannot be read.
    """
    return ByteTokenizer() if name == NAME else BpeTokenizer(Path(name))


def encode(text: bytes) -> NDArray[np.uint16]:
    """Byte tokens (len(text),) of a piece of text, without end-of-document."""
    return np.frombuffer(text, dtype=np.uint8).astype(TOKEN_DTYPE)


def decode(tokens: NDArray[np.integer]) -> bytes:
    """The bytes of byte tokens, without end-of-document tokens.

    Raises:
        ValueError: an id is neither a byte nor end-of-document.
    """
    if tokens.size and (tokens.min() < 0 or tokens.max() >= VOCAB_SIZE):
        raise ValueError(f"token ids from {tokens.min()} to {tokens.max()}, expected 0 to {VOCAB_SIZE - 1}")
    text: bytes = tokens[tokens != END_OF_DOCUMENT].astype(np.uint8).tobytes()
    return text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        advice = 'give "byte", or make one with `megascale data train-tokenizer`'
        raise DataError(f"{path}: no tokenizer can be read ({error.strerror}); {advice}") from error


def tokenizers_library() -> Any:  # noqa: ANN401 - an optional module
    try:
        import tokenizers
    except ImportError as error:
        raise DataError(
            "a BPE tokenizer needs the `tokenizers` package: pip install 'megascale[data]'"
        ) from error
    return tokenizers
