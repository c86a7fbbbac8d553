"""Repositories of the hub, played by a stand-in that takes exactly the calls the real client takes."""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, ModelInfo
from huggingface_hub import errors as hub_errors
from typer.testing import CliRunner

import evertune
from evertune import ArraySource, Learner, LearnerFolder, Stream, pull, push
from evertune.backbones import TimmViT
from evertune.cli.app import app
from evertune.errors import HubError, StorageError
from evertune.hub.client import explained

Files = dict[str, bytes]
REPO = "me/spots"


def as_the_client(method: Callable[..., Any]) -> Callable[..., Any]:
    """Every call must fit the signature of the real client's method, and is read through it."""
    real = inspect.signature(getattr(HfApi, method.__name__))

    def call(self: LocalHub, *args: Any, **options: Any) -> Any:
        bound = real.bind(self, *args, **options)
        bound.apply_defaults()
        self.calls.append(method.__name__)
        return method(self, SimpleNamespace(**bound.arguments))

    return call


class LocalHub:
    """Repositories in memory: a list of commits each, newest last; a branch is the main one or none."""

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, Files]]] = {}
        self.private: dict[str, bool] = {}
        self.calls: list[str] = []
        self.plant: Callable[[Path], object] = lambda folder: None
        """What a hostile repository does to the folder it is downloaded to."""

    @as_the_client
    def create_repo(self, call: Any) -> str:
        assert call.exist_ok
        if call.repo_id not in self.repos:
            self.repos[call.repo_id] = [("c0", {".gitattributes": b"* -text"})]
            self.private[call.repo_id] = bool(call.private)
        return str(call.repo_id)

    @as_the_client
    def repo_info(self, call: Any) -> ModelInfo:
        return ModelInfo(id=call.repo_id, private=self.private[call.repo_id], sha=self._at(call)[0])

    @as_the_client
    def list_repo_files(self, call: Any) -> list[str]:
        return list(self._at(call)[1])

    @as_the_client
    def create_commit(self, call: Any) -> CommitInfo:
        newest, files = self.repos[call.repo_id][-1]
        if call.parent_commit != newest:
            raise refusal("HfHubHTTPError", 412)
        files = dict(files)
        for operation in call.operations:
            if isinstance(operation, CommitOperationAdd):
                with operation.as_file() as file:
                    files[operation.path_in_repo] = file.read()
            else:
                del files[operation.path_in_repo]
        oid = f"c{len(self.repos[call.repo_id])}"
        self.repos[call.repo_id].append((oid, files))
        url = f"https://huggingface.co/{call.repo_id}/commit/{oid}"
        return CommitInfo(commit_url=url, commit_message=call.commit_message, commit_description="", oid=oid)

    @as_the_client
    def snapshot_download(self, call: Any) -> str:
        folder = Path(call.local_dir)
        for name, content in self._at(call)[1].items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in call.allow_patterns):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        (folder / ".cache/huggingface").mkdir(parents=True)
        (folder / ".cache/huggingface/notes").write_text("of the client")
        self.plant(folder)
        return str(folder)

    def files(self, repo: str = REPO) -> Files:
        return self.repos[repo][-1][1]

    def _at(self, call: Any) -> tuple[str, Files]:
        if call.repo_id not in self.repos:
            raise refusal("RepositoryNotFoundError", 404)
        commits = self.repos[call.repo_id]
        found = [one for one in commits if call.revision in (None, "main", one[0])]
        if not found:
            raise refusal("RevisionNotFoundError", 404)
        return found[-1]


def refusal(kind: str, status: int) -> Exception:
    """An error as the client raises it for an answer of this status."""
    error: Exception = getattr(hub_errors, kind).__new__(getattr(hub_errors, kind), f"{status} of {kind}")
    error.response = SimpleNamespace(status_code=status, headers={})  # type: ignore[attr-defined]
    return error


@pytest.fixture
def hub() -> LocalHub:
    return LocalHub()


@pytest.fixture(scope="module")
def kept(tiny: TimmViT, blobs: tuple[ArraySource, ArraySource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learner's folder with versions 0 to 2: nothing learned, one task, two."""
    folder = tmp_path_factory.mktemp("kept") / "spots"
    learner = Learner("simple_cil", tiny, device="cpu", progress=False)
    learner.save(folder)
    for task in Stream.class_incremental(*blobs, first=3, increment=3, train_per_class=3):
        learner.learn(task)
        learner.save(folder)
    return folder


def contents(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- the stand-in ------------------------------------------------------------------------------------------------------


def test_the_stand_in_takes_the_calls_of_the_real_client_and_no_others(hub: LocalHub) -> None:
    for ask in (hub.create_repo, hub.repo_info, hub.list_repo_files, hub.snapshot_download):
        with pytest.raises(TypeError, match="no_such_option"):
            ask(REPO, no_such_option=1)
    with pytest.raises(TypeError, match="commit_message"):
        hub.create_commit(REPO, [])
    assert not hub.calls


# -- push --------------------------------------------------------------------------------------------------------------


def test_push_and_pull_give_the_same_learner(hub: Any, kept: Path, tiny: TimmViT, tmp_path: Path) -> None:
    url = push(kept, REPO, client=hub, license="cc-by-4.0", results={"accuracy": 0.5})
    assert url == f"https://huggingface.co/{REPO}/commit/c1" and hub.private[REPO]
    assert set(hub.files()) == {
        ".gitattributes", "README.md", "learner.json", "learner-2.json", "state-2.safetensors"
    }  # fmt: skip
    card = ModelCard(hub.files()["README.md"].decode())
    assert card.data.license == "cc-by-4.0" and f'evertune.pull("{REPO}", "kept")' in card.text
    saved = LearnerFolder(kept).versions()[-1].saved
    assert f"| 2 | task 2 | class | 3 | 9 | {saved[:10]} |" in card.text
    there = pull(REPO, tmp_path / "there", client=hub)
    assert there == tmp_path / "there"
    assert set(contents(there)) == {"README.md", "learner.json", "learner-2.json", "state-2.safetensors"}
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    mine, theirs = (Learner.load(folder, tiny, device="cpu", progress=False) for folder in (kept, there))
    assert theirs.classes == mine.classes and theirs.scores(images).equal(mine.scores(images))


def test_a_push_replaces_what_an_earlier_one_left(hub: Any, kept: Path) -> None:
    push(kept, REPO, client=hub, versions="all")
    assert {f"learner-{n}.json" for n in range(3)} | {f"state-{n}.safetensors" for n in range(3)} < set(hub.files())
    hub.files()["notes.txt"] = b"mine"
    push(kept, REPO, client=hub, card=False)
    assert set(hub.files()) == {
        ".gitattributes", "README.md", "notes.txt", "learner.json", "learner-2.json", "state-2.safetensors"
    }  # fmt: skip
    assert len(hub.repos[REPO]) == 3  # one commit each


def test_only_the_learner_goes(hub: Any, kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "spots"
    folder.mkdir()
    for name, content in contents(kept).items():
        (folder / name).write_bytes(content)
    for name in (".lock", "update.json", "update-1.safetensors", "secret.txt"):
        (folder / name).write_text("{}")
    push(folder, REPO, client=hub, card=False)
    assert set(hub.files()) == {".gitattributes", "learner.json", "learner-2.json", "state-2.safetensors"}


def test_a_damaged_learner_is_not_pushed(hub: Any, kept: Path, tmp_path: Path) -> None:
    for name, content in contents(kept).items():
        (tmp_path / name).write_bytes(content[:-1] if name == "state-2.safetensors" else content)
    with pytest.raises(StorageError, match="state-2"):
        push(tmp_path, REPO, client=hub)
    with pytest.raises(StorageError, match=r"learner\.json is missing"):
        push(tmp_path / "none", REPO, client=hub)
    assert not hub.calls


def test_a_path_that_would_be_published_is_told(hub: Any, kept: Path, tmp_path: Path) -> None:
    content, tensors = LearnerFolder(kept).read()
    content["backbone"]["name"] = "hf:/home/someone/bert"
    LearnerFolder(tmp_path / "local").write(content, tensors)
    with pytest.warns(UserWarning, match="/home/someone/bert, which others can read"):
        push(tmp_path / "local", REPO, client=hub)


def test_a_public_repository_must_be_meant(hub: Any, kept: Path) -> None:
    push(kept, REPO, client=hub, private=False)
    assert not hub.private[REPO]
    with pytest.raises(HubError, match="is public"):
        push(kept, REPO, client=hub)
    assert len(hub.repos[REPO]) == 2


def test_a_repository_of_something_else_is_left_alone(hub: Any, kept: Path) -> None:
    hub.create_repo(REPO, private=True, exist_ok=True)
    hub.files()["model.safetensors"] = b"weights"
    with pytest.raises(HubError, match=r"holds something else \(model\.safetensors\)"):
        push(kept, REPO, client=hub)
    assert len(hub.repos[REPO]) == 1


def test_two_pushes_at_once_do_not_write_over_each_other(hub: Any, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(kept, REPO, client=hub)
    listed = hub.list_repo_files

    def overtaken(*args: Any, **options: Any) -> Any:
        found = listed(*args, **options)
        hub.repos[REPO].append(("other", dict(hub.files())))
        return found

    monkeypatch.setattr(hub, "list_repo_files", overtaken)
    with pytest.raises(HubError, match="somebody else changed the repository at the same time"):
        push(kept, REPO, client=hub)


# -- pull --------------------------------------------------------------------------------------------------------------


def test_a_later_state_becomes_a_version_and_the_same_one_nothing(
    hub: Any, kept: Path, tiny: TimmViT, tmp_path: Path
) -> None:
    home = LearnerFolder(tmp_path / "here")
    Learner.load(kept, tiny, version=1, device="cpu", progress=False).save(home.path)
    push(kept, REPO, client=hub)
    pull(REPO, home.path, client=hub)
    assert [version.tasks for version in home.versions()] == [1, 2] and len(home.content()["history"]) == 2
    before = contents(home.path)
    pull(REPO, home.path, client=hub)
    assert contents(home.path) == before


def test_a_learner_that_has_come_further_or_another_one_stays(
    hub: Any, kept: Path, tiny: TimmViT, tmp_path: Path
) -> None:
    push(kept, REPO, client=hub)
    other = Learner.load(kept, tiny, version=1, device="cpu", progress=False)
    push_old = tmp_path / "old"
    other.save(push_old)
    push(push_old, "me/old", client=hub)
    with pytest.raises(StorageError, match=r"knows 2 tasks, that in me/old the first 1 of them"):
        pull("me/old", kept, client=hub)
    Learner("simple_cil", tiny, seeds=5, device="cpu", progress=False).save(tmp_path / "other")
    before = contents(tmp_path / "other")
    with pytest.raises(StorageError, match="holds another learner"):
        pull(REPO, tmp_path / "other", client=hub)
    assert contents(tmp_path / "other") == before
    pull(REPO, tmp_path / "other", client=hub, force=True)
    assert LearnerFolder(tmp_path / "other").content()["version"] == 2
    assert {p.name for p in tmp_path.iterdir()} == {"old", "other"}


def test_a_folder_of_other_files_stays(hub: Any, kept: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(StorageError, match=r"holds other files|is a file"):
            pull(REPO, folder, client=hub, force=True)
    assert not hub.calls
    with pytest.raises(StorageError, match="could not be written"):
        pull(REPO, tmp_path / "mine.txt" / "below", client=hub)


def test_a_revision_is_what_it_was(hub: Any, kept: Path, tmp_path: Path, tiny: TimmViT) -> None:
    old = tmp_path / "old"
    Learner.load(kept, tiny, version=1, device="cpu", progress=False).save(old)
    push(old, REPO, client=hub)
    push(kept, REPO, client=hub)
    assert len(LearnerFolder(pull(REPO, tmp_path / "a", revision="c1", client=hub)).content()["history"]) == 1
    assert len(LearnerFolder(pull(REPO, tmp_path / "b", client=hub)).content()["history"]) == 2
    with pytest.raises(HubError, match="no such revision"):
        pull(REPO, tmp_path / "c", revision="v9", client=hub)


def hostile(folder: Path, kind: str) -> None:
    """Change what was downloaded as a hostile or broken repository would have it."""
    state, about = folder / "state-2.safetensors", folder / "learner.json"
    if kind == "flipped":
        content = bytearray(state.read_bytes())
        content[-1] ^= 1
        state.write_bytes(content)
    elif kind == "truncated":
        state.write_bytes(state.read_bytes()[:100])
    elif kind == "missing":
        state.unlink()
    elif kind == "link":
        state.unlink()
        state.symlink_to("/etc/hostname")
    elif kind == "nested":
        (folder / "state-2").mkdir()
        (folder / "state-2/x.safetensors").write_bytes(b"")
    elif kind == "foreign":
        (folder / "state-x.safetensors").write_bytes(b"")
    elif kind == "outside":
        bare = {key: value for key, value in json.loads(about.read_text()).items() if key != "digest"}
        bare["state"]["file"] = "../../state-2.safetensors"
        text = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        about.write_text(json.dumps(bare | {"digest": hashlib.sha256(text.encode()).hexdigest()}))
    elif kind == "older version":
        (folder / "learner-1.json").write_text("{}")


@pytest.mark.parametrize(
    "kind", ["flipped", "truncated", "missing", "link", "nested", "foreign", "outside", "older version"]
)
def test_a_hostile_repository_is_refused_and_leaves_nothing(hub: Any, kept: Path, kind: str, tmp_path: Path) -> None:
    push(kept, REPO, client=hub)
    hub.plant = lambda folder: hostile(folder, kind)
    with pytest.raises(StorageError, match="nothing was taken over") as caught:
        pull(REPO, tmp_path / "here", client=hub)
    assert REPO in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_repository_without_a_learner_is_told(hub: Any, tmp_path: Path) -> None:
    hub.create_repo(REPO, private=True, exist_ok=True)
    with pytest.raises(HubError, match="holds no learner"):
        pull(REPO, tmp_path / "here", client=hub)


# -- what the hub answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("RepositoryNotFoundError", 401, "there is no such repository, or you may not see it"),
        ("HfHubHTTPError", 401, "you are not logged in"),
        ("HfHubHTTPError", 403, "you have no right to do this"),
        ("GatedRepoError", 403, "you have no right to do this"),
        ("RevisionNotFoundError", 404, "there is no such revision"),
        ("HfHubHTTPError", 500, "the hub refused with status 500"),
    ],
)
def test_an_answer_becomes_one_sentence(kind: str, status: int, said: str) -> None:
    with pytest.raises(HubError, match=f"^{REPO}: {said}") as caught, explained(REPO):
        raise refusal(kind, status)
    assert "\n" not in str(caught.value)


def test_a_name_that_no_server_has_is_no_network() -> None:
    with pytest.raises(HubError, match="could not be reached"), explained(REPO):
        raise RuntimeError("of the HTTP library") from socket.gaierror(-2, "Name or service not known")


def test_without_a_network_the_real_client_is_told_quickly(kept: Path, tmp_path: Path) -> None:
    client = HfApi(endpoint="http://127.0.0.1:9")  # nobody listens there
    begun = time.monotonic()
    for ask in (lambda: push(kept, REPO, client=client), lambda: pull(REPO, tmp_path / "here", client=client)):
        with pytest.raises(HubError, match=r"could not be reached .*check the network") as caught:
            ask()
        assert "\n" not in str(caught.value)
    with pytest.raises(HubError, match="write OWNER/NAME"):
        pull("no name", tmp_path / "here", client=client)
    assert time.monotonic() - begun < 10 and not list(tmp_path.iterdir())


def test_a_hub_that_is_switched_off_is_told(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(self: HfApi, *args: Any, **options: Any) -> None:
        raise hub_errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(HfApi, "create_repo", off)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE; unset it"):
        push(kept, REPO)


# -- the commands ------------------------------------------------------------------------------------------------------


def test_the_commands(hub: Any, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)

    def command(*args: object) -> Any:
        return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})

    pushed = command("push", kept, REPO, "--public", "--license", "apache-2.0", "--versions")
    assert pushed.exit_code == 0 and f"https://huggingface.co/{REPO}/commit/c1" in pushed.stdout
    assert not hub.private[REPO] and "learner-0.json" in hub.files()
    pulled = command("pull", REPO, tmp_path / "here", "--revision", "main")
    assert pulled.exit_code == 0 and "is version 2 now and knows 6 classes" in pulled.stdout
    refused = command("pull", "me/none", tmp_path / "there")
    assert refused.exit_code == 2 and refused.stderr.startswith("evertune: me/none: there is no such repository")
    Learner("ranpac", progress=False, device="cpu").save(tmp_path / "other")
    assert command("pull", REPO, tmp_path / "other").exit_code == 2
    assert command("pull", REPO, tmp_path / "other", "--force").exit_code == 0
    assert os.listdir(tmp_path / "other") and evertune.push is push
