"""Lists that a user gives as a file: keys, texts."""

import pyarrow as pa

from laionkit.core.errors import InputError
from laionkit.core.files import Folder


def read_lines(path: str) -> list[str]:
    """The lines of a text file that are not empty. Raises InputError where it is no text."""
    folder, _, name = path.rpartition("/")
    try:
        lines = Folder(folder or ".").read_bytes(name).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text with one entry a line") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"{path} is empty: give one entry a line")
    return found


def read_keys(path: str) -> pa.Table:
    """Keys of a file: parquet with a column `key`, or text with one key a line."""
    folder, _, name = path.rpartition("/")
    place = Folder(folder or ".")
    if path.endswith(".parquet"):
        table = place.read_table(name)
        if "key" not in table.column_names:
            raise InputError(f"{path} has no column key; it has {', '.join(table.column_names)}")
        return pa.table({"key": table.column("key").cast(pa.string())})
    return pa.table({"key": pa.array(read_lines(path), pa.string())})
