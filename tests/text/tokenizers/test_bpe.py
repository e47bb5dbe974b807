import pytest

from tokenry.core.errors import InputError
from tokenry.text.tokenizers.bpe import BPE
from tokenry.text.vocabulary import token_bytes


def test_the_most_frequent_neighbours_inside_of_words_are_merged_in_order():
    # "ab" stands 4 times, "bc" 3, "xy" 2; "b " and " a" reach across words
    tokenizer = BPE(special=()).train(["ab abc abc abc xy xy"], 300)
    merged = token_bytes(tokenizer)[256:]
    assert merged[0] == b"ab"
    assert b"xy" in merged
    assert all(b" " not in piece[1:] for piece in merged)


def test_what_stands_side_by_side_once_is_not_merged():
    assert len(BPE(special=()).train(["ab"], 300)) == 256
    assert len(BPE(special=(), frequency=1).train(["ab"], 300)) == 257


def test_special_tokens_come_first_and_have_their_parts():
    tokenizer = BPE().train(["the cat"], 258)
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["<s>", "</s>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 1)
    assert BPE(special=()).train(["the cat"], 256).eos_token_id is None


def test_spaces_are_kept_as_they_are():
    tokenizer = BPE().train(["the cat"] * 3, 270)
    for text in (" the  cat .", "the cat , \n", "n't do n't"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="frequency"):
        BPE(frequency=0)
    with pytest.raises(InputError, match="size"):
        BPE().train(["a"], 257)
