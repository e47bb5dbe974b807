"""A head that judges prefixes: how probably will a text that begins so have an attribute?

    log q(. | y_<t, y_t) = log softmax( W gelu( H norm(h) + E norm(e) + b ) + c )

h is the language model's last hidden state after y_<t, e the embedding of the token y_t that may
come next, so that many candidate tokens are judged without another pass of the model. Trained on
the model's own samples, labelled by what became of them, at every prefix
(`learn.recipes.prefix_classifier` does that), q tends to the probability that the label comes true
under the model. `decode.prefix_classifier` makes attributes of it.

Source: Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
(arXiv 2408.16241), and MAP's not dead yet (arXiv 2311.08817). The form of the head is ours.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu

from tokenry.core.checks import in_range


class PrefixClassifier(nn.Module):
    """Log-probabilities of `classes` for a text's state and a next token.

    Args:
        hidden_size: of the language model's states and token embeddings.
        embedding_size: of the language model's states and token embeddings.
        inner: width of the hidden layer.
    """

    def __init__(self, hidden_size: int, embedding_size: int, classes: int = 2, inner: int = 128):
        super().__init__()
        in_range("classes", classes, "[2, inf)", integer=True)
        in_range("inner", inner, "[1, inf)", integer=True)
        self.state = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, inner))
        self.token = nn.Sequential(
            nn.LayerNorm(embedding_size), nn.Linear(embedding_size, inner, bias=False)
        )
        self.output = nn.Linear(inner, classes)

    @property
    def classes(self) -> int:
        return self.output.out_features

    @classmethod
    def of(cls, model: Any, classes: int = 2, inner: int = 128) -> PrefixClassifier:
        """A classifier for any causal model of transformers; InputError below two classes."""
        config = model.config.get_text_config()
        embedding_size = model.get_input_embeddings().weight.shape[1]
        return cls(config.hidden_size, embedding_size, classes, inner)

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """hidden [..., D] and embedded [..., E], which may broadcast: [..., classes]."""
        weights = self.output.weight
        hidden, embedded = hidden.to(weights), embedded.to(weights)
        return self.output(gelu(self.state(hidden) + self.token(embedded))).log_softmax(-1)
