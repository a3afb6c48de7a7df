"""SPEC: which layers stay."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.base.errors import UsageError
from compress.prune import PruneConfig
from compress.prune.choose.spec import check_spec, evenly_spaced, format_layers, parse_spec

layer_counts = st.integers(1, 130)


@pytest.mark.parametrize(
    ("spec", "num_layers", "kept"),
    [
        ("alternate", 16, (1, 3, 5, 7, 9, 11, 13, 15)),
        ("alternate", 5, (0, 2, 4)),
        ("alternate", 1, (0,)),
        ("1::2", 6, (1, 3, 5)),
        (":-2", 4, (0, 1)),
        ("::", 3, (0, 1, 2)),
        ("-2:", 4, (2, 3)),
        ("0,2,5-9", 16, (0, 2, 5, 6, 7, 8, 9)),
        (" 0 , 2 ", 3, (0, 2)),
        ("uniform:2", 16, (0, 15)),
        ("uniform:4", 16, (0, 5, 10, 15)),
        ("uniform:3", 6, (0, 3, 5)),
        ("contiguous:5", 8, (0, 1, 2, 3, 7)),
        ("contiguous:1", 8, (7,)),
    ],
)
def test_literals(spec: str, num_layers: int, kept: tuple[int, ...]) -> None:
    assert parse_spec(spec, num_layers) == kept


@given(layer_counts)
def test_alternate_keeps_the_last_and_every_second(num_layers: int) -> None:
    kept = parse_spec("alternate", num_layers)
    assert kept[-1] == num_layers - 1
    assert {b - a for a, b in itertools.pairwise(kept)} <= {2}
    assert kept[0] in (0, 1)


@given(layer_counts, st.data())
def test_a_slice_is_pythons(num_layers: int, data: st.DataObject) -> None:
    bound = st.none() | st.integers(-num_layers, num_layers)
    start, stop, step = data.draw(bound), data.draw(bound), data.draw(st.none() | st.integers(1, num_layers))
    spec = ":".join("" if part is None else str(part) for part in (start, stop, step))
    expected = tuple(range(num_layers)[start:stop:step])
    if expected:
        assert parse_spec(spec, num_layers) == expected
    else:
        with pytest.raises(UsageError, match="drops every layer"):
            parse_spec(spec, num_layers)


@given(st.sets(st.integers(0, 129), min_size=1))
def test_a_list_survives_being_written_and_read(layers: set[int]) -> None:
    kept = tuple(sorted(layers))
    assert parse_spec(format_layers(kept), 130) == kept


@given(layer_counts, st.data())
def test_counted_forms_keep_exactly_n(num_layers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(min(2, num_layers), num_layers))
    uniform, contiguous = parse_spec(f"uniform:{count}", num_layers), parse_spec(f"contiguous:{count}", num_layers)
    assert len(set(uniform)) == len(set(contiguous)) == count
    assert uniform[0] == (0 if count > 1 else num_layers - 1)
    assert uniform[-1] == contiguous[-1] == num_layers - 1
    assert contiguous[:-1] == tuple(range(count - 1))
    for i, layer in enumerate(evenly_spaced(count, num_layers)):
        assert count == 1 or abs(layer - i * (num_layers - 1) / (count - 1)) <= 0.5


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "no choice of layers"),
        ("every", "no choice of layers"),
        ("1,", "no choice of layers"),
        ("-1", "no choice of layers"),
        ("uniform:", "no choice of layers"),
        ("0,8", "8 is out of range"),
        ("6-8", "6-8 is out of range"),
        ("9:", "9 is out of range"),
        (":-9", "-9 is out of range"),
        ("4:4", "drops every layer"),
        ("::0", "step must be at least 1"),
        ("::-1", "step must be at least 1"),
        ("1,1", "layer 1 is named twice"),
        ("0-3,2", "layer 2 is named twice"),
        ("3,1", "layer 1 comes after 3"),
        ("5-3", "runs backwards"),
        ("uniform:0", "N from 2 to 8"),
        ("uniform:1", "N from 2 to 8"),
        ("uniform:9", "N from 2 to 8"),
        ("contiguous:0", "N from 1 to 8"),
        ("contiguous:9", "N from 1 to 8"),
    ],
)
def test_refusals_name_the_spec_and_what_is_allowed(spec: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec(spec, 8)
    message = str(caught.value)
    assert says in message
    assert f"--keep {spec}:" in message
    assert "8 layers, 0 to 7" in message
    assert "uniform:N" in message


@given(st.text(max_size=12))
def test_any_text_is_layers_or_a_usage_error(text: str) -> None:
    try:
        kept = parse_spec(text, 12)
    except UsageError:
        return
    assert kept
    assert list(kept) == sorted(set(kept) & set(range(12)))


def test_a_recipe_refuses_a_malformed_spec_before_there_is_a_model() -> None:
    assert PruneConfig(keep="0,2,5-9").check
    check_spec("uniform:4")
    with pytest.raises(ValueError, match="no choice of layers"):
        PruneConfig(keep="some")
