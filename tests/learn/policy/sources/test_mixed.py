"""Own and given completions in one batch, and every source in the real trainer."""

import copy

import pytest
import torch

from tokenry.core.batch import TokenBatch
from tokenry.core.errors import InputError, UnknownNameError
from tokenry.learn.policy.rollouts import RolloutSettings
from tokenry.learn.policy.sampled import Sampled
from tokenry.learn.policy.sources.base import Prompts
from tokenry.learn.policy.sources.beams import Beams
from tokenry.learn.policy.sources.environment import Turns
from tokenry.learn.policy.sources.mixed import Mixed, source_of
from tokenry.learn.policy.sources.mixtures import Mixtures
from tokenry.learn.policy.sources.plain import PlainSampling
from tokenry.learn.policy.sources.tree import Tree
from tokenry.learn.preference.dpo import DPO
from tokenry.learn.pretraining.sft import SFT
from tokenry.learn.run import train

DATA = [
    {"prompt": f"the {noun}", "completion": " sat there"}
    for noun in ("cat", "dog", "mat", "theory", "father", "age")
]
QUIET = {
    "disable_tqdm": True,
    "use_cpu": True,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
    "seed": 3,
}


def prompts(count):
    ids = torch.arange(5, 5 + count)[:, None]
    given = [[int(token), 40, 41] for token in ids[:, 0]]
    own = TokenBatch.from_ids(given, [[False, True, True]] * count, group=[*range(count)])
    return Prompts(ids, torch.ones_like(ids, dtype=torch.bool), (1,), 0, own)


def test_a_prompt_has_the_policys_completions_or_the_datas_one(tiny_llama):
    torch.manual_seed(0)
    batch = Mixed(Tree(segment=1), share=0.7)(tiny_llama, prompts(50), RolloutSettings(2, 4))
    own = batch.column("sampled") == 1
    rows = torch.bincount(batch.group, minlength=50)
    of = torch.zeros(50).index_add(0, batch.group, batch.column("sampled"))
    assert ((rows == 2) & (of == 2) | (rows == 1) & (of == 0)).all()
    assert 25 <= int((rows == 2).sum()) <= 45
    for row in range(len(batch.ids)):
        real = batch.ids[row][batch.attention[row]].tolist()
        assert real[0] == 5 + int(batch.group[row])
        if not own[row]:
            assert real[1:] == [40, 41]
            assert (batch.column("node")[row][batch.target[row]] == -1).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_the_share(tiny_llama, share):
    batch = Mixed(share=share)(tiny_llama, prompts(6), RolloutSettings(3, 4))
    assert batch.column("sampled").unique().tolist() == [share]
    assert len(batch.ids) == (18 if share else 6)


def test_settings_name_the_source(tmp_path):
    assert source_of(RolloutSettings()) == PlainSampling()
    assert source_of(RolloutSettings(source="tree", share=1.0)) == Tree()
    assert source_of(RolloutSettings(source=Tree(3), share=0.25)) == Mixed(Tree(3), 0.25)
    file = tmp_path / "mine.py"
    file.write_text("def twice(policy, prompts, settings):\n    return None\n")
    assert source_of(RolloutSettings(source=f"{file}:twice")).__name__ == "twice"
    with pytest.raises(UnknownNameError):
        source_of(RolloutSettings(source="trees"))
    with pytest.raises(InputError, match="Beams"):  # it needs texts
        source_of(RolloutSettings(source="beams"))
    with pytest.raises(InputError, match="is called with"):
        source_of(RolloutSettings(source=7))
    with pytest.raises(InputError, match="share"):
        RolloutSettings(share=1.5)


def vowels(prompt, completion):
    return sum(letter in "aeiou" for letter in completion) / 4


@pytest.fixture
def run(tiny_llama_text, tiny_tokenizer, tmp_path):
    def start(objective, data=DATA, **settings):
        model = copy.deepcopy(tiny_llama_text)
        options = {**QUIET, **settings}
        output = tmp_path / str(len([*tmp_path.iterdir()]))
        return train(objective, data, (model, tiny_tokenizer), output, **options)

    return start


def losses(record):
    return [entry["loss"] for entry in record["history"] if "loss" in entry]


def test_a_share_of_0_is_the_objective_on_its_data(run):
    plain = run("sft")
    given = run("sft", share=0.0)
    assert losses(given.record) == pytest.approx(losses(plain.record), rel=1e-4)
    for one, other in zip(plain.model.parameters(), given.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_share_of_1_needs_no_completions_and_trains_on_own_ones(run, monkeypatch):
    import tokenry.learn.trainer as module

    drawn, real = [], module.ObjectiveTrainer._roll_out
    monkeypatch.setattr(
        module.ObjectiveTrainer,
        "_roll_out",
        lambda self, inputs: drawn.append(real(self, inputs)) or drawn[-1],
    )
    prompts = [{"prompt": row["prompt"]} for row in DATA]
    record = run("sft", prompts, share=1.0, samples=2, max_new_tokens=5).record
    assert record["rollout"] == {"share": 1.0, "samples": 2, "max_new_tokens": 5}
    assert record["objective"] == "sft"
    assert [len(fields["ids"]) for fields in drawn] == [4, 4, 4]
    assert all(fields["target"].sum(-1).max() <= 5 for fields in drawn)
    drawn.clear()
    run("sft", share=0.5, samples=1, max_new_tokens=4)
    sampled = torch.cat([fields["column.sampled"] for fields in drawn])
    assert 0 < sampled.mean() < 1
    assert len(sampled) == 6


def test_an_on_policy_objective_may_keep_some_of_the_datas_completions(run):
    record = run("grpo", rewards=[vowels], share=0.5, samples=3, max_new_tokens=4).record
    assert len(losses(record)) == 3
    with pytest.raises(InputError, match="completion"):
        run("grpo", [{"prompt": "the cat"}], rewards=[vowels], share=0.5)


def test_objectives_that_cannot_be_sampled_for_are_named(run):
    pairs = [{"prompt": "the cat", "chosen": " sat", "rejected": " gathered"}]
    with pytest.raises(InputError, match="DPO does not learn from given texts"):
        run("dpo", pairs, share=0.5)
    for wrong in (DPO(), Sampled(SFT())):
        with pytest.raises(InputError, match="does not learn from given texts"):
            Sampled(wrong)
    with pytest.raises(InputError, match="the data have no others"):
        Mixed(share=0.5)(None, Prompts(torch.ones(1, 1).long(), torch.ones(1, 1).bool()), None)


def test_sampled_is_the_objective_in_everything_else():
    wrapped = Sampled(SFT())
    assert (wrapped.needs, wrapped.unit) == (SFT().needs, SFT().unit)
    assert wrapped.completions == ("completion",)
    assert wrapped.rollout_needs == ()
    assert wrapped.modules(None) is None
    assert wrapped.supervised


@pytest.mark.parametrize("name", ["tree", "beams", "environment", "mixtures", "its name"])
def test_every_source_trains_in_the_real_trainer(run, tiny_tokenizer, name):
    words = [tiny_tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" sat", " a")]
    source = {
        "tree": Tree(segment=2),
        "beams": Beams(words),
        "environment": Turns(lambda prompt, said: words[0], turns=2),
        "mixtures": Mixtures(2, 2),
        "its name": "tree",
    }[name]
    record = run(
        "grpo", rewards=[vowels], source=source, samples=4, max_new_tokens=8, updates=2
    ).record
    assert len(losses(record)) == 6
    assert all(torch.isfinite(torch.tensor(losses(record))))
    if name == "tree":
        assert record["rollout"]["source"] == {"kind": "Tree", "branching": 2, "segment": 2}
