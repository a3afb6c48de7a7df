"""The step of a run that trims its teacher's vocabulary to the run's text, before all that is made of the teacher."""

from compress.base.config import to_dict
from compress.base.progress import say
from compress.model.files import model_fingerprint
from compress.prune import TrimConfig, trim, trim_inputs
from compress.prune.trimming.record import RECORD, texts_of
from compress.run.finders import Folder
from compress.run.layout import Layout
from compress.run.recipe import Recipe
from compress.run.steps import Step, folder_step


def trimming(recipe: Recipe, layout: Layout, whole: Folder, after: frozenset[str]) -> Step:
    """The teacher with a trimmed vocabulary; `whole` finds the one that the recipe names."""
    config, out = recipe.trim, layout.trimmed
    assert config is not None

    def make() -> None:
        say(f"trim: {whole()} -> {out}")
        say(trim(whole(), out, config, recipe.data).describe())

    return folder_step(
        "trim",
        "a trimmed teacher",
        out / RECORD,
        make,
        kind=TrimConfig,
        settings=to_dict(config),
        inputs=trim_inputs(lambda: model_fingerprint(whole()), texts_of(config, recipe.data)),
        after=after,
    )
