"""Beginnings of sentences, each to be continued by many different words."""

SENTENCE_STARTS = (
    "In the morning she opened the window and saw",
    "The recipe begins with two cups of",
    "The function returns a list of",
    "My favourite season of the year is",
    "The capital of France is",
    "Once upon a time there was a",
    "The doctor looked at the results and said",
    "To install the package, run the",
    "The train to London leaves at",
    "He was so tired that he",
    "The largest planet of the solar system is",
    "I would like to thank my",
    "The company announced yesterday that",
    "Water boils at a temperature of",
    "The old man and the",
    "She put the book back on the",
    "For breakfast we usually have",
    "The students were asked to write about",
    "It was a dark and stormy",
    "The best way to learn a language is to",
)
