"""How `tokenry generate` decodes: samplers, drafts, caches and critics, chosen by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from tokenry.app.choices import as_question, chosen, user_function
from tokenry.app.terminal import load
from tokenry.app.verb import require_use
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError

HOW = "How it is decoded"

Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME:SETTING=...",
        help="awrs, smc: weighted, true to the model. rejection, asap, guard: exact as well. "
        "beam, best-of-n: search. mask: forbids tokens and ignores what that distorts. "
        "Default: awrs.",
        rich_help_panel=HOW,
    ),
]
Proposal = Annotated[
    str | None,
    typer.Option(
        "--proposal",
        metavar="PROMPT",
        help="For --sampler guard: a prompt that asks for what the constraint wants.",
        rich_help_panel=HOW,
    ),
]
ProposalModel = Annotated[
    str | None,
    typer.Option(
        "--proposal-model",
        metavar="MODEL",
        help="For --sampler guard: a model that was trained to satisfy the constraint.",
        rich_help_panel=HOW,
    ),
]
Critic = Annotated[
    str | None,
    typer.Option(
        "--critic",
        metavar="FILE.py:NAME",
        help="A function from a text so far to a log potential: texts are sampled in proportion to "
        "the model's probability times its exponential.",
        rich_help_panel=HOW,
    ),
]
Particles = Annotated[
    int,
    typer.Option(
        "--particles", "-p", help="Texts that compete (sequential Monte Carlo).",
        rich_help_panel=HOW,
    ),
]  # fmt: skip
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="NAME:SETTING=...",
        help="Several tokens per pass, the same text: goose, context, recycling, lookahead learn "
        "as they go; dyspec, mtp and fspad draft with --draft-model. goose+lookahead mixes two.",
        rich_help_panel=HOW,
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option(
        "--draft-model",
        metavar="MODEL",
        help="For --draft dyspec: a smaller model with the same vocabulary. For mtp and fspad: "
        "the file of the trained part.",
        rich_help_panel=HOW,
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="NAME:SIZE",
        help="Less attention. h2o:128 keeps 128 tokens, heavy hitters and recent ones; "
        "tokenselect:2048 keeps all and attends to 2048; h2o:0.2 is a share of the prompt.",
        rich_help_panel=HOW,
    ),
]

TRAINED_PART = "its trained part: give the file that its training saved with --draft-model FILE"
NEEDED = {
    "dyspec": "a smaller model with the same vocabulary: give it with --draft-model MODEL",
    "mtp": TRAINED_PART,
    "fspad": TRAINED_PART,
}
# samplers of a constraint: without one they draw what the model draws anyway
OF_A_CONSTRAINT = ("awrs", "mask", "rejection", "asap", "guard", "smc")


@dataclass(frozen=True)
class Methods:
    """How a text is decoded; None: not named.

    sampler: of texts. drafter: guesses tokens. policy: of the cache. critic: log potential of a
    text. particles: texts that compete.
    """

    sampler: Any = None
    drafter: Any = None
    policy: Any = None
    critic: Callable[[str], float] | None = None
    particles: int = 1

    @classmethod
    def read(
        cls,
        sampler: str | None,
        proposal: str | None,
        proposal_model: str | None,
        critic: str | None,
        particles: int,
        draft: str | None,
        draft_model: str | None,
        cache: str | None,
        *,
        chat: bool,
        greedy: bool,
        constrained: bool,
    ) -> Methods:
        """From the options; combinations that cannot work say so.

        chat: whether prompts are posed as questions. greedy: at temperature 0.
        """
        from tokenry.decode.samplers.smc import SMC

        in_range("--particles", particles, "[1, 4096]", integer=True)
        name = (sampler or "").partition(":")[0]
        for option in ("--proposal", "--proposal-model"):
            require_use(option, name == "guard", "it is what --sampler guard proposes with")
        require_use("--draft-model", draft is not None, "it is what --draft drafts with")
        texts = None if sampler is None else sampler_of(sampler, proposal, proposal_model, chat)
        likeliest = "at --temperature 0 every text is the likeliest one"
        require_use("--sampler", not greedy or name == "mask", likeliest)
        require_use("--particles", not greedy or particles == 1, likeliest)
        require_use("--critic", not greedy, likeliest)
        require_use(
            "--sampler",
            constrained
            or name not in OF_A_CONSTRAINT
            or (critic is not None and name in ("awrs", "smc")),
            f"{name} is a way to satisfy a constraint, and there is none",
        )
        for option, value in (("--draft", draft), ("--cache", cache)):
            if value is not None and particles > 1:
                raise InputError(
                    f"{option} decodes one text: it cannot go with --particles {particles}"
                )
            if value is not None and sampler not in (None, "mask"):
                raise InputError(f"{option} masks tokens: it cannot go with --sampler {sampler}")
        if critic is not None and (draft or cache or not hasattr(texts or SMC, "critic")):
            raise InputError("--critic weighs particles: it goes with --sampler smc, awrs or plain")
        return cls(
            texts,
            None if draft is None else drafter_of(draft, draft_model),
            None if cache is None else cache_policy(cache),
            None if critic is None else user_critic(critic),
            particles,
        )

    @property
    def one_text_as_it_comes(self) -> bool:
        """Whether one text is written from its beginning to its end."""
        from tokenry.decode.samplers.smc import SMC, MaskedTexts

        steady = self.sampler is None or isinstance(self.sampler, SMC | MaskedTexts)
        return self.particles == 1 and steady  # other samplers begin texts anew


def user_critic(source: str) -> Callable[[str], float]:
    """The log potential of texts that FILE.py:NAME is."""
    value = user_function(f"--critic {source}", source, "from a text to a number", float)

    def potential(text: str) -> float:
        in_range(f"--critic {source} of {text[-60:]!r}", result := value(text), "[-inf, inf)")
        return result

    return potential


def sampler_of(option: str, proposal: str | None, proposal_model: str | None, chat: bool) -> Any:
    """The sampler of NAME[:SETTING=VALUE,...]: of whole texts, or of tokens."""
    from tokenry.decode.generate import text_sampler_of
    from tokenry.decode.samplers.base import sampler as samplers
    from tokenry.decode.samplers.request import text_sampler

    name = option.partition(":")[0]
    if option == name and name != "guard":
        return text_sampler_of(name)  # knows all names
    role = samplers if name in samplers.names() else text_sampler
    given: dict[str, Any] = {}
    if name == "guard" and proposal is not None:
        given["prompt"] = as_question(proposal, chat)
    if name == "guard" and proposal_model is not None:
        given["model"] = load(proposal_model).model
    return text_sampler_of(chosen(role, option, provided=given).made(**given))


def drafter_of(option: str, model: str | None) -> Any:
    """The drafter of NAME[:SETTING=VALUE,...], with what it drafts with: a smaller model, or the
    file of a trained part. Several that are joined by + are mixed; one of them has the model."""
    from tokenry.decode.speculation.mixture import Mixture
    from tokenry.decode.speculation.speculate import drafter as drafters
    from tokenry.model.heads.fspad import FeatureHead
    from tokenry.model.heads.mtp import MaskPredictor

    trained = {
        "dyspec": ("draft", lambda name: load(name).model),
        "mtp": ("predictor", MaskPredictor.load),
        "fspad": ("head", FeatureHead.load),
    }
    parts = option.split("+")
    if len(parts) > 1:
        takers = [part for part in parts if part.partition(":")[0] in trained]
        if model is not None and len(takers) != 1:
            raise InputError(
                f"--draft {option}: --draft-model goes with one of {', '.join(trained)}, and "
                f"{len(takers)} of them are in the mixture"
            )
        return Mixture(tuple(drafter_of(one, model if one in takers else None) for one in parts))
    name = option.partition(":")[0]
    if model is None:
        if name in trained:
            raise InputError(f"--draft {name} needs {NEEDED[name]}")
        return chosen(drafters, option).made()
    drafters[name]  # an unknown name is named first
    if name not in trained:
        raise InputError(f"--draft {option} drafts without a model: leave --draft-model out")
    field, read = trained[name]
    given = {field: read(model)}
    return chosen(drafters, option, provided=given).made(**given)


def cache_policy(option: str) -> Any:
    """The policy of NAME or NAME:SIZE, a count of tokens or a share of the prompt."""
    from tokenry.model.cache.policy import cache_policy as cache_policies

    name, _, size = option.partition(":")
    policy = cache_policies[name]
    if not size:
        return policy()
    try:
        total = int(size) if size.isdigit() else float(size)
    except ValueError:
        raise InputError(
            f"--cache {option}: the size must be a share of the prompt (0.2) or a count of "
            f"tokens (128), not {size!r}"
        ) from None
    return policy.of_size(total)
