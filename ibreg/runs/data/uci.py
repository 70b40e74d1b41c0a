"""Tables of the UCI repository: Bike Sharing, the PM2.5 concentration in Beijing, Appliances Energy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torchvision.datasets.utils import download_and_extract_archive

from ibreg.runs.data.regression_request import RegressionRequest
from ibreg.runs.data.regression_rows import RegressionData, table_data
from ibreg.runs.data.split import Fraction, missing_files


def bike_sharing(request: RegressionRequest, *, test: Fraction = 0.2) -> RegressionData:
    """Loads 17,379 hours of Bike Sharing; the target is the number of rentals, the inputs are calendar and weather.

    The counts of casual and registered users are left out, as they sum to the target. Season, month, hour, weekday and
    weather are one-hot.

    Args:
        request: options of all regression data sets.
        test: fraction of the rows that are test rows.
    """
    cells = _uci_table("bike_sharing", request)
    values = [
        *(_one_hot(cells[column]) for column in ("season", "mnth", "hr", "weekday", "weathersit")),
        _numbers(cells, ["yr", "holiday", "workingday", "temp", "atemp", "hum", "windspeed"]),
    ]
    targets = _numbers(cells, ["cnt"])[:, 0]
    return table_data("bike_sharing", "bicycles per hour", request, np.hstack(values), targets, test)


def beijing_pm25(request: RegressionRequest, *, test: Fraction = 0.2) -> RegressionData:
    """Loads 41,757 hours of the PM2.5 concentration in Beijing; the inputs are weather, hour and month.

    Hours without a measurement are dropped. Hour and month are encoded by sine and cosine, the wind direction is
    one-hot. Year and day are left out: together they identify the hour, whose neighbors are training rows in a random
    split.

    Args:
        request: options of all regression data sets.
        test: fraction of the rows that are test rows.
    """
    cells = _uci_table("beijing_pm25", request)
    measured = ~np.isin(cells["pm2.5"], ["", "NA"])
    cells = {column: entries[measured] for column, entries in cells.items()}
    values = [
        _cycle(_numbers(cells, ["hour"]), 24),
        _cycle(_numbers(cells, ["month"]), 12),
        _one_hot(cells["cbwd"]),
        _numbers(cells, ["DEWP", "TEMP", "PRES", "Iws", "Is", "Ir"]),
    ]
    targets = _numbers(cells, ["pm2.5"])[:, 0]
    return table_data("beijing_pm25", "PM2.5 (µg/m³)", request, np.hstack(values), targets, test)


def appliances_energy(
    request: RegressionRequest, *, random_columns: bool = True, test: Fraction = 0.2
) -> RegressionData:
    """Loads Appliances Energy: 19,735 intervals of ten minutes; the target is the energy that appliances used.

    The inputs are sensors, weather, time and weekday. The time of day is encoded by sine and cosine, the weekday is
    one-hot; the date is left out.

    Args:
        request: options of all regression data sets.
        random_columns: whether the columns rv1 and rv2 are kept, which hold the same noise, added by the authors.
        test: fraction of the rows that are test rows.
    """
    cells = _uci_table("appliances_energy", request)
    date = cells.pop("date").astype("datetime64[s]")
    day = date.astype("datetime64[D]")
    targets = _numbers(cells, ["Appliances"])[:, 0]
    left_out = {"Appliances"} | (set() if random_columns else {"rv1", "rv2"})
    values = [
        _cycle((date - day).astype(float)[:, None], 24 * 60 * 60),
        _one_hot(day.astype(int) % 7),
        _numbers(cells, [column for column in cells if column not in left_out]),
    ]
    return table_data("appliances_energy", "energy (Wh in 10 min)", request, np.hstack(values), targets, test)


_UCI_ARCHIVES = "https://archive.ics.uci.edu/static/public"
_UCI = {
    "bike_sharing": ("hour.csv", "275/bike+sharing+dataset.zip"),
    "beijing_pm25": ("PRSA_data_2010.1.1-2014.12.31.csv", "381/beijing+pm2+5+data.zip"),
    "appliances_energy": ("energydata_complete.csv", "374/appliances+energy+prediction.zip"),
}


def _uci_table(name: str, request: RegressionRequest) -> dict[str, np.ndarray]:
    """Reads a table of the UCI repository, its cells as strings."""
    file, archive = _UCI[name]
    folder = request.folder / "uci"
    if not (folder / file).is_file():
        if not request.download:
            raise missing_files(name, folder, file)
        download_and_extract_archive(f"{_UCI_ARCHIVES}/{archive}", str(folder), remove_finished=True)
    header, *rows = np.loadtxt(folder / file, delimiter=",", dtype=str, quotechar='"', comments=None)
    return dict(zip(header.tolist(), np.transpose(rows), strict=True))


def _numbers(cells: dict[str, np.ndarray], columns: Sequence[str]) -> np.ndarray:
    """Converts columns to numbers `(rows, columns)`."""
    return np.stack([cells[column].astype(float) for column in columns], axis=1)


def _one_hot(entries: np.ndarray) -> np.ndarray:
    """Encodes entries with one column per value: `(rows, values)`."""
    values, indices = np.unique(entries, return_inverse=True)
    return np.eye(len(values))[indices]


def _cycle(values: np.ndarray, period: float) -> np.ndarray:
    """Encodes values by sine and cosine, so that the last hour is next to the first: `(rows, 1)` -> `(rows, 2)`."""
    angle = 2 * np.pi * values / period
    return np.hstack([np.sin(angle), np.cos(angle)])
