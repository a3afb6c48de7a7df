"""The words of the demo's world: names of two words each, and what one can say of a person."""

import random

Pair = tuple[str, str]

FIRST_NAMES = (
    "Ada Ben Cleo Dan Ella Finn Gus Hana Ivo June Kai Lena Max Nora Otto Pia Rosa Sam Tess Uma Vera Will Yara Zoe"
)
LAST_NAMES = (
    "Reed Finch Moss Hart Lane Frost Bell Cole Drew Flint Gale Hale Knox Lark Marsh Nash Oaks Penn Quinn Rush Shaw "
    "Thorn Vale Webb"
)
PLACE_QUALITIES = (
    "Green North Old Red White Long Upper Lower Silver Golden Quiet Sunny Stone Windy Misty East West South Little "
    "Great"
)
PLACES = (
    "Harbour Mill Bridge Field Hill Gate Garden Market Corner Wood Bay Ford Street Square Tower Meadow Valley Cross "
    "Port Farm"
)
THING_QUALITIES = "red blue green black white golden silver yellow purple brown pink orange grey tiny heavy broken"
THINGS = "drum lamp book clock ladder basket kettle mirror chair violin map rope bell box flag key"

VOCABULARIES: dict[str, tuple[list[str], list[str]]] = {
    "person": (FIRST_NAMES.split(), LAST_NAMES.split()),
    "place": (PLACE_QUALITIES.split(), PLACES.split()),
    "thing": (THING_QUALITIES.split(), THINGS.split()),
}
"""Kind -> first and second words of its names. Every combination is a name."""

RELATIONS: dict[str, list[str]] = {
    "person": ["loves", "helps", "teaches", "calls", "fears", "visits", "thanks", "knows"],
    "place": ["lives in", "works in", "sings in", "sleeps in", "paints in", "swims in", "learns in", "rests in"],
    "thing": [
        "buys the", "mends the", "hides the", "cleans the", "draws the", "carries the", "needs the", "wants the",
    ],
}  # fmt: skip
"""Kind -> what stands between a person and a name of that kind."""


def is_held_out(first: int, second: int) -> bool:
    """Whether the name of these two words (by their positions) is kept for tests: one in five, of every word."""
    return (7 * first + 3 * second) % 5 == 0


def draw_names(rng: random.Random, kind: str, count: int, *, held_out: bool) -> list[str]:
    """`count` names of a kind that share no word, all held out or none."""
    firsts, seconds = VOCABULARIES[kind]
    names: list[str] = []
    used: set[Pair] = set()
    while len(names) < count:
        i, j = rng.randrange(len(firsts)), rng.randrange(len(seconds))
        fresh = all(firsts[i] != first and seconds[j] != second for first, second in used)
        if fresh and is_held_out(i, j) == held_out:
            used.add((firsts[i], seconds[j]))
            names.append(f"{firsts[i]} {seconds[j]}")
    return names


def all_words() -> list[str]:
    """Every word of the world, sorted."""
    words = {word for pair in VOCABULARIES.values() for words in pair for word in words}
    words |= {word for relations in RELATIONS.values() for relation in relations for word in relation.split()}
    return sorted(words)
