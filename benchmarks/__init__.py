"""Every number beside a peer's."""
