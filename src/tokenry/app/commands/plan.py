"""tokenry plan: how many of which machine serve a model on time, in which division of work."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenry.app.terminal import AsJson, Seed, load, plain_table, print_json, progress, results
from tokenry.app.verb import require_use
from tokenry.core.checks import in_range
from tokenry.core.errors import InputError, UnknownNameError

HERE = "here"
NUMBERS = ("$/hour", "kW", "ttft s", "tbt ms", "e2e s", "worst")


def plan(
    rate: Annotated[
        float | None, typer.Option("--rate", help="Requests per second; a CSV trace has its own.")
    ] = None,
    trace: Annotated[
        str,
        typer.Option(
            "--trace",
            help="[cyan]conversation[/], [cyan]coding[/] (lengths of two production services), or "
            "a CSV file with the columns arrival (seconds), prompt and output (tokens).",
        ),
    ] = "conversation",
    model_size: Annotated[
        str | None, typer.Option("--model-size", help="Parameters of the model: 70B, 500M.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Instead of its size: [cyan]llama2-70b[/] or [cyan]bloom-176b[/], whose times "
            "were measured, a name that [cyan]tokenry models[/] lists, a hub id, or a folder.",
        ),
    ] = None,
    machines: Annotated[
        str,
        typer.Option(
            "--machines",
            help="Comma-separated: A100, H100, H100-capped (servers of eight), laptop; "
            "[cyan]here[/] measures the model on this machine.",
        ),
    ] = "A100,H100",
    slo: Annotated[
        str,
        typer.Option(
            "--slo",
            help='The latency targets: [cyan]default[/], or a JSON file such as {"slowdown": '
            '{"ttft": [2, 3, 6]}, "seconds": {"e2e": [5, 10, 20]}}, each for 50, 90 and 99 % of '
            "the requests.",
        ),
    ] = "default",
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="The machine that slow-downs are measured against: A100, or the only one given.",
        ),
    ] = None,
    minimise: Annotated[
        str, typer.Option("--minimise", help="What a plan should save: cost, power or count.")
    ] = "cost",
    budget_cost: Annotated[
        float | None, typer.Option("--budget-cost", help="At most so many dollars an hour.")
    ] = None,
    budget_power: Annotated[
        float | None, typer.Option("--budget-power", help="At most so many kilowatts.")
    ] = None,
    budget_count: Annotated[
        int | None, typer.Option("--budget-count", help="At most so many machines.")
    ] = None,
    prices: Annotated[
        list[str] | None,
        typer.Option("--price", metavar="MACHINE=DOLLARS", help="Your price an hour (repeat it)."),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option("--requests", help="How many to simulate; by default a minute of them."),
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Plan a cluster: how many of which machine, in one pool or split by phase.

    Reading a prompt is bound by arithmetic, writing tokens by memory. Machines that do both delay
    each other's tokens; a pool for prompts and a pool for tokens do not, and may be of different
    machines. Each design is simulated request by request (queues, batches, caches that travel) and
    made as small as the latency targets allow.

    The default targets are slow-downs against the same request alone on an A100 server: time to
    the first token 2, 3 and 6 times, time between tokens and whole answer 1.25, 1.5 and 5 times,
    for 50, 90 and 99 % of the requests. Give a budget without a rate to learn the largest rate.

    Examples:

    [cyan]tokenry plan --rate 10 --trace coding --model-size 70B --machines A100,H100[/]

    [cyan]tokenry plan --budget-cost 300 --model llama2-70b[/]

    [cyan]tokenry plan --rate 0.2 --model smollm2 --machines here --trace mine.csv --json[/]
    """
    in_range("--rate", rate, "(0, inf)", optional=True)
    if (model is None) == (model_size is None):
        raise InputError("give --model-size (such as 70B) or --model, one of them")
    # percentiles need 50; a million take minutes for every cluster that is tried
    in_range("--requests", requests, "[50, 1000000]", integer=True, optional=True)
    measure, budget = objective(minimise, budget_cost, budget_power, budget_count)

    from tokenry.serving import phases, planner
    from tokenry.serving.targets import SLO

    kinds = machines_of(machines, prices or [])
    here = any(kind.name == HERE for kind in kinds)
    targets = SLO() if slo == "default" else SLO.read(slo)
    traffic = traffic_of(trace, rate, requests, seed)
    if rate is None and budget is None:
        if not trace.endswith(".csv"):
            raise InputError("give --rate, or a budget to learn the largest rate")
        rate = traffic.rate  # a trace has a rate of its own
    served, phases_of = served_on(model, model_size, here)
    against = reference or ("A100" if len(kinds) > 1 or kinds[0].name == "H100" else kinds[0].name)
    compared = next((kind for kind in kinds if kind.name == against), None)
    with progress() as bar:
        task = bar.add_task("simulating", total=None)
        plans = planner.search_pools(
            planner.Planner(
                served,
                traffic,
                targets,
                compared or machine_of(against, []),
                phases=phases_of,
            ),
            kinds,
            rate=rate,
            minimise=measure,
            budget=budget,
            progress=lambda name, done, total: bar.update(
                task, description=name, completed=done, total=total
            ),
        )
    source = "published medians" if served.name in phases.MEASURED else "roofline"
    source = "measured here" if here else source
    if as_json:
        about = {"model": served.name, "trace": trace, "times": source, "reference": against}
        given = {"rate": rate, "minimise": measure, "budget": budget, "seed": seed}
        print_json({**about, **given, "plans": [as_record(each) for each in plans]})
        return
    show(plans, f"[bold]{served.name}[/], {trace}  [dim]times: {source}[/]", rate, measure)


def objective(
    minimise: str,
    cost: float | None,
    power: float | None,
    count: float | None,
) -> tuple[Any, float | None]:
    """What is saved, and its budget."""
    measures = ("cost", "power", "count")
    if minimise not in measures:
        raise UnknownNameError("measure", minimise, measures)
    given = {
        name: value
        for name, value in zip(measures, (cost, power, count), strict=True)
        if value is not None
    }
    if len(given) > 1:
        raise InputError(f"give one budget, not {' and '.join(given)}")
    if not given:
        return minimise, None
    name, value = next(iter(given.items()))
    require_use(
        "--minimise", minimise == name, f"with --budget-{name}, what is saved is the {name}"
    )
    in_range(f"--budget-{name}", value, "(0, inf)")
    return name, float(value)


def machines_of(names: str, prices: list[str]) -> list[Any]:
    """The machines of a list of names, each once."""
    from tokenry.serving.phases import MACHINES

    wanted = dict.fromkeys(filter(None, map(str.strip, names.split(","))))
    if not wanted:
        raise InputError("--machines names none; known: " + ", ".join([*MACHINES, HERE]))
    machines = [machine_of(name, prices) for name in wanted]
    for price in prices:
        if price.partition("=")[0] not in wanted:
            raise InputError(f"--price {price}: that machine is not among --machines {names}")
    return machines


def machine_of(name: str, prices: list[str]) -> Any:
    """A machine by its name, at the user's price."""
    from dataclasses import replace

    from tokenry.serving.phases import MACHINES

    if name != HERE and name not in MACHINES:
        raise UnknownNameError("machine", name, [*MACHINES, HERE])
    machine = replace(MACHINES["laptop" if name == HERE else name], name=name)
    for price in prices:
        wanted, _, value = price.partition("=")
        if wanted == name:
            try:
                cost = float(value)
            except ValueError:
                raise InputError(f"--price {price}: it must look like A100=17.6") from None
            in_range(f"--price {wanted}", cost, "(0, inf)")
            machine = replace(machine, cost=cost)
    return machine


def traffic_of(trace: str, rate: float | None, requests: int | None, seed: int) -> Any:
    from tokenry.serving.trace import LENGTHS, poisson_trace, read_trace

    require_use("--requests", trace in LENGTHS, "a trace has its own requests")
    if trace in LENGTHS:
        count = requests or int(min(max(1000, 60 * (rate or 30)), 20_000))
        return poisson_trace(rate or 1.0, trace, count, seed)
    if not Path(trace).is_file() and not trace.endswith(".csv"):
        raise UnknownNameError("trace", trace, [*LENGTHS, "FILE.csv"])
    traffic = read_trace(trace)
    _ = traffic.rate  # one request, or all at once, cannot be stretched to a rate: said here
    return traffic


def served_on(model: str | None, size: str | None, here: bool) -> tuple[Any, Any]:
    """The model, and how long its phases take on a machine, this one if it is among them."""
    from tokenry.serving.phases import ServedModel, phases_of

    if here:
        if model is None:
            raise InputError("--machines here measures a model: give --model, not --model-size")
        return measured_here(model)
    return ServedModel.of_size(size) if size else served_model(str(model)), phases_of


def served_model(name: str) -> Any:
    """A model by name: its configuration is enough."""
    from tokenry.model import hub
    from tokenry.serving.phases import SHAPES, ServedModel

    if name in SHAPES:
        return SHAPES[name]
    from transformers import AutoConfig

    if name not in hub.NAMED_MODELS and "/" not in name and not Path(name).is_dir():
        raise UnknownNameError("model", name, [*SHAPES, *hub.NAMED_MODELS])
    folder = hub.locate(name)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot read the configuration of {name}: {reason}") from None
    return ServedModel.from_config(config, name=name)


def measured_here(name: str) -> tuple[Any, Any]:
    """The model, and phases that are measured on this machine where it is meant."""
    from tokenry.serving.phases import ServedModel, measure_phases, phases_of

    loaded = load(name).model
    served = ServedModel.from_config(loaded.config, loaded.dtype.itemsize, name)
    with progress() as bar:
        bar.add_task("measuring the two phases", total=None)
        measured = measure_phases(loaded)

    def here_or_not(model: Any, machine: Any) -> Any:
        return measured if machine.name == HERE else phases_of(model, machine)

    return served, here_or_not


def as_record(plan: Any) -> dict[str, Any]:
    """A plan as JSON: counts by pool, prices, and latencies at 50, 90 and 99 %."""
    design = plan.design
    pools = ("both",) if design.prompt is None else ("prompt", "token")
    return {
        "pools": [
            {"for": pool, "machine": machine.name, "count": count}
            for pool, machine, count in zip(pools, design.machines, plan.counts, strict=True)
        ],
        "rate": plan.rate,
        "dollars_per_hour": plan.price("cost"),
        "kilowatts": plan.price("power"),
        "machines": int(plan.price("count")),
        "worst_target": plan.load,
        "seconds": {name: values.tolist() for name, values in plan.latencies.seconds.items()},
        "slowdown": {name: values.tolist() for name, values in plan.latencies.slowdown.items()},
    }


def show(plans: list[Any], title: str, rate: float | None, minimise: str) -> None:
    console = results()
    numbers = (*(("req/s",) if rate is None else ()), *NUMBERS)
    table = plain_table(gap=1)  # eight columns in 80
    table.add_column("prompts", overflow="fold")
    table.add_column("tokens", overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for plan in plans:
        counts = [f"{n} {m.name}" for n, m in zip(plan.counts, plan.design.machines, strict=True)]
        first, second = (counts[0], "the same") if len(counts) == 1 else counts
        seconds, cost = plan.latencies.seconds, plan.price("cost")
        spans = ((seconds["ttft"], 1, 2), (seconds["tbt"], 1000, 0), (seconds["e2e"], 1, 1))
        table.add_row(
            first,
            second,
            *((f"{plan.rate:.3g}",) if rate is None else ()),
            f"{cost:.0f}" if cost >= 10 else f"{cost:.2g}",
            f"{plan.price('power'):.3g}",
            *("/".join(f"{v * unit:.{digits}f}" for v in values) for values, unit, digits in spans),
            f"{plan.load:.0%}",
        )
    console.print(title, highlight=False)
    console.print(table)
    console.print(
        "[dim]Latencies of 50, 90 and 99 % of the requests: to the first token, between tokens, "
        "to the last. Worst: the tightest target's use.[/]"
    )
    console.print(sentence(plans[0], rate, minimise), soft_wrap=True)


def sentence(best: Any, rate: float | None, minimise: str) -> str:
    """The answer in words."""
    parts = [
        f"{count} {machine.name}"
        for count, machine in zip(best.counts, best.design.machines, strict=True)
    ]
    who = (
        f"{parts[0]} for both phases"
        if len(parts) == 1
        else (f"{parts[0]} that read prompts and {parts[1]} that write tokens")
    )
    price = f"${best.price('cost'):.3g} an hour, {best.price('power'):.3g} kW"
    if rate is None:
        return f"Most requests: {best.rate:.3g} a second with {who} ({price})."
    least = {"cost": "Cheapest", "power": "Least power", "count": "Fewest machines"}[minimise]
    per = best.price("cost") / 3.6 / rate
    written = f"{per:.2f}" if per < 1e6 else f"{per:.3g}"
    return f"{least}: {who} ({price}, ${written} per 1000 requests)."
