"""What was done with one column of a table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ColumnReport:
    """What was done with one column.

    Args:
        column: name in the file.
        read_as: its kind or role.
        inputs: number of inputs that it becomes.
        missing: number of missing cells in all rows.
        note: how it is encoded, or why it is left out.
    """

    column: str
    read_as: str
    inputs: int
    missing: int
    note: str
