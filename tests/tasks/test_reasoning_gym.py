"""The adapter of reasoning-gym: with a stand-in of its interface, and with the package itself."""

import json
import pickle

import numpy
import pytest

from gym_stand_in import Pairs, install
from tokenry.core import extras
from tokenry.core.errors import InputError, TokenryError
from tokenry.tasks.reasoning_gym import STRIDE, ReasoningGym, _dataset
from tokenry.tasks.rows import TaskReward, demonstration_rows, prompt_rows
from tokenry.tasks.task import evaluate


@pytest.fixture
def stand_in(monkeypatch):
    install(monkeypatch)
    _dataset.cache_clear()
    yield
    _dataset.cache_clear()


def test_items_are_its_entries_at_seeds_that_do_not_meet(stand_in):
    made = ReasoningGym("pairs", {"top": 99})
    entries = [made.entry(item) for item in made.items(20, 3)]
    peer = Pairs(3 * STRIDE, 20, 99)
    assert entries == [peer[n] for n in range(20)]
    assert STRIDE == 10**6
    assert not [e for e in map(made.entry, made.items(20, 4)) if e in entries]
    assert made.items(5, 0)[2].request.prompt == Pairs(0, 5, 99)[2]["question"]
    assert made.items(5, 0)[2].request.limit == 512


def test_its_scores_are_the_scores(stand_in):
    made = ReasoningGym("pairs")
    for item in made.items(20, 1):
        total = sum(made.entry(item)["metadata"]["pair"])
        assert item.solution == (str(total) if total % 5 else None)
        assert made.score(item, str(total)) == {"score": 1.0, "failed": 0.0}
        assert made.score(item, str(total + 1)) == {"score": 0.5, "failed": 0.0}
        assert made.score(item, str(total + 2)) == {"score": 0.0, "failed": 0.0}
        assert made.score(item, "five") == {"score": 0.0, "failed": 1.0}
    report = evaluate(lambda prompt: str(eval(prompt[:-1])), made, 20, seed=1)
    assert report.aggregate == {"score": 1.0, "failed": 0.0}


def test_rows_pass_through_json_and_rewards_through_processes(stand_in):
    made = ReasoningGym("pairs")
    rows = json.loads(json.dumps(prompt_rows(made, 20, 2)))
    again = pickle.loads(pickle.dumps(TaskReward(made)))
    _dataset.cache_clear()
    sums = [str(eval(row["prompt"][:-1])) for row in rows]
    assert again(sums, sums, [row["item"] for row in rows]) == [1.0] * 20
    with pytest.raises(InputError, match="without a solution"):
        demonstration_rows(made, 20, 2)


def test_a_system_prompt_makes_chats_whose_answers_are_tagged(stand_in):
    made = ReasoningGym("pairs", system="short", limit=7)
    item = next(item for item in made.items(20, 0) if item.solution is not None)
    total = sum(made.entry(item)["metadata"]["pair"])
    assert item.solution == f"<answer>{total}</answer>"
    assert item.request.limit == 7
    assert item.request.prompt == [
        {"role": "system", "content": "Answer in <answer>."},
        {"role": "user", "content": made.entry(item)["question"]},
    ]
    assert made.score(item, f"I think <answer>{total + 1}</answer>.")["score"] == 0.5
    assert made.score(item, str(total)) == {"score": 0.0, "failed": 0.0}


def test_the_generator_of_a_process_is_left_as_it_was(stand_in):
    numpy.random.seed(4)
    expected = numpy.random.rand()
    numpy.random.seed(4)
    ReasoningGym("pairs").items(3, 0)
    assert numpy.random.rand() == expected


@pytest.mark.parametrize(
    ("given", "count", "seed"),
    [
        ({"name": "chess"}, 1, 0),
        ({"settings": {"top": 0}}, 1, 0),
        ({"settings": {"bottom": 0}}, 1, 0),
        ({"settings": {"top": len}}, 1, 0),
        ({"settings": {"seed": 1}}, 1, 0),
        ({"settings": {"size": 1}}, 1, 0),
        ({"system": "long"}, 1, 0),
        ({"limit": 0}, 1, 0),
        ({}, 0, 0),
        ({}, STRIDE + 1, 0),
        ({}, 1, -1),
        ({}, 1, 4294),
    ],
)
def test_what_cannot_be_is_refused(stand_in, given, count, seed):
    ReasoningGym("pairs").items(1, 4293)
    with pytest.raises(TokenryError):
        ReasoningGym(**{"name": "pairs", **given}).items(count, seed)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    _dataset.cache_clear()
    with pytest.raises(InputError, match=r"reasoning_gym: pip install 'tokenry\[gym\]'"):
        ReasoningGym("chain_sum").items(1, 0)


# --- with the package -----------------------------------------------------------------------------

# scorers that compare tuples, metadata with NumPy's texts, partial credit, no known answer
NAMES = ["chain_sum", "countdown", "rearc", "knights_knaves", "rush_hour", "acre", "pool_matrix"]


@pytest.mark.parametrize("name", NAMES)
def test_real_entries_and_scores(name):
    gym = pytest.importorskip("reasoning_gym")
    made = ReasoningGym(name)
    peer = gym.create_dataset(name, seed=2 * STRIDE, size=4)
    rows = prompt_rows(made, 4, 2)
    for number, item in enumerate(made.items(4, 2)):
        entry = peer[number]
        assert made.entry(item) == entry
        answers = [str(entry["answer"]), f"{entry['answer']} ", "", "0"]
        scores = [peer.score_answer(answer, entry) for answer in answers]
        assert [made.score(item, answer)["score"] for answer in answers] == scores
        assert (item.solution is None) == (name == "rush_hour")
        told = [rows[number]["item"]] * len(answers)
        assert TaskReward(made)([item.request.prompt] * len(answers), answers, told) == scores


def test_a_real_composite_and_a_real_system_prompt():
    gym = pytest.importorskip("reasoning_gym")
    parts = [{"name": name, "weight": 1, "config": {}} for name in ("gcd", "spell_backward")]
    made = ReasoningGym("composite", {"datasets": parts}, system="default")
    items = made.items(12, 0)
    names = {made.entry(item)["metadata"]["source_dataset"] for item in items}
    assert names == {"gcd", "spell_backward"}
    assert all(made.score(item, f"So {item.solution}")["score"] == 1 for item in items)
    assert items[0].request.prompt[0]["content"] == gym.utils.SYSTEM_PROMPTS["default"]
    with pytest.raises(InputError, match="does not take"):
        ReasoningGym("composite").items(1, 0)
