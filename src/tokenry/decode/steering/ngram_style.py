"""N-gram style: token statistics of a corpus, added to a frozen model's logits.

    z'_v = z_v + λ Σ_n w_n log p_n(v | h_n)        n over the orders whose context h_n was seen

so that p' ∝ p · Π_n p_n^(λ w_n), a product of experts. p_n is the smoothed n-gram estimate of
`tokenry.text.ngrams`. Its value at the tokens that never followed h_n is the same for all of them
and cancels in the softmax; it is left out, and their logits stay as they are. What remains,
λ w_n log((c + k) / k), grows as k falls: k is a second knob for the strength, so report it.

The useful range of λ is narrow. A little pulls the text towards the corpus; by λ = 0.8 the n-grams
have taken over and the text falls apart (`tokenry.measure.ngram_style` draws the curve).

Source: Limits of n-gram Style Control for LLMs via Logit-Space Injection (arXiv 2601.16224);
smoothing and weights are reconstructed.
"""

from typing import Any

from torch import Tensor
from transformers import LogitsProcessor

from tokenry.core.checks import in_range
from tokenry.core.errors import VocabularyError
from tokenry.decode.steering.base import Example, controller
from tokenry.text.ngrams import NOTHING, NGramModel


@controller("ngram-style", paper=167, examples=lambda: _examples())
class NGramStyle(LogitsProcessor):
    """Pulls generated text towards the n-grams of a corpus; for `logits_processor=[...]`.

        ngrams = NGramModel.fit([tokenizer(text)["input_ids"] for text in corpus], len(tokenizer))
        model.generate(**inputs, logits_processor=[NGramStyle(ngrams, 0.1)], do_sample=True)

    Args:
        strength: λ >= 0.
        renormalise: divide by the sum of the weights of the orders that match, so that contexts
            seen and unseen count alike (the paper drops the others' weight).
        pad_token_id: with it, padding at the left of a row is no context.
    """

    def __init__(
        self,
        ngrams: NGramModel,
        strength: float = 0.1,
        *,
        renormalise: bool = False,
        pad_token_id: int | None = None,
    ):
        in_range("strength", strength, "[0, inf)")
        in_range("pad_token_id", pad_token_id, "[0, inf)", integer=True, optional=True)
        self.ngrams, self.strength = ngrams, strength
        self.renormalise, self.pad_token_id = renormalise, pad_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits `[B, V]` after `input_ids` `[B, T]`."""
        missing = scores.shape[-1] - self.ngrams.vocab_size
        if missing < 0:
            raise VocabularyError(
                f"n-grams of {self.ngrams.vocab_size} tokens for a model with {scores.shape[-1]}"
            )
        if self.strength == 0:
            return scores
        if self.ngrams.device != scores.device:
            self.ngrams = self.ngrams.to(scores.device)
        contexts = input_ids.to(scores.device)
        if self.pad_token_id is not None:
            padding = (contexts == self.pad_token_id).cumprod(1).bool()
            contexts = contexts.masked_fill(padding, NOTHING)
        steered = scores.clone()
        boost = self.ngrams.boost(contexts, self.renormalise)  # [B, known]
        known = steered[:, : self.ngrams.vocab_size]  # a model pads its output beyond that
        known.copy_(known.float() + self.strength * boost)
        return steered


def _examples() -> list[Example]:
    texts = ["the cat sat on the mat", "there is a theory that they gather"]

    def styled(tokenizer: Any, strength: float) -> NGramStyle:
        ngrams = NGramModel.fit([tokenizer(text)["input_ids"] for text in texts], len(tokenizer))
        return NGramStyle(ngrams, strength, pad_token_id=tokenizer.pad_token_id)

    return [Example(lambda t, *_: styled(t, 0.4), lambda t, *_: styled(t, 0.0))]
