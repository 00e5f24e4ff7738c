"""Parser of requests that stays with HTTP/1.1 where a request asks to go on in another protocol.

httptools takes such a request to end with its head: of its body, or of the next request, nothing would be read, or one
would be taken for the other. RFC 9110 lets a server ignore ``Upgrade``; some clients send it by themselves, such as
Java's, which offers ``h2c`` with its first request.
"""

from typing import Any

import httptools


class Parser:
    """``httptools.HttpRequestParser``, which reads a request that asks for another protocol again, without that.

    Args:
        protocol: is called back. Of a first reading, whose head ends with ``should_upgrade``, it takes in nothing.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._parser = self._new()

    def feed_data(self, data: bytes) -> None:
        """Parse what came.

        Raises:
            httptools.HttpParserError: it is no HTTP.
        """
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head() + data[upgrade.args[0] :]
                self._parser = self._new()

    def should_upgrade(self) -> bool:
        """Whether the request asks for another protocol, and is going to be read again. ``CONNECT`` is refused."""
        return bool(self._parser.should_upgrade()) and self._parser.get_method() != b"CONNECT"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def _new(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self._protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn: it is not read, and no error
        return parser

    def _head(self) -> bytes:
        parser, protocol = self._parser, self._protocol
        line = b"%s %s HTTP/%s\r\n" % (parser.get_method(), protocol.url, parser.get_http_version().encode())
        lines = [b"%s: %s\r\n" % header for header in protocol.headers if header[0] != b"upgrade"]
        return b"".join((line, *lines, b"\r\n"))
