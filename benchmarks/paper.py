"""The parts at the HEFT paper's settings: what is run, and what follows from it.

The peers are used as the script in the paper's appendix uses them; see ``README.md``.
"""

from dataclasses import replace

from benchmarks.piece import PAPER_TOKENS, Asked, Measured, Piece, model_config
from benchmarks.results import DTYPES, GridRun, Results, Summary, faster, ratio, training_seconds

#: The measured parts, and the part that is computed from them.
PAPER_PARTS = ("paper_fine", "paper_coarse")
PAPER_GRID = "paper_grid"
#: Rows of the pieces whose rows are all as wide as the script pads them; one takes seconds.
PADDED_ROWS = 4
#: How many times as many epochs this project's ReFT is measured for: they cost next to nothing.
_MORE_EPOCHS = 4
#: The script's examples per optimiser step.
_BATCH = 32
#: The names of LoRA's peers, with the parts that they run a batch in. The script's is the last.
_LONGEST = {"peer": 4, "single": _BATCH}
_PADDED = {"padded": _BATCH}


def paper_pieces(part: str, common: Piece, few: str, dtypes: list[str]) -> list[Asked]:
    """The timed pieces of a part, with peers and this project taking turns.

    Args:
        part: One of the parts.
        common: A piece with what all pieces have in common.
        few: A folder with the data of only :data:`PADDED_ROWS` rows.
        dtypes: The peers' dtypes.
    """
    common = replace(common, paper=True, batch_size=_BATCH)
    own = replace(common, side="own", dtype="")
    more = _MORE_EPOCHS * common.epochs
    if part == PAPER_GRID:
        piece = replace(own, work="reft_on_lora", epochs=more)
        return [Asked(PAPER_GRID, "own", piece)]
    if part == "paper_fine":
        peers = {"peer": replace(common, work="reft", accumulation=4)}
        own = replace(own, work="reft", epochs=more)
    else:
        peers = {n: replace(common, work="lora", accumulation=a) for n, a in _LONGEST.items()}
        own = replace(own, work="lora")
    asked = [Asked(part, f"{n}_{d}", replace(p, dtype=d)) for d in dtypes for n, p in peers.items()]
    asked.insert(1, Asked(part, "own", own))
    if part == "paper_coarse":
        width = min(PAPER_TOKENS, model_config(common.model).max_position_embeddings)
        padded = replace(peers["single"], data=few, padded_to=width, epochs=2)
        asked += [Asked(part, f"padded_{d}", replace(padded, dtype=d)) for d in dtypes]
    return asked


def paper_check(part: str, peer: Piece, few: str) -> Piece:
    """A peer's piece for comparing losses: few rows, and no dropout.

    Args:
        part: One of the measured parts.
        peer: A piece with what all pieces have in common.
        few: A folder with the data of only a few rows.
    """
    work = "lora" if part == "paper_coarse" else "reft"
    return replace(peer, work=work, paper=True, data=few, batch_size=2)


def best_peer(results: Results, part: str) -> Measured | None:
    """The fastest of a part's peers that pad to the longest row of a batch, over all dtypes."""
    return faster(results, "paper_fine" if part == PAPER_GRID else part, *_LONGEST)


def who(part: str, name: str) -> str:
    """What a piece is called in the table."""
    if name == "own":
        return "own on LoRA" if part == PAPER_GRID else "own stage"
    kind = name.split("_")[0]
    parts = (_LONGEST | _PADDED)[kind]
    shape = f"{_BATCH // parts}x{parts}"
    if part == "paper_fine":
        return f"pyreft {shape}"
    return f"PEFT {shape}" + (" padded" if kind in _PADDED else "")


def add_paper(found: Summary, results: Results) -> None:
    """Add the ratios and the computed rows of the paper's table, if such parts were measured.

    Then they take the place of the other ratios at the end of the output.
    """
    if not any(part in (*PAPER_PARTS, PAPER_GRID) for part, _ in results.measured):
        return
    fine, coarse = (results.measured.get((part, "own")) for part in PAPER_PARTS)
    pyreft, peft = (best_peer(results, part) for part in PAPER_PARTS)
    padded = faster(results, "paper_coarse", *_PADDED)
    first = replace(fine, epoch_seconds=fine.epoch_seconds[:1]) if fine else None
    found.ratios = {
        "paper_fine_ratio": ratio(fine, pyreft),
        "paper_fine_first_epoch_ratio": ratio(first, pyreft),
        "paper_coarse_ratio": ratio(coarse, peft),
        "paper_coarse_padded_ratio": ratio(coarse, padded),
        "paper_grid_ratio": None,
        "paper_grid_padded_ratio": None,
    }
    for part, own in (("paper_fine", fine), ("paper_coarse", coarse)):
        for dtype in DTYPES:
            for kind in _LONGEST | _PADDED:
                against = ratio(own, results.measured.get((part, f"{kind}_{dtype}")))
                if against:
                    found.others[f"{part}_ratio_against_{kind}_{dtype}"] = against
    second = results.measured.get((PAPER_GRID, "own"))
    if not (fine and coarse and second and pyreft):
        return
    for name, how, lora in (
        ("paper_grid_ratio", "the longest row of a batch", peft),
        ("paper_grid_padded_ratio", "a fixed width", padded),
    ):
        if lora:
            grid = _table_1(results.rows, (pyreft, lora), (fine, coarse, second))
            found.paper_grids[how] = grid
            found.ratios[name] = sum(run.peers for run in grid) / sum(run.own for run in grid)


def _table_1(
    rows: int, peers: tuple[Measured, Measured], own: tuple[Measured, Measured, Measured]
) -> list[GridRun]:
    """The four rows of the paper's table 1: the script trains each by itself.

    Args:
        rows: The rows of an epoch.
        peers: pyreft, and PEFT.
        own: This project's ReFT, its LoRA, and its ReFT on LoRA.
    """

    def seconds(epochs: int, *pieces: Measured) -> float:
        return sum(training_seconds(piece, epochs, rows) for piece in pieces)

    pyreft, peft = peers
    reft, lora, second = own
    shared = "reft@20 on the same lora@20"
    return [
        GridRun("reft@20", seconds(20, pyreft), seconds(20, reft), "reft@20"),
        GridRun("lora@20", seconds(20, peft), seconds(20, lora), "lora@20"),
        GridRun(
            "heft@3+3", seconds(3, peft, pyreft), seconds(3, lora, second), "lora@3, reft@3 on it"
        ),
        GridRun("heft@20+20", seconds(20, peft, pyreft), seconds(20, second), shared),
    ]
