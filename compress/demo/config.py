"""The extent of the demo's world."""

from typing import Annotated

from pydantic import Field

from compress.base.config import config
from compress.base.units import Count


@config
class WorldConfig:
    """How much of the world to write. The same values give the same bytes."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every choice."""
    documents: Annotated[Count, Field(ge=1)] = 20000
    """Training documents."""
    tellings: Annotated[int, Field(ge=0)] = 2
    """How often a training document tells its facts again."""
    items: Annotated[Count, Field(ge=1)] = 300
    """Test items, of each of the two tasks."""
