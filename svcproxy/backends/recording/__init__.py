"""A backend that programs nothing: it records what a backend would be asked to program."""
