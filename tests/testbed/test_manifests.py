from pathlib import Path

import yaml

from testbed import manifests as m


def test_a_service_and_its_slices() -> None:
    web = m.service(
        "web",
        ["10.96.0.1", "fd00:10:96::1"],
        [m.port(80, name="http", target=8080, node_port=30080)],
        type="LoadBalancer",
        load_balancer_ips=["203.0.113.1"],
        externalTrafficPolicy="Local",
    )
    assert web["spec"]["clusterIP"] == "10.96.0.1"
    assert web["spec"]["ipFamilies"] == ["IPv4", "IPv6"]
    assert web["spec"]["externalTrafficPolicy"] == "Local"
    assert web["status"] == {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "VIP"}]}}
    entry = m.endpoint("fd00::1", node="node1", ready=False, hints={"forZones": ["a"]})
    six = m.endpoint_slice(web, [entry], suffix="b", annotations={"x/y": "z"})
    assert six["addressType"] == "IPv6"
    assert six["metadata"]["name"] == "web-ipv6-b"
    assert six["metadata"]["labels"] == {"kubernetes.io/service-name": "web"}
    assert six["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
    assert six["endpoints"] == [
        {
            "addresses": ["fd00::1"],
            "conditions": {"ready": False},
            "nodeName": "node1",
            "hints": {"forZones": [{"name": "a"}]},
        }
    ]
    assert m.endpoint_slice(web, [])["endpoints"] == []


def test_a_folder_holds_one_file_for_each_object(tmp_path: Path) -> None:
    folder = m.ManifestFolder(tmp_path / "new")
    dns = m.service("dns", ["10.96.0.10"], [m.port(53, protocol="UDP")], namespace="kube-system")
    node = m.node("node1", addresses=["192.168.50.1"], pod_cidrs=["10.244.1.0/24"], zone="a")
    folder.put(dns, node)
    names = sorted(path.name for path in folder.path.iterdir())
    assert names == ["node-node1.yaml", "service-kube-system-dns.yaml"]
    assert yaml.safe_load(folder.file(dns).read_text()) == dns
    folder.remove(dns)
    assert not folder.file(dns).exists()
