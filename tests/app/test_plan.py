"""tokenry plan: the answer, its JSON, and questions that have none."""

import json

import pytest


def test_help_teaches(run):
    code, out, _ = run("plan", "--help")
    assert code == 0
    for word in (
        "Example",
        "tokenry plan",
        "--seed",
        "--slo",
        "--machines",
        "--json",
        "arithmetic",
    ):
        assert word in out


QUICK = ("--trace", "coding", "--model", "llama2-70b", "--machines", "A100", "--requests", 200)


def test_a_plan_names_the_cheapest_cluster(run):
    code, out, _ = run("plan", "--rate", 4, *QUICK)
    assert code == 0
    assert "the same" in out
    assert "Cheapest: " in out
    assert "read prompts" in out
    assert "published medians" in out


def test_json_has_every_design_best_first(run):
    code, out, _ = run("plan", "--rate", 4, *QUICK, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["rate"], found["minimise"], found["reference"]) == (4, "cost", "A100")
    costs = [plan["dollars_per_hour"] for plan in found["plans"]]
    assert costs == sorted(costs)
    assert [len(plan["pools"]) for plan in found["plans"]] == [2, 1]
    for plan in found["plans"]:
        assert plan["worst_target"] <= 1
        assert plan["machines"] == sum(pool["count"] for pool in plan["pools"])
        assert plan["dollars_per_hour"] == pytest.approx(17.6 * plan["machines"])
    again = json.loads(run("plan", "--rate", 4, *QUICK, "--json")[1])
    assert again == found


def test_a_budget_and_prices_of_ones_own(run):
    _, out, _ = run("plan", "--budget-count", 4, *QUICK, "--price", "A100=10", "--json")
    found = json.loads(out)
    assert [plan["dollars_per_hour"] for plan in found["plans"]] == [40, 40]
    rates = [plan["rate"] for plan in found["plans"]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


def test_a_trace_of_ones_own_has_its_rate(run, tmp_path):
    file = tmp_path / "mine.csv"
    rows = [f"{0.5 * n},{200 + n},{5}" for n in range(60)]
    file.write_text("\n".join(["arrival,prompt,output", *rows]) + "\n")
    _, out, _ = run("plan", "--trace", file, "--model-size", "7B", "--machines", "A100", "--json")
    found = json.loads(out)
    assert found["rate"] == pytest.approx(2)
    assert found["plans"][0]["machines"] == 1


def test_a_model_in_a_folder_is_measured_here(run, model, tmp_path):
    file = tmp_path / "slo.json"
    file.write_text('{"seconds": {"e2e": [60, 60, 60]}}')
    code, out, _ = run(
        "plan", "--rate", 0.5, "--model", model, "--machines", "here", "--slo", file,
        "--trace", "coding", "--requests", 60, "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found["times"] == "measured here"
    assert found["reference"] == "here"
    assert found["plans"][0]["pools"][0]["machine"] == "here"


BASE = ("plan", "--model-size", "70B")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", "--rate", 0), "--rate is 0.0; it must be a number in (0, inf)"),
        (("plan", "--rate", 5), "--model-size (such as 70B) or --model"),
        (BASE, "give --rate, or a budget"),
        ((*BASE, "--rate", 5, "--machines", "A100,H10"), "did you mean H100"),
        ((*BASE, "--rate", 5, "--machines", ","), "names none"),
        ((*BASE, "--rate", 5, "--trace", "codin"), "did you mean coding"),
        ((*BASE, "--rate", 5, "--trace", "nowhere.csv"), "no such file"),
        ((*BASE, "--rate", 5, "--slo", "nowhere.json"), "no such file"),
        ((*BASE, "--rate", 5, "--machines", "laptop"), "needs 140 GB"),
        ((*BASE, "--rate", 5, "--machines", "here"), "give --model, not --model-size"),
        ((*BASE, "--rate", 5, "--minimise", "costs"), "did you mean cost"),
        ((*BASE, "--rate", 5, "--budget-cost", 0), "--budget-cost is 0"),
        ((*BASE, "--rate", "inf"), "--rate is inf"),
        ((*BASE, "--rate", "1e8"), "no cluster of up to 512 machines a pool serves 1e+08"),
        ((*BASE, "--budget-cost", "inf"), "--budget-cost is inf"),
        ((*BASE, "--budget-count", 900, "--requests", 60), "60 requests cannot load"),
        ((*BASE, "--rate", 5, "--requests", 10**12), "in [50, 1000000]"),
        ((*BASE, "--rate", 5, "--price", "A100=inf"), "--price A100 is inf"),
        (("plan", "--rate", 5, "--model-size", "9" * 400), "say 7B"),
        ((*BASE, "--budget-cost", 9, "--budget-count", 2), "one budget"),
        ((*BASE, "--rate", 5, "--price", "A100=cheap"), "A100=17.6"),
        ((*BASE, "--rate", 5, "--price", "V100=3"), "not among --machines"),
        ((*BASE, "--rate", 5, "--requests", 3), "in [50, 1000000]"),
        (("plan", "--rate", 5, "--model-size", "big"), "7B"),
        (("plan", "--rate", 5, "--model", "smolm2"), "did you mean smollm2"),
        ((*BASE, "--rate", 5, "--budget-cost", 20, "--requests", 60), "no cluster within"),
    ],
)
def test_bad_questions_are_one_line(refused, arguments, says):
    assert says in refused(*arguments)


def test_targets_that_nothing_meets(refused, tmp_path):
    file = tmp_path / "slo.json"
    file.write_text('{"seconds": {"ttft": [0.001, 0.002, 0.003]}}')
    line = refused(*BASE, "--rate", 5, "--slo", file, "--requests", 60)
    assert "even without load" in line
    assert "ttft of 90 %: 0.233 s, at most 0.002 s" in line


def test_a_trace_without_rows(refused, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("arrival,prompt,output\n")
    assert "has no rows" in refused(*BASE, "--rate", 5, "--trace", file)
