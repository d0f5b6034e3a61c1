"""All limits on input from other programs.

Each constant limits the size, nesting, number or duration of one kind of input. ``docs/limits.md``
describes what happens at each limit and which metric counts it; a test compares its tables with this
module.
"""

# API server: lists and watches, svcproxy.kube

OBJECT_DEPTH = 64
"""Nesting of arrays and objects in an API object; anything deeper is read as null.

Applies only to documents that msgspec refuses (it recurses, up to the interpreter's limit of about
1,000). The fields that svcproxy reads are nested at most 8 deep.
"""

VERSION_CHARACTERS = 256
"""The longest resourceVersion. Real ones are decimal numbers of up to 20 digits."""

CONTINUE_CHARACTERS = 8192
"""The longest continue token of a list. Real ones encode a version and a key in base64."""

WATCH_LINE_BYTES = 16 << 20
"""The longest line of a watch stream. etcd accepts objects of up to 1.5 MiB by default."""

LIST_PAGE_BYTES = 64 << 20
"""The longest page of a list, decompressed."""

LIST_BYTES = 512 << 20
"""The largest list in one piece, decompressed; requested after a continue token expired."""

LIST_SECONDS = 300.0
"""Time to read the body of a list."""

RESPONSE_HEAD_SECONDS = 120.0
"""Time to read the head of a response."""

ERROR_BODY_BYTES = 64 << 10
"""The part of the body of an error response that is read, decompressed."""

# Objects, from the API server and from manifests alike: svcproxy.kube.core.parse

LABEL_CHARACTERS = 63
"""The longest name of a Service, namespace or port, and the longest label value, as in the API."""

SUBDOMAIN_CHARACTERS = 253
"""The longest name of an EndpointSlice, Node or ServiceCIDR, as in the API."""

ADDRESS_CHARACTERS = 64
"""The longest spelling of an IP address or CIDR; canonical ones have up to 43 characters."""

ANNOTATION_CHARACTERS = 256
"""The part of an annotation's value that is read; the longest meaningful value has 50 characters."""

SERVICE_FRONTENDS = 32_000
"""Ports of a Service, times its addresses, with all source ranges for each load-balancer IP.

The API limits an object to about 1.5 MB, which holds some 20,000 ports and as many addresses. Without
a limit on the product, one Service could require 400 million rules."""

SLICE_TARGETS = 200_000
"""Endpoints of an EndpointSlice, times its ports. The API allows 1,000 times 20,000."""

SERVICE_TARGETS = 250_000
"""Ports of a Service, times its addresses, times the endpoints of all of its EndpointSlices.

This is the number of map elements (nftables) or real servers (IPVS) of the Service. Each slice may be
within its own limit while the Service requires millions."""

LIST_ENTRIES = 1_000
"""Entries of each short list: hints of an endpoint (the API allows 8), addresses, pod CIDRs and
taints of a Node, CIDRs of a ServiceCIDR (the API allows 2)."""

SERVICE_METRICS = 100
"""Services with metrics of their own."""

SHOWN_CHARACTERS = 80
"""How much of a value is quoted in a message about it."""

SHARED_NAMES = 16_384
"""Names that are cached for each naming rule, so that objects share their text."""

# HTTP: the metrics, health and health-check node port servers, svcproxy.observe

HTTP_REQUEST_LINE_BYTES = 4096
"""The longest request line, including empty lines before it."""

HTTP_HEADER_BYTES = 8192
"""The longest header section of a request: all lines after the request line."""

HTTP_HEADERS = 64
"""The most header lines of a request."""

HTTP_BODY_BYTES = 4096
"""The longest body of a PUT request; other bodies are not read."""

HTTP_REQUEST_SECONDS = 60.0
"""The longest time from the start of a connection, or its last response, to the end of a response."""

HTTP_IDLE_SECONDS = 30.0
"""The longest time without a byte from or to a client of the metrics or health port."""

HTTP_CONNECTIONS = 64
"""The maximum number of connections of the metrics port, and of the health port."""

HTTP_CONNECTIONS_PER_PEER = 16
"""The same for each client address."""

HTTP_BACKLOG = 1024
"""The maximum number of connections of a port that wait to be accepted, within
``net.core.somaxconn``.

If the queue is full, the kernel drops the SYN of a probe. It is sent again after a second, which
is the timeout of the probe."""

HTTP_PIPELINED = 4
"""Clients with pipelined requests that are served before other connections are polled again."""

HTTP_PAGE_THREADS = 2
"""The maximum number of pages of a port that are rendered concurrently; quick answers do not wait."""

UI_PAGE_SECONDS = 20.0
"""Time to render a page of ``/ui``, including the start of the process that renders it."""

UI_IDLE_SECONDS = 60.0
"""Seconds without a request after which the page process ends."""

UI_PAGE_BYTES = 8 << 20
"""The longest page, and the longest message between the daemon and the page process."""

UI_QUERY_CHARACTERS = 256
"""The longest value of a query parameter of a page."""

UI_ROWS = 100
"""Services on one page of the overview; endpoints or kernel objects in one list of a Service."""

UI_TROUBLES = 12
"""Services in trouble at the top of the overview; a link leads to all of them."""

UI_REPAIRS = 10
"""Repairs on the overview."""

UI_MEMORY_BYTES = 2 << 30
"""The address space of the page process. 10,000 Services with 50,000 endpoints need 0.12 GiB."""

HEALTH_CHECK_REQUEST_SECONDS = 10.0
"""The longest time of a connection to a health-check node port."""

HEALTH_CHECK_CONNECTIONS = 256
"""The maximum number of connections to the health-check node ports of one IP family."""

HEALTH_CHECK_CONNECTIONS_PER_PEER = 64
"""The same for each client address."""

ADMIN_CONNECTIONS = 8
"""The maximum number of connections of the admin socket that are served concurrently."""

ADMIN_REQUEST_SECONDS = 5.0
"""The longest time from the start of a connection to the end of its request."""

ADMIN_SEND_SECONDS = 10.0
"""The longest time that a client of the admin socket may take to read one piece of an answer."""

ADMIN_ANSWER_SECONDS = 120.0
"""The longest time to send an answer on the admin socket."""

ADMIN_HELD_PORTS = 1000
"""The most Service ports that a status names as refused, and as not planned."""

ADMIN_REPAIRS = 256
"""The repairs that are remembered for the admin socket."""

ADMIN_WAIT_SECONDS = 30.0
"""The longest time that a client of the admin socket may wait for a repair."""

ADMIN_WAITING = 4
"""The most clients of the admin socket that may wait for a repair concurrently."""

NOT_READY_ENDPOINTS = 10_000
"""The endpoints of an IP family for which the time since they are not ready is remembered."""

LOG_RECENT_LINES = 1000
"""The last lines of the log that are kept for the admin socket."""

LOG_RECENT_BYTES = 256 << 10
"""The bytes of the last lines of the log that are kept for the admin socket."""

DESCRIPTORS_RESERVED = 64
"""File descriptors kept for the API client, netlink sockets and child processes."""

# The log: svcproxy.observe.log

LOG_VALUE_CHARS = 1024
"""Characters of one value of a log line."""

LOG_LINE_BYTES = 16384
"""Bytes of one log line with its traceback; container runtimes split longer ones."""

LOG_TRACE_FRAMES = 20
"""Innermost frames of a traceback in the log."""

LOG_TRACE_CHARS = 6000
"""Characters of a traceback in the log."""

LOG_BURST_LINES = 100
"""Lines of one event name that may be written in a burst."""

LOG_LINES_PER_SECOND = 10.0
"""Lines of one event name per second after the burst."""

LOG_EVENT_NAMES = 512
"""Event names that have rate limits of their own; further names share one."""

LOG_CALM_SECONDS = 5.0
"""Seconds without a suppressed line after which the number of suppressed lines is logged."""

LOG_REPORT_SECONDS = 60.0
"""Seconds after which the number of suppressed lines is logged while lines are being suppressed."""

LOG_QUEUE_LINES = 2000
"""Lines that may wait for a slow reader of stderr."""

LOG_QUEUE_BYTES = 1 << 20
"""Bytes of the lines that may wait for a slow reader of stderr."""

LOG_FLUSH_SECONDS = 0.5
"""Seconds that the process waits at its end for a slow reader of stderr."""

# Defects of svcproxy that an object triggers: svcproxy.sync.core.isolation

ISOLATION_PLANS = 64
"""Plans that are computed to identify the Service ports for which planning fails."""

ISOLATION_RETRY_SECONDS = 600.0
"""Longest time until a Service port for which planning failed is retried."""

# The threads of the daemon: svcproxy.threads

THREAD_STEP_SECONDS = 60.0
"""Seconds that one step of a thread may take, in addition to the timeouts of its calls."""

THREAD_SYNC_SECONDS = 360.0
"""Seconds that one sync may take: the timeout of iptables-restore (300 s) plus a margin."""

THREAD_SCAN_SECONDS = 600.0
"""Seconds that reading a folder of manifests may take; YAML is slow."""

THREAD_SWEEP_SECONDS = 1800.0
"""Seconds that removing another mode's rules may take; several programs are run for it."""

THREAD_STOP_SECONDS = 5.0
"""Seconds after SIGTERM until the process ends even if a thread hangs."""

# Files: manifests, kubeconfig, KubeProxyConfiguration

MANIFEST_FILE_BYTES = 32 * 1024 * 1024
"""The size of one manifest file; 20,000 objects are about 12 MB."""

MANIFEST_FILES = 50_000
"""Manifest files in the folder; the first ones by name are read."""

MANIFEST_FOLDER_BYTES = 256 * 1024 * 1024
"""The size of all manifest files together; the first ones by name are read."""

YAML_DEPTH = 100
"""Nesting of YAML, in a manifest or a kubeconfig. Objects of the API need 15 levels."""

YAML_NODES = 1_000_000
"""Values in a YAML or JSON file; those behind an alias count at each use.

20,000 objects hold 800,000 values."""

NUMBER_CHARACTERS = 64
"""The longest number in YAML; converting longer ones takes quadratic time."""

KUBECONFIG_BYTES = 4 * 1024 * 1024
"""The size of a kubeconfig; one with certificates has about 6 kB for each cluster and user."""

TOKEN_BYTES = 64 * 1024
"""The size of a token file; API servers accept no longer header."""

CONFIG_BYTES = 1024 * 1024
"""The size of a KubeProxyConfiguration file; a ConfigMap holds at most 1 MiB."""

# Kernel: netlink, proc files, output of iptables-save

NETLINK_TIMEOUT_SECONDS = 30
"""Time to send a netlink request, and time to wait for the response."""

NETLINK_EVENT_BUFFER_BYTES = 32 << 20
"""Bytes of events that may be queued. The events of 10,000 Services that change together fit."""

NETLINK_DATAGRAM_BYTES = 256 << 10
"""The longest datagram. The kernel sends dumps in pieces of 32 KiB; ipset returns the whole request
with an error."""

NETLINK_DEPTH = 16
"""Levels of nested attributes that are read; nf_tables needs 6."""

IPTABLES_SAVE_BYTES = 512 * 1024 * 1024
"""Output of one iptables-save. 10,000 Services need about 20 MB; the rest is for other programs."""

IPTABLES_PROGRAM_SECONDS = 300.0
"""Run time of one iptables program."""

IPTABLES_ISOLATION_RESTORES = 64
"""Restores in one sync to identify the Service ports that the kernel refuses."""

IP_VS_LISTING_BYTES = 1 << 30
"""Bytes of ``/proc/net/ip_vs`` that a comparison reads; enough for 12 million real servers."""

IP_VS_CONNECTIONS_BYTES = 256 << 20
"""Bytes of ``/proc/net/ip_vs_conn`` that a command reads for persistent clients; about three million
lines."""

# Annotations of Services

SCHEDULER_NAME_CHARACTERS = 32
"""Characters of an IPVS scheduler, or of one of its flags, in an annotation; names in the kernel
have at most 15 (``IP_VS_SCHEDNAME_MAXLEN``)."""

SCHEDULER_FLAGS = 8
"""Flags of an IPVS scheduler in an annotation; the kernel has five."""

# Traces: svcproxy trace

TRACE_ARGUMENT_CHARACTERS = 400
"""The length of an argument: where the packet comes from, or goes to."""

TRACE_CONNECTIONS = 1000
"""Connections of the client to the destination that are read from connection tracking."""

TRACE_POD_BYTES = 4 << 20
"""The size of a Pod from the API server; etcd holds objects of at most 1.5 MiB."""

TRACE_POD_SECONDS = 10.0
"""The time for the API server to answer with a Pod."""

# Probes of svcproxy trace --live

PROBE_PROCESSES = 65536
"""Processes whose network namespaces are examined to find that of a pod."""

PROBE_NAMESPACES = 2048
"""Network namespaces that are examined to find that of a pod; a node has at most some 500 pods."""

PROBE_TRACE_EVENTS = 1000
"""Events of the kernel's trace of one probe that are kept."""
