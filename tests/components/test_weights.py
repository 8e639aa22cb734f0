from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from metricli.components.extractors import Extractor, timm_extractor, torchvision_extractor
from metricli.components.tensorfile import pack, read_tensor_file, unpack, write_tensor_file
from metricli.components.weights import read_weights
from metricli.errors import CheckpointError, UsageError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("no network in the tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def source() -> nn.Module:
    """A classifier whose weights no fresh model has."""
    torch.manual_seed(11)
    return timm.create_model("test_resnet", num_classes=1000)


def features(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return found


def own_features(source: Any) -> Tensor:
    source.reset_classifier(0)
    return features(source)


def fresh(**settings: Any) -> Extractor:
    torch.manual_seed(0)
    return timm_extractor("test_resnet", normalize=False, **settings)


def wrapped(key: str, prefix: str = "") -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    def wrap(state: dict[str, Tensor]) -> dict[str, Any]:
        state = {prefix + name: tensor for name, tensor in state.items()}
        return {"epoch": 3, key: state} if key else state

    return wrap


@pytest.mark.parametrize(
    "wrap",
    [
        wrapped(""),
        wrapped("state_dict"),
        wrapped("model"),
        wrapped("model_state_dict", "module."),
        wrapped("", "module."),
        wrapped("state_dict", "backbone."),
    ],
)
def test_a_pth_of_any_usual_shape(tmp_path: Path, source: nn.Module, wrap: Any) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap(source.state_dict()), path)
    assert torch.equal(features(fresh(weights=str(path))), own_features(source))


def test_safetensors_with_the_classifier_and_without_batch_counters(
    tmp_path: Path, source: nn.Module
) -> None:
    path = tmp_path / "weights.safetensors"
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert "fc.weight" in state
    save_file(state, path)
    assert torch.equal(features(fresh(weights=str(path))), own_features(source))


def test_the_head_keeps_its_own_initial_weights(tmp_path: Path, source: nn.Module) -> None:
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with_weights, without = fresh(weights=str(tmp_path / "w.pth"), dim=4, bnneck=True), fresh(dim=4)
    assert with_weights.projection is not None
    assert without.projection is not None
    assert torch.equal(with_weights.projection.weight, without.projection.weight)
    assert not torch.equal(features(with_weights), features(without))


def test_torchvision_weights(tmp_path: Path) -> None:
    from torchvision.models import get_model

    source: Any = get_model("mobilenet_v3_small")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    extractor = torchvision_extractor("mobilenet_v3_small", weights=str(tmp_path / "w.pth"), normalize=False)
    source.classifier[3] = nn.Identity()
    assert torch.equal(features(extractor), features(source))


def test_missing_and_misshapen_weights_are_named(tmp_path: Path, source: nn.Module) -> None:
    path = str(tmp_path / "w.pth")
    state = source.state_dict()
    del state["conv1.0.weight"]
    state["bn1.weight"] = torch.ones(3)
    torch.save(state, path)
    before = fresh().backbone.state_dict()
    with pytest.raises(CheckpointError) as caught:
        fresh(weights=path)
    what = f"lacks 1 and misshapes 1 of the model's {len(before)} weights: conv1.0.weight, bn1.weight"
    assert caught.value.message == f"{path!r} {what}"
    torch.save({"other": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"lacks \d+ and misshapes 0 .*, \.\.\.; is it of the same"):
        fresh(weights=path)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["BOMB"],)


@pytest.mark.parametrize("form", ["zip", "bare pickle"])
def test_a_pickle_that_runs_code_is_refused_unrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "w.pth"
    if form == "zip":
        torch.save({"state_dict": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="are more than tensors, refused"):
        fresh(weights=str(path))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", None, "does not exist"),
        ("w.safetensors", None, "does not exist"),
        ("w.ckpt", None, "does not exist"),
        ("w.pth", b"", "cannot read the weights"),
        ("w.safetensors", b"\x01\x00", "cannot read the weights"),
        ("w.pth", b"PK\x03\x04 cut off", "cannot read the weights"),
    ],
)
def test_files_that_hold_no_weights(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        fresh(weights=str(path))


@pytest.mark.parametrize("content", [[1, 2], {"lr": 0.1}, torch.ones(2)])
def test_a_pth_without_named_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="hold no tensors by name"):
        fresh(weights=str(tmp_path / "w.pth"))


def test_a_best_checkpoint_gives_the_whole_extractor(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"pooling": "gem", "dim": 4, "bnneck": True}
    torch.manual_seed(5)
    tuned = timm_extractor("test_resnet", normalize=False, **settings)
    tuned.train()(torch.rand(4, 3, 32, 32))
    path = tmp_path / "best.ckpt"
    write_tensor_file(path, {f"extractor.{k}": v for k, v in tuned.state_dict().items()}, {"kind": "best"})
    assert torch.equal(features(fresh(weights=str(path), **settings)), features(tuned))
    with pytest.raises(
        CheckpointError, match=r"misshapes 6 .*: projection\.weight, projection\.bias, bnneck"
    ):
        fresh(weights=str(path), **settings | {"dim": 3})


def test_a_trained_run_is_the_start_of_another(trained: Any) -> None:
    from metricli.runs.checkpoints import read_best

    extractor = fresh(weights=str(trained.best_ckpt), dim=16)
    saved = read_best(trained.best_ckpt).weights
    assert all(torch.equal(tensor, saved[name]) for name, tensor in extractor.state_dict().items())


def test_pretrained_runs_timms_own_loading(tmp_path: Path, source: nn.Module) -> None:
    path = tmp_path / "published.pth"
    torch.save(source.state_dict(), path)
    args = {"pretrained_cfg_overlay": {"file": str(path)}}
    assert torch.equal(features(fresh(pretrained=True, model_args=args)), own_features(source))
    assert not torch.equal(features(fresh(pretrained=False, model_args=args)), own_features(source))


@pytest.mark.parametrize(
    ("build", "model"),
    [(timm_extractor, "test_resnet"), (torchvision_extractor, "shufflenet_v2_x0_5")],
)
def test_weights_that_cannot_be_downloaded(
    build: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("no network in the tests")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    with pytest.raises(UsageError) as caught:
        build(model, pretrained=True)
    library = build.__name__.removesuffix("_extractor")
    what = f"cannot load the published weights of the {library} model {model!r}: "
    assert caught.value.message.startswith(what)
    assert "no network in the tests" in caught.value.message


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model on a hub that is a folder; that it has register tokens only its config tells."""
    args = {"img_size": 64, "reg_tokens": 2}
    torch.manual_seed(12)
    source: Any = timm.create_model("test_vit", num_classes=10, **args)
    save_for_hf(source, str(tmp_path / "me" / "my_model"), model_args=args, safe_serialization=True)
    asked: list[tuple[str, str]] = []

    def download(repo_id: str, filename: str, **_kwargs: Any) -> str:
        asked.append((repo_id, filename))
        return str(tmp_path / repo_id / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    source.asked = asked
    return source


def hub_features(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return found


@pytest.mark.parametrize("prefix", ["hf_hub:", "hf-hub:"])
def test_a_model_on_the_hub_by_its_name(hub: Any, prefix: str) -> None:
    model = f"{prefix}me/my_model"
    extractor = timm_extractor(model, pretrained=True, pooling="cls", normalize=False)
    hub.reset_classifier(0)
    assert torch.equal(hub_features(extractor), hub_features(hub))
    assert ("me/my_model", "model.safetensors") in hub.asked


def test_what_the_hub_said_makes_the_same_model_without_it(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = timm_extractor("hf_hub:me/my_model", pretrained=True, model_args={"drop_rate": 0.1})
    monkeypatch.setattr("timm.models._hub.hf_hub_download", None)
    assert first.resolved["model"] == "test_vit"
    assert first.resolved["model_args"]["reg_tokens"] == 2
    assert first.resolved["model_args"]["drop_rate"] == 0.1
    assert json.loads(json.dumps(first.resolved)) == first.resolved
    again = timm_extractor(**first.resolved)
    again.load_state_dict(first.state_dict())
    assert torch.equal(hub_features(again), hub_features(first))


def test_a_setting_of_the_spec_goes_before_the_hubs(hub: Any) -> None:
    extractor = timm_extractor("hf_hub:me/my_model", model_args={"reg_tokens": 5})
    assert extractor.skip_tokens == 1 + 5


def test_a_model_that_is_not_on_the_hub(hub: Any) -> None:
    with pytest.raises(UsageError) as caught:
        timm_extractor("hf_hub:me/other", pretrained=True)
    what = "cannot load the published weights of the timm model 'hf_hub:me/other': [Errno 2] No such file"
    assert caught.value.message.startswith(what)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        fresh(weights=str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_of_another_program_says_so(tmp_path: Path, source: nn.Module) -> None:
    path = tmp_path / "lightning.ckpt"
    torch.save({"state_dict": source.state_dict(), "pytorch-lightning_version": "2.5"}, path)
    why = "it is a zip archive, such as torch.save writes"
    what = f"is not a metricli checkpoint, or its head is damaged ({why})"
    hint = "of another program (such as Lightning), name it .pth: its state_dict is then read"
    assert refusal(path) == f"{str(path)!r} {what}; {hint}"
    path.rename(tmp_path / "lightning.pth")
    extractor = fresh(weights=str(tmp_path / "lightning.pth"))
    assert torch.equal(features(extractor), own_features(source))


@pytest.mark.parametrize("place", [".", "checkpoints/last.ckpt", "checkpoints/step-00000004"])
def test_a_run_or_one_of_its_steps(trained: Any, tmp_path: Path, place: str) -> None:
    from metricli.runs.checkpoints import read_last

    folder = tmp_path / "run" / "checkpoints" / "step-00000004"
    folder.mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt"):
        os.link(getattr(trained, name.replace(".", "_")), folder.parent / name)
    os.link(trained.last_ckpt, folder / "last.ckpt")
    path = tmp_path / "run" / place
    expected = (
        read_weights(trained.best_ckpt)[0] if place == "." else read_last(trained.last_ckpt)[0]["extractor"]
    )
    state, whole = read_weights(path)
    assert whole
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    extractor = fresh(weights=str(path), dim=16)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in extractor.state_dict().items())


def test_of_a_running_average_that_is_what_was_judged(trained: Any, tmp_path: Path) -> None:
    tensors, meta, _ = read_tensor_file(trained.last_ckpt)
    state = unpack(meta["state"], tensors)
    state["ema"] = {name: torch.full_like(tensor, 3) for name, tensor in state["extractor"].items()}
    again: dict[str, Tensor] = {}
    meta["state"] = pack(state, again, "state")
    write_tensor_file(tmp_path / "last.ckpt", again, meta)
    assert all(bool((tensor == 3).all()) for tensor in read_weights(tmp_path / "last.ckpt")[0].values())
    for state_ in ([], {}, {"extractor": None, "ema": None}, {"extractor": {"a": 1}}):
        write_tensor_file(tmp_path / "last.ckpt", {}, {"kind": "last", "state": pack(state_, {}, "state")})
        assert "not written by metricli: state.extractor: expected weights by name" in refusal(
            tmp_path / "last.ckpt"
        )
    write_tensor_file(tmp_path / "last.ckpt", {}, {"kind": "last", "state": {"tensor": "x"}})
    assert "not written by metricli: state: there is no tensor 'x'" in refusal(tmp_path / "last.ckpt")


def test_a_checkpoint_by_another_name(trained: Any, tmp_path: Path) -> None:
    os.link(trained.best_ckpt, tmp_path / "weights.safetensors")
    assert read_weights(tmp_path / "weights.safetensors")[1]


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "folder.pth").mkdir()
    assert refusal(tmp_path / "pipe.pth") == f"the file of weights '{tmp_path}/pipe.pth' is no regular file"
    assert refusal(tmp_path / "pipe.ckpt") == f"the checkpoint '{tmp_path}/pipe.ckpt' is no regular file"
    what = "holds no checkpoint; give a file of weights, a run directory or one of its checkpoints/step-..."
    assert refusal(tmp_path / "folder.pth") == f"the folder '{tmp_path}/folder.pth' {what}"


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    torch.save({"conv1.0.weight": torch.zeros(5_000_000)}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as good,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in good.infolist():
            bomb.writestr(member.filename, good.read(member))
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    torch.load(tmp_path / "bomb.pth", weights_only=True)  # torch would
    assert "its archive is compressed, which torch.save does not do" in refusal(tmp_path / "bomb.pth")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_are_not_ordinary_are_none(tmp_path: Path, source: nn.Module) -> None:
    state = source.state_dict()
    odd = {
        "bn1.weight": state["bn1.weight"].to("meta"),
        "bn1.bias": state["bn1.bias"].to_sparse(),
        "bn1.running_mean": state["bn1.running_mean"].to(torch.complex64),
        "bn1.running_var": torch.quantize_per_tensor(state["bn1.running_var"], 0.1, 0, torch.qint8),
    }
    torch.save({1: torch.ones(2), **state, **odd}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert "lacks 3 and misshapes 1 of the model's" in message
    assert "bn1.weight, bn1.bias, bn1.running_var, ..." in message


def test_a_pth_damaged_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    import random

    torch.save({"a": torch.ones(20), "b": {"c": torch.zeros(3)}}, tmp_path / "good.pth")
    torch.save({"a": torch.ones(20)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    chance = random.Random(0)
    for good in ((tmp_path / "good.pth").read_bytes(), (tmp_path / "old.pth").read_bytes()):
        for _ in range(150):
            damaged = bytearray(good)
            for _ in range(chance.randint(1, 3)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            end = chance.choice([len(damaged), chance.randrange(len(damaged))])
            (tmp_path / "w.pth").write_bytes(damaged[:end])
            with contextlib.suppress(CheckpointError):
                read_weights(tmp_path / "w.pth")
