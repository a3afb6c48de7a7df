"""What each command takes: one section of a recipe, or some."""

from compress.base.config import config
from compress.data import DataConfig
from compress.distill import CacheConfig, DistillConfig
from compress.evaluate import EvalConfig
from compress.generate import GenerateConfig
from compress.prune import GrowConfig, PruneConfig, TrimConfig
from compress.ship import ExportConfig


@config
class PruneOptions:
    """What `compress prune` takes: one section of a recipe, and three for `rank_after`."""

    prune: PruneConfig = PruneConfig()
    data: DataConfig | None = None
    """The text that candidate cuts are healed on."""
    distill: DistillConfig = DistillConfig()
    """How they are healed."""
    eval: EvalConfig = EvalConfig()
    """How they are scored, with `rank_tasks`."""


@config
class GrowOptions:
    """What `compress grow` takes: one section of a recipe."""

    grow: GrowConfig = GrowConfig()


@config
class TrimOptions:
    """What `compress trim` takes: one section of a recipe."""

    trim: TrimConfig = TrimConfig()


@config
class ExportOptions:
    """What `compress export` takes: one section of a recipe."""

    export: ExportConfig


@config
class DistillOptions:
    """What `compress distill` takes: two sections of a recipe."""

    data: DataConfig
    distill: DistillConfig = DistillConfig()


@config
class CacheOptions:
    """What `compress cache` takes."""

    cache: CacheConfig = CacheConfig()
    distill: DistillConfig = DistillConfig()
    """The trainings that will read it: precision, attention and document_mask say how the teacher is run."""


@config
class EvalOptions:
    """What `compress eval` takes: one section of a recipe."""

    eval: EvalConfig = EvalConfig()


@config
class GenerateOptions:
    """What `compress generate` takes."""

    generate: GenerateConfig = GenerateConfig()
