import pytest

from tokenry.core.errors import InputError
from tokenry.core.files import decoded, write_whole


def test_a_file_is_replaced_whole_and_a_failure_leaves_it_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "one")
    write_whole(path, "naïve 🙂")
    assert path.read_text(encoding="utf-8") == "naïve 🙂"
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half \ud800")
    assert path.read_text(encoding="utf-8") == "naïve 🙂"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_how_bytes_are_read(encoding):
    assert decoded("the cät\r\n".encode(encoding), "x") == "the cät\r\n"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"ab\xff", "x is not UTF-8 text: invalid start byte at byte 2"),
        (b"ab\xff\x00", "x is not text: byte 3 is 0"),
        (b"\xff\xfea", "x is not UTF-16 text: truncated data at byte 2"),
        ("ab".encode("utf-16-le"), "byte 1 is 0; if it is UTF-16, save it as UTF-8"),
    ],
)
def test_bytes_that_are_no_text_are_refused_with_their_place(data, says):
    with pytest.raises(InputError, match=says):
        decoded(data, "x")
