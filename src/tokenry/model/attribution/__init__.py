"""How much each token of a prompt counts for what a model says."""
