"""What a model type asks of the choice of layers itself; `fields.py` is the table of which type asks what."""

from collections.abc import Callable

from compress.prune.rules.rules import Fields, NotExpressible, Renumbering

LayerRule = Callable[[Fields, Renumbering], None]
"""What a model type asks of the choice of layers itself; raises `NotExpressible` when it is not met."""


def keeps_first(why: str, where: str | None = None) -> LayerRule:
    """Layer 0 is made differently and must stay; with `where`, in models whose config sets that field."""

    def rule(fields: Fields, cut: Renumbering) -> None:
        if cut.kept[0] != 0 and (where is None or fields.get(where)):
            raise NotExpressible(f"layer 0 must stay: {why}")

    return rule


def keeps_last(why: str) -> LayerRule:
    """The last layer is made differently and must stay."""

    def rule(fields: Fields, cut: Renumbering) -> None:
        if cut.kept[-1] != cut.num_layers - 1:
            raise NotExpressible(f"the last layer, {cut.num_layers - 1}, must stay: {why}")

    return rule


def last_is(kind: str, field: str = "layer_types") -> LayerRule:
    """The model makes its last layer one of this kind whatever the config says."""

    def rule(fields: Fields, cut: Renumbering) -> None:
        types = fields.get(field)
        if types and types[cut.kept[-1]] != kind:
            allowed = [i for i, other in enumerate(types) if other == kind]
            raise NotExpressible(
                f"the last kept layer must be of {kind}, and {cut.kept[-1]} is of {types[cut.kept[-1]]}; end with one "
                f"of {', '.join(map(str, allowed))}"
            )

    return rule


def keeps_all(kind: str, field: str, why: str) -> LayerRule:
    """No layer of this kind may go."""

    def rule(fields: Fields, cut: Renumbering) -> None:
        gone = [i for i, other in enumerate(fields[field]) if other == kind and i not in cut.kept]
        if gone:
            raise NotExpressible(f"the {kind} layers must stay ({', '.join(map(str, gone))} would go): {why}")

    return rule


def keeps_first_of(kind: str, field: str, why: str) -> LayerRule:
    """The first layer of this kind must stay if any does."""

    def rule(fields: Fields, cut: Renumbering) -> None:
        layers = [i for i, other in enumerate(fields[field]) if other == kind]
        if layers and layers[0] not in cut.kept:
            raise NotExpressible(f"layer {layers[0]}, the first {kind} one, must stay: {why}")

    return rule
