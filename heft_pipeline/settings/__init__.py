"""The whole config: its sections, Hydra's schema, and the checks that need no model."""
