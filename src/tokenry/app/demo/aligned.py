"""The demo's fourth part: helpful instead of evasive, by TDPO on 48 pairs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenry.app.demo.page import (
    ACCENT,
    FAINT,
    INK,
    SECOND,
    Section,
    inline_svg,
    new_axes,
    new_figure,
)
from tokenry.learn.reference import WithoutAdapter
from tokenry.learn.report import PreferenceReport, preference_report
from tokenry.learn.run import train
from tokenry.tasks.preferences import helpful_pairs

SETTINGS: dict[str, Any] = {
    "num_train_epochs": 1,
    "as_chat": True,
    "learning_rate": 4e-4,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
}
CODE = """\
tokenry train --objective tdpo --data helpful_train.jsonl --lora \\
    --config settings.yaml --eval-data helpful_heldout.jsonl --output trained"""
BETA = 0.1


def section(
    loaded: Any,
    pairs: Sequence[dict[str, str]] | None = None,
    heldout: Sequence[dict[str, str]] | None = None,
    seed: int = 0,
    tick: Callable[[str], None] = lambda what: None,
    callbacks: Sequence[Any] = (),
    **settings: Any,
) -> Section:
    """Measure held-out pairs, train a LoRA adapter with TDPO, and measure them again.

    Leaves the model that was passed in with an adapter on it.
    """
    pairs = helpful_pairs("train") if pairs is None else pairs
    heldout = helpful_pairs("heldout") if heldout is None else heldout
    settings = {**SETTINGS, "beta": BETA, **settings}
    tokenizer = loaded.tokenizer
    with tempfile.TemporaryDirectory(prefix="tokenry-demo-") as folder:
        tick(f"TDPO on {len(pairs)} pairs")
        run = train(
            "tdpo",
            list(pairs),
            tuple(loaded),
            Path(folder) / "trained",
            lora=True,
            seed=seed,
            callbacks=callbacks,
            disable_tqdm=True,
            **settings,
        )
    reference = WithoutAdapter(run.model)
    options = {"beta": settings["beta"], "as_chat": settings["as_chat"]}
    tick(f"measuring {len(heldout)} held-out pairs")
    with run.model.disable_adapter():
        before = preference_report(run.model, tokenizer, heldout, reference, **options)
    after = preference_report(run.model, tokenizer, heldout, reference, **options)
    history = [entry for entry in run.record["history"] if "loss" in entry]
    return Section(
        key="aligned",
        title="Aligned",
        about=f"{len(pairs)} pairs of a helpful and an evasive answer move the model, through a "
        "small adapter, towards being helpful. TDPO counts, token by token, how far each answer's "
        "distribution drifts from where the model started; what is shown was measured on "
        f"{len(heldout)} pairs that were not trained on.",
        code=CODE,
        numbers=[
            ("margin, held out", f"{before.margin:.2f} → {after.margin:.2f}"),
            (
                "accuracy, held out: chosen likelier per token",
                f"{before.preference_accuracy:.0%} → {after.preference_accuracy:.0%}",
            ),
            ("KL per token, held out (nats)", f"{before.kl:.2f} → {after.kl:.2f}"),
            (f"training, {run.record['steps']} steps", f"{run.record['seconds']:.0f} s"),
        ],
        content={
            "rows": summary(before, after),
            "settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
            "curve": inline_svg(learning(history), "Loss and margin while training"),
            "pairs": inline_svg(margins(before, after), "Preference of held-out pairs"),
            "answers": drift(after, [pair["prompt"] for pair in heldout]),
        },
    )


def summary(before: PreferenceReport, after: PreferenceReport) -> list[dict[str, str]]:
    """The held-out figures, before and after."""
    wanted = (
        ("implicit reward margin", "margin", "{:.3f}"),
        ("accuracy: margin above 0 (before, all are 0)", "accuracy", "{:.0%}"),
        ("log p per token, chosen − rejected (nats)", "preference", "{:.3f}"),
        ("accuracy: chosen likelier per token", "preference_accuracy", "{:.0%}"),
        ("KL per token, chosen (nats)", "kl_chosen", "{:.4f}"),
        ("KL per token, rejected (nats)", "kl_rejected", "{:.4f}"),
    )
    return [
        {
            "label": label,
            "before": form.format(getattr(before, name)),
            "after": form.format(getattr(after, name)),
        }
        for label, name, form in wanted
    ]


def learning(history: list[dict[str, Any]]) -> Any:
    """The loss and the training pairs' margin, step by step."""
    figure = new_figure(height=1.9)
    left, right = new_axes(figure, 1, 2)[0]
    steps = [entry["step"] for entry in history]
    for axis, name, title, colour in (
        (left, "loss", "loss", SECOND),
        (right, "rewards/margin", "margin", ACCENT),
    ):
        values = [float(entry.get(name, 0.0)) for entry in history]
        axis.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=2.5)
        axis.set_xlabel("step")
        axis.set_title(f"{title} of the training pairs", fontsize=9, color=INK)
    return figure


def margins(before: PreferenceReport, after: PreferenceReport) -> Any:
    """Each held-out pair: how much likelier a chosen token is, before and after."""
    figure = new_figure(height=0.8 + 0.16 * len(after.pairs))
    axis = new_axes(figure)[0, 0]
    order = sorted(range(len(after.pairs)), key=lambda n: after.pairs[n].preference)
    for row, index in enumerate(order):
        old, new = before.pairs[index].preference, after.pairs[index].preference
        axis.plot([old, new], [row, row], color=FAINT, linewidth=1.2, alpha=0.6)
        axis.plot(old, row, "o", color=SECOND, markersize=4.5, label="before" if not row else None)
        axis.plot(new, row, "o", color=ACCENT, markersize=4.5, label="after" if not row else None)
    axis.axvline(0, color=FAINT, linewidth=0.7, linestyle=(0, (3, 2)))
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set(xlabel="log p per token, chosen − rejected (nats)")
    legend = axis.legend(frameon=False, fontsize=8, loc="lower right")
    for text in legend.get_texts():
        text.set_color(INK)
    return figure


def drift(report: PreferenceReport, prompts: Sequence[str], count: int = 2) -> list[dict[str, Any]]:
    """The tokens of a few held-out answers with the KL at each, the most changed pairs first."""
    pairs = zip(report.pairs, prompts, strict=True)
    order = sorted(pairs, key=lambda item: -item[0].margin)[:count]
    values = [value for pair, _ in order for value in (*pair.chosen.kl, *pair.rejected.kl)]
    most = max(values, default=1.0)
    return [
        {
            "prompt": prompt,
            "sides": [
                {
                    "name": name,
                    "tokens": [
                        {
                            "text": text,
                            "heat": f"{kl / max(most, 1e-9):.3f}",
                            "note": f"{kl:.3f} nats",
                            "error": False,
                        }
                        for text, kl in zip(side.tokens, side.kl, strict=True)
                    ],
                }
                for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected))
            ],
        }
        for pair, prompt in order
    ]
