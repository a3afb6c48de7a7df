"""What would refuse to trim a model, before a text is read or a weight copied."""

import functools
from pathlib import Path

from compress.base.errors import Faults, InputError, UsageError
from compress.base.outputs import check_outputs
from compress.data import INDEX, DataConfig
from compress.data.preflight import check_source
from compress.model.facts import ModelFacts, look_at_model
from compress.model.kinds import require_causal, require_text_alone
from compress.prune.trimming.choice import check_size
from compress.prune.trimming.config import TrimConfig
from compress.prune.trimming.plan import Vocabulary
from compress.prune.trimming.record import texts_of, trimmed_output


def check_trimming(model: str, out: Path, config: TrimConfig, faults: Faults) -> Vocabulary | None:
    """Find what would refuse to trim a model that is there, and return its vocabulary if it can be used."""
    check_outputs([trimmed_output(out)], faults)
    known = look_at_model(model, faults)
    if config.data is None:
        faults.found.append(
            UsageError(
                "Trimming needs text, which says what of the vocabulary is used: name it with --data SOURCE: "
                "hub:ORG/NAME[:CONFIG], a local file, folder or glob."
            )
        )
    return None if known is None else check_trim(config, known, None, faults)


def check_trim(
    config: TrimConfig, model: ModelFacts, run_text: DataConfig | None, faults: Faults, *, own_text: bool = False
) -> Vocabulary | None:
    """Find what would refuse to trim a model by a text, a run's (`run_text`) where the config names none.

    `own_text` says that the text is yet to be made.
    """
    faults.of(lambda: require_causal(model.config, model.name, "Trimming"))
    faults.of(lambda: require_text_alone(model.config, model.name, "Trimming"))
    for text in () if own_text else texts_of(config, run_text):
        faults.of(functools.partial(_check_text, text, model))
    found = faults.of(lambda: Vocabulary.of(model.name, model.side))
    if found is not None:
        faults.of(lambda: check_size(config, found.definition, found.always))
    return found


def _check_text(text: DataConfig, model: ModelFacts) -> None:
    """Refuse text that cannot be counted.

    Raises:
        InputError: it is a token store; and as `check_source`.
    """
    (name,) = text.datasets
    if (Path(name) / INDEX).is_file():
        raise InputError(
            f"{name} is a token store, whose ids are of the whole vocabulary: name the text it was made of."
        )
    check_source(text, model.tokenizer)
