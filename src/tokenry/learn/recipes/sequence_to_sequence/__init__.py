"""Training of encoder-decoders: objectives that look at the attention from target to source.

They work on tensors that any of transformers' encoder-decoders gives (`model.encoder_decoder`).
"""
