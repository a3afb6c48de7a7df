"""One row of a data file."""

from typing import NamedTuple


class Row(NamedTuple):
    """One row of a data file: its text, or what is wrong with it."""

    number: int
    """0-based among the rows of a table or an array, or among the lines of a file."""
    text: str | None
    """A plain text, or a conversation as `compress.data.sources.instructions.conversation_or_fault` writes it."""
    fault: str | None = None
    progress: float = 0.0
    """Share of the file that has been read, 0 to 1."""


def decode(raw: bytes) -> tuple[str | None, str | None]:
    """Bytes as text, or what is wrong with them."""
    try:
        return raw.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start})"
