"""The step of a run that keeps the teacher's signals on its text, and `compress cache`, which does the same alone."""

import functools
from pathlib import Path

from compress.base.currency import inputs_now
from compress.base.errors import Faults
from compress.base.outputs import check_outputs
from compress.base.progress import say
from compress.data import INDEX, TokenStore, facts_of_store
from compress.distill import CacheConfig
from compress.distill.preflight import check_caching
from compress.distill.teachers.cache import TeacherCache, cache_output
from compress.distill.teachers.caching import (
    cache_begun_otherwise,
    cache_inputs,
    cache_settings,
    make_cache,
    unfinished_cache,
)
from compress.model.facts import look_at_model
from compress.model.files import resolve_model
from compress.model.vocabulary import check_data, common_ids
from compress.run.finders import Folder, store_of
from compress.run.layout import Layout
from compress.run.options import CacheOptions
from compress.run.recipe import Recipe
from compress.run.steps import Step, unless_opened


def caching(recipe: Recipe, layout: Layout, teacher: Folder, after: frozenset[str]) -> Step:
    """The pass that keeps the teacher's signals on RUN/data."""
    config, trainings = recipe.teacher.cache, recipe.distill
    assert config is not None
    out = cache_folder(config, layout)
    settings = cache_settings(config, trainings)
    inputs = {name: functools.partial(_cache_input, name, teacher, layout) for name in ("teacher", "data")}

    def make() -> None:
        say(f"cache: {teacher()} -> {out}")
        make_cache(config, trainings, teacher=teacher(), data=layout.data, out=out)

    return Step(
        name="cache",
        group="cache",
        after=after,
        record=out / INDEX,
        kind=CacheConfig,
        settings=settings,
        inputs=inputs,
        outputs=(unfinished_cache(out), cache_output(out)),
        make=make,
        intact=unless_opened(TeacherCache.open, out),
        begun=lambda: cache_begun_otherwise(out, settings, inputs_now(inputs)),
    )


def _cache_input(name: str, teacher: Folder, layout: Layout) -> str:
    return cache_inputs(teacher(), store_of(layout))[name]


def cache_folder(config: CacheConfig, layout: Layout) -> Path:
    """Where a run's cache lies."""
    return layout.teacher_cache if config.folder is None else Path(config.folder)


def cache_teacher(options: CacheOptions, *, teacher: str, store: Path, out: Path) -> TeacherCache:
    """`compress cache`: the cache `out` of a teacher on a token store, once all that can be known of it is.

    Called again, it continues, or returns the finished one. Raises as `make_cache`.
    """
    faults = Faults()
    text = faults.of(lambda: TokenStore.open(store))
    check_outputs([unfinished_cache(out), cache_output(out)], faults)
    guide = look_at_model(teacher, faults)
    facts = None if text is None else facts_of_store(text)
    if not (out / INDEX).is_file():
        check_caching(options.cache, options.distill, teacher=guide, text=facts, out=out, faults=faults)
    if text is not None and guide is not None:
        faults.of(lambda: check_data(text, guide.side, common_ids(guide.side, None)))
    faults.refuse()
    return make_cache(options.cache, options.distill, teacher=resolve_model(teacher), data=store, out=out)
