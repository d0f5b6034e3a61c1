"""The targets, one module each: a docstring, ``SEEDS`` and ``check``.

``SEEDS`` is a tuple of small inputs, valid and nasty ones. ``check(data)`` returns normally for
every input; an exception is a finding. Where raw bytes never get past the first line of a parser,
``check`` makes a structured input from them (``hypothesis`` is not needed for that: see
``fuzz.structure``).
"""
