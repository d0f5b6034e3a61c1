"""What Services, EndpointSlices and Nodes are to svcproxy: small frozen values, no behaviour.

Everything here is pure: it depends on the standard library and msgspec only. Addresses are
canonical text (``ipaddress`` spelling, no zero padding, IPv6 compressed), ports are integers
from 1 to 65535; the parsers in ``svcproxy.kube.core.parse`` guarantee both.
"""
