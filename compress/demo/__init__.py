"""The embedded demo: a generated world of text, and the recipe that runs on it."""

from pathlib import Path

from compress.demo.config import WorldConfig
from compress.demo.world import write_world

DEMO = Path(__file__).parent
RECIPE = DEMO / "recipe.yaml"

__all__ = ["DEMO", "RECIPE", "WorldConfig", "write_world"]
