"""Key-value caches that hold, or look at, a part of the text, for plain `model.generate`.

    policy = cache_policy["h2o"](heavy=0.1, recent=0.1)
    model.generate(**inputs, past_key_values=policy.cache(model))

A policy is a frozen dataclass. `cache(model)` is a fresh `transformers` cache for one generation,
`layer()` one layer of it, `of_size` makes a policy from a count of tokens or a share of the prompt.
`h2o` evicts; `tokenselect` keeps everything and attends to a part; `full` is all of it, without a
copy per token. `per_layer` gives layers and heads policies of their own. `simulation` measures what
an evicting policy costs on a given text, in one forward.
"""
