"""What came of links since somebody asked: for the progress that a user sees."""

from collections import Counter
from dataclasses import dataclass, field

from laionkit.ops.stored_image import Found
from laionkit.stages.fetch.job import FILES


@dataclass
class News:
    """Links finished since somebody asked: how many well, why the others were lost, and where."""

    ok: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    bytes_in: int = 0

    def take(self, found: Found, host: str) -> None:
        """Count a link."""
        self.bytes_in += found.bytes_in
        if found.reason is None:
            self.ok += 1
            return
        self.reasons[str(found.reason)] += 1
        if host != FILES:
            self.hosts[host] += 1
