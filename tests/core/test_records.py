"""What a record says of a shard to the stages after it."""

from laionkit.core.records import FileEntry, ShardRecord


def record(**hashes: str) -> ShardRecord:
    files = {role: FileEntry(path=role, size=1, sha256=sha) for role, sha in hashes.items()}
    return ShardRecord(shard="00000", fingerprint="f", files=files)


def test_content_follows_what_was_made_and_not_how_long_it_took():
    made = record(tar="a", table="b", stats="c")
    assert made.content() == record(tar="a", table="b", stats="later").content()
    assert made.content() != record(tar="other", table="b", stats="c").content()
    assert made.content() != record(tar="a", table="other", stats="c").content()
