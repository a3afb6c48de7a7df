import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.base.units import format_bytes, format_count, format_seconds, parse_count


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2.2B", 2_200_000_000),
        ("40M", 40_000_000),
        ("512k", 512_000),
        ("524288", 524_288),
        ("1_000", 1000),
        ("4e3", 4000),
        ("400T", 400 * 10**12),
        (" 7 ", 7),
    ],
)
def test_counts_as_people_write_them(text: str, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["", "M", "-3", "1.5", "0.0001k", "1 2", "3x", "nan", "inf", "1e-3"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_count(text)


@given(st.integers(min_value=0, max_value=10**15))
def test_plain_digits_are_themselves(value: int) -> None:
    assert parse_count(str(value)) == value


@given(st.floats(min_value=1, max_value=1e14))
def test_format_count_keeps_three_digits(value: float) -> None:
    text = format_count(value)
    number = float(text.rstrip("kMBT")) * {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1)
    assert number == pytest.approx(value, rel=0.006)


def test_format_literals() -> None:
    assert [format_count(v) for v in (0, 749_242_368, 1_235_814_400, 999_999)] == ["0", "749M", "1.24B", "1M"]
    assert [format_bytes(v) for v in (5, 1536, 1_610_612_736)] == ["5 B", "1.50 KiB", "1.50 GiB"]
    assert [format_seconds(v) for v in (1.25, 59.6, 200, 7322)] == ["1.2 s", "1 min 00 s", "3 min 20 s", "2 h 02 min"]
