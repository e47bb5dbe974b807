import torch

from tokenry.text.tokenizers.bpe import BPE
from tokenry.text.transfer.subtoken_mean import SubtokenMean
from tokenry.text.vocabulary import token_bytes


def table_of(tokenizer):
    return torch.randn(len(tokenizer), 5, generator=torch.Generator().manual_seed(1))


def test_a_new_token_is_the_mean_of_the_old_tokens_that_spell_it():
    old = BPE(special=()).train(["ab ab cd cd"] * 3, 258)
    new = BPE(special=()).train(["abcd abcd"] * 3, 259)
    spelled = token_bytes(old)
    assert [piece for piece in spelled if len(piece) > 1] == [b"ab", b"cd"]
    table = table_of(old)
    found = SubtokenMean()(table, old, new)
    v = token_bytes(new).index(b"abcd")
    wanted = (table[spelled.index(b"ab")] + table[spelled.index(b"cd")]) / 2
    torch.testing.assert_close(found[v], wanted)


def test_a_special_token_that_the_old_vocabulary_lacks_is_the_mean_of_all():
    old = BPE(special=()).train(["ab ab"], 256)
    new = BPE(special=("<new>",)).train(["ab ab"], 257)
    table = table_of(old)
    torch.testing.assert_close(SubtokenMean()(table, old, new)[0], table.mean(0))


def test_half_a_character_is_spelled_by_single_bytes():
    old = BPE(special=()).train(["a"], 256)
    new = BPE(special=()).train(["東東 東東"] * 4, 257)  # merges two of the three bytes first
    piece = token_bytes(new)[-1]
    assert len(piece) == 2
    table, single = table_of(old), token_bytes(old)
    wanted = torch.stack([table[single.index(bytes([byte]))] for byte in piece]).mean(0)
    torch.testing.assert_close(SubtokenMean()(table, old, new)[-1], wanted)
