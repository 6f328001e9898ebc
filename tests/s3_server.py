"""An S3 server of this machine (moto) that can be slow or fail now and then. Prints its port; ends with its input.

    python tests/s3_server.py SECONDS_OF_DELAY FAIL_EVERY

The first argument delays every answer; of every FAIL_EVERY requests one is answered by 503 (0: none is).
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
    server = make_server("127.0.0.1", 0, misbehaving(dispatcher, float(sys.argv[1]), int(sys.argv[2])), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()
