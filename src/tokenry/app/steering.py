"""From the options of `tokenry generate` to logits processors: which texts are likely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenry.app.choices import as_question
from tokenry.app.terminal import read_text
from tokenry.app.verb import require_use
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError

if TYPE_CHECKING:
    from tokenry.decode.constraints.base import Constraint


@dataclass(frozen=True)
class Control:
    """The processors, what is shown of a text, and what is of one that still goes on."""

    processors: list[Any] = field(default_factory=list)
    cut: Callable[[str], str] = str
    certain: Callable[[str], str] = str


@dataclass(frozen=True)
class Steering:
    """What was asked for, before a model is there.

    stop: strings that end the text. expected_length: at most, in tokens. style: a text whose
    n-grams are preferred. contrast: a prompt whose continuations are avoided. end_when_complete:
    whether a text ends as soon as it satisfies the constraint.
    """

    stop: tuple[str, ...] = ()
    expected_length: float | None = None
    style: str | None = None
    style_strength: float = 0.1
    contrast: str | None = None
    end_when_complete: bool = False

    @classmethod
    def read(
        cls,
        stop: list[str] | None,
        expected_length: float | None,
        style: Path | None,
        style_strength: float,
        contrast: str | None,
        end_when_complete: bool,
    ) -> Steering:
        """From the options, with the file that they name."""
        in_range("--expected-length", expected_length, "(0, inf)", optional=True)
        require_use("--style-strength", style is not None, "it is the strength of --style")
        in_range("--style-strength", style_strength, "[0, inf)")
        text = None if style is None else read_text(style)
        if text is not None and not text.strip():
            raise InputError(f"{style} is empty: a style needs a text")
        return cls(
            tuple(stop or ()), expected_length, text, style_strength, contrast, end_when_complete
        )

    def control(
        self, loaded: Any, prompt: Any, temperature: float, constraint: Constraint | None
    ) -> Control:
        """The processors for a prompt, in the order in which they are applied."""
        from tokenry.decode.steering.ending import Ending
        from tokenry.decode.generate import ends, prompt_ids

        model, tokenizer = loaded
        processors: list[Any] = []
        if self.contrast is not None:
            processors.append(contrast_with(loaded, self.contrast, prompt))
        if self.style is not None:
            from tokenry.decode.steering.ngram_style import NGramStyle
            from tokenry.text.ngrams import NGramModel

            paragraphs = [part for part in self.style.split("\n\n") if part.strip()]
            ids = [tokenizer(part)["input_ids"] for part in paragraphs]
            size = model.config.get_text_config().vocab_size
            processors.append(NGramStyle(NGramModel.fit(ids, size), self.style_strength))
        if self.expected_length is not None:
            from tokenry.decode.steering.stopping import StoppingControl

            # a chance h at every token gives (1 - h) / h tokens before the end
            processors.append(
                StoppingControl(
                    ends(*loaded),
                    floor=1.0 / (1.0 + self.expected_length),
                    sampling_temperature=temperature or 1.0,
                )
            )
        if self.end_when_complete:
            if constraint is None:
                raise InputError("--end-when-complete needs a constraint that can be complete")
            processors.append(Ending(constraint, prompt_ids(tokenizer, prompt)))
        if self.stop:
            from tokenry.decode.constraints.stop import Stop

            stop = Stop(self.stop, tokenizer, overshoot=True, eos=ends(*loaded))
            processors.append(Ending(stop, prompt_ids(tokenizer, prompt)))
            return Control(processors, stop.before, stop.certain)
        return Control(processors)


def contrast_with(loaded: Any, contrast: str, prompt: Any) -> Any:
    """Uncertainty-gated contrast with another prompt, asked in the same way."""
    from tokenry.decode.generate import prompt_ids
    from tokenry.decode.steering.selective_contrast import SelectiveContrastProcessor

    model, tokenizer = loaded
    other = as_question(contrast, chat=not isinstance(prompt, str))
    return SelectiveContrastProcessor(
        model,
        prompt_ids(tokenizer, other),
        prompt_length=len(prompt_ids(tokenizer, prompt)),
    )
