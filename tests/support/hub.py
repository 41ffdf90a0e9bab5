"""A Hub of the test's own: a server on this machine that answers as the Hub does."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

import yaml

COMMIT, BRANCH_COMMIT = "c" * 40, "b" * 40

Answer = tuple[int, dict[str, str], bytes]


class Hub:
    """Repositories by name, each with its files by commit, and the requests that were made.

    Attributes:
      heads: the commit of the main branch, of repositories where it is not `COMMIT`.
      tokens: the namespaces that each may write to.
      moved: the names that repositories have now, by those that they had.
      instead: what is said in place of an answer, by the repository and what is asked of it:
        `revision`, `tree` or `resolve` of who reads, `create`, `preupload`, `lfs` or `commit` of
        who writes.
      elsewhere: names of files that `resolve` sends who asks for to another host.
      breaks: the byte of its files before which connections break, by the repository.
      rangeless: repositories of which all of a file is sent, whatever range is asked for.
    """

    def __init__(self):
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.heads: dict[str, str] = {}
        self.tokens: dict[str, set[str]] = {}
        self.objects: dict[str, bytes] = {}  # of git LFS, by sha256
        self.moved: dict[str, str] = {}
        self.instead: dict[tuple[str, str], Answer] = {
            ("acme/broken", "revision"): (500, {}, b""),
            ("acme/gated", "resolve"): self.error(403, "GatedRepo"),
        }
        self.elsewhere: set[str] = set()
        self.breaks: dict[str, int] = {}
        self.rangeless: set[str] = set()
        self.storage = ""
        self.requests: list[tuple[str, str]] = []

    def downloaded(self, repo: str) -> set[str]:
        """The names of the files whose content was sent."""
        marker = f"/{repo}/resolve/"
        return {
            path.split(marker)[1].split("/", 1)[1]
            for method, path in self.requests
            if method == "GET" and marker in path
        }

    @contextlib.contextmanager
    def serve(self):
        """Runs the server; gives its address."""
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.respond(hub.answer)

            def do_GET(self):
                self.respond(hub.answer)

            def do_PUT(self):
                self.do_POST()

            def do_POST(self):
                content = self.content()
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                base = f"http://{self.headers['Host']}"
                self.respond(lambda path: hub.take(path, content, token, base))

            def content(self) -> bytes:
                if "Content-Length" in self.headers:
                    return self.rfile.read(int(self.headers["Content-Length"]))
                parts = []
                while size := int(self.rfile.readline(), 16):  # chunked
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def respond(self, answer):
                path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
                hub.requests.append((self.command, path))
                status, headers, content = answer(path)
                repo, first = "/".join(path.removeprefix("/lfs").split("/")[1:3]), 0
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if asked and status == 200 and repo not in hub.rangeless:
                    first, last = map(int, asked.groups())
                    status, content = 206, content[first : last + 1]
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    sent = content[: max(0, hub.breaks.get(repo, len(content) + first) - first)]
                    self.wfile.write(sent)
                    self.close_connection |= len(sent) < len(content)

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_address[1]
        self.storage = f"http://localhost:{port}"
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, path: str) -> Answer:
        """What is said to who reads."""
        if path == "/api/whoami-v2":
            return 401, {}, b""
        if path.startswith("/lfs/"):
            return 200, {}, self.objects[path.rpartition("/")[2]]
        if path.startswith("/api/models/"):
            whole = path if path.count("/") > 4 else f"{path}/revision/main"
            owner, name, what, *rest = whole.removeprefix("/api/models/").split("/")
        else:
            owner, name, what, *rest = path.removeprefix("/").split("/")
        repo, revision = f"{owner}/{name}", rest[0]
        if repo in self.moved:
            return 307, {"Location": path.replace(repo, self.moved[repo], 1)}, b""
        if (repo, what) in self.instead:
            return self.instead[repo, what]
        if repo not in self.files:
            return self.error(401, "RepoNotFound")
        branches = {"main": self.heads.get(repo, COMMIT), "v2": BRANCH_COMMIT}
        commit = branches.get(revision, revision)
        if commit not in self.files[repo]:
            return self.error(404, "RevisionNotFound")
        files = self.files[repo][commit]
        if what == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self.json({"_id": "1", "id": repo, "sha": commit, "siblings": siblings})
        if what == "tree":
            return self.json(
                [
                    {"type": "file", "path": file, "size": len(data), "oid": self.oid(data)}
                    for file, data in files.items()
                ]
            )
        assert what == "resolve"
        file = "/".join(rest[1:])
        if file not in files:
            return self.error(404, "EntryNotFound", commit)
        content = files[file]
        headers = {"ETag": f'"{self.oid(content)}"', "X-Repo-Commit": commit}
        if file in self.elsewhere:
            oid = hashlib.sha256(content).hexdigest()
            self.objects[oid] = content
            size = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            return 302, {**headers, **size, "Location": f"{self.storage}/lfs/{repo}/{oid}"}, b""
        return 200, headers, content

    def take(self, path: str, content: bytes, token: str, base: str) -> Answer:
        """What is said to who writes."""
        if path.startswith("/lfs/"):  # a storage's own address, which asks for no token
            _, _, owner, name, oid = path.split("/")
            if (f"{owner}/{name}", "lfs") in self.instead:
                return self.instead[f"{owner}/{name}", "lfs"]
            assert hashlib.sha256(content).hexdigest() == oid
            self.objects[oid] = content
            return 200, {}, b""
        if path == "/api/validate-yaml":
            _, header, _ = json.loads(content)["content"].split("---\n", 2)
            yaml.safe_load(header)
            return self.json({"errors": [], "warnings": []})
        if token not in self.tokens:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        if path == "/api/repos/create":
            asked = json.loads(content)
            repo = f"{asked['organization']}/{asked['name']}"
            if (repo, "create") in self.instead:
                return self.instead[repo, "create"]
            if asked["organization"] not in self.tokens[token]:
                return 403, {"X-Error-Message": "You have no rights there"}, b""
            if repo in self.files:
                return 409, *self.json({"url": f"{base}/{repo}"})[1:]
            self.heads[repo] = "0" * 40
            self.files[repo] = {self.heads[repo]: {}}
            return self.json({"url": f"{base}/{repo}"})
        if match := re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            asked = json.loads(content)["objects"]
            for item in asked:
                href = f"{base}/lfs/{match['repo']}/{item['oid']}"
                item["actions"] = {"upload": {"href": href}}
            return self.json({"transfer": "basic", "objects": asked})
        match = re.fullmatch(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>\w+)/main", path)
        repo, what = match["repo"], match["what"]
        if (repo, what) in self.instead:
            return self.instead[repo, what]
        if repo not in self.files:
            return self.error(404, "RepoNotFound")
        if what == "preupload":
            modes = {True: "lfs", False: "regular"}
            return self.json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": modes[file["path"].endswith(".safetensors")],
                            "shouldIgnore": False,
                        }
                        for file in json.loads(content)["files"]
                    ]
                }
            )
        assert what == "commit"
        files = dict(self.files[repo][self.heads[repo]])
        for line in content.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            else:
                assert item["key"] == "header"
        commit = hashlib.sha1(content).hexdigest()
        self.files[repo][commit] = files
        self.heads[repo] = commit
        return self.json({"commitUrl": f"{base}/{repo}/commit/{commit}", "commitOid": commit})

    @staticmethod
    def oid(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()

    @staticmethod
    def json(value) -> Answer:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    @staticmethod
    def error(status: int, code: str, commit: str = COMMIT) -> Answer:
        return status, {"X-Error-Code": code, "X-Repo-Commit": commit}, b""
