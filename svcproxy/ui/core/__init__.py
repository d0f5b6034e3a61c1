"""Pages as values: what is shown, and its HTML. Pure."""
