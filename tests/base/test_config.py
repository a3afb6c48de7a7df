"""Recipes: YAML 1.2 scalars, one paragraph per fault with its dotted path and line (fault test 17)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.base.config import build, config, to_dict
from compress.base.documents import parse_yaml
from compress.base.errors import UsageError
from compress.base.units import Count


@config
class Inner:
    lr: float = 3e-4
    tokens: Count = 1
    tags: tuple[str, ...] = ()
    flag: bool = False


@config
class Outer:
    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None


def read(text: str) -> Outer:
    return build(Outer, parse_yaml(text, "recipe.yaml"))


@pytest.mark.faults(17)
def test_scalars_follow_yaml_1_2() -> None:
    outer = read("name: no\ninner: {lr: 1e-4, tokens: 2.2B, tags: [on, 12:30:45, 2020-01-01], flag: true}\nmaybe: ~")
    assert outer == Outer(
        name="no",
        inner=Inner(lr=0.0001, tokens=2_200_000_000, tags=("on", "12:30:45", "2020-01-01"), flag=True),
    )


@pytest.mark.faults(17)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\ninner:\n  lr: true", "recipe.yaml, line 3: inner.lr = true"),
        ("name: x\ninner:\n  lr: fast", 'recipe.yaml, line 3: inner.lr = "fast"'),
        ("name: x\ninner:\n  lrr: 1", "did you mean 'inner.lr'?"),
        ("name: x\nmaybe:\n  tokns: 1", "did you mean 'maybe.tokens'?"),
        ("name: x\ninner:\n  tokens: 1.5", "inner.tokens = 1.5"),
        ("name: x\ninner:\n  tokens: lots", "'lots' is not a count"),
        ("name: x\ninner: 3", "recipe.yaml, line 2: inner = 3"),
        ("name: x\nname: y", "recipe.yaml, line 2: the key 'name' is written twice"),
        ("inner: {}", "'name' is required"),
        ("name: &a x\ninner: *a", "aliases"),
        ("name: [", "not valid YAML"),
        ("- a", "expected `key: value` lines"),
        ("", "is empty"),
        ("name: x\ninner: {? [a] : 1}", "a key must be plain text"),
        ("name: !!python/object:os.system x", "python/object"),
    ],
)
def test_faults_name_path_and_line(text: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert expected in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        read("inner: {lr: true, tokens: -1}")
    assert all(word in str(caught.value) for word in ("'name' is required", "inner.lr", "inner.tokens"))


def test_overrides_reach_and_create_sections() -> None:
    document = parse_yaml("name: x\ninner:\n", "recipe.yaml")
    document.override(["inner.lr=1e-3", "maybe.tokens=5k", "name=a=b"])
    outer = build(Outer, document)
    assert outer == Outer(name="a=b", inner=Inner(lr=0.001), maybe=Inner(tokens=5000))


@pytest.mark.parametrize("assignment", ["name", "=3", "name.x=3", "inner.lr=[", "inner.lr=*a"])
def test_bad_overrides_are_refused(assignment: str) -> None:
    with pytest.raises(UsageError):
        parse_yaml("name: x", "recipe.yaml").override([assignment])


@given(
    name=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20).filter(str.strip),
    lr=st.floats(allow_nan=False, allow_infinity=False),
    tokens=st.integers(min_value=0, max_value=2**62),
    tags=st.lists(st.sampled_from(["no", "1", "1e3", "null", "~", "a: b", "# c", "0o7", "é"]), max_size=4),
    flag=st.booleans(),
)
def test_dump_then_load_is_identity(name: str, lr: float, tokens: int, tags: list[str], flag: bool) -> None:
    import yaml

    outer = Outer(name=name, inner=Inner(lr=lr, tokens=tokens, tags=tuple(tags), flag=flag))
    from compress.base.config import dump_yaml

    assert read(dump_yaml(outer)) == outer
    assert yaml.safe_load(dump_yaml(outer)) is not None


@given(st.text(max_size=200))
def test_any_text_gives_a_document_or_a_usage_error(text: str) -> None:
    try:
        build(Outer, parse_yaml(text, "recipe.yaml"))
    except UsageError as error:
        assert str(error)


def test_to_dict_writes_out_defaults() -> None:
    assert to_dict(Outer(name="x"))["inner"] == {"lr": 3e-4, "tokens": 1, "tags": (), "flag": False}
