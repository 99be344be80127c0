"""One locked, isolated environment per framework: what is in it (specs), where it is (store), its lock."""
