"""Driving the kernel towards the desired state: one thread per IP family.

Sources hand objects to a ``Fanout`` from threads of their own; it only stores them. Each
family's ``FamilyLoop`` takes them over, owns that family's desired state and backend, and is
the only one to touch either, so that none of them needs a lock.
"""
