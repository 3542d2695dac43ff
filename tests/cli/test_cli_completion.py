"""Completion of commands in shells."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from twoscale._cli import main
from twoscale._cli.verbs import VERBS


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    main(["completion", shell])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def bash_script() -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(["completion", "bash"])
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path, bash_script: str) -> Path:
    (tmp_path / "completion.bash").write_text(bash_script)
    (tmp_path / "complete.sh").write_text(
        "source ./completion.bash\n"
        'COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()\n'
        "$(complete -p twoscale | sed 's/.* -F \\([^ ]*\\) .*/\\1/')\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    (tmp_path / "weights.pt").touch()
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["qu"], {"quantize"}),
        (["data", ""], {"list", "fetch", "-h", "--help"}),
        (["data", "fetch", "--p"], {"--path"}),
        (["quantize", "--weight-"], {"--weight-range", "--weight-bits", "--weight-scales"}),
        (["quantize", "--scheme", ""], {"default", "fast", "course", "tflite"}),
        (["train", "net", "--interp"], {"--interpolation"}),
        (["verify", "--checkpoint", "w"], {"weights.pt"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes_verbs_options_values_and_files(folder: Path, words: list[str], expected: set[str]) -> None:
    run = ["bash", "complete.sh", "twoscale", *words]
    found = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert set(found.split()) == expected


def test_every_verb_is_in_every_script(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        text = script(shell, capsys)
        assert all(f"'{word}'" in text for name in VERBS for word in name.split())
        found = shutil.which(shell)
        if found is not None:
            subprocess.run([found, "-n"], input=text.encode(), check=True, capture_output=True)
