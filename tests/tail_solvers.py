"""Independent solvers of the TAIL problems, from their inputs: name -> answer."""

from collections import Counter
from functools import cache
from itertools import permutations, product


def levenshtein(a, b):
    @cache
    def distance(i, j):
        if not i or not j:
            return i + j
        change = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(change, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(a), len(b))


def lcs(a, b):
    @cache
    def length(i, j):
        if not i or not j:
            return 0
        if a[i - 1] == b[j - 1]:
            return length(i - 1, j - 1) + 1
        return max(length(i - 1, j), length(i, j - 1))

    return length(len(a), len(b))


def knapsack(things, capacity):
    values = {0: 0}  # weight -> best value
    for weight, value in things:
        more = {w + weight: v + value for w, v in values.items() if w + weight <= capacity}
        values = {w: max(values.get(w, 0), more.get(w, 0)) for w in {*values, *more}}
    return max(values.values())


def nearest(n, edges):
    """Bellman and Ford: every road n times."""
    distance = [0] + [10**9] * (n - 1)
    for _ in range(n):
        for u, v, length in edges:
            distance[u] = min(distance[u], distance[v] + length)
            distance[v] = min(distance[v], distance[u] + length)
    return distance[-1]


def schedule(jobs, machines):
    loads = [0] * machines
    for job in jobs:
        loads[loads.index(min(loads))] += job
    return max(loads)


def diophantine(a, b, c):
    x = next(x for x in range(c + 1) if (c - a * x) % b == 0 and c >= a * x)
    return f"x={x} y={(c - a * x) // b}"


def derangements(n, p):
    """By inclusion and exclusion: the nearest integer recursion n D(n - 1) + (-1)^n."""
    count = 1
    for k in range(1, n + 1):
        count = k * count + (-1) ** k
    return count % p


def growth(years, p, rate, m):
    for _ in range(years):
        p += p * rate // 100 + m
    return p


def palindromes(letters):
    """From the multiset permutations of half the letters, counted letter by letter."""
    counts = Counter(letters)
    middle = "".join(x for x in sorted(counts) if counts[x] % 2)
    assert len(middle) <= 1
    half = [x for x in sorted(counts) for _ in range(counts[x] // 2)]
    orders = sorted({"".join(order) for order in permutations(half)})
    return " ".join(order + middle + order[::-1] for order in orders)


def prime(n):
    return n > 1 and all(n % d for d in range(2, n))


def primes(start, end):
    return " ".join(str(v) for v in range(start, end + 1) if prime(v)) or "none"


def sign(a, b):
    return "<=>"[(int(a) > int(b)) - (int(a) < int(b)) + 1]


def position(numbers, x):
    return next((n for n, one in enumerate(numbers, 1) if one >= x), len(numbers) + 1)


SOLVERS = {
    "addition": lambda a, b: str(int(a) + int(b)),
    "division": lambda a, d: f"{int(a) // d} r {int(a) % d}",
    "compare": sign,
    "substring": lambda text, start, end: text[start - 1 : end],
    "bubble_sort": lambda numbers: " ".join(map(str, sorted(numbers))),
    "word_flip": lambda words: " ".join(words[::-1]),
    "derangement": derangements,
    "population_growth": growth,
    "dijkstra": nearest,
    "schedule": schedule,
    "count_letters": lambda word, letter: word.count(letter),
    "diophantine": diophantine,
    "prime_search": lambda start, end: primes(start, end),
    "binary_search": position,
    "lcs": lcs,
    "levenshtein": levenshtein,
    "knapsack": knapsack,
    "palindrome_permutations": palindromes,
}


def best_subset(things, capacity):
    """Every choice of things, for the solver of the knapsack itself."""
    chosen = product((0, 1), repeat=len(things))
    sums = [
        [sum(take * thing[n] for take, thing in zip(row, things, strict=True)) for n in (0, 1)]
        for row in chosen
    ]
    return max(value for weight, value in sums if weight <= capacity)
