"""What names a person, a machine or a company never gets into a recorded snapshot, and a file is read or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.environment.host import Host
from modelyard.environment.probes import take
from modelyard.environment.record import HOST, PUBLIC_HOSTS, read, redact, write
from modelyard.environment.snapshot import (
    Configuration,
    Disk,
    Framework,
    IndexSettings,
    Installed,
    Managed,
    Package,
    Python,
    Reach,
    Snapshot,
    System,
    Unread,
)
from modelyard.errors import InputError, MachineError

letters = "abcdefghijklmnopqrstuvwxyz"
# Names that no word of ours can hold by accident: a hit in the result is the planted one
names = st.text(alphabet=letters + "0123456789", min_size=1, max_size=12).map(lambda each: f"q{each}zq")
passwords = st.text(alphabet=letters + letters.upper() + "0123456789!$%&*+,;=/:_~.-", max_size=20).map(
    lambda each: f"Qz{each}zQ"
)


def written(snapshot: Snapshot) -> str:
    return snapshot.model_dump_json()


def everywhere(text: str) -> Snapshot:
    """A snapshot that has `text` in every place where a probe puts words of the machine."""
    return Snapshot(
        system=System(release=text),
        disks=(Disk(purpose="hub", path=text, problem=text),),
        python=Python(executable=text, environment=text),
        installed=Installed(
            frameworks=(
                Framework(
                    name="torch",
                    error=f"first line\n{text}",
                    warnings=text,
                    device_error=f"({text})",
                    libraries=(text,),
                    devices=(text,),
                    problems=(f"nms: {text}",),
                ),
            )
        ),
        configuration=Configuration(
            indexes=(IndexSettings(tool="pip", find_links=(text,), certificate=text, sources=(text,)),),
            hub_home=text,
            variables={"PYTHONPATH": f"/a:{text}:/b", "MY_TOKEN": text},
        ),
        reach=(Reach(address="https://huggingface.co", purpose="hub", problem=text, detail=text),),
        managed=(Managed(name=text, proof_failures=(text,)),),
        unread=(Unread(probe="cpu", problem=f"OSError: {text!r}"),),
    )


@given(name=names, home=st.sampled_from(["/home/{}", "/Users/{}", "/data/people/{}", "C:\\Users\\{}", "/home/corp/{}"]))
def test_the_home_folder_becomes_a_tilde_and_the_user_no_one(name: str, home: str) -> None:
    folder = home.format(name)
    for text in (
        folder,
        f"{folder}/project/x.py",
        f'File "{folder}/a", line 3',
        f"/scratch/{name}_old/b",
        f"{name}:x:1000",
    ):
        text = text.replace("/", "\\") if "\\" in home and text.startswith(folder) else text
        result = written(redact(everywhere(text), home=folder, users=[name], hosts=["h"]))
        assert name not in result, text
    assert '"~' in written(redact(everywhere(folder), home=folder, users=[name], hosts=["h"]))


@given(name=names, domain=names)
def test_names_of_machines_do_not_survive(name: str, domain: str) -> None:
    full = f"{name}.{domain}.example"
    for text in (name, full, f"ann@{name}", f"cannot reach {full}:8080", f"/mnt/{name}/x", f"https://{full}/simple"):
        result = written(redact(everywhere(text), home="/home/ann", users=["ann"], hosts=[full]))
        assert name not in result, text


@given(user=names, password=passwords, host=names)
def test_passwords_in_addresses_do_not_survive(user: str, password: str, host: str) -> None:
    for text in (
        f"https://{user}:{password}@{host}.example/simple",
        f"http://{password}@{host}.example:8080/",
        f"failed: HTTPSConnection('https://{user}:{password}@{host}.example/a/b') refused",
        f"https://huggingface.co/x?token={password}",
        f"https://{host}.example/{password}/simple/",
        f"{user}:{password}@{host}.example:3128",
    ):
        result = written(redact(everywhere(text), home="/home/ann", users=["ann"], hosts=["pc"]))
        assert user not in result and "Qz" not in result and "zQ" not in result and host not in result, (text, result)


@given(
    start=st.sampled_from(
        ["hf_", "ghp_", "github_pat_", "glpat-", "pypi-AgE", "sk-", "AKIA", "Bearer ", "token=", "PASSWORD: "]
    ),
    rest=st.text(alphabet=letters + letters.upper() + "0123456789", min_size=8, max_size=40).map("Qz{}zQ".format),
)
def test_tokens_do_not_survive_anywhere(start: str, rest: str) -> None:
    result = written(redact(everywhere(f"401 with {start}{rest} given"), home="/home/ann", users=["ann"], hosts=["pc"]))
    assert rest not in result


def test_mail_other_homes_and_private_machines_are_taken_out() -> None:
    snapshot = everywhere("ask bob@corp.example about /home/bob/x, D:\\Users\\bob\\y and 10.1.2.3")
    result = redact(snapshot, home="/home/ann", users=["ann"], hosts=["pc"])
    assert "bob" not in written(result) and "10.1.2.3" not in written(result)
    assert result.disks[0].path == "ask <user>@<host> about /home/<user>/x, D:\\Users\\<user>\\y and <host>"


def test_only_harmless_variables_stay_and_proxies_lose_their_host() -> None:
    configuration = Configuration(
        variables={"OMP_NUM_THREADS": "4", "AWS_SECRET_ACCESS_KEY": "abc"},
        proxies={"https": "http://proxy.corp.example:3128", "http": "proxy.corp.example", "no": "corp.example,.lan"},
        indexes=(IndexSettings(tool="pip", proxy="ann:pw@p:1", trusted_hosts=("pkgs.corp.example", "localhost")),),
    )
    result = redact(Snapshot(configuration=configuration), home="/home/ann", users=["ann"], hosts=["pc"]).configuration
    assert result.variables == {"OMP_NUM_THREADS": "4"}
    assert result.proxies == {"https": f"http://{HOST}", "http": HOST, "no": HOST}
    assert result.indexes[0].proxy == HOST and result.indexes[0].trusted_hosts == (HOST, "localhost")


def test_public_addresses_stay_because_they_say_which_mirror_it_is() -> None:
    for host in ("huggingface.co", "hf-mirror.com", "mirrors.aliyun.com"):
        assert host in PUBLIC_HOSTS
        address = f"https://{host}/pytorch-wheels"
        result = redact(
            Snapshot(configuration=Configuration(hub_endpoint=address)), home="/home/ann", users=["ann"], hosts=["pc"]
        )
        assert result.configuration.hub_endpoint == address


def test_a_user_called_torch_does_not_make_the_package_disappear() -> None:
    snapshot = Snapshot(
        system=System(name="linux"),
        disks=(Disk(purpose="cache", path="/data/torch/x"),),
        installed=Installed(packages=(Package(name="torch", version="2.13.0"),), frameworks=(Framework(name="torch"),)),
    )
    result = redact(snapshot, home="/home/torch", users=["torch"], hosts=["linux"])
    assert result.installed == snapshot.installed and result.system == snapshot.system
    assert result.disks[0].path == "/data/<user>/x"
    docker = Snapshot(system=System(container="docker"), managed=(Managed(name="docker", state="ready"),))
    result = redact(docker, home="/home/docker", users=["docker", "ready"], hosts=["docker"])
    assert result.system.container == "docker" and result.managed == (Managed(name="<user>", state="ready"),)


def test_names_are_found_in_either_case() -> None:
    result = redact(everywhere("C:\\USERS\\Ann\\x on ANN-PC"), home="C:\\Users\\ann", users=["ann"], hosts=["ann-pc"])
    assert result.disks[0].path == "~\\x on <host>"


@given(
    texts=st.lists(st.text(max_size=60), max_size=3),
    user=st.one_of(st.sampled_from(["user", "host", "secret", "a", "-"]), st.text(max_size=8)),
)
def test_redacting_twice_changes_nothing_more(texts: list[str], user: str) -> None:
    for text in (*texts, "https://u:p@h/x", "file:///home/ann/x", "/home/bob/y", "user@host"):
        once = redact(everywhere(text), home="/home/ann", users=[user], hosts=["host"])
        assert redact(once, home="/home/ann", users=[user], hosts=["host"]) == once


def test_what_the_rules_need_survives() -> None:
    """Sizes, versions and names of this machine's parts are the same after redaction."""
    snapshot = take(Host(), ask="never", network=False)
    result = redact(snapshot)
    for part in ("cpu", "memory", "accelerators", "installed"):
        assert getattr(result, part) == getattr(snapshot, part), part
    assert (result.python.version, result.python.kind) == (snapshot.python.version, snapshot.python.kind)
    assert [each.free_bytes for each in result.disks] == [each.free_bytes for each in snapshot.disks]


def test_a_written_snapshot_is_read_back(tmp_path: Path) -> None:
    snapshot = everywhere("日本 é")
    assert read(write(snapshot, tmp_path / "deep" / "machine.json")) == snapshot
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "machine.json"]


def test_a_field_of_a_newer_version_is_passed_over(tmp_path: Path) -> None:
    value = json.loads(written(Snapshot())) | {"quantum": True}
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(value))
    assert read(file) == Snapshot()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("not json", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ("[1, 2]", "not a snapshot"),
        ('{"name": "recipe"}', "not a snapshot"),
        ('{"format": true, "system": {}}', "not a snapshot"),
        ('{"format": 99, "system": {}}', "has the format 99, and this modelyard reads up to 1"),
        ('{"format": 1, "system": {"name": 7}}', "system.name is '7'"),
        ('{"format": 1, "system": "x"}', "system is 'x'"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "machine.json"
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        read(file)
    assert said in caught.value.problem and str(file) in caught.value.problem
    assert caught.value.hint


def test_bytes_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for file, said in ((tmp_path / "bytes.json", "is not JSON"), (tmp_path, "directory"), (tmp_path / "no", "No such")):
        with pytest.raises(InputError, match=said):
            read(file)


def test_a_place_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place: Any = tmp_path / "file" / "machine.json"
    with pytest.raises(MachineError) as caught:
        write(Snapshot(), place)
    assert "--record" in caught.value.hint
