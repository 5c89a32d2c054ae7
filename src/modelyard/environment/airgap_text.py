"""INSTALL.md of an air-gapped collection, in English and Chinese."""

from __future__ import annotations

from dataclasses import dataclass

CHECKSUMS = "SHA256SUMS"
PROOFS = {
    "torch": "modelyard.engines.torch.proof",
    "tensorflow": "modelyard.engines.keras.proof_tensorflow",
    "jax": "modelyard.engines.keras.proof_jax",
}

_TEXT = """\
# Install without a network

For {platform}, Python {python}. The target needs that Python and nothing else. Type these commands in this folder.

1. Check that the copy is whole:

   ```
   {check}
   ```

2. Make the environment and install. pip refuses a file whose hash is not the one in `requirements.txt`:

   ```
   {venv}
   {pip}
   ```

   The same with uv, which is faster, where it is installed{uv_en}:

   ```
   {uv_venv}
   {uv}
   ```
{proof_en}
# 离线安装

适用于 {platform}，Python {python}。目标机器只需要这个版本的 Python。请在本文件夹中执行以下命令。

1. 检查拷贝是否完整：

   ```
   {check}
   ```

2. 创建环境并安装。如果某个文件的哈希值与 `requirements.txt` 中的不一致，pip 会拒绝安装：

   ```
   {venv}
   {pip}
   ```

   如果目标机器上装有 uv，也可以用它，速度更快{uv_zh}：

   ```
   {uv_venv}
   {uv}
   ```
{proof_zh}"""

_PROOF_EN = """
3. Prove that it computes correctly on this machine (ends with 0 if it does):

   ```
   {proof}
   ```
"""
_PROOF_ZH = """
3. 验证它在这台机器上计算正确（正确时退出码为 0）：

   ```
   {proof}
   ```
"""


@dataclass(frozen=True)
class Subject:
    """The environment that is collected."""

    name: str
    framework: str  # a key of PROOFS, or "" to name no proof
    device: str
    platform: str
    python: str
    brings_uv: bool  # uv's wheel is among those collected


def install_text(subject: Subject) -> str:
    """INSTALL.md: the same commands in both languages."""
    windows, folder = subject.platform.startswith("windows"), f"modelyard-{subject.name}"
    interpreter = f"{folder}\\Scripts\\python" if windows else f"{folder}/bin/python"
    offline = "--no-index --find-links wheels --require-hashes"
    values = {
        "platform": subject.platform,
        "python": subject.python,
        "check": _check_command(subject.platform),
        "venv": f"{f'py -{subject.python}' if windows else f'python{subject.python}'} -m venv {folder}",
        "pip": f"{interpreter} -m pip install {offline} --requirement requirements.txt",
        "uv_en": " (its wheel is in `wheels/` too)" if subject.brings_uv else "",
        "uv_zh": "（`wheels/` 中也带有 uv 的安装包）" if subject.brings_uv else "",
        "uv_venv": f"uv venv --offline --python {subject.python} {folder}",
        "uv": f"uv pip sync --offline --python {folder} {offline} requirements.txt",
    }
    module = PROOFS.get(subject.framework)
    if module:
        proof = f"{interpreter} -I -m {module} --device {subject.device} --out proof.json"
        values |= {"proof_en": _PROOF_EN.format(proof=proof), "proof_zh": _PROOF_ZH.format(proof=proof)}
    else:
        values |= {"proof_en": "", "proof_zh": ""}
    return _TEXT.format(**values)


def _check_command(platform: str) -> str:
    if platform.startswith("windows"):
        return (
            f"Get-Content {CHECKSUMS} | ForEach-Object {{ $sum, $file = $_ -split '  '; "
            "if ((Get-FileHash $file).Hash -ne $sum) { throw $file } }"
        )
    return f"{'shasum -a 256' if platform.startswith('macos') else 'sha256sum'} --check {CHECKSUMS}"
