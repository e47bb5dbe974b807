"""tokenry generate: continue a prompt, constrained, steered, with a draft, or on a small cache."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenry.app.choices import as_question, methods, require_sampling, user_critic
from tokenry.app.constraints import TextConstraints, with_words, word_filter
from tokenry.app.steering import Steering
from tokenry.app.streaming import Stream, remark, warnings_as_notes
from tokenry.app.terminal import (
    AsJson,
    Model,
    Seed,
    check_model,
    load,
    print_json,
    progress,
    read_text,
    working,
)
from tokenry.app.verb import require_only
from tokenry.core.errors import InputError

if TYPE_CHECKING:
    from tokenry.app.continuation import Continuation, Limits

TEXTS = "Constraints on the text"
WORDS = "Constraints on its words"
STEER = "Steering: which texts are likely"
HOW = "How it is decoded"
OF_BYTES = ("--model", "--chat", "-n", "-t", "--stop", "--bytes", "--ensemble")


def generate(
    prompt: Annotated[
        str, typer.Argument(help="The text to continue; [cyan]-[/] reads standard input.")
    ],
    model: Model = "smollm2",
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--no-chat", help="Ask it as a question, through the model's chat template."
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", help="The longest text, in tokens.")
    ] = 64,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", help="0 takes the likeliest token. Default: 1."),
    ] = None,
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema", metavar="FILE", help="JSON of this schema.", rich_help_panel=TEXTS
        ),
    ] = None,
    whitespace: Annotated[
        str | None,
        typer.Option(
            "--whitespace",
            metavar="R",
            help="What may stand between the parts of the JSON, as a regular expression: '' for "
            "nothing, ' ?' for at most one space. Default: any white space.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    lenient: Annotated[
        bool,
        typer.Option(
            "--lenient/--strict",
            help="Leave out the schema's formats that cannot be checked, and say so.",
            rich_help_panel=TEXTS,
        ),
    ] = False,
    regex: Annotated[
        str | None,
        typer.Option("--regex", metavar="R", help="Matches as a whole.", rich_help_panel=TEXTS),
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(
            "--grammar", metavar="FILE", help="Derived by a Lark grammar.", rich_help_panel=TEXTS
        ),
    ] = None,
    contains: Annotated[
        list[str] | None,
        typer.Option(
            "--contains", metavar="S", help="Holds this (repeat it).", rich_help_panel=TEXTS
        ),
    ] = None,
    min_tokens: Annotated[
        int,
        typer.Option("--min-tokens", min=0, metavar="N", help="No shorter.", rich_help_panel=TEXTS),
    ] = 0,
    accept: Annotated[
        str | None,
        typer.Option(
            "--accept",
            metavar="FILE.py:NAME",
            help="A Python function of the text says yes; or a pair of functions: may it begin so, "
            "may it be so.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    dictionary: Annotated[
        Path | None,
        typer.Option(
            "--dictionary",
            metavar="FILE",
            help="Translates every phrase of the prompt that this TSV or JSON has, as it says.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    melody: Annotated[
        str | None,
        typer.Option(
            "--melody",
            metavar="8,6,...",
            help="Lines that can be sung on so many notes each.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    python: Annotated[
        bool,
        typer.Option(
            "--python/--no-python",
            help="Goes on with Python whose names jedi knows.",
            rich_help_panel=TEXTS,
        ),
    ] = False,
    without_letter: Annotated[
        list[str] | None,
        typer.Option(
            "--without-letter", metavar="L", help="Banned (repeat it).", rich_help_panel=WORDS
        ),
    ] = None,
    with_letter: Annotated[
        list[str] | None,
        typer.Option(
            "--with-letter", metavar="L", help="In every word (repeat it).", rich_help_panel=WORDS
        ),
    ] = None,
    only_letters: Annotated[
        str | None,
        typer.Option(
            "--only-letters", metavar="L", help="No letters but these.", rich_help_panel=WORDS
        ),
    ] = None,
    starts_with: Annotated[
        str | None,
        typer.Option("--starts-with", metavar="S", help="Every word.", rich_help_panel=WORDS),
    ] = None,
    ends_with: Annotated[
        str | None,
        typer.Option("--ends-with", metavar="S", help="Every word.", rich_help_panel=WORDS),
    ] = None,
    shortest: Annotated[
        int | None,
        typer.Option(
            "--shortest-word", metavar="N", help="Letters, at least.", rich_help_panel=WORDS
        ),
    ] = None,
    longest: Annotated[
        int | None,
        typer.Option(
            "--longest-word", metavar="N", help="Letters, at most.", rich_help_panel=WORDS
        ),
    ] = None,
    syllables: Annotated[
        int | None,
        typer.Option(
            "--syllables", metavar="N", help="So many in every word.", rich_help_panel=WORDS
        ),
    ] = None,
    rhymes_with: Annotated[
        str | None,
        typer.Option("--rhymes-with", metavar="W", help="Every word does.", rich_help_panel=WORDS),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop",
            metavar="S",
            help="The text ends before this, however tokens cut it (repeat it).",
            rich_help_panel=STEER,
        ),
    ] = None,
    end_when_complete: Annotated[
        bool,
        typer.Option(
            "--end-when-complete/--no-end-when-complete",
            help="The text ends as soon as it satisfies the constraints.",
            rich_help_panel=STEER,
        ),
    ] = False,
    expected_length: Annotated[
        float | None,
        typer.Option(
            "--expected-length",
            metavar="N",
            help="At least so likely to end at every token that N tokens are expected at most.",
            rich_help_panel=STEER,
        ),
    ] = None,
    style: Annotated[
        Path | None,
        typer.Option(
            "--style",
            metavar="FILE",
            help="Pulled towards the n-grams of this text.",
            rich_help_panel=STEER,
        ),
    ] = None,
    style_strength: Annotated[
        float,
        typer.Option("--style-strength", metavar="X", help="0: not.", rich_help_panel=STEER),
    ] = 0.1,
    contrast: Annotated[
        str | None,
        typer.Option(
            "--contrast",
            metavar="PROMPT",
            help="Pushed away, where the model is unsure, from how it goes on from this prompt.",
            rich_help_panel=STEER,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="NAME[:SETTING=VALUE,...]",
            help="awrs, smc: weighted, true to the model. rejection, asap, guard: exact as well. "
            "beam, best-of-n: search. mask: forbids tokens and ignores what that distorts. "
            "Default: awrs.",
            rich_help_panel=HOW,
        ),
    ] = None,
    proposal: Annotated[
        str | None,
        typer.Option(
            "--proposal",
            metavar="PROMPT",
            help="For --sampler guard: a prompt that asks for what the constraint wants.",
            rich_help_panel=HOW,
        ),
    ] = None,
    proposal_model: Annotated[
        str | None,
        typer.Option(
            "--proposal-model",
            metavar="MODEL",
            help="For --sampler guard: a model that was trained to satisfy the constraint.",
            rich_help_panel=HOW,
        ),
    ] = None,
    critic: Annotated[
        str | None,
        typer.Option(
            "--critic",
            metavar="FILE.py:NAME",
            help="A function from a text so far to a log potential: texts are sampled in "
            "proportion to the model's probability times its exponential.",
            rich_help_panel=HOW,
        ),
    ] = None,
    particles: Annotated[
        int,
        typer.Option(
            "--particles",
            "-p",
            help="Texts that compete (sequential Monte Carlo).",
            rich_help_panel=HOW,
        ),
    ] = 1,
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            metavar="NAME[:SETTING=VALUE,...]",
            help="Several tokens per pass, the same text: goose, context, recycling, lookahead "
            "learn as they go; dyspec, mtp and fspad draft with --draft-model. goose+lookahead "
            "mixes two.",
            rich_help_panel=HOW,
        ),
    ] = None,
    draft_model: Annotated[
        str | None,
        typer.Option(
            "--draft-model",
            metavar="MODEL",
            help="For --draft dyspec: a smaller model with the same vocabulary. For mtp and fspad: "
            "the file of the trained part.",
            rich_help_panel=HOW,
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            metavar="NAME:SIZE",
            help="Less attention. h2o:128 keeps 128 tokens, heavy hitters and recent ones; "
            "tokenselect:2048 keeps all and attends to 2048; h2o:0.2 is a share of the prompt.",
            rich_help_panel=HOW,
        ),
    ] = None,
    by_bytes: Annotated[
        bool,
        typer.Option(
            "--bytes/--tokens",
            help="Byte by byte, exactly: the prompt may end inside a word. -n counts bytes.",
            rich_help_panel=HOW,
        ),
    ] = False,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            "--ensemble",
            metavar="MODEL",
            help="The mean with another model, byte by byte, whatever its tokenizer (repeat it).",
            rich_help_panel=HOW,
        ),
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Continue a prompt.

    Constraints add up: the text satisfies all that are given, and every word, however tokens cut
    it, satisfies those on words. Only the text goes to standard output: without a constraint on it
    as it comes, with several particles the one of the largest weight. [cyan]--json[/] prints all
    texts with their log weights, and what they took.

    Examples:

    [cyan]tokenry generate "The capital of France is"[/]

    [cyan]tokenry generate "A city as JSON: " --json-schema city.json --particles 8 --json[/]

    [cyan]tokenry generate "Write about the sea." --chat --without-letter e[/]

    [cyan]tokenry generate "import math; print(math." --python --stop ")"[/]

    [cyan]tokenry generate "The capital of Fra" --bytes --ensemble gemma3-270m[/]

    [cyan]tokenry generate "def fibonacci(n):" -t 0 --draft goose[/]
    """
    check_model(model)
    from tokenry.app.continuation import Limits
    from tokenry.decode.samplers.smc import SMC, MaskedTexts

    asked = {
        "sampler": sampler,
        "proposal": proposal,
        "proposal_model": proposal_model,
        "particles": particles,
        "draft": draft,
        "draft_model": draft_model,
        "cache": cache,
        "chat": chat,
    }
    text = read_text("-") if prompt == "-" else prompt
    if not text:
        raise InputError("the prompt is empty: give at least one token to continue")
    bytewise = by_bytes or bool(ensemble)
    if bytewise:
        require_only(OF_BYTES, "--bytes and --ensemble write one text, byte by byte")
    text_sampler, drafter, policy = methods(**asked)
    limits = Limits(max_new_tokens, 1.0 if temperature is None else temperature, seed)
    if min_tokens > max_new_tokens:
        raise InputError(
            f"--min-tokens is {min_tokens} and --max-new-tokens {max_new_tokens}: no text is so "
            "long and so short"
        )
    sources = TextConstraints.read(
        json_schema, regex, grammar, contains, min_tokens, accept, dictionary, melody, python,
        whitespace, lenient,
    )  # fmt: skip
    words = word_filter(
        without_letter, with_letter, only_letters, starts_with, ends_with, shortest, longest,
        syllables, rhymes_with,
    )  # fmt: skip
    steering = Steering.read(
        stop, expected_length, style, style_strength, contrast, end_when_complete
    )
    if bytewise:
        write_bytes([model, *(ensemble or [])], text, chat, limits, steering.stop, as_json)
        return
    constrained = sources != TextConstraints() or words is not None
    require_sampling(sampler, particles, temperature == 0, constrained, critic is not None)
    potential = None if critic is None else user_critic(critic)
    if potential is not None and (draft or cache or not hasattr(text_sampler or SMC, "critic")):
        raise InputError("--critic weighs particles: it goes with --sampler smc, awrs or plain")
    loaded = load_for(model, chat)
    question = as_question(text, chat)
    with working("preparing the constraint"):
        constraint = with_words(sources.constraint(loaded, text), words, loaded)
        control = steering.control(loaded, question, limits.temperature, constraint)
    must_end = sources.whole  # words may be cut off by the limit, a JSON object may not
    # other samplers than these begin texts anew
    grows = text_sampler is None or isinstance(text_sampler, SMC | MaskedTexts)
    plain = not as_json and not must_end and particles == 1 and grows

    def run(on_token: Callable[[list[int]], None]) -> Continuation:
        from tokenry.app import continuation

        common = (loaded, question, constraint, limits)
        processors = control.processors
        if drafter is not None:
            return continuation.drafted(*common, drafter, must_end, on_token, processors, policy)
        if policy is not None:
            return continuation.cached(*common, policy, must_end, on_token, processors)
        weighted = constraint is not None or potential is not None
        how = text_sampler or ("awrs" if weighted else "mask")
        return continuation.sampled(
            *common, how, particles, must_end, on_token, processors, potential
        )

    if plain:
        stream = Stream(loaded.tokenizer, control.certain)
        with warnings_as_notes():
            found = run(stream).cut(control.cut)
            stream.finish(found.text)
    else:
        with warnings_as_notes(), progress() as bar:
            task = bar.add_task(f"{particles} texts, tokens", total=max_new_tokens)
            found = run(lambda ids: bar.update(task, completed=len(ids))).cut(control.cut)
        if as_json:
            print_json(found.to_dict())
        else:
            print(found.text)
    if not as_json:
        remark(found)


def write_bytes(
    names: list[str], text: str, chat: bool, limits: Limits, stop: tuple[str, ...], as_json: bool
) -> None:
    """Byte by byte, by one model or the mean of several."""
    from tokenry.app import continuation

    def show(part: str) -> None:
        if not as_json:
            sys.stdout.write(part)
            sys.stdout.flush()

    models = [load_for(name, chat) for name in names]
    found = continuation.bytewise(models, as_question(text, chat), limits, stop, show)
    if as_json:
        print_json(found.to_dict())
    else:
        print(flush=True)
        remark(found)


def load_for(name: str, chat: bool) -> Any:
    """A model, which has to have a chat template if it is to be asked through one."""
    loaded = load(name)
    if chat and loaded.tokenizer.chat_template is None:
        raise InputError(f"{name} has no chat template: leave --chat out")
    return loaded
