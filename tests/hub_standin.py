"""A stand-in for the Hugging Face hub on loopback: it speaks as much of the protocol as a push needs, and remembers."""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What a hub was told.

    Attributes:
        url: its address.
        status: answer with this status instead, if set; "silence" for no answer at all.
        failing: part of an address; only such requests are answered with `status`.
        public: repositories that exist and are public.
        created: the bodies of requests to create a repository.
        files: `{repository: {path: content}}` of all commits.
        tokens: the tokens it was shown.
        unknown: requests it had no answer for.
    """

    def __init__(self, status=None, failing="", public=()):
        self.status, self.failing, self.public = status, failing, public
        self.created, self.files, self.tokens, self.unknown = [], {}, set(), []
        self._large, self.over = {}, threading.Event()

    def answer(self, method, path, body):
        """(status, JSON) for a request."""
        repo = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git)?(?:/|$)", path)
        if self.status and self.failing in path:
            if self.status == "silence":
                self.over.wait(60)
            return (500 if self.status == "silence" else self.status), {"error": "refused by the stand-in"}
        if path == "/api/whoami-v2":
            return 200, {"name": "somebody", "type": "user", "orgs": [], "auth": {}}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            name = f"{self.created[-1].get('organization') or 'somebody'}/{self.created[-1]['name']}"
            self.files.setdefault(name, {})
            return 200, {"url": f"{self.url}/{name}", "id": name, "name": name}
        if "/preupload/" in path:
            modes = {True: "lfs", False: "regular"}
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [
                {"path": name, "uploadMode": modes[name.endswith(".safetensors")], "shouldIgnore": False} for name in names
            ]}  # fmt: skip
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for one in objects:
                upload = {"href": f"{self.url}/large/{one['oid']}", "header": {}}
                one |= {"authenticated": True, "actions": {"upload": upload}}
            return 200, {"transfer": "basic", "objects": objects}
        if method == "PUT" and path.startswith("/large/"):
            self._large[path.removeprefix("/large/")] = body
            return 200, {}
        if "/commit/" in path:
            for operation in map(json.loads, body.decode().splitlines()):
                key, value = operation["key"], operation["value"]
                if key == "file":
                    self.files[repo[1]][value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    content = self._large[value["oid"]]
                    assert hashlib.sha256(content).hexdigest() == value["oid"] and len(content) == value["size"]
                    self.files[repo[1]][value["path"]] = content
            return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.url}/{repo[1]}/commit/{'0' * 40}"}
        if method == "GET" and repo and path == f"/api/models/{repo[1]}":
            return 200, {"id": repo[1], "sha": "0" * 40, "siblings": [], "private": repo[1] not in self.public}
        self.unknown.append(f"{method} {path}")
        return 404, {"error": "no such address"}

    def environment(self, **more):
        """The environment of a process that takes this for the hub."""
        names = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_dummy", "HF_HUB_DISABLE_XET": "1"}
        return {**os.environ, **names, "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **more}


@contextlib.contextmanager
def hub(status=None, **settings):
    """A `Hub` that answers while the context lasts."""
    state = Hub(status, **settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            if token := self.headers.get("Authorization"):
                state.tokens.add(token.removeprefix("Bearer "))
            status, answer = state.answer(self.command, self.path.partition("?")[0], body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        state.over.set()
        server.shutdown()
        server.server_close()
