"""Packages that are there only if the user installed them."""

from importlib.util import find_spec

from compress.base.errors import UsageError


def require_package(package: str, option: str) -> None:
    """Make sure that a package of the extra `quant` is there for `option`, as the user writes it.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec(package) is None:
        raise UsageError(f"{option} needs the package {package}: `pip install 'compress[quant]'`, or leave it out.")
