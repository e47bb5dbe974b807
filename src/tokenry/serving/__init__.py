"""Serving: what a cluster of machines gives the users of a model, simulated before it is rented.

phases      how long reading a prompt and writing a token take on a machine
trace       when requests come, and how long their prompts and answers are
simulation  the cluster: queues, batches, and the key-value caches that travel
planner     latency targets, and the cheapest machines that meet them
"""
