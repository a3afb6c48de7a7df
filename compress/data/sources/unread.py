"""The files beside the data that are not read: named and counted, so that nothing is left out in silence."""

from collections.abc import Mapping

from compress.base.progress import say_once

_NAMED = 5


class Unread:
    """Names of files that are not read, each with why it is not in a few words, or none where its ending says it."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def sentence(self, before: str = "") -> str:
        """`2 files are not read: README.md, dataset_info.json (metadata).` after `before`; empty where there are none.

        Those that could have been data come first.
        """
        if not self._files:
            return ""
        ordered = sorted(self._files.items(), key=lambda file: not file[1])
        named = [f"{name} ({why})" if why else name for name, why in ordered[:_NAMED]]
        more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
        count = "1 file is" if len(ordered) == 1 else f"{len(ordered)} files are"
        return f"{before}{count} not read: {', '.join(named)}{more}."

    def tell(self, source: str) -> None:
        """Say it to the user, once in a command, however often it looks at the `source`."""
        if sentence := self.sentence(f"{source}: "):
            say_once(sentence)
