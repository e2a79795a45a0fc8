"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def embank_version() -> str:
    """Version of the distribution, such as "0.1.0"; "unknown" where sources are on the path without being installed."""
    try:
        return version("embank")
    except PackageNotFoundError:
        return "unknown"
