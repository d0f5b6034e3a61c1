"""Pure parts of accounting: which frontend a connection belongs to, and bounded counting."""
