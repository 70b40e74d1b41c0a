import pytest

from ibreg.training.summary import summarize, write_summary


@pytest.fixture
def write():
    """Writes the summary of a run whose seeds gave these values."""

    def written(path, values, **options):
        results, paired = summarize(values)
        return write_summary(
            path, recipe="classification", data="digits", seeds=range(5), results=results, paired=paired,
            selected={"variational": {"beta": 1e-3}}, wall_s=1.5, **options,
        )  # fmt: skip

    return written
