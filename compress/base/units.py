"""Numbers as people write them: `2.2B` tokens, `512k`, `1.5 GiB`, `3 min 20 s`."""

import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BEYOND = 2**63
_COUNT = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([kmbgt]?)", re.IGNORECASE)


def parse_count(text: str) -> int:
    """Read a whole number with an optional decimal suffix: `40M` is 40,000,000 and `1.5k` is 1,500.

    Raises:
        ValueError: the text is no number, is negative, or is not whole once the suffix is applied.
    """
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a count; write 5000, 512k, 40M or 2.2B")
    try:
        value = Decimal(match[1].replace("_", "")) * _SUFFIXES[match[2].lower()]
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a count") from error
    if value != value.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number")
    return _countable(int(value))


def _countable(value: int) -> int:
    if value >= _BEYOND:
        raise ValueError("nothing here counts so far: write less than 2^63")
    return value


def _count_or_number(value: object) -> object:
    if isinstance(value, str):
        return parse_count(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _countable(value) if isinstance(value, int) else value


Count = Annotated[int, BeforeValidator(_count_or_number), Field(ge=0)]
"""A whole number >= 0 in a config; YAML may write it as `2.2B`, `40M`, `512k` or plainly."""


def _every(value: object) -> object:
    """A number of steps as it is, a share of all steps as a fraction; all of them are no steps in between."""
    if isinstance(value, str):
        match = _PERCENT.fullmatch(value.strip())
        if match is None:
            return _every(parse_count(value))
        share = float(match[1]) / 100
        if not 0 <= share <= 1:
            raise ValueError(f"{value!r} is no share of the run; write 0% to 100%")
        return 0.0 if share == 1 else share  # what is due once, at the end, is due in no other place
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("write a number of steps, or a share of the run: 5%")
    if isinstance(value, float) and value == 1:
        raise ValueError("1.0 may mean two things; write 1 for every step, or 100% for once a run")
    if isinstance(value, float) and value > 1 and not value.is_integer():
        raise ValueError(f"{value} is no number of steps; write a whole number, or a share of the run: 5%")
    return 1 if value == 1 else float(value)  # as earlier versions wrote all but 1 down


_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")
Every = Annotated[int | float, BeforeValidator(_every), Field(ge=0)]
"""How often: a whole number of steps, or a share of all steps, `5%` or 0.05; 0, as `100%`, is once, at the end."""


def _every_or_auto(value: object) -> object:
    if value == "auto":
        return value
    every = _every(value)
    if isinstance(every, int | float) and every < 0:
        raise ValueError("write a number of steps from 0 on, a share of the run, or auto")
    return every


EveryOrAuto = Annotated[int | float | Literal["auto"], BeforeValidator(_every_or_auto)]
"""`Every`, or `auto`."""


def percent_as_share(value: object) -> object:
    """`75%` as 0.75; anything else as it is."""
    match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(match[1]) / 100 if match else value


def _count_or_share(value: object) -> object:
    value = percent_as_share(value)
    if isinstance(value, float) and 0 < value < 1:
        return value
    count = _count_or_number(value)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError("write a number from 1 on, or a share: 75% or 0.75")
    return count


CountOrShare = Annotated[int | float, BeforeValidator(_count_or_share)]
"""A whole number from 1 on, or a share of all between 0 and 1, which may be written as `75%`."""


_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Read a size with its unit: `5GB` is 5 * 10**9, `5GiB` 5 * 2**30, `200B` 200.

    Raises:
        ValueError: the text is no size, or not a whole number of bytes.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write 5GB, 500MB or 2GiB")
    power = "kmgt".index(match[2].lower()) + 1 if match[2] else 0
    value = Decimal(match[1]) * (1024 if match[3] else 1000) ** power
    if value != value.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(value)


ByteSize = Annotated[
    int, BeforeValidator(lambda value: parse_bytes(value) if isinstance(value, str) else value), Field(ge=1)
]
"""A number of bytes in a config; YAML may write it as `5GB` or `2GiB`."""


def format_count(value: float) -> str:
    """`749242368` -> `749M`; three significant digits and a decimal suffix."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}" if value % 1 else f"{int(value)}"


def format_bytes(value: float) -> str:
    """Bytes in binary units: `1610612736` -> `1.50 GiB`."""
    for suffix, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= size:
            return f"{value / size:.2f} {suffix}"
    return f"{int(value)} B"


def format_seconds(value: float) -> str:
    """A duration for people: `200` -> `3 min 20 s`."""
    seconds = round(value)
    if seconds < 60:
        return f"{value:.1f} s" if value < 10 else f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_about(value: float) -> str:
    """A duration as one would estimate it: `42 s`, `4 min`, `2 h 05 min`, `3 days`."""
    if value < 100:
        return f"{round(value)} s"
    minutes = round(value / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 72 else f"{round(value / 86400)} days"
