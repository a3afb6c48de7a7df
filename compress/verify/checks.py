"""One check: a name, what came of it, and why."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from compress.base.currency import Missing
from compress.base.errors import CompressError, InputError

T = TypeVar("T")

_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Check:
    """What came of one check. `detail` says what holds, what is wrong, or why it could not be checked."""

    name: str
    status: Literal["ok", "FAILED", "not checked"]
    detail: str

    def describe(self) -> str:
        """The check on one line."""
        return f"{self.status:<11}  {self.name}: {' '.join(self.detail.split())}"

    def to_dict(self) -> dict[str, Any]:
        """The check as plain JSON data."""
        return dataclasses.asdict(self)


def perform(name: str, work: Callable[[], str]) -> Check:
    """The check whose `work` returns what holds, or raises what is wrong with it."""
    try:
        return Check(name, "ok", work())
    except Missing as reason:
        return Check(name, "not checked", str(reason))
    except CompressError as error:
        return Check(name, "FAILED", str(error))
    except OSError as error:
        return Check(name, "FAILED", f"{error.filename or 'a file'} cannot be read: {error.strerror or error}.")


def require(faults: list[str]) -> None:
    """Raise what is wrong, if anything is: the first few of `faults`."""
    if faults:
        more = f" (and {len(faults) - _NAMED} more)" if len(faults) > _NAMED else ""
        raise InputError("; ".join(faults[:_NAMED]) + more)


def typed(value: Any, kind: type[T], what: str) -> T:
    """`value`, which must be of a JSON type; `what` names it in the message.

    Raises:
        InputError: it is of another type.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{what} is {_short(value)}, not of the type {kind.__name__}.")
    return value


def _short(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
