import pytest

from tokenry.core.files import write_whole


def test_a_file_is_replaced_whole_and_a_failure_leaves_it_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "one")
    write_whole(path, "naïve 🙂")
    assert path.read_text(encoding="utf-8") == "naïve 🙂"
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half \ud800")
    assert path.read_text(encoding="utf-8") == "naïve 🙂"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
