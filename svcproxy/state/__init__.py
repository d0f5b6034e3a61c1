"""The desired state: the Service ports of this node, computed from API objects.

Single-threaded; the sync loop of each IP family owns one instance.
"""
