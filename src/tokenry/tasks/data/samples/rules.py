"""Rewards for on-policy objectives: functions of a prompt and a completion, a number each."""


def brevity(prompt: str, completion: str) -> float:
    """Shorter is better."""
    return -len(completion.split()) / 50


def polite(prompt: str, completion: str) -> float:
    """One for a thank you or a please."""
    return float(any(word in completion.lower() for word in ("thank", "please", "welcome")))
