"""tokenry generate: continue a prompt, constrained, steered, with a draft, or on a small cache."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenry.app.choices import as_question
from tokenry.app.constraints import (
    Constrain,
    Contains,
    JsonSchema,
    LarkGrammar,
    Python,
    Regex,
    TextConstraints,
    WithoutLetter,
)
from tokenry.app.decoding import (
    HOW,
    Cache,
    Critic,
    Draft,
    DraftModel,
    Methods,
    Particles,
    Proposal,
    ProposalModel,
    Sampler,
)
from tokenry.app.steering import Steer, Steering, Stop
from tokenry.app.streaming import Stream, show
from tokenry.app.terminal import AsJson, Model, Seed, check_model, load_for, read_text, working
from tokenry.app.verb import require_only
from tokenry.core.errors import InputError

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
    constrain: Constrain = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: LarkGrammar = None,
    contains: Contains = None,
    python: Python = False,
    without_letter: WithoutLetter = None,
    steer: Steer = None,
    stop: Stop = None,
    sampler: Sampler = None,
    proposal: Proposal = None,
    proposal_model: ProposalModel = None,
    critic: Critic = None,
    particles: Particles = 1,
    draft: Draft = None,
    draft_model: DraftModel = None,
    cache: Cache = None,
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

    [cyan]tokenry generate "A song:" --constrain melody:phrases=8,6,8,6 --steer ending -p 8[/]

    [cyan]tokenry generate "Write about the sea." --chat --constrain words:without=e,longest=6[/]

    [cyan]tokenry generate "A fable:" --steer uscd:negative="A report:" --constrain
    length:minimum=40[/]

    [cyan]tokenry generate "import math; print(math." --python --stop ")"[/]

    [cyan]tokenry generate "The capital of Fra" --bytes --ensemble gemma3-270m[/]

    [cyan]tokenry generate "def fibonacci(n):" -t 0 --draft goose[/]
    """
    check_model(model)
    from tokenry.app import continuation

    text = read_text("-") if prompt == "-" else prompt
    if not text:
        raise InputError("the prompt is empty: give at least one token to continue")
    bytewise = by_bytes or bool(ensemble)
    if bytewise:
        require_only(OF_BYTES, "--bytes and --ensemble write one text, byte by byte")
    limits = continuation.Limits(max_new_tokens, 1.0 if temperature is None else temperature, seed)
    constraints = TextConstraints.read(
        constrain, json_schema, regex, grammar, contains, python, without_letter
    )
    constraints.check_limit(max_new_tokens)
    steering = Steering.read(steer, stop)
    how = Methods.read(
        sampler, proposal, proposal_model, critic, particles, draft, draft_model, cache,
        chat=chat, greedy=temperature == 0, constrained=bool(constraints),
    )  # fmt: skip
    question = as_question(text, chat)
    if bytewise:
        members = [load_for(name, chat) for name in (model, *(ensemble or ()))]
        stream = None if as_json else Stream()
        show(
            lambda _: continuation.bytewise(
                members, question, limits, steering.stop, stream and stream.add
            ),
            stream,
            limits,
            as_json,
        )
        return
    loaded = load_for(model, chat)
    with working("preparing the constraint"):
        constraint = constraints.constraint(loaded, text)
        control = steering.control(loaded, question, limits.temperature, constraint)
    streams = how.one_text_as_it_comes and not constraints.whole and not as_json
    show(
        lambda on_token: continuation.continued(
            loaded, question, constraint, limits, how, constraints.whole, on_token,
            control.processors,
        ).cut(control.cut),
        Stream(loaded.tokenizer, control.certain) if streams else None,
        limits,
        as_json,
        particles,
    )  # fmt: skip
