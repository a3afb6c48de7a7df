"""Models made ready for use: exported in other formats, and several merged into one.

Only configs are imported at once: options are read, and explained, without torch and transformers.
"""

from typing import TYPE_CHECKING, Any

from compress.ship.exporting.config import ExportConfig
from compress.ship.merging.config import MergeConfig, Merging

if TYPE_CHECKING:
    from compress.ship.exporting.preflight import check_export, check_formats
    from compress.ship.exporting.push import check_push, push
    from compress.ship.exporting.record import ExportResult
    from compress.ship.exporting.step import export, export_family
    from compress.ship.merging.plan import plan_merge
    from compress.ship.merging.step import MergeResult, merge

__all__ = [
    "ExportConfig",
    "ExportResult",
    "MergeConfig",
    "MergeResult",
    "Merging",
    "check_export",
    "check_formats",
    "check_push",
    "export",
    "export_family",
    "merge",
    "plan_merge",
    "push",
]

_HOMES = {
    "ExportResult": "exporting.record",
    "MergeResult": "merging.step",
    "check_export": "exporting.preflight",
    "check_formats": "exporting.preflight",
    "check_push": "exporting.push",
    "export": "exporting.step",
    "export_family": "exporting.step",
    "merge": "merging.step",
    "plan_merge": "merging.plan",
    "push": "exporting.push",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
