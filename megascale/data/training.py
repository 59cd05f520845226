"""Trains a byte-level BPE tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megascale.data.documents import Span, read_documents, whole
from megascale.data.prepare import OnProgress
from megascale.data.sources import find_files
from megascale.data.tokenizer import END_TEXT, tokenizers_library
from megascale.errors import DataError


def train_bpe(
    sources: Sequence[str],
    output: Path,
    vocab_size: int,
    *,
    globs: Sequence[str] = ("*",),
    text_key: str = "text",
    on_progress: OnProgress = lambda _done, _total: None,
) -> int:
    """Train on the files of `sources` and write a `tokenizer.json`; returns its number of ids.

    It has at most `vocab_size` ids, end-of-document included. The 256 bytes are always among them, so every
    text can be encoded and decodes unchanged.

    Raises:
        DataError: there is no text, the file cannot be written, or `tokenizers` is not installed.
    """
    library = tokenizers_library()
    files = find_files(sources, globs, leave_out=lambda path: path.absolute() == output.absolute())
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TEXT],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(_texts(files, text_key, on_progress), trainer=trainer)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f".{output.name}.partial")
        partial.write_text(model.to_str(pretty=True))
        partial.replace(output)
    except OSError as error:
        raise DataError(f"{output}: {error.strerror}; the tokenizer was not written") from error
    size: Any = model.get_vocab_size(with_added_tokens=True)
    return int(size)


def _texts(files: Sequence[Path], text_key: str, on_progress: OnProgress) -> Iterator[str]:
    """Texts of all documents that can be used, with bytes that are not UTF-8 replaced."""
    sizes = [path.stat().st_size for path in files]
    done, total, count = 0, sum(sizes), 0

    def on_read(read: int) -> None:
        nonlocal done
        done += read
        on_progress(done, total)

    for path, size in zip(files, sizes, strict=True):
        for document in read_documents(Span(path, 0, size), text_key, on_read):
            text = whole(document).decode(errors="replace")
            if text:
                count += 1
                yield text
    if count == 0:
        raise DataError(f"{len(files)} files hold no text to learn from")
