"""A process that compares architectures; its standard input names them, one a line.

Its arguments are overrides of this project's config.
"""

import json
import os
import sys
import warnings
from dataclasses import asdict


def main() -> None:
    """Print a line of JSON for each name, see :class:`~benchmarks.architectures.compare.Compared`.

    Anything else that is printed goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    import torch
    from transformers.models.auto import tokenization_auto

    from benchmarks.architectures.compare import compare
    from heft_pipeline.models.base_model import quieten

    # For these model types, transformers ignores the tokenizer class that a folder declares.
    tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.clear()
    torch.set_num_threads(1)
    quieten()
    for name in sys.stdin:
        print(json.dumps(asdict(compare(name.strip(), sys.argv[1:]))), file=answers, flush=True)


if __name__ == "__main__":
    main()
