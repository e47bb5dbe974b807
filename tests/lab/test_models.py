import torch

from tokenry.lab.models import language_model, next_token_logprob


def test_next_token_distributions_are_those_behind_each_text():
    loaded = language_model("smoke")
    texts = ("The old man and the", "Water")
    logprob = next_token_logprob(loaded, texts)
    assert logprob.dtype == torch.float64
    torch.testing.assert_close(logprob.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    ids = torch.tensor([loaded.tokenizer(texts[0])["input_ids"]])
    with torch.no_grad():
        expected = loaded.model(ids).logits[0, -1].double().log_softmax(-1)
    torch.testing.assert_close(logprob[0], expected)
