import gzip
import zlib

import pytest

from svcproxy.kube.core.body import Body


@pytest.mark.parametrize("encoding", ["", "identity", "gzip", "GZIP"])
def test_a_body_is_decompressed_completely(encoding: str) -> None:
    text = b"hello " * 1000
    sent = gzip.compress(text) if encoding.lower() == "gzip" else text
    body = Body(encoding, len(text))
    assert all(body.feed(sent[at : at + 7]) for at in range(0, len(sent), 7))
    assert body.whole() == text


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_one_byte_over_the_limit_is_detected(encoding: str) -> None:
    text = b"x" * 1001
    body = Body(encoding, 1000)
    assert not body.feed(gzip.compress(text) if encoding else text)
    assert body.read() == b"x" * 1000


def test_a_gzip_bomb_is_decompressed_up_to_the_limit_only() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
    body = Body("gzip", 1 << 16)
    assert not body.feed(bomb)
    assert len(body.read()) == 1 << 16


@pytest.mark.parametrize("sent", [b"<html>", gzip.compress(b"a")[:-4], gzip.compress(b"a") * 2])
def test_a_body_that_is_not_one_gzip_stream_is_an_error(sent: bytes) -> None:
    body = Body("gzip", 1000)

    def unpack() -> bytes:
        for at in range(len(sent)):
            body.feed(sent[at : at + 1])
        return body.whole()

    with pytest.raises(ValueError, match="compressed"):
        unpack()


def test_other_encodings_are_refused() -> None:
    with pytest.raises(ValueError, match="br"):
        Body("br", 1000)
