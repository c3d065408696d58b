"""Every causal-language-model architecture of transformers, tiny, against a computation by hand."""
