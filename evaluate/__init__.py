"""Step 3: a checkpoint in, scores out."""

from typing import TYPE_CHECKING, Any

if __name__ == "evaluate":
    # The repository root is on sys.path (`python -m`, `torchrun`, pytest) and someone, lm-eval for one, asked for
    # Hugging Face's package of this name. This folder is `compress.evaluate` and nothing else: step aside.
    import importlib.util
    import sys
    from importlib.machinery import PathFinder
    from pathlib import Path

    _here = Path(__file__).resolve().parent
    _spec = PathFinder.find_spec("evaluate", [p for p in sys.path if Path(p, "evaluate").resolve() != _here])
    if _spec is None or _spec.loader is None:
        raise ModuleNotFoundError("No module named 'evaluate'", name="evaluate")
    sys.modules["evaluate"] = _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
else:
    import importlib

    from compress.evaluate.config import DuringConfig as DuringConfig
    from compress.evaluate.config import EvalConfig as EvalConfig

    if TYPE_CHECKING:
        from compress.evaluate.ability import AbilityTest as AbilityTest
        from compress.evaluate.evaluation import evaluate_model as evaluate_model
        from compress.evaluate.evaluation import evaluation_outputs as evaluation_outputs
        from compress.evaluate.inputs import evaluation_inputs as evaluation_inputs
        from compress.evaluate.speed import compare_speed as compare_speed
        from compress.evaluate.speed import speed_of_shapes as speed_of_shapes

    __all__ = [
        "AbilityTest",
        "DuringConfig",
        "EvalConfig",
        "compare_speed",
        "evaluate_model",
        "evaluation_inputs",
        "evaluation_outputs",
        "speed_of_shapes",
    ]

    _PLACES = {
        "AbilityTest": "ability",
        "compare_speed": "speed",
        "evaluate_model": "evaluation",
        "evaluation_inputs": "inputs",
        "evaluation_outputs": "evaluation",
        "speed_of_shapes": "speed",
    }

    def __getattr__(name: str) -> Any:
        if name in _PLACES:
            return getattr(importlib.import_module(f"compress.evaluate.{_PLACES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
