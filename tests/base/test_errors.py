"""Several faults are said at once, and a signal is none of them."""

import pytest

from compress.base.errors import CompressError, Faults, InputError, InterruptedRun, UsageError, reason_of


def refusal(error: CompressError) -> CompressError:
    raise error


def test_all_faults_are_in_one_error_of_the_kind_that_weighs_most() -> None:
    faults = Faults()
    faults.refuse()
    assert faults.of(lambda: 3) == 3
    assert faults.of(lambda: refusal(InputError("no text"))) is None
    with pytest.raises(InputError, match=r"^no text$"):
        faults.refuse()
    for message in ("no task", "no text"):
        faults.of(lambda message=message: refusal(UsageError(message)))  # type: ignore[misc]
    with pytest.raises(UsageError) as caught:
        faults.refuse()
    assert str(caught.value).splitlines() == ["no text", "no task"]


def test_a_stop_is_no_fault() -> None:
    with pytest.raises(InterruptedRun):
        Faults().of(lambda: refusal(InterruptedRun("stopped")))


def test_a_quoted_reason_is_whole_sentences_or_whole_words() -> None:
    assert reason_of(ValueError("no\n  such file.")) == "no such file"
    assert reason_of("One is first. Two is second. Three", 20) == "One is first"
    assert reason_of("alpha beta gamma delta", 13) == "alpha beta ..."
    assert reason_of("x" * 30, 30) == "x" * 30
