"""The expected gradient of every preset, exactly: all groups of completions of an enumerable world.

The right side of each comparison is written in plain numbers, token by token, from the paper's
equations; the left side is what the preset makes of the same groups through `prepare` and its loss.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev, stdev

import pytest
import torch

from tokenry.lab.expected_updates import group_loss
from tokenry.learn.policy.axes import (
    GAE,
    KL,
    Critic,
    Divergence,
    GroupAdvantage,
    RewardToGo,
    TokenReward,
)
from tokenry.learn.policy.gradient import PolicyGradient
from tokenry.learn.policy.orchestrator import PreferenceOrchestrator
from tokenry.learn.policy.pama import PAMA
from tokenry.learn.policy.ppo import PPO
from tokenry.learn.policy.presets import CISPO, DAPO, GRPO, GSPO, DrGRPO
from tokenry.learn.policy.pro import PRO
from tokenry.learn.policy.rto import RTO
from tokenry.learn.policy.salsa import SALSA
from tokenry.learn.preference.align_distil import AlignDistil
from tokenry.tasks.worlds.enumerable import EnumerableWorld

WORLD = EnumerableWorld(vocabulary=3, length=2)
SIZE = 2
OLD = WORLD.table(1).detach()
FROZEN = {"reference": WORLD.table(5), "dpo": WORLD.table(6), "reverse": WORLD.table(7)}
FROZEN = {name: table.detach() for name, table in FROZEN.items()}
TEXTS = WORLD.texts


def second_reward(number):
    return 0.7 * len(TEXTS[number]) - 0.3 * sum(TEXTS[number])


def loss_of(goal, chosen, table, modules=None, several=False, frozen=FROZEN):
    """The objective's loss of one group, sampled from the old table, under `table`."""
    columns = {}
    if several:
        second = torch.tensor([second_reward(number) for number in chosen]).double()
        columns = {"reward": torch.stack([WORLD.reward[list(chosen)], second], -1)}
    return group_loss(goal, WORLD, chosen, OLD, table, frozen, modules, **columns)


def expected(loss, table):
    """The gradient of the sum over all groups of p_old(group) loss(group)."""
    chance = WORLD.probability(OLD).detach()
    total = sum(chance[list(c)].prod() * loss(c) for c in WORLD.groups(SIZE))
    return torch.autograd.grad(total, table)[0]


# ---- the same by hand


def pessimistic(ratio, advantage, low, high):
    bounded = ratio.clamp(1 - low, 1 + high)
    return torch.minimum(ratio * advantage, bounded * advantage)


def moved(table, chosen):
    """log pi - log pi_old and log pi of every token, row by row."""
    now, before = WORLD.logprob(table, chosen), WORLD.logprob(OLD, chosen)
    lengths = [len(TEXTS[number]) for number in chosen]
    own = [[now[row, t] for t in range(1, 1 + n)] for row, n in enumerate(lengths)]
    shift = [
        [now[row, t] - before[row, t].detach() for t in range(1, 1 + n)]
        for row, n in enumerate(lengths)
    ]
    return shift, own


def from_groups(token_loss, normal):
    """A hand-made loss: token_loss(log-ratio, A, log pi, mean log-ratio), times normal(lengths)."""

    def loss(table, chosen):
        rewards = [float(WORLD.reward[number]) for number in chosen]
        shift, own = moved(table, chosen)
        total = 0.0
        for row, weight in enumerate(normal([len(each) for each in shift])):
            mean = sum(shift[row]) / len(shift[row])
            for x, now in zip(shift[row], own[row], strict=True):
                total = total + weight * token_loss(x, rewards, row, now, mean)
        return total

    return loss


def normalised(rewards, row, eps=1e-4):
    return (rewards[row] - fmean(rewards)) / (stdev(rewards) + eps)


def per_completion(lengths):
    return [1 / (len(lengths) * n) for n in lengths]


def per_token(lengths):
    return [1 / sum(lengths)] * len(lengths)


def table_logprob(table, number):
    text = TEXTS[number]
    rows = table.log_softmax(-1)
    return [float(rows[WORLD.contexts[text[:at]], text[at]]) for at in range(len(text))]


def penalised(chosen, finals, kl, reference, dense=None):
    """The tokens' rewards."""
    rewards = []
    for number, final in zip(chosen, finals, strict=True):
        pairs = zip(table_logprob(OLD, number), table_logprob(reference, number), strict=True)
        own = [-kl * (a - b) for a, b in pairs]
        if dense is not None:
            own = [a + b for a, b in zip(own, dense(number), strict=True)]
        own[-1] += final
        rewards.append(own)
    return rewards


def advantages(rewards, gamma, lam, values=None, whitened=True):
    """Generalised estimates as sums; the values are positional means unless given."""
    togo = [
        [sum(gamma**k * r for k, r in enumerate(row[t:])) for t in range(len(row))]
        for row in rewards
    ]
    if values is None:
        at = [fmean(g[t] for g in togo if len(g) > t) for t in range(max(map(len, togo)))]
        values = [at[: len(row)] for row in rewards]
    found = []
    for row, v in zip(rewards, values, strict=True):
        ahead = [*v[1:], 0.0]
        delta = [r + gamma * n - own for r, n, own in zip(row, ahead, v, strict=True)]
        found.append(
            [
                sum((gamma * lam) ** k * d for k, d in enumerate(delta[t:]))
                for t in range(len(delta))
            ]
        )
    returns = [
        [a + b for a, b in zip(x, y, strict=True)] for x, y in zip(found, values, strict=True)
    ]
    if whitened:
        flat = [a for row in found for a in row]
        mean, spread = fmean(flat), pstdev(flat) + 1e-8
        found = [[(a - mean) / spread for a in row] for row in found]
    return found, returns


def clipped_loss(table, chosen, found, clip):
    shift, _ = moved(table, chosen)
    terms = [
        pessimistic(x.exp(), a, clip, clip)
        for xs, row in zip(shift, found, strict=True)
        for x, a in zip(xs, row, strict=True)
    ]
    return -sum(terms) / len(terms)


def ppo_by_hand(kl, reference="reference", finals=None, dense=None, gamma=1.0, lam=0.95):
    finals = finals or (lambda number: float(WORLD.reward[number]))

    def loss(table, chosen):
        given = [finals(number) for number in chosen]
        base = reference if torch.is_tensor(reference) else FROZEN[reference]
        found, _ = advantages(penalised(chosen, given, kl, base, dense), gamma, lam)
        return clipped_loss(table, chosen, found, 0.2)

    return loss


def rto_dense(number):
    pairs = zip(
        table_logprob(FROZEN["dpo"], number),
        table_logprob(FROZEN["reference"], number),
        strict=True,
    )
    return [min(max(0.4 * (a - b), -0.05), 0.05) for a, b in pairs]


def pama_by_hand(table, chosen):
    found = []
    for final in (lambda number: float(WORLD.reward[number]), second_reward):
        given = [final(number) for number in chosen]
        found.append(advantages(penalised(chosen, given, 0.1, FROZEN["reference"]), 1.0, 0.95)[0])
    shift, _ = moved(table, chosen)
    terms = []
    for row, xs in enumerate(shift):
        for t, x in enumerate(xs):
            each = [max(one[row][t], 0.0) for one in found]
            free = bool(x.exp() < 1.2)
            active = [a if free else 0.0 for a in each]
            smallest = [a for a, b in zip(each, active, strict=True) if b == min(active)]
            terms.append(torch.clamp(x.exp(), max=1.2) * fmean(smallest))
    return -sum(terms) / len(terms)


def align_by_hand(table, chosen):
    own, dpo, reverse = (t.log_softmax(-1) for t in (table, FROZEN["dpo"], FROZEN["reverse"]))
    rows = []
    for number in chosen:
        terms = []
        for at in range(len(TEXTS[number])):
            row = WORLD.contexts[TEXTS[number][:at]]
            weight = float(15 * (dpo[row].exp() - reverse[row].exp()).abs().sum() + 1e-3)
            goal = (dpo[row] + weight * (dpo[row] - reverse[row])).log_softmax(-1)
            terms.append(0.1 / weight * (own[row].exp() * (own[row] - goal)).sum())
        rows.append(sum(terms) / len(terms))
    return sum(rows) / len(rows)


def orchestrator():
    torch.manual_seed(0)
    made = PreferenceOrchestrator(WORLD.vocabulary, 2).double()
    made.reward_std.fill_(2.0)
    return made


ORCHESTRATOR = orchestrator()


def orchestrated(number):
    """The first state is that of the empty text, the same for all completions."""
    shares = ORCHESTRATOR(FROZEN["reference"][0][None].float())[0].tolist()
    scores = (float(WORLD.reward[number]) / 2, second_reward(number) / 2)
    mixed = [0.75 * share + 0.25 * own for share, own in zip(shares, (0.9, 0.1), strict=True)]
    return sum(w * s for w, s in zip(mixed, scores, strict=True))


@dataclass(frozen=True)
class Case:
    goal: object
    by_hand: object
    several: bool = False


SOUP = (0.5 * (FROZEN["reference"] + FROZEN["dpo"])).detach()
CASES = {
    "grpo": Case(
        GRPO(),
        from_groups(
            lambda x, r, row, now, mean: -pessimistic(x.exp(), normalised(r, row), 0.2, 0.2),
            per_completion,
        ),
    ),
    "dr-grpo": Case(
        DrGRPO(length=7.0),
        from_groups(
            lambda x, r, row, now, mean: -pessimistic(x.exp(), r[row] - fmean(r), 0.2, 0.2),
            lambda lengths: [1 / (len(lengths) * 7.0)] * len(lengths),
        ),
    ),
    "dapo": Case(
        DAPO(clip=0.1, clip_high=0.4),
        from_groups(
            lambda x, r, row, now, mean: -pessimistic(x.exp(), normalised(r, row), 0.1, 0.4),
            per_token,
        ),
    ),
    "gspo": Case(
        GSPO(clip=0.1, clip_high=0.15),
        from_groups(
            lambda x, r, row, now, mean: -pessimistic(mean.exp(), normalised(r, row), 0.1, 0.15),
            per_completion,
        ),
    ),
    "cispo": Case(
        CISPO(most=1.3),
        from_groups(
            lambda x, r, row, now, mean: (
                -x.detach().exp().clamp(max=1.3) * normalised(r, row) * now
            ),
            per_token,
        ),
    ),
    "ppo": Case(PPO(kl=0.3), ppo_by_hand(0.3)),
    "rto": Case(
        RTO(kl=0.2, beta1=0.4, reward_weight=2.0, reward_clamp=1.5),
        ppo_by_hand(
            0.2,
            dense=rto_dense,
            finals=lambda number: min(max(2 * float(WORLD.reward[number]), -1.5), 1.5),
        ),
    ),
    "salsa": Case(SALSA(kl=0.4), ppo_by_hand(0.4, reference=SOUP)),
    "pro": Case(
        PRO(kl=0.1, user_weights=(0.9, 0.1), user_share=0.25, orchestrator=ORCHESTRATOR),
        ppo_by_hand(0.1, finals=orchestrated),
        several=True,
    ),
    "pama": Case(PAMA(kl=0.1), pama_by_hand, several=True),
    "align-distil": Case(AlignDistil(), align_by_hand),
}


def current(off_policy):
    shift = 0.5 * WORLD.table(2).detach() if off_policy else 0.0
    return (OLD + shift).requires_grad_()


def preset_gradient(name, table, goal=None):
    case = CASES[name]
    goal = case.goal if goal is None else goal
    frozen = {**FROZEN, "reference": SOUP} if name == "salsa" else FROZEN
    modules = goal.modules(None)
    return expected(lambda c: loss_of(goal, c, table, modules, case.several, frozen), table)


@pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", CASES)
def test_expected_gradients_of_presets_are_those_of_the_enumerated_objective(name, off_policy):
    table = current(off_policy)
    found = preset_gradient(name, table)
    wanted = expected(lambda c: CASES[name].by_hand(table, c), table)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert found.abs().max() > 1e-3  # a zero on-policy gradient would be a fault


def wrong_sign(clip):
    return lambda u, a, x, rollouts: -clip(u, a, x, rollouts)


def not_detached(clip):
    """An importance weight in front, with its gradient."""
    return lambda u, a, x, rollouts: u * clip(u, a, x, rollouts)


def no_gradient(clip):
    """The old log-probabilities taken from the policy of now: every ratio is a constant 1."""
    return lambda u, a, x, rollouts: clip(u.detach(), a, x, rollouts).detach() + 0 * u


@pytest.mark.parametrize("fault", [wrong_sign, not_detached, no_gradient])
@pytest.mark.parametrize("name", [name for name in CASES if name != "align-distil"])
def test_planted_faults_are_seen(name, fault):
    table = current(off_policy=False)
    composed = CASES[name].goal.composed()
    found = preset_gradient(name, table, replace(composed, clip=fault(composed.clip)))
    wanted = expected(lambda c: CASES[name].by_hand(table, c), table)
    assert not torch.allclose(found, wanted, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("fault", ["sign", "detach", "no gradient"])
def test_planted_faults_are_seen_in_distillation(fault):
    table = current(off_policy=False)

    class Faulty(AlignDistil):
        def __call__(self, batch, policy, *given, **others):
            if fault == "no gradient":
                policy = replace(policy, hidden=policy.hidden.detach() + 0 * policy.hidden)
            elif fault == "detach":  # the policy among the frozen ones
                others["dpo"] = policy
            result = super().__call__(batch, policy, *given, **others)
            return replace(result, loss=-result.loss) if fault == "sign" else result

    found = preset_gradient("align-distil", table, Faulty())
    wanted = expected(lambda c: align_by_hand(table, c), table)
    assert not torch.allclose(found, wanted, rtol=1e-2, atol=1e-4)


def test_a_critics_gradient_and_what_it_learns_are_exact():
    """Values from the policy's own states: their loss moves the policy and the head."""
    goal = PPO(kl=0.3, critic=True, value_weight=0.5, value_clip=0.05)
    modules = goal.modules(type("Model", (), {"config": type("C", (), {"hidden_size": 3})}))
    torch.manual_seed(0)
    torch.nn.init.normal_(modules["critic"].weight)
    weight, bias = (one.detach().double() for one in modules["critic"].parameters())
    table = current(off_policy=True)
    found = expected(lambda c: loss_of(goal, c, table, modules), table)

    def by_hand(chosen):
        def values(rows, number):
            contexts = [WORLD.contexts[TEXTS[number][:t]] for t in range(len(TEXTS[number]))]
            return [rows[context] @ weight[0] + bias[0] for context in contexts]

        value = {
            name: [values(rows, number) for number in chosen]
            for name, rows in (("old", OLD), ("now", table))
        }
        old = [[float(v) for v in row] for row in value["old"]]
        finals = [float(WORLD.reward[number]) for number in chosen]
        rewards = penalised(chosen, finals, 0.3, FROZEN["reference"])
        made, returns = advantages(rewards, 1.0, 0.95, old)
        errors = []
        for row in range(len(chosen)):
            for v, before, target in zip(value["now"][row], old[row], returns[row], strict=True):
                near = before + (v - before).clamp(-0.05, 0.05)
                errors.append(0.5 * torch.maximum((v - target) ** 2, (near - target) ** 2))
        return clipped_loss(table, chosen, made, 0.2) + 0.5 * sum(errors) / len(errors)

    wanted = expected(by_hand, table)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


# ---- without a bias, the gradient of what is wanted itself


def value_of(table, kl):
    """E[R] - kl KL(pi || reference), exactly."""
    chance = WORLD.probability(table)
    reference = WORLD.logprob(FROZEN["reference"], tuple(range(len(TEXTS)))).sum(-1)
    return (chance * (WORLD.reward - kl * (chance.log() - reference))).sum()


UNBIASED = {
    "others as baseline": GroupAdvantage(scale="none", leave_one_out=True),
    "no baseline": GroupAdvantage(center=False, scale="none"),
    "reward to go": RewardToGo(TokenReward(0.3), baseline="none"),
    "reward to go, less the others' at the position": RewardToGo(TokenReward(0.3)),
    "critic": GAE(TokenReward(0.3), lam=1.0, critic=Critic(weight=0.0), normalise=False),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_without_bias_the_expected_gradient_is_that_of_the_expected_reward(name):
    """Sums over tokens, no scale: REINFORCE, whatever the baseline knows of other completions or
    of the state."""
    table = OLD.clone().requires_grad_()
    goal = PolicyGradient(UNBIASED[name], aggregation="sequence-sum")
    modules = goal.modules(type("Model", (), {"config": type("C", (), {"hidden_size": 3})}))
    for weight in modules.parameters():
        torch.nn.init.normal_(weight)
    found = expected(lambda c: loss_of(goal, c, table, modules), table)
    kl = 0.0 if isinstance(UNBIASED[name], GroupAdvantage) else 0.3
    wanted = -torch.autograd.grad(value_of(table, kl), table)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_baseline_that_knows_the_completion_itself_is_biased():
    table = OLD.clone().requires_grad_()
    advantage = RewardToGo(TokenReward(0.3), leave_one_out=False)
    goal = PolicyGradient(advantage, aggregation="sequence-sum")
    found = expected(lambda c: loss_of(goal, c, table), table)
    wanted = -torch.autograd.grad(value_of(table, 0.3), table)[0]
    assert not torch.allclose(found, wanted, rtol=1e-2, atol=1e-4)
    # half of each group's return is its own: half of the gradient is left
    assert torch.allclose(found[0], 0.5 * wanted[0], rtol=1e-5, atol=1e-7)


def silent(rollouts):
    return torch.zeros(len(rollouts.batch.ids))


def pulls(own, its):
    """The divergences of a policy at one context from the reference, with their gradients."""
    u = (its - own).exp()
    return {
        "reverse": (own.exp() * (own - its)).sum(-1),
        "forward": (its.exp() * (its - own)).sum(-1),
        "chi": (own.exp() * (u - 1) ** 2).sum(-1),
    }


@pytest.mark.parametrize(
    ("pull", "divergence"),
    [
        (KL(1.0, "k2"), "reverse"),
        (KL(1.0, "k3"), "forward"),
        (KL(1.0, "k3", corrected=True), "reverse"),
        (KL(1.0, "k1", corrected=True), "reverse"),
        (Divergence(1.0, "reverse_kl"), "reverse"),
        (Divergence(1.0, "forward_kl"), "forward"),
        (Divergence(1.0, "chi_squared"), "chi"),
    ],
)
def test_the_regularisers_gradient_is_the_divergences(pull, divergence):
    """On own samples, at the contexts that the policy visits."""
    table = OLD.clone().requires_grad_()
    goal = PolicyGradient(silent, regularizer=pull, aggregation="sequence-sum")
    found = expected(lambda c: loss_of(goal, c, table), table)
    own, its = table.log_softmax(-1), FROZEN["reference"].log_softmax(-1)
    visits = {(): torch.ones((), dtype=torch.float64)}
    for context in sorted(WORLD.contexts, key=len)[1:]:
        step = own[WORLD.contexts[context[:-1]], context[-1]].exp().detach()
        visits[context] = visits[context[:-1]] * step
    weights = torch.stack([visits[context] for context in WORLD.contexts])
    wanted = torch.autograd.grad((weights * pulls(own, its)[divergence]).sum(), table)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_every_group_of_the_world_is_listed_and_its_chances_sum_to_one():
    table = WORLD.table(0)
    assert WORLD.probability(table).sum().item() == pytest.approx(1)
    assert len(list(WORLD.groups(2))) == len(TEXTS) ** 2
    assert len(TEXTS) == len(set(TEXTS)) == 1 + 2 * 3
    # a text ends at its first 0, or has the full length
    assert all(0 not in t[:-1] and (t[-1] == 0 or len(t) == WORLD.length) for t in TEXTS)


def test_every_preset_is_compared_with_one_written_by_hand():
    """Here, or in a test file of its own beside this one."""
    from tokenry.learn.objective import objective
    from tokenry.learn.policy.gradient import Preset

    presets = {entry.key: entry.value for entry in objective if issubclass(entry.value, Preset)}
    assert set(CASES) <= set(presets)
    for key in set(presets) - set(CASES):
        stem = presets[key].__module__.rpartition(".")[2]
        assert Path(__file__).with_name(f"test_{stem}.py").is_file(), key
