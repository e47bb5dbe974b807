"""Lipograms: English without the letter e, and openings that invite one."""

SENTENCES = (
    "A small brown dog ran across our lawn and sat down by a wall.",
    "It was a cold night, and rain was falling on my roof.",
    "His mission was to find out who had built that old clock.",
    "You can always count on a good book to pass an hour or two.",
    "Our train will stop in London for about half an hour.",
    "Birds in this part of India sing all day long.",
    "Nobody in town had any doubt about what to do.",
    "A doctor told him to drink milk and go for long walks.",
    "In autumn, crops grow tall and farmhands work from dawn to dusk.",
    "This city has many parks, a broad canal and two big banks.",
    "My aunt put salt in my soup, and I did not mind at all.",
    "Without food or warm clothing, no man can stay long on that hill.",
    "Both girls want to play piano in a band.",
    "If you do not pay your bill soon, you will lack light and gas.",
    "Music that I know by word and by rhythm can bring back a lost day.",
    "A king had four sons, but not a son would fight for him.",
    "Biology is also a study of how plants turn air and sunlight into sugar.",
    "What is important to a company is trust, and trust is hard to win.",
    "Old ships lay in a harbor, with tall masts swaying in fog.",
    "Tomorrow I will fly south to visit a bright and calm island.",
)
"""Sentences without an e."""
OPENINGS = (
    "Our trip to that island was",
    "A man ran into my shop and",
    "In this book you will find",
    "My old aunt always told us that",
    "What I want most is",
    "Long ago, in a small town,",
    "If it rains tomorrow,",
    "This morning a big dog",
    "A good way to start a day is",
    "Nobody thought that such a thing",
)
"""Beginnings of sentences, most of them with an e."""
