"""Services, EndpointSlices, Nodes and Service ports as small frozen values without behaviour.

The package depends on the standard library and msgspec only. Addresses are canonical text
(``ipaddress`` spelling, no zero padding, IPv6 compressed); ports are integers from 1 to 65535. The
parsers in ``svcproxy.kube.core.parse`` guarantee both.
"""
