"""What may be read as a file, and what as JSON."""

import json
import os
import socket

import pytest

from sinkjax.files import check_path, parse_json, read_file, replace_file, user_path

pytestmark = pytest.mark.quick


@pytest.fixture
def unread(tmp_path):
    """A pipe that nobody writes to, a socket and a device, by name."""
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    (tmp_path / "device").symlink_to("/dev/zero")
    yield tmp_path
    server.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pipe", "pipe or a device"),
        ("socket", "pipe or a device"),
        ("device", "pipe or a device"),
        ("a\0b", "NUL"),
        ("a\ud800b", "half a surrogate pair"),
    ],
)
def test_what_is_no_file_is_refused_before_it_is_opened(unread, name, reason):
    for read in (check_path, read_file):
        with pytest.raises(OSError, match=reason):
            read(unread / name)


@pytest.mark.parametrize("name", ["pipe", "socket", "device", "a\0b"])
def test_no_file_takes_the_place_of_what_is_none(unread, name):
    """As root, one would take that of /dev/null, for all programs."""
    before = sorted(path.name for path in unread.iterdir())
    with pytest.raises(OSError, match=r"pipe or a device|NUL"):
        replace_file(unread / name, b"content")
    assert sorted(path.name for path in unread.iterdir()) == before
    assert not any(path.is_file() for path in unread.iterdir())


def test_files_links_and_names_that_are_no_text_are_read(tmp_path):
    path = tmp_path / "a\udc80"
    path.write_bytes(b"content")
    (tmp_path / "link").symlink_to(path)
    assert read_file(path) == read_file(tmp_path / "link") == b"content"
    check_path(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing")


def test_a_file_of_very_many_bytes_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 10**11)  # of zeros, of which the disk keeps none
    with pytest.raises(OSError, match=r"it has 100,000,000,000 bytes, and at most 1,073,741,824"):
        read_file(tmp_path / "large")
    (tmp_path / "small").write_bytes(b"content")
    assert read_file(tmp_path / "small", 7) == b"content"
    with pytest.raises(OSError, match="at most 6 are read"):
        read_file(tmp_path / "small", 6)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5_000, "{", "", b"\xff"])
def test_what_is_no_sensible_json_is_a_value_error(text, strict):
    with pytest.raises(ValueError, match=r"nested too deeply|digits|Expecting|codec"):
        parse_json(text, strict=strict)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', "[NaN]", "[-Infinity]", "[1e999]"])
def test_strict_json_says_one_thing(text):
    parse_json(text)
    with pytest.raises(ValueError, match=r"there twice|not JSON compliant"):
        parse_json(text, strict=True)
    assert parse_json(json.dumps({"a": [1.5, None]}), strict=True) == {"a": [1.5, None]}


@pytest.mark.parametrize("name", ["~no-such-user-here/a", "~\0/a", "a"])
def test_the_home_of_nobody_is_left_as_it_is(name):
    assert str(user_path(name)) == name
