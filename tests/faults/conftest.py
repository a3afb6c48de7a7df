from pathlib import Path

import pytest
from commands import Commands, warm
from helpers import save_tiny_model
from run_world import SMALL_STEPS, write_recipe

from compress.data import DataConfig, prepare


@pytest.fixture(scope="session")
def commands() -> Commands:
    return warm()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 12 steps or so; see `run_world`."""
    return write_recipe(tmp_path_factory.mktemp("world"), documents=60)


@pytest.fixture(scope="session")
def finished(recipe: Path, commands: Commands) -> Path:
    """The run of that recipe to which nothing happened."""
    run = recipe.parent / "finished"
    done = commands.run(SMALL_STEPS, "run", str(recipe), "--out", str(run))
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def store(recipe: Path) -> Path:
    """The token store of the recipe's text."""
    out = recipe.parent / "store"
    prepare(
        DataConfig(dataset=str(recipe.parent / "text"), seq_len=32, heldout_sequences=4), recipe.parent / "teacher", out
    )
    return out


@pytest.fixture(scope="session")
def student(recipe: Path) -> Path:
    """A model to train: two layers, with dropout."""
    return save_tiny_model(recipe.parent / "student", seed=2, num_hidden_layers=2, attention_dropout=0.1)
