"""How often intervals miss the truth, and tests reject it: simulated, and on real predictions.

    python -m benchmarks.levels [--trials N] [--real PATH] [--save FILE] [--only TABLE ...]

Every number is a share of trials in percent: of 95 % intervals that leave out the true value,
which is also how often their test rejects it where it is true. The nominal value is 5.0, and
2.5 for a claim of non-inferiority or equivalence that is true just so. ``--real`` is an output
folder with two methods and at least 4 seeds each (the default is a sample of the demo's), and
``--save`` keeps its predictions in a small file.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.populations import Population
from benchmarks.real_predictions import SAMPLE, Pool, read, save
from benchmarks.several_tasks import tasks_of, tasks_trial
from heft_pipeline.evidence.claims import ACCURACY, Claim, Side
from heft_pipeline.evidence.comparison import ALPHA, EXAMPLES, SEEDS, compare
from heft_pipeline.evidence.intervals import accuracy_interval
from heft_pipeline.evidence.simultaneous import simultaneous

#: One row of a table: what was simulated, and shares of trials.
Row = tuple[tuple[str, ...], tuple[float | None, ...]]
_ANY = Side("a", (1,), None)
#: Draws of the largest statistic in each trial: fewer than in a report, since there are many.
_DRAWS = 2**13


def misses(differences: np.ndarray, truth: float, **how: object) -> bool:
    """Whether the 95 % interval of a comparison leaves out the truth."""
    low, high = compare(differences, **how).estimate.interval(ALPHA)  # type: ignore[arg-type]
    return not low <= truth <= high


def share(trials: int, trial: Callable[[np.random.Generator], Sequence[float]]) -> list[float]:
    """The means of what a trial returns, over trials from a fixed seed."""
    random = np.random.default_rng(0)
    return [float(value) for value in np.mean([trial(random) for _ in range(trials)], axis=0)]


def single(trials: int) -> Iterator[Row]:
    """One comparison: by accuracy in each scope, by log-probability, and an accuracy's own."""
    for seeds in (1, 2, 3, 5, 8):
        for largest in (1, 5, 20):
            for effect in (0.0,) if seeds == 1 else (0.0, 0.08, 0.2):
                population = Population(largest=largest, seed_effect=effect)
                found: list[float | None] = list(share(trials, single_trial(population, seeds)))
                if seeds == 1:
                    found[2:4] = None, None
                yield (str(seeds), f"1-{largest}" if largest > 1 else "1", f"{effect}"), (*found,)


def single_trial(
    population: Population, seeds: int
) -> Callable[[np.random.Generator], tuple[bool, ...]]:
    accuracy = population.mean(0)

    def trial(random: np.random.Generator) -> tuple[bool, ...]:
        sample = population.draw(random, seeds)
        credit, logprob = sample.differences(), sample.differences(by_logprob=True)
        clusters = sample.clusters
        low, high = accuracy_interval(sample.values(0), clusters)
        scoped = [
            misses(credit, sample.truth(scope), clusters=clusters, scope=scope)
            for scope in ((SEEDS, EXAMPLES) if seeds > 1 else (EXAMPLES, EXAMPLES))
        ]
        return (
            misses(credit, sample.truth(), clusters=clusters),
            misses(logprob, 0.0, clusters=clusters, accuracy=False),
            *scoped,
            not low <= accuracy <= high,
        )

    return trial


def one_seed(trials: int) -> Iterator[Row]:
    """One seed: read as of these two runs, and, wrongly, as of the methods."""
    for examples in (1000, 3000):
        for effect in (0.0, 0.08, 0.2):
            population = Population(examples, seed_effect=effect)

            def trial(
                random: np.random.Generator, population: Population = population
            ) -> tuple[bool, bool]:
                sample = population.draw(random, 1)
                values = sample.differences()
                return misses(values, sample.truth(EXAMPLES)), misses(values, 0.0)

            yield (f"{examples:,}", f"{effect}"), (*share(trials, trial),)


def different(trials: int) -> Iterator[Row]:
    """One comparison of methods that do differ."""
    for seeds in (1, 2, 3, 5, 8):
        effect = 0.0 if seeds == 1 else 0.2
        yield (
            (str(seeds), f"{effect}"),
            (
                *share(
                    trials, covered_trial(Population(seed_effect=effect, gains=(0.5, 0.0)), seeds)
                ),
                *share(trials, covered_trial(Population(3000, 5, effect, (0.5, 0.0)), seeds)),
            ),
        )


def covered_trial(
    population: Population, seeds: int, by_logprob: bool = False
) -> Callable[[np.random.Generator], tuple[bool]]:
    truth = population.difference(by_logprob)

    def trial(random: np.random.Generator) -> tuple[bool]:
        sample = population.draw(random, seeds)
        values = sample.differences(by_logprob)
        return (misses(values, truth, clusters=sample.clusters, accuracy=not by_logprob),)

    return trial


def families(trials: int) -> Iterator[Row]:
    """Several claims at once: 3 methods beside one, and all 10 pairs of 5."""
    for pairs in ([(0, 1), (0, 2), (0, 3)], list(combinations(range(5), 2))):
        for seeds in (1, 2, 3, 5, 8):
            effects = (0.0,) if seeds == 1 else (0.0, 0.15, 0.5)
            found: list[float | None] = []
            for effect in effects:
                population = Population(400, seed_effect=effect, gains=(0.0,) * 5)
                found += share(max(50, trials // 2), family_trial(population, seeds, pairs))
            yield (str(len(pairs)), str(seeds)), (*found, *[None] * (6 - len(found)))


def family_trial(
    population: Population, seeds: int, pairs: list[tuple[int, int]]
) -> Callable[[np.random.Generator], tuple[bool, bool]]:
    def trial(random: np.random.Generator) -> tuple[bool, bool]:
        sample = population.draw(random, seeds)
        group = [compare(sample.differences(pair=pair)) for pair in pairs]
        found = []
        for alpha in (ALPHA, simultaneous([group], draws=_DRAWS).alpha):
            ends = [one.estimate.interval(alpha) for one in group]
            found.append(any(low > 0 or high < 0 for low, high in ends))
        return found[0], found[1]

    return trial


def margins(trials: int) -> Iterator[Row]:
    """Claims that are true or false just so: the true difference is the margin."""
    for seeds in (1, 3, 5, 8):
        population = Population(2000, 1, 0.0 if seeds == 1 else 0.08, (-0.4, 0.0))
        margin = -100 * population.difference()
        better, same = (Claim(_ANY, _ANY, relation, margin, ACCURACY) for relation in (">=", "="))

        def trial(
            random: np.random.Generator,
            population: Population = population,
            claims: tuple[Claim, Claim] = (better, same),
            seeds: int = seeds,
        ) -> list[bool]:
            estimate = compare(population.draw(random, seeds).differences()).estimate
            verdicts = [claim.holds(*estimate.interval(ALPHA)) for claim in claims]
            return [verdict is said for verdict in verdicts for said in (True, False)]

        yield (str(seeds),), (*share(trials, trial),)


def sign_flips(trials: int) -> Iterator[Row]:
    """The sign-flip test, of these examples and, wrongly, of others."""
    for seeds in (6, 8):
        for effect in (0.0, 0.08, 0.2):
            population = Population(seed_effect=effect)

            def trial(
                random: np.random.Generator, population: Population = population, seeds: int = seeds
            ) -> list[bool]:
                sample = population.draw(random, seeds)
                found = compare(sample.differences())
                p_values = [found.sign_flip([null]) for null in (sample.truth(SEEDS), 0.0)]
                return [p_value is not None and p_value < ALPHA for p_value in p_values]

            yield (str(seeds), f"{effect}"), (*share(trials, trial),)


_UNEQUAL = (60, *([1] * 20), *([5] * 6))
#: What was looked for to break the intervals: its name, and the population.
_HARD = {
    "30 examples": Population(30, seed_effect=0.2),
    "98 % right, 200 examples": Population(200, base=6.0, gains=(0.5, 0.0)),
    "10,000 examples": Population(10_000, seed_effect=0.08),
    "seeds differ much (1.0)": Population(seed_effect=1.0),
    "8 clusters of 10": Population(clusters=(10,) * 8, seed_effect=0.08),
    "one cluster of 60 among 27": Population(clusters=_UNEQUAL, seed_effect=0.08),
    "200 examples in clusters of 1-20": Population(200, 20, seed_effect=0.08),
    "the same, larger ones harder": Population(200, 20, seed_effect=0.08, harder=0.15),
    "1 in 10 runs of one method fails": Population(seed_effect=0.08, gains=(0.5, 0), collapse=0.1),
    "1 in 3 runs of one method fails": Population(seed_effect=0.08, gains=(0.5, 0), collapse=0.33),
}


def hard(trials: int) -> Iterator[Row]:
    """Cases that were chosen because something could go wrong."""
    for name, population in _HARD.items():
        for by_logprob in (False, True):
            if population.base > 1 and by_logprob:
                continue
            found: list[float | None] = []
            for seeds in (1, 2, 3, 5, 8):
                alone = seeds == 1
                if alone and population.collapse:
                    found.append(None)
                    continue
                drawn = replace(population, seed_effect=0.0) if alone else population
                few = trials // 4 if population.examples > 5000 else trials
                found += share(few, covered_trial(drawn, seeds, by_logprob))
            yield (name, "log-probability" if by_logprob else "accuracy"), (*found,)
    for examples, spread in ((100, 1.0), (600, 1.0), (600, 2.0)):
        skewed = [
            value
            for seeds in (1, 2, 3, 5, 8)
            for value in share(trials, _skewed_trial(examples, spread, seeds))
        ]
        yield (f"skewed by {spread}, {examples} examples", "log-probability"), (*skewed,)


def _skewed_trial(
    examples: int, spread: float, seeds: int
) -> Callable[[np.random.Generator], tuple[bool]]:
    """Log-normal differences: of most examples little, of a few much."""

    def trial(random: np.random.Generator) -> tuple[bool]:
        of_examples = random.lognormal(0, spread, size=(1, examples)) - math.exp(spread**2 / 2)
        rest = random.normal(0, 0.5, size=(seeds, examples))
        return (misses(of_examples + rest, 0.0, accuracy=False),)

    return trial


def real(trials: int, pools: list[Pool]) -> Iterator[Row]:
    """Real predictions, drawn again."""
    for by_logprob in (False, True):
        for seeds in (1, 2, 3, 5):
            if 2 * seeds > len(pools[0].right):
                continue
            found = share(trials, real_trial(pools[:2], seeds, by_logprob))
            yield ("log-probability" if by_logprob else "accuracy", str(seeds)), (*found,)


def real_trial(
    pools: list[Pool], seeds: int, by_logprob: bool
) -> Callable[[np.random.Generator], list[bool]]:
    """A method beside itself; two methods; and the accuracies of both.

    Seeds are drawn without repetition, since two equal ones would be none that training gives.
    For one method beside itself this is just right (two disjoint halves differ as if they came
    from infinitely many seeds); for two methods it makes intervals miss a little less often.
    With one seed the truth is that of the seeds drawn.
    """
    tables = [pool.logprob if by_logprob else pool.right for pool in pools]
    total, count = tables[0].shape

    def trial(random: np.random.Generator) -> list[bool]:
        examples = random.integers(count, size=count)
        found = []
        for table in tables:
            order = random.permutation(total)[: 2 * seeds]
            pair = table[order[:seeds]] - table[order[seeds:]]
            truth = float(pair.mean()) if seeds == 1 else 0.0
            found.append(misses(pair[:, examples], truth, accuracy=not by_logprob))
        order = random.permutation(total)[:seeds]
        between = tables[0][order] - tables[1][order]
        truth = float((between if seeds == 1 else tables[0] - tables[1]).mean())
        found.append(misses(between[:, examples], truth, accuracy=not by_logprob))
        for table in [] if by_logprob else tables:
            own = table[order]
            low, high = accuracy_interval(own[:, examples])
            found.append(not low <= float((own if seeds == 1 else table).mean()) <= high)
        return found

    return trial


def tasks(trials: int) -> Iterator[Row]:
    """Several tasks of equal and very unequal sizes; seeds' effects are shared or each task's."""
    drawings = [(1, ""), *((seeds, how) for seeds in (2, 3, 6) for how in ("own", "shared"))]
    kinds = [("", drawings), ("clustered", drawings), ("few wrong", drawings[:1])]
    sizes_and_kinds = product(((300, 300, 300), (50, 300, 2000)), kinds)
    for sizes, kind, seeds, effects in ((s, k, *d) for s, (k, of) in sizes_and_kinds for d in of):
        largest, easy = 10 if kind == "clustered" else 1, 4.0 if kind == "few wrong" else 0.0
        drawn = tasks_of(sizes, 0.2 if effects else 0.0, effects == "shared", largest, easy)
        found: list[float | None] = list(share(trials, tasks_trial(drawn, seeds)))
        found[2:4] = found[2:4] if effects else (None, None)
        yield (f"{', '.join(map(str, sizes))} {kind}", str(seeds), effects), (*found,)


_SCOPES = ("accuracy", "log-prob.", "scope=seeds", "scope=examples", "own accuracy")
#: Each table: what it shows, its columns, and where its rows come from.
TABLES: dict[str, tuple[str, tuple[str, ...], Callable[[int], Iterator[Row]]]] = {
    "single": (
        "One comparison of equal methods, 600 examples",
        ("seeds", "cluster sizes", "seeds differ by", *_SCOPES),
        single,
    ),
    "one_seed": (
        "One seed each",
        ("examples", "seeds differ by", "of these runs", "read as of the methods"),
        one_seed,
    ),
    "different": (
        "Methods that differ by 0.5 on the logit scale",
        ("seeds", "seeds differ by", "600 examples", "3,000 in clusters of 1-5"),
        different,
    ),
    "families": (
        "At least one of several true claims rejected, 400 examples; seeds differ by 0, 0.15, 0.5",
        (
            "claims",
            "seeds",
            "0: each",
            "together",
            "0.15: each",
            "together",
            "0.5: each",
            "together",
        ),
        families,
    ),
    "margins": (
        "Claims at their boundary, 2,000 examples: called true, and called false",
        ("seeds", ">= - m: true", "false", "= +- m: true", "false"),
        margins,
    ),
    "sign_flips": (
        "The sign-flip test, 600 examples",
        ("seeds", "seeds differ by", "of these examples", "read as of others"),
        sign_flips,
    ),
    "tasks": (
        "The mean over three tasks; seeds differ by 0.2, with effects of each task's own or shared",
        ("examples", "seeds", "effects", *_SCOPES),
        tasks,
    ),
    "hard": (
        "Hard cases",
        ("case", "by", "1 seed", "2 seeds", "3 seeds", "5 seeds", "8 seeds"),
        hard,
    ),
}
_REAL = ("by", "seeds", "1st with itself", "2nd with itself", "1st and 2nd", "1st's", "2nd's")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--real", type=Path, default=SAMPLE)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--only", nargs="*", choices=[*TABLES, "real"], default=[*TABLES, "real"])
    asked = parser.parse_args()
    pools = read(asked.real)
    if asked.save:
        save(pools, asked.save)
        return
    error = 100 * math.sqrt(ALPHA * (1 - ALPHA) / asked.trials)
    console = Console(width=110, highlight=False)
    console.print(f"{asked.trials:,} trials: a number's standard error is {error:.1f} near 5.0")
    for name in asked.only:
        if name == "real":
            title = f"Real predictions: {pools[0].name} and {pools[1].name}, drawn again"
            show(console, title, _REAL, real(asked.trials, pools))
        else:
            title, columns, rows = TABLES[name]
            show(console, title, columns, rows(asked.trials))


def show(console: Console, title: str, columns: Sequence[str], rows: Iterator[Row]) -> None:
    """Print a table, with shares in percent."""
    table = Table(title=title, box=None, header_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for labels, shares in rows:
        cells = ["" if value is None else f"{100 * value:.1f}" for value in shares]
        table.add_row(*labels, *cells)
    console.print()
    console.print(table)


if __name__ == "__main__":
    main()
