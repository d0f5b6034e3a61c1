"""The page at ``/ui`` on the metrics port: server-rendered HTML without JavaScript.

The daemon computes no page. It passes requests on to a page process (``python -m svcproxy.ui``),
which asks the daemon over its admin socket and reads the kernel itself, as commands do.
"""
