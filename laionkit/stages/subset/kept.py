"""Questions to what was kept: kept.parquet as a view of an engine of its own."""

from laionkit.core.engine import Engine, sql_text
from laionkit.core.files import Folder
from laionkit.stages.subset.layout import KEPT_FILE

# It stands beside the dataset's own engine, and sorts on disk what is more.
MEMORY_MB = 256


class KeptRows(Engine):
    """A DuckDB connection with the view ``kept`` over a subset's kept.parquet."""

    def __init__(self, folder: Folder, *, timeout_s: float | None = None) -> None:
        """Open the kept.parquet of the subset in `folder`."""
        super().__init__(str(folder), MEMORY_MB, None, timeout_s)
        path = folder.at(KEPT_FILE)
        if not folder.is_local:
            self._con.register_filesystem(folder.fs)
            path = f"{folder.url.partition('://')[0]}://{path}"
        self.execute(f"CREATE VIEW kept AS FROM read_parquet({sql_text(path)})")
