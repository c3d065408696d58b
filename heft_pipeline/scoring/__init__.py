"""Which answer choice a model prefers."""
