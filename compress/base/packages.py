"""Packages that are there only if the user installed them."""

from importlib.util import find_spec

from compress.base.errors import UsageError


def require_package(package: str, option: str, extra: str = "quant") -> None:
    """Make sure that a package of an extra of ours is there for `option`, as the user writes it.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec(package) is None:
        raise UsageError(f"{option} needs the package {package}: `pip install 'compress[{extra}]'`, or leave it out.")
