"""Per-token log-probability (and entropy) with gradients: fused, plain, and the bare matrix
products.

Each way runs forward and backward in a process of its own, on the same random data:
  ours     core.fused
  plain    log_softmax of all logits, then gather
  products the three matrix products that no exact way avoids: logits, d hidden, d weight

Memory is the rise of resident memory during the first run, with and without the gradients
themselves, which every way returns.

    python benchmarks/fused.py [--tokens 1024] [--width 640] [--vocabulary 262144] [--json]
"""

import json
import sys

from side_by_side import arguments, best_seconds, compare, peak_extra_memory, report, run_apart


def measure(way: str, tokens: int, width: int, vocabulary: int, repeats: int) -> dict:
    import torch

    from tokenry.core.fused import fused_scores
    from tokenry.core.linear_head import LinearHead

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).mul_(width**-0.5).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    results = {}

    def ours(entropy: bool) -> None:
        scores = fused_scores(hidden, LinearHead(weight), targets, entropy=entropy)
        loss = -scores.logprob.mean()
        if scores.entropy is not None:
            loss = loss - 0.01 * scores.entropy.mean()
        loss.backward()
        results["logprob"] = scores.logprob.detach()

    def plain() -> None:
        logprob = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])
        (-logprob.mean()).backward()
        results["logprob"] = logprob.detach()[:, 0]

    @torch.no_grad()
    def products() -> None:
        logits = hidden @ weight.T
        _ = logits @ weight, logits.T @ hidden

    run = {
        "ours": lambda: ours(False),
        "ours+entropy": lambda: ours(True),
        "plain": plain,
        "products": products,
    }[way]

    def once() -> None:
        hidden.grad = weight.grad = None
        run()

    # What a first matrix product sets up (threads, work space) is not the method's own.
    _ = hidden.detach()[:8] @ weight.detach()[:64].T
    memory = peak_extra_memory(once)
    seconds = best_seconds(once, repeats)
    checks = {}
    if "logprob" in results and way != "products":
        sample = torch.arange(0, tokens, max(1, tokens // 16))
        exact = hidden.detach()[sample].double() @ weight.detach().double().T
        exact = exact.log_softmax(-1).gather(1, targets[sample, None])[:, 0]
        checks["error"] = float((results["logprob"][sample] - exact).abs().max())
    gradients = 4 * (hidden.numel() + weight.numel())
    return {"seconds": seconds, "memory": memory, "gradients": gradients, **checks}


def main() -> None:
    parser = arguments("core.fused against the plain way and against the bare matrix products")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--vocabulary", type=int, default=262144)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", help="measure just this one, in this process")
    options = parser.parse_args()
    sizes = (options.tokens, options.width, options.vocabulary, options.repeats)
    if options.way:
        print(json.dumps(measure(options.way, *sizes)))
        return
    words = [f"--{n}={getattr(options, n)}" for n in ("tokens", "width", "vocabulary", "repeats")]
    ways = ("ours", "ours+entropy", "plain", "products")
    found = {way: run_apart(sys.argv[0], f"--way={way}", *words) for way in ways}
    ours, both, plain, products = (found[way] for way in ways)

    def extra(result: dict) -> float:
        return max(0, result["memory"] - result["gradients"]) / 1e6

    rows = [
        compare("logprob: time / bare products", ours["seconds"], products["seconds"], "s"),
        compare("logprob+entropy: time / bare products", both["seconds"], products["seconds"], "s"),
        compare("logprob: time / plain", ours["seconds"], plain["seconds"], "s"),
        compare("logprob: peak memory / plain", ours["memory"] / 1e6, plain["memory"] / 1e6, "MB"),
        compare("logprob: peak memory beyond gradients / plain", extra(ours), extra(plain), "MB"),
        compare(
            "logprob+entropy: peak memory beyond gradients / plain", extra(both), extra(plain), "MB"
        ),
        compare("logprob: largest error against float64", ours["error"], plain["error"], "nats"),
    ]
    report(rows, options.json, "fused linear + softmax, forward and backward")


if __name__ == "__main__":
    main()
