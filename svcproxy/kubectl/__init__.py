"""``kubectl svcproxy``: the commands for a whole cluster.

A plugin of kubectl for the administrator's machine. It runs the commands in the pods of the
DaemonSet by ``kubectl exec``, with the user's own kubeconfig and rights, and compares the answers.
"""
