"""A hub on this machine, of a few files in memory: the answers that a download asks for."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from support.paths import DATA

FIRST, SECOND = "1" * 40, "2" * 40  # commits
FOLDER = DATA / "hf_bitnet_offline"
GGUF = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
WANTED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
          "model.safetensors")  # fmt: skip
UNWANTED = ("README.md", "pytorch_model.bin", "modeling_bitnet.py", "original/model.safetensors",
            "model.fp32.safetensors", "training_args.bin", "model-f16.gguf")  # fmt: skip


def model_files():
    """A whole repository: a small model, and what nobody needs."""
    files = {name: (FOLDER / name).read_bytes() for name in WANTED}
    return files | {name: f"the content of {name}".encode() for name in UNWANTED}


class FakeHub(ThreadingHTTPServer):
    """The parts of the hub that a download asks for. Large files lie on another host.

    repos: {repository: {branch: commit}}. commits: {(repository, commit): {name: content}}.
    swapped: {content: what is sent instead}. gated: repositories whose files are not sent.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.other_url = f"http://localhost:{self.server_port}"
        self.repos, self.commits, self.swapped, self.gated, self.asked = {}, {}, {}, set(), []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, repo, files, commit=FIRST, branch="main"):
        self.repos.setdefault(repo, {}).update({branch: commit, commit: commit})
        self.commits[repo, commit] = files

    def fetched(self):
        """Names of the files that were downloaded since the last call."""
        names = [self.name_of(path) for method, path in self.asked if method == "GET"]
        self.asked.clear()
        return sorted(filter(None, names))

    def name_of(self, path):
        if path.startswith("/cdn/"):
            contents = (item for files in self.commits.values() for item in files.items())
            return next(name for name, data in contents if sha256(data) == path[5:])
        return path.partition("/resolve/")[2].partition("/")[2]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = urlsplit(self.path).path
        self.server.asked.append((self.command, path))
        first, *rest = path[1:].split("/")
        if first == "cdn":
            contents = (data for files in self.server.commits.values() for data in files.values())
            return self.send(next(data for data in contents if sha256(data) == rest[0]))
        if first == "api":
            return self.model_info("/".join(rest[1:3]), rest[-1])
        repo, (_, revision, *name) = f"{first}/{rest[0]}", rest[1:]
        return self.file(repo, self.server.repos[repo][revision], "/".join(name))

    def model_info(self, repo, revision):
        if repo not in self.server.repos:
            return self.refuse(404, "RepoNotFound")
        commit = self.server.repos[repo].get(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        files = [sibling(*item) for item in self.server.commits[repo, commit].items()]
        facts = {"id": repo, "sha": commit, "siblings": files}
        facts |= {"private": False, "downloads": 0, "likes": 0, "tags": []}
        return self.send(json.dumps(facts).encode())

    def file(self, repo, commit, name):
        if repo in self.server.gated:
            return self.refuse(401, "GatedRepo")
        data = self.server.commits[repo, commit][name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_id(data)}"'}
        if not is_large(name):
            return self.send(data, headers)
        headers |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        headers |= {"Location": f"{self.server.other_url}/cdn/{sha256(data)}"}
        return self.send(b"", headers, 302)

    def refuse(self, status, code):
        return self.send(b"{}", {"X-Error-Code": code}, status)

    def send(self, data, headers=None, status=200):
        data = self.server.swapped.get(data, data)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def git_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name):
    return str(name).endswith((".safetensors", ".gguf", ".bin"))


def sibling(name, data):
    found = {"rfilename": name, "size": len(data), "blobId": git_id(data)}
    if is_large(name):
        found["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
    return found
