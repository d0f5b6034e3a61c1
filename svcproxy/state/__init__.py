"""The desired state: what every Service means on this node, computed from API objects.

Pure and single-threaded; the sync loop of each IP family owns one instance.
"""
