"""Shards round-trip; any webdataset tar is read; a broken one yields its good samples."""

import contextlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laionkit.core.ahead import Behind
from laionkit.core.errors import InputError
from laionkit.core.files import Folder, HashingFile
from laionkit.core.shards import ShardWriter, sample_frames
from laionkit.core.tars import image_member, read_contents, read_member, split_member

SAMPLES = {f"{i:09d}": {"jpg": bytes([i]) * (i * 700), "txt": b"t"} for i in range(5)}


def write(folder, samples, name="00000.tar"):
    with folder.create(name) as file, ShardWriter(file) as writer:
        for key, members in samples.items():
            writer.add(key, members)
    return folder


def read(folder, name="00000.tar"):
    with folder.open(name) as file:
        contents = read_contents(file)
        samples = {
            key: {extension: read_member(file, member) for extension, member in members.items()}
            for key, members in contents.samples.items()
        }
        return samples, contents.damage


@given(st.dictionaries(st.integers(0, 999), st.binary(max_size=2000), max_size=8))
def test_samples_round_trip(tmp_path_factory, payloads):
    folder = Folder(tmp_path_factory.mktemp("shards"))
    samples = {f"{key:09d}": {"jpg": data, "json": b"{}"} for key, data in sorted(payloads.items())}
    assert read(write(folder, samples)) == (samples, "")


def test_equal_samples_give_equal_bytes(tmp_path):
    folder = write(write(Folder(tmp_path), SAMPLES, "a.tar"), SAMPLES, "b.tar")
    assert folder.read_bytes("a.tar") == folder.read_bytes("b.tar")


def test_keys_out_of_order_are_refused(tmp_path):
    with pytest.raises(InputError, match="key order"):
        write(Folder(tmp_path), dict(reversed(SAMPLES.items())))


def test_members_in_any_order_make_the_same_samples(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for extension in ("txt", "jpg"):
            for key in reversed(SAMPLES):
                info = tarfile.TarInfo(f"./{key}.{extension}")
                info.size = len(SAMPLES[key][extension])
                tar.addfile(info, io.BytesIO(SAMPLES[key][extension]))
    assert read(Folder(tmp_path)) == (SAMPLES, "")


@pytest.mark.parametrize("kept", [100, 1500, 3500, 6000])
def test_a_cut_tar_yields_what_is_whole_and_says_so(tmp_path, kept):
    folder = write(Folder(tmp_path), SAMPLES)
    (tmp_path / "00000.tar").write_bytes(folder.read_bytes("00000.tar")[:kept])
    samples, damage = read(folder)
    assert damage
    assert all(
        SAMPLES[key][extension] == data
        for key, members in samples.items()
        for extension, data in members.items()
    )
    assert len(samples) < len(SAMPLES)


def test_samples_across_a_break_are_named(tmp_path):
    folder = write(Folder(tmp_path), SAMPLES)
    (tmp_path / "00000.tar").write_bytes(folder.read_bytes("00000.tar")[:6000])
    with folder.open("00000.tar") as file:
        contents = read_contents(file)
    assert not set(contents.cut) & set(contents.samples)
    assert [*contents.samples, *contents.cut] == list(SAMPLES)[: len(contents.samples) + 1]


def odd_tar(path, *members, format=tarfile.GNU_FORMAT):
    """A tar of (name, bytes), or of (name, type) for what has no bytes."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes) and len(what) > 1:
                info.size = len(what)
            else:
                info.type, info.linkname = what, "/etc/passwd"
            tar.addfile(info, io.BytesIO(what))


def contents_of(path):
    with path.open("rb") as file:
        return read_contents(file)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_sample_whose_member_has_no_bytes_of_its_own_is_there_without_it(kind, tmp_path):
    odd_tar(tmp_path / "a.tar", ("a.jpg", b"jpeg"), ("b.jpg", kind), ("c", tarfile.DIRTYPE))
    contents = contents_of(tmp_path / "a.tar")
    assert {key: list(members) for key, members in contents.samples.items()} == {
        "a": ["jpg"],
        "b": [],
    }
    assert contents.damage == ""


def test_a_sparse_member_is_not_read_from_where_its_neighbours_lie(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    odd_tar(tmp_path / "a.tar", ("b.jpg", b"jpeg"))
    (tmp_path / "a.tar").write_bytes(info.tobuf() + (tmp_path / "a.tar").read_bytes())
    assert {k: list(m) for k, m in contents_of(tmp_path / "a.tar").samples.items()} == {
        "a": [],
        "b": ["jpg"],
    }


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_other_encodings_and_names_that_are_no_keys(format, tmp_path):
    names = ("b\udce9.jpg", "README", ".jpg", "x/._a.jpg", "../a.jpg", "n" * 200 + ".jpg")
    odd_tar(tmp_path / "a.tar", *((name, b"jpeg") for name in names), format=format)
    found = contents_of(tmp_path / "a.tar").samples
    assert list(found) == ["../a", "b\\xe9", "n" * 200]
    assert all(key.encode() for key in found)


def test_a_size_below_nothing_is_damage(tmp_path):
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    header[124:136] = b"-0000000777\0"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * ord(" "))
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(2048))
    contents = contents_of(tmp_path / "a.tar")
    assert (contents.samples, contents.cut) == ({}, ("a",))
    assert contents.damage


@pytest.mark.parametrize("more", [(), (("b" * 200 + ".jpg", b"jpeg"),)])
def test_a_member_that_comes_twice_is_told(more, tmp_path):
    odd_tar(tmp_path / "a.tar", ("a.jpg", b"one"), ("a.txt", b"one"), ("a.jpg", b"two"), *more)
    assert contents_of(tmp_path / "a.tar").repeated == "a.jpg"


def test_what_is_no_tar_yields_nothing_and_says_so(tmp_path):
    (tmp_path / "00000.tar").write_bytes(b"<html>not a tar</html>" * 100)
    samples, damage = read(Folder(tmp_path))
    assert samples == {}
    assert damage


def test_a_key_ends_at_the_base_names_first_dot():
    assert split_member("a.b/000.seg.PNG") == ("a.b/000", "seg.png")


def test_the_picture_of_a_sample_is_found_by_extension(tmp_path):
    folder = write(Folder(tmp_path), {"1": {"json": b"{}", "webp": b"x"}, "2": {"txt": b""}})
    with folder.open("00000.tar") as file:
        found = read_contents(file).samples
    assert image_member(found["1"])[0] == "webp"
    assert image_member(found["2"]) is None


def test_the_real_cc12m_shard_is_read_whole(real_data):
    folder = Folder(real_data / "images/cc12m-webdataset-shard")
    samples, damage = read(folder, "cc12m-train-0000.tar")
    assert damage == ""
    assert samples
    assert all("jpg" in members and "txt" in members for members in samples.values())


@pytest.mark.parametrize("name", ["00001", "k" * 90 + "é", "f" * 60 + "/" + "k" * 60])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 9000])
def test_tars_are_byte_for_byte_those_of_tarfile(tmp_path, name, size):
    samples = {name: {"jpg": bytes(size), "txt": b"a caption"}, name + "z": {"jpg": b"x" * 512}}
    with Folder(tmp_path).create("ours.tar") as file, ShardWriter(file) as writer:
        for key, members in samples.items():
            writer.add(key, members)
    with tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mode, info.mtime = len(data), 0o444, 0
                tar.addfile(info, io.BytesIO(data))
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


@pytest.mark.parametrize("longest", ["00009", "k" * 90 + "é", "f" * 60 + "/" + "k" * 60])
def test_a_tar_put_together_from_frames_is_that_of_samples_added(tmp_path, longest):
    images = {f"{n:05d}": bytes([n]) * (n * 300) for n in range(5)} | {longest: b"x" * 512}
    others = {"txt": [b"t" * n for n in range(6)], "json": [b"{}" * 300] * 6}
    samples = {
        key: {"jpg": image, **{name: column[i] for name, column in others.items()}}
        for i, (key, image) in enumerate(images.items())
    }
    write(Folder(tmp_path), samples, "added.tar")
    sizes = list(map(len, images.values()))
    frames = sample_frames(list(images), ["jpg"] * 6, sizes, others)
    with Folder(tmp_path).create("framed.tar") as file, ShardWriter(file) as writer:
        for (head, behind), image in zip(frames, images.values(), strict=True):
            whole = head + image + behind
            writer.room(len(whole))[:] = whole
    assert (tmp_path / "framed.tar").read_bytes() == (tmp_path / "added.tar").read_bytes()


def test_a_tar_written_behind_is_the_same_and_says_what_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("laionkit.core.shards._WRITE_BYTES", 4096)
    samples = {f"{n:05d}": {"jpg": bytes([n]) * (n * 700), "txt": b"x" * n} for n in range(12)}
    write(Folder(tmp_path), samples, "plain.tar")
    with contextlib.closing(Behind()) as behind:
        with Folder(tmp_path).create("behind.tar") as file, ShardWriter(file, behind=behind) as tar:
            for key, members in samples.items():
                tar.add(key, members)
        assert (tmp_path / "behind.tar").read_bytes() == (tmp_path / "plain.tar").read_bytes()

        monkeypatch.setattr(HashingFile, "write", lambda *_: 1 / 0)
        with (
            pytest.raises(ZeroDivisionError),
            Folder(tmp_path).create("never.tar") as file,
            ShardWriter(file, behind=behind) as tar,
        ):
            tar.add("00000", {"jpg": bytes(10_000)})
    assert not (tmp_path / "never.tar").exists()
