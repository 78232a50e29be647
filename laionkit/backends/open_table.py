"""Open a source as a table, by its format."""

import pyarrow as pa

from laionkit.backends.csv_tables import CsvTable
from laionkit.backends.line_tables import LinesTable
from laionkit.backends.parquet_tables import ParquetTable
from laionkit.backends.picture_folders import PictureTable
from laionkit.backends.source_tables import SourceTable, unreadable
from laionkit.backends.sources import PictureFolder, Source


def open_table(file: Source) -> SourceTable:
    """Open a source. Raises InputError where it is not what its name says."""
    if isinstance(file, PictureFolder):
        return PictureTable(file)
    try:
        if file.format == "parquet":
            return ParquetTable(file)
        if file.format in ("csv", "tsv"):
            return CsvTable(file, "," if file.format == "csv" else "\t")
        return LinesTable(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
        raise unreadable(file, error) from error
