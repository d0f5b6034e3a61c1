"""Syncing the kernel with the desired state, in one thread per IP family.

Sources pass objects to a ``Fanout`` from their own threads; it puts them into the inbox of each
family. A ``FamilyLoop`` takes objects from its inbox. It owns the desired state and the backend of
its family, and only its thread uses them, so that they need no locks.
"""
