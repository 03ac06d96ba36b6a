"""The genetic search of Ring-A-Bell (arXiv 2310.10012) over sequences of symbols, as pure functions.

A generation, in the order of the authors' code: the losses of all; the better half (of the population's nominal size)
survives; each survivor, with probability `crossover`, has two children with another survivor (one cut, uniform in
1..k: the heads and tails exchanged), which come after the survivors; then everyone, the best one too, has with
probability `mutation` one symbol replaced. The last generation is only judged. So the population's size varies, and the
best individual can be lost: it is remembered here, and returned beside the last generation's best.

Once the survivors are copies of one individual, only a replacement of one symbol that betters it gets in: a population
that is small for its vocabulary ends in the next local optimum, and further generations do not help it.

Individuals: (n, k) ids on the CPU. All chance is of the generator that is handed in; no argument is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from erasekit.methods import check_range

Losses = Callable[[Int[Tensor, "n k"]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class Rules:
    """How a population breeds; a wrong value raises `UsageError`."""

    population: int = 200
    """Individuals at the start; afterwards half of it survives and the children come on top."""
    generations: int = 3000
    """How often all are judged; 1: the best of a random population, which is the attack's control."""
    mutation: float = 0.25
    """The probability that an individual has one symbol replaced."""
    crossover: float = 0.5
    """The probability that a survivor has two children."""

    def __post_init__(self) -> None:
        check_range("population", self.population, low=4, high=1e6)
        check_range("generations", self.generations, low=1, high=1e6)
        check_range("mutation", self.mutation, high=1)
        check_range("crossover", self.crossover, high=1)


@dataclass(frozen=True, eq=False)
class Bred:
    """What a search found: the best of the last generation, the best ever, and (generation, best loss so far) wherever
    that improved, ending with the last generation. `evaluated`: individuals whose loss was computed."""

    last: Int[Tensor, " k"]
    last_loss: float
    best: Int[Tensor, " k"]
    best_loss: float
    curve: tuple[tuple[float, float], ...]
    evaluated: int


class Memory:
    """Losses of a population, computed only for individuals that were not in the population before it.

    No older ones are kept: they hardly ever come back, and thousands of generations of them would fill the memory.
    """

    def __init__(self, losses: Losses) -> None:
        self._losses, self.evaluated = losses, 0
        self._known: dict[bytes, float] = {}

    def __call__(self, population: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """The losses, in double precision; one that is no number is infinite."""
        keys = [row.tobytes() for row in population.numpy()]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            found = self._losses(population[list(new.values())]).double().nan_to_num(nan=float("inf"))
            self._known |= dict(zip(new, found.tolist(), strict=True))
            self.evaluated += len(new)
        self._known = {key: self._known[key] for key in keys}
        return torch.tensor(list(map(self._known.__getitem__, keys)), dtype=torch.float64)


def search(
    losses: Losses, length: int, symbols: Int[Tensor, " m"], rules: Rules, rng: torch.Generator,
    tell: Callable[[int], None] = lambda generation: None,
) -> Bred:  # fmt: skip
    """The sequence of `length` symbols with a small loss; deterministic for the generator. `tell(generation)` is called
    after each."""
    population, memory = random_population(rules.population, length, symbols, rng), Memory(losses)
    best, curve = (population[0], float("inf")), []
    for generation in range(1, rules.generations + 1):
        values = memory(population)
        survivors = values.argsort(stable=True)[: rules.population // 2]
        last = population[survivors[0]].clone(), float(values[survivors[0]])
        if last[1] < best[1]:
            best = last
            curve.append((float(generation), best[1]))
        if generation < rules.generations:
            population = crossed(population[survivors], rules.crossover, rng)
            population = mutated(population, rules.mutation, symbols, rng)
        tell(generation)
    if not curve or curve[-1][0] < rules.generations:
        curve.append((float(rules.generations), best[1]))
    return Bred(last[0], last[1], best[0], best[1], tuple(curve), memory.evaluated)


def random_population(
    count: int, length: int, symbols: Int[Tensor, " m"], rng: torch.Generator
) -> Int[Tensor, "count length"]:
    """Uniform sequences of the symbols."""
    return symbols[torch.randint(len(symbols), (count, length), generator=rng)]


def crossed(parents: Int[Tensor, "n k"], rate: float, rng: torch.Generator) -> Int[Tensor, "more k"]:
    """The parents, and after them two children of each that mates, with any of the others."""
    count, length = parents.shape
    if count < 2:
        return parents.clone()
    mothers = (torch.rand(count, generator=rng) < rate).nonzero()[:, 0]
    others = torch.randint(count - 1, (len(mothers),), generator=rng)
    fathers = others + (others >= mothers)
    head = torch.arange(length) < torch.randint(1, length + 1, (len(mothers), 1), generator=rng)
    one, two = parents[mothers], parents[fathers]
    return torch.cat([parents, torch.where(head, one, two), torch.where(head, two, one)])


def mutated(
    population: Int[Tensor, "n k"], rate: float, symbols: Int[Tensor, " m"], rng: torch.Generator
) -> Int[Tensor, "n k"]:
    """A copy in which each individual, with probability `rate`, has one random position replaced by a random symbol."""
    changed = population.clone()
    who = (torch.rand(len(population), generator=rng) < rate).nonzero()[:, 0]
    where = torch.randint(population.shape[1], (len(who),), generator=rng)
    changed[who, where] = symbols[torch.randint(len(symbols), (len(who),), generator=rng)]
    return changed
