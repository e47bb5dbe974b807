"""Methods named on the command line, with their settings: samplers, drafts, caches, critics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

from tokenry.app.terminal import load
from tokenry.app.verb import require_use
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.core.registry import Role


def methods(
    sampler: str | None,
    proposal: str | None,
    proposal_model: str | None,
    particles: int,
    draft: str | None,
    draft_model: str | None,
    cache: str | None,
    chat: bool,
) -> tuple[Any, Any, Any]:
    """The sampler, the drafter and the cache policy asked for (None: not asked for);
    combinations that cannot work say so."""
    in_range("--particles", particles, "[1, 4096]", integer=True)
    guarded = (sampler or "").partition(":")[0] == "guard"
    for option in ("--proposal", "--proposal-model"):
        require_use(option, guarded, "it is what --sampler guard proposes with")
    require_use("--draft-model", draft is not None, "it is what --draft drafts with")
    chosen = None if sampler is None else sampler_of(sampler, proposal, proposal_model, chat)
    for option, value in (("--draft", draft), ("--cache", cache)):
        if value is None:
            continue
        if particles > 1:
            raise InputError(
                f"{option} decodes one text: it cannot go with --particles {particles}"
            )
        if sampler not in (None, "mask"):
            raise InputError(f"{option} masks tokens: it cannot go with --sampler {sampler}")
    return (
        chosen,
        None if draft is None else drafter_of(draft, draft_model),
        None if cache is None else cache_policy(cache),
    )


TRAINED_PART = "its trained part: give the file that its training saved with --draft-model FILE"
NEEDED = {
    "dyspec": "a smaller model with the same vocabulary: give it with --draft-model MODEL",
    "mtp": TRAINED_PART,
    "fspad": TRAINED_PART,
}
# samplers of a constraint: without one they draw what the model draws anyway
OF_A_CONSTRAINT = ("awrs", "mask", "rejection", "asap", "guard", "smc")


def require_sampling(
    sampler: str | None, particles: int, greedy: bool, constrained: bool, critic: bool
) -> None:
    """Options of sampling are refused where nothing is sampled, or everything without them."""
    name = (sampler or "").partition(":")[0]
    likeliest = "at --temperature 0 every text is the likeliest one"
    require_use("--sampler", not greedy or name == "mask", likeliest)
    require_use("--particles", not greedy or particles == 1, likeliest)
    require_use("--critic", not greedy, likeliest)
    require_use(
        "--sampler",
        constrained or name not in OF_A_CONSTRAINT or (critic and name in ("awrs", "smc")),
        f"{name} is a way to satisfy a constraint, and there is none",
    )


def user_critic(place: str) -> Callable[[str], float]:
    """A user's function of a text."""
    from tokenry.learn.user_code import guarded, user_value

    critic = user_value(place)
    if not callable(critic):
        raise InputError(f"{place} must be a function from a text to a number, not {critic!r}")
    value = guarded(f"--critic {place}", lambda text: float(cast(Any, critic)(text)))

    def potential(text: str) -> float:
        in_range(f"--critic {place} of {text[-60:]!r}", found := value(text), "[-inf, inf)")
        return found

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
    return text_sampler_of(configured(role, option, **given))


def drafter_of(option: str, model: str | None) -> Any:
    """The drafter of NAME[:SETTING=VALUE,...], with what it drafts with: a smaller model, or the
    file of a trained part. Several that are joined by + are mixed; one of them has the model."""
    from tokenry.decode.speculation.mixture import Mixture
    from tokenry.decode.speculation.speculate import drafter as drafters
    from tokenry.model.heads.fspad import FeatureHead
    from tokenry.model.heads.mtp import MaskPredictor

    readers = {
        "dyspec": ("draft", lambda place: load(place).model),
        "mtp": ("predictor", MaskPredictor.load),
        "fspad": ("head", FeatureHead.load),
    }
    parts = option.split("+")
    if len(parts) > 1:
        takers = [part for part in parts if part.partition(":")[0] in readers]
        if model is not None and len(takers) != 1:
            raise InputError(
                f"--draft {option}: --draft-model goes with one of {', '.join(readers)}, and "
                f"{len(takers)} of them are in the mixture"
            )
        return Mixture(tuple(drafter_of(one, model if one in takers else None) for one in parts))
    name = option.partition(":")[0]
    if model is None:
        if name in readers:
            raise InputError(f"--draft {name} needs {NEEDED[name]}")
        return configured(drafters, option)
    drafters[name]  # an unknown name is named first
    if name not in readers:
        raise InputError(f"--draft {option} drafts without a model: leave --draft-model out")
    field, read = readers[name]
    return configured(drafters, option, **{field: read(model)})


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


def configured(role: Role, option: str, **given: Any) -> Any:
    """The method that an option names, made with the option's settings and those given.

    Values are read as JSON where they are (3, 0.5, true) and as text where they are not.
    """
    name, _, rest = option.partition(":")
    method = role[name]
    known = [field.name for field in fields(method)]
    settings = dict(given)
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{option!r}: a setting has the form name=value, not {part!r}")
        if key not in known:
            raise UnknownNameError(f"setting of {name}", key, known)
        settings[key] = plain_value(value)
    try:
        return method(**settings)
    except TypeError as error:
        raise InputError(f"{option!r}: {error}") from None


def plain_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def as_question(text: str, chat: bool) -> Any:
    """A prompt: the text itself, or a chat message that asks it."""
    return [{"role": "user", "content": text}] if chat else text
