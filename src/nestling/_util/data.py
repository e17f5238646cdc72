"""Where the files of the package `nestling-data` are. Does not know what is in them."""

from pathlib import Path

from nestling._util.extras import need


def data_folder(name: str, *, wanted_for: str) -> Path:
    """A folder of nestling-data: `starter`, `calibration` or `sets`; UsageError when it is not installed."""
    package = need("nestling_data", wanted_for=wanted_for, extra="data")
    return Path(package.__path__[0]) / name
