"""One locked, isolated environment per framework: what it holds (specs), where it lies (store), how it is locked (lock)."""
