"""An S3 server of this machine (moto) that can be slow, fail now and then, or go. Prints its port; ends with its input.

    python tests/s3_server.py SECONDS_OF_DELAY FAIL_EVERY

The first argument delays every answer; of every FAIL_EVERY requests one is answered by 503 (0: none is). A line of
input makes it go, so that nobody answers at its port; the next one brings it back with all that it held.
"""

import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]


def misbehaving(app: Any, delay: float, fail_every: int) -> Callable[[dict[str, Any], Start], Iterable[bytes]]:
    numbers = itertools.count(1)

    def answer(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        time.sleep(delay)
        if fail_every and next(numbers) % fail_every == 0:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"]
        answered: Iterable[bytes] = app(environ, start_response)
        return answered

    return answer


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    dispatcher = DomainDispatcherApplication(create_backend_app)
    app, port = misbehaving(dispatcher, float(sys.argv[1]), int(sys.argv[2])), 0
    there = True
    while there:
        server = make_server("127.0.0.1", port, app, threaded=True)
        port = server.port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(port, flush=True)
        there = bool(sys.stdin.readline())
        server.shutdown()
        server.server_close()
        print("gone", flush=True)
        there = there and bool(sys.stdin.readline())
