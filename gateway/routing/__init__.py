"""Which backend endpoint serves a model; its health and circuit state."""
