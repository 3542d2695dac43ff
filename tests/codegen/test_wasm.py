"""Networks for browsers: every layer right in Node.js and Chromium, for each kind of product, and planted faults."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import chromium
from tests import sweep
from tests.codegen.compiling import DTYPES, NOT_INLINED, every_kernel, need
from tests.codegen.test_c_vector import saturating
from tests.integer_networks import ActivationType, random_network
from twoscale._codegen.c.common.selftest import layer_values
from twoscale._codegen.targets import WASM_SETS, InstructionSet
from twoscale._codegen.wasm.files import files
from twoscale._codegen.wasm.source import source_of
from twoscale._formats import load
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.operators.vectorized import quantize_input
from twoscale._ir.preprocessing import normalize
from twoscale._runtimes.wasm import compile_module, export_wasm, find_clang, recorded_classes
from twoscale.errors import ConfigurationError, ExecutorError

RELAXED, RELAXED_SIGNED, SIMD128 = WASM_SETS
QUICK = ("-O0", NOT_INLINED)
NAME = "n"


def need_clang() -> str:
    try:
        return find_clang()
    except ExecutorError as error:
        pytest.skip(str(error))


def build(
    folder: Path,
    network: IntegerNetwork,
    *kinds: InstructionSet,
    replaced: dict[str, str] | None = None,
    flags: tuple[str, ...] = QUICK,
) -> None:
    """Write the files of some kinds of modules, compiled from an edited source."""
    clang = need_clang()
    modules = {}
    for kind in kinds:
        source = source_of(network, NAME, kind)
        contents = source.contents()
        for old, new in (replaced or {}).items():
            found = [file for file, text in contents.items() if isinstance(text, str) and old in text]
            assert found
            contents |= {file: str(contents[file]).replace(old, new) for file in found}
        modules[kind.name] = compile_module(clang, NAME, contents, kind, "-Werror", "-Wall", "-Wextra", *flags)
    source = source_of(network, NAME, SIMD128)
    folder.mkdir(exist_ok=True)
    for file, content in files(source, modules, recorded_classes(network), 4).items():
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def in_node(folder: Path, script: str) -> str:
    """Return what a script prints, or the message of the error that it throws."""
    need("node")
    begin = f'const {{ load, about, bestKind, Network }} = await import("{folder}/{NAME}.mjs");\n'
    wrapped = f"{begin}try {{\n{script}\n}} catch (error) {{ console.log(error.message); }}"
    command = ["node", "--input-type=module", "-e", wrapped]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SELF_TEST = 'console.log((await load({ kind: "simd128" })).selfTest());'


def in_chromium(folders: dict[str, Path], script: str) -> dict[str, Any]:
    """Return what a script leaves in ``result``, with the folders served beside the page."""
    if chromium.command() is None:
        pytest.skip("chromium is not installed")
    page = next(iter(folders.values())) / "page.html"
    page.write_text(
        '<!doctype html><meta charset="utf-8"><script type="module">\nconst result = {};\ntry {\n'
        f"{script}\n}} catch (error) {{ result.error = String(error); }}\n"
        'await fetch("/result", { method: "POST", body: JSON.stringify(result) });\n</script>'
    )
    return chromium.result_of(f"{next(iter(folders))}/page.html", folders)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("dtype", sorted(DTYPES, key="mixed".__ne__))
def test_every_layer_in_node(dtype: ActivationType, tmp_path: Path) -> None:
    build(tmp_path, every_kernel(dtype), SIMD128)
    assert in_node(tmp_path, SELF_TEST) == "n: 4 images, all layers as expected (simd128)"


FAULTS = {
    "a wrong lane": {"ADD_WORD(4)": "ADD_WORD(0)"},
    "saturation": {
        "saturated(round_f(clamp_f(a, set_f(0.0f), set_f(255.0f))))": "saturated(round_f(a))",
        "return wasm_u8x16_narrow_i16x8(lo, hi)": (
            "return wasm_i8x16_shuffle(lo, hi, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)"
        ),
    },
    "signed and unsigned": {"wasm_u16x8_shr(x, 8)": "wasm_i16x8_shr(x, 8)"},
}


@pytest.mark.sweep(1)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_show(fault: str, tmp_path: Path) -> None:
    build(tmp_path, saturating(), SIMD128, replaced=FAULTS[fault])
    assert "is the first to differ" in in_node(tmp_path, SELF_TEST)


ANSWERS = {
    "unsigned and exact": ("relaxed", "4 * a * (b & 255)"),
    "signed and exact": ("relaxed_signed", "4 * a * (b << 24 >> 24)"),
    "unsigned, pairs saturate": ("simd128", "2 * Math.max(-32768, Math.min(32767, 2 * a * (b & 255)))"),
    "signed, pairs saturate": ("simd128", "2 * Math.max(-32768, Math.min(32767, 2 * a * (b << 24 >> 24)))"),
    "signed, pairs wrap": ("simd128", "2 * (2 * a * (b << 24 >> 24) << 16 >> 16)"),
    "none": ("simd128", None),
}


def test_the_kind_follows_what_the_host_computes(tmp_path: Path) -> None:
    """Relaxed dot products of bytes may differ between hosts; a module is chosen only where they are exact."""
    need("node")
    (tmp_path / "n.mjs").write_bytes(b"")
    source = source_of(random_network(np.random.default_rng(0), length=1, name=NAME), NAME, SIMD128)
    (tmp_path / "n.mjs").write_text(str(files(source, {}, None, 1)["n.mjs"]))
    script = "const found = [];\n"
    for _, product in ANSWERS.values():
        p = "throw new WebAssembly.CompileError()" if product is None else f"p: (a, b) => {product}"
        answer = p if product is None else f"return {{ instance: {{ exports: {{ {p} }} }} }}"
        script += f"WebAssembly.instantiate = async () => {{ {answer}; }};\nfound.push(await bestKind());\n"
    assert json.loads(in_node(tmp_path, f"{script}console.log(JSON.stringify(found));")) == [
        kind for kind, _ in ANSWERS.values()
    ]


def labelled() -> IntegerNetwork:
    """Return a network of pictures that records how pixels are normalized."""
    network = random_network(
        np.random.default_rng(3), operators={"conv", "depthwise", "max_pool"}, length=4, image_shape=(3, 9, 8),
        dtype="uint8", output="accumulators", name=NAME, classes=3,
    )  # fmt: skip
    metadata = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "classes": ["a", "b", "</script>"]}
    return IntegerNetwork(network.name, network.layers, network.outputs, metadata=metadata)


def reference(network: IntegerNetwork, real: NDArray[np.float32]) -> NDArray[Any]:
    """Return the integers of the output for normalized images."""
    return layer_values(network, (quantize_input(real, network.inputs[0].output),))[network.outputs[0]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of ``labelled``."""
    folder = tmp_path_factory.mktemp("pictures")
    build(folder, labelled(), RELAXED, SIMD128)
    return folder


PICTURE = """
  const network = await load();
  result.kind = network.kind;
  result.test = network.selfTest();
  const rgba = new ImageData(8, 9);
  rgba.data.set(rgba.data.map((_, i) => (i % 4 === 3 ? 255 : (i * 7919) % 256)));
  const found = network.classify(rgba);
  result.integers = [...found.integers[0]];
  result.logits = [...found.logits];
  result.name = found.name;
  const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 9 });
  canvas.getContext("2d").putImageData(rgba, 0, 0);
  result.drawn = [...network.classify(canvas).integers[0]];
  const floats = Float32Array.from({ length: 20 * 216 }, (_, i) => Math.fround(Math.sin(i)));
  result.many = network.run(floats).flatMap(({ integers }) => [...integers[0]]);
"""


def test_pictures_give_the_reference_s_integers_in_chromium(pictures: Path) -> None:
    network = labelled()
    result = in_chromium({"n": pictures}, 'const { load } = await import("/n/n.mjs");' + PICTURE)
    assert "error" not in result, result["error"]
    if result["kind"] != "relaxed":  # a host whose products saturate
        assert result["kind"] == "simd128"
    assert result["test"] == f"n: 4 images, all layers as expected ({result['kind']})"
    rgba = (np.arange(9 * 8 * 4) * 7919 % 256).astype(np.uint8).reshape(9, 8, 4)
    pixels = np.ascontiguousarray(rgba[:, :, :3].transpose(2, 0, 1))
    expected = reference(network, normalize(pixels[None], (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))[0]
    assert result["integers"] == result["drawn"] == expected.tolist()
    output = network[network.outputs[0]].output
    logits = ((expected.astype(np.float64) - output.zero_point) * output.scale).astype(np.float32)
    assert np.array_equal(np.float32(result["logits"]), logits)
    assert result["name"] == ("a", "b", "</script>")[int(logits.argmax())]
    floats = np.sin(np.arange(20 * 216, dtype=np.float64)).astype(np.float32).reshape(20, 3, 9, 8)
    assert np.array_equal(np.reshape(result["many"], (20, 3)), reference(network, floats))


EMULATED = {
    "unsigned": """
static v128_t emulated(v128_t w, v128_t x, v128_t acc)
{
    int32_t sum[4]; int8_t a[16]; uint8_t b[16];
    wasm_v128_store(sum, acc); wasm_v128_store(a, w); wasm_v128_store(b, x);
    for (int i = 0; i < 16; i++) sum[i / 4] += a[i] * b[i];
    return wasm_v128_load(sum);
}
""",
}
EMULATED["signed"] = EMULATED["unsigned"].replace("uint8_t b[16]", "int8_t b[16]")


@pytest.mark.skipif(not sweep.whole(), reason="compiles eight modules; with --sweep all")
def test_each_kind_is_right_on_its_hosts_and_wrong_on_others(tmp_path: Path) -> None:
    """The instruction is replaced by a function that does what other hosts do."""
    folders, script = {}, ""
    for kind in (RELAXED, RELAXED_SIGNED):
        for host, function in EMULATED.items():
            key = f"{kind.name}-{host}"
            folders[key] = tmp_path / key
            build(
                folders[key], every_kernel("mixed"), kind,
                replaced={"#ifndef RELAXED_DOT": f"{function}#define RELAXED_DOT emulated\n#ifndef RELAXED_DOT"},
            )  # fmt: skip
            script += f"""
              result["{key}"] = await import("/{key}/n.mjs").then(({{ load }}) => load({{ kind: "{kind.name}" }}))
                .then((network) => network.selfTest()).catch((error) => error.message);"""
    result = in_chromium(folders, script)
    for key, answer in result.items():
        right = key in ("relaxed-unsigned", "relaxed_signed-signed")
        assert ("all layers as expected" in answer) == right, (key, answer)
        assert ("is the first to differ" in answer) != right


@pytest.mark.skipif(not sweep.whole(), reason="compiles three modules with full optimization; with --sweep all")
def test_an_export_runs_from_its_folder_and_its_page_from_a_file(tmp_path: Path) -> None:
    result = export_wasm(labelled(), tmp_path, name="net")
    assert {*result.files} == {
        "net.wasm", "net.relaxed.wasm", "net.relaxed_signed.wasm", "net.mjs", "net.d.ts", "index.html", "net.html",
    }  # fmt: skip
    script = """
      const frame = Object.assign(document.createElement("iframe"), { src: "/net/PAGE" });
      document.body.append(frame);
      for (let i = 0; i < 100 && !/\\d\\.\\d/.test(frame.contentDocument?.querySelector("output")?.textContent); i++)
        await new Promise((done) => setTimeout(done, 50));
      result["PAGE"] = frame.contentDocument.querySelector("output").textContent;"""
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "net.html").write_bytes((tmp_path / "net.html").read_bytes())
    found = in_chromium(
        {"net": tmp_path}, script.replace("PAGE", "index.html") + f"{{ {script.replace('PAGE', 'only/net.html')} }}"
    )
    assert "error" not in found, found["error"]
    assert found["index.html"] == found["only/net.html"]
    assert sorted(line.split()[-1] for line in found["index.html"].splitlines()) == ["</script>", "a", "b"]


def test_node_refuses_what_is_no_image(pictures: Path) -> None:
    script = """
      const network = await load({ kind: "simd128" });
      for (const attempt of [
        () => network.run(new Float32Array(217)),
        () => network.run(new Float32Array(216).fill(NaN)),
        () => network.run(new Uint8Array(216)),
        () => network.runPixels(new Uint8Array(215)),
      ]) try { attempt(); console.log("accepted"); } catch (error) { console.log(`${error.name}: ${error.message}`); }
      await load({ kind: "x" });"""
    assert in_node(pictures, script).splitlines() == [
        "RangeError: got 217 floats; expected a multiple of 216",
        "RangeError: an image has a NaN or an infinity",
        "TypeError: images must be a Float32Array; pixels are for runPixels",
        "RangeError: got 215 bytes of pixels; expected 9 × 8 × 3, or × 4 as in ImageData",
        "kind is x; expected one of relaxed, simd128",
    ]


def test_names_of_classes_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="got 2 names of classes; n has 3"):
        export_wasm(labelled(), tmp_path, classes=("a", "b"))


def test_without_clang_one_line_names_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    find_clang.cache_clear()
    with pytest.raises(ExecutorError, match="apt install clang-19 lld-19"):
        find_clang()
    find_clang.cache_clear()


PUBLISHED = Path(__file__).parents[3] / "shared" / "models" / "resnet8-cifar10-int8.tflite"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published model is not on this machine")
@pytest.mark.skipif(not sweep.whole(), reason="compiles ResNet-8; with --sweep all")
def test_a_published_network_of_another_arithmetic(tmp_path: Path) -> None:
    build(tmp_path, load(PUBLISHED), SIMD128)
    assert "all layers as expected" in in_node(tmp_path, SELF_TEST)
