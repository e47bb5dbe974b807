"""Key clusters on keys whose geometry is known, and the navigator against plain ranking."""

import pytest
import torch

from tokenry.core.errors import InputError, ShapeError
from tokenry.measure.probes.navigation import (
    InContextNavigator,
    best_unseen,
    cluster_keys,
    mean_prefix_precision,
    precision_at,
    rank_cluster_report,
)


def two_clusters(seed=0):
    """Keys of 8 tokens around each of two orthogonal directions, and which they are."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    kind = torch.arange(16) % 2
    return centres[kind] + 0.2 * torch.randn(16, 3, generator=draw), kind


def same_partition(first, second):
    return torch.equal(first[:, None] == first, second[:, None] == second)


def test_precisions_by_hand():
    assert mean_prefix_precision([1, 0, 1], 3) == pytest.approx((1 + 0.5 + 2 / 3) / 3)
    assert precision_at([1, 0, 1], 2) == 0.5
    assert precision_at([1], 4) == 0.25
    with pytest.raises(InputError, match="k is 0"):
        precision_at([1], 0)


def test_clusters_are_found_whatever_the_order_of_ids():
    keys, kind = two_clusters()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    for ids, expected in (
        (cluster_keys(keys, 2), kind),
        (cluster_keys(keys[order], 2), kind[order]),
    ):
        same = ids[:, None] == ids
        assert torch.equal(same, expected[:, None] == expected)
    assert torch.equal(cluster_keys(keys, 3, seed=5), cluster_keys(keys, 3, seed=5))
    with pytest.raises(InputError, match="17 clusters"):
        cluster_keys(keys, 17)


def test_large_vocabularies_are_clustered_in_mini_batches():
    keys, kind = two_clusters()
    many = keys.repeat(700, 1)
    ids = cluster_keys(many, 2)
    assert torch.equal(
        ids[:, None][:50] == ids[:50], kind.repeat(4)[:50, None] == kind.repeat(4)[:50]
    )


def test_ranks_next_to_the_top_are_its_cluster_and_a_moved_query_leaves_it():
    keys, kind = two_clusters()
    query = torch.tensor([1.0, 0.1, 0.0])
    right = set(kind.nonzero()[:, 0].tolist())  # all of the other cluster are right
    report = rank_cluster_report(
        keys @ query, cluster_keys(keys, 2), lambda ids: [i in right for i in ids], head=2, depth=12
    )
    assert report.inside.tolist() == [True] * 8 + [False] * 4
    assert report.accuracy(True) == 0
    assert report.accuracy(False) == 1
    assert report.mean_rank(True) == pytest.approx((3 + 8) / 2)
    assert report.mean_rank(False) == pytest.approx((9 + 12) / 2)
    assert report.share_inside == pytest.approx(0.6)
    explored = keys[kind == 0].mean(0)
    moved = (keys @ (query - 0.5 * explored)).argsort(descending=True)
    assert (kind[moved[:8]] == 1).all()


def test_tokens_without_a_cluster_are_not_ranked():
    logits = torch.arange(8.0)
    clusters = torch.tensor([0, 0, 0, 0, 1, 1, -1, -1])
    seen = []
    rank_cluster_report(
        logits, clusters, lambda ids: seen.extend(ids) or [True] * 4, head=1, depth=4
    )
    assert seen == [5, 4, 3, 2]
    with pytest.raises(ShapeError, match=r"\[V\]"):
        rank_cluster_report(logits, clusters[:3], lambda ids: [], head=1, depth=2)
    with pytest.raises(InputError, match="head < depth"):
        rank_cluster_report(logits, clusters, lambda ids: [], head=2, depth=2)
    with pytest.raises(ShapeError, match="judged 1 of 2"):
        rank_cluster_report(logits, clusters, lambda ids: [True], head=1, depth=2)


def navigator(model, tokenizer, **options):
    options = {"per_round": 5, "max_new_tokens": 6} | options
    return InContextNavigator(model, tokenizer, "the cat", **options)


def test_no_first_token_is_tried_twice(tiny_llama_text, tiny_tokenizer):
    found = navigator(tiny_llama_text, tiny_tokenizer)(4)
    assert len(found) == 20
    assert len({answer.first_token for answer in found}) == 20
    assert [answer.round for answer in found] == [n // 5 for n in range(20)]
    special = set(tiny_tokenizer.all_special_ids)
    assert not special & {answer.first_token for answer in found}


def test_one_round_is_the_plain_ranking(tiny_llama_text, tiny_tokenizer):
    explorer = navigator(tiny_llama_text, tiny_tokenizer, per_round=12)
    logits = explorer.state([]).logits[0].clone()
    logits[tiny_tokenizer.all_special_ids] = -torch.inf
    found = explorer(1)
    assert [answer.first_token for answer in found] == logits.topk(12).indices.tolist()


def test_answers_are_greedy_continuations_cut_at_the_stop(tiny_llama_text, tiny_tokenizer):
    explorer = navigator(tiny_llama_text, tiny_tokenizer, stop="e", max_new_tokens=8)
    for answer in explorer(2):
        prompt = tiny_tokenizer(explorer.prompt([]), return_tensors="pt").input_ids
        ids = torch.cat([prompt, torch.tensor([[answer.first_token]])], 1)
        text = tiny_tokenizer.decode(ids[0, prompt.shape[1] :])
        while "e" not in text and ids.shape[1] - prompt.shape[1] < 8 and ids[0, -1] != 1:
            with torch.no_grad():
                best = tiny_llama_text(ids).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], 1)
            text = tiny_tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)
        assert answer.text == text.split("e")[0].strip()


def test_the_list_holds_each_answer_once(tiny_llama_text, tiny_tokenizer):
    explorer = navigator(tiny_llama_text, tiny_tokenizer)
    assert explorer.prompt([]) == 'the cat\n\nAnswer:\n1. "'
    assert explorer.prompt(["a", "b", "a"]) == 'the cat\n\nAnswer:\n1. "a"\n2. "b"\n3. "'


def test_navigation_looks_where_the_listed_prompt_points(tiny_llama_text, tiny_tokenizer):
    explorer = navigator(tiny_llama_text, tiny_tokenizer)
    found = explorer(2)
    logits = explorer.state([answer.text for answer in found[:5]]).logits[0]
    seen = torch.zeros(len(tiny_tokenizer), dtype=torch.bool)
    seen[[*tiny_tokenizer.all_special_ids, *(answer.first_token for answer in found[:5])]] = True
    expected = best_unseen(logits, seen, 5).tolist()
    assert [answer.first_token for answer in found[5:]] == expected
    current = navigator(tiny_llama_text, tiny_tokenizer, complete_from="current")(2)
    assert [answer.first_token for answer in current[5:]] == expected


def test_too_many_rounds_are_refused(tiny_llama_text, tiny_tokenizer):
    with pytest.raises(InputError, match="fewer rounds"):
        navigator(tiny_llama_text, tiny_tokenizer, per_round=200)(2)
    with pytest.raises(InputError, match="complete_from is 'here'"):
        navigator(tiny_llama_text, tiny_tokenizer, complete_from="here")
