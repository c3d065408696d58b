"""Do one piece in a process of its own: ``python -m benchmarks.work ANSWER < PIECE``."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.piece import Measured, Piece
from heft_pipeline.errors import UserError


def done(piece: Piece) -> Measured:
    """Do a piece, and return what was measured."""
    if piece.work == "peak":
        from benchmarks import peak

        return peak.measure()
    if piece.work == "random_model":
        from benchmarks import inputs

        inputs.save_random_model(piece.shape, Path(piece.model))
        return Measured()
    if piece.side == "peer":
        from benchmarks import peers

        return peers.generate(piece) if piece.work == "generate" else peers.train(piece)
    from benchmarks import own

    return own.evaluate(piece) if piece.work in ("score", "generate") else own.train(piece)


def main() -> None:
    """Read a piece from stdin, do it, and write the answer."""
    asked = json.load(sys.stdin)
    asked["overrides"] = tuple(asked["overrides"])
    try:
        answer = done(Piece(**asked))
    except UserError as error:
        sys.exit(str(error))
    Path(sys.argv[1]).write_text(json.dumps(asdict(answer)))


if __name__ == "__main__":
    main()
