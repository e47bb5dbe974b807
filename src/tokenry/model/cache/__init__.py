"""Key-value caches with a bounded size, for plain `model.generate`.

    policy = cache_policy["h2o"](heavy=0.1, recent=0.1)
    model.generate(**inputs, past_key_values=policy.cache(model))

A policy is a frozen dataclass with the method `cache(model)`: a fresh `transformers` cache for one
generation. `simulation` measures what a policy costs on a given text, in one forward.
"""
