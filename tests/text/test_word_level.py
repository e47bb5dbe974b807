from tokenry.text.word_level import word_tokenizer

WORDS = ["<end>", "a", "b", "[", "]"]


def test_every_word_is_the_token_of_its_number():
    tokenizer = word_tokenizer(WORDS, unknown="<end>", eos_token="<end>")
    assert tokenizer("b a c")["input_ids"] == [2, 1, 0]
    assert tokenizer.eos_token_id == 0
    assert tokenizer.decode([1, 2]) == "a b"


def test_punctuation_is_a_word_of_its_own_when_asked_for():
    parted = word_tokenizer(WORDS, unknown="<end>", punctuation=True)
    assert parted("[a]")["input_ids"] == [3, 1, 4]
    assert word_tokenizer(WORDS, unknown="<end>")("[a]")["input_ids"] == [0]
