"""Compiles variants of linear.cu for int4 as kernels/src/cuda/compile.rs does: NAME.cubin for each.

PIPO_NVRTC_DIR=DIR python3 compile.py [--arch sm_90] [--to target/variants] [NAME...]

`now` is kernels/src/linear.cu as it is, `base` as it was before them all. A variant is NAME.patch of that, NAME.cu in
place of its `few` and what follows, or NAME.patch of such a file, whichever its first line names. NVRTC 13.0 is where `bash scripts/test` puts it, target/nvrtc, unless PIPO_NVRTC_DIR says otherwise. Spills are
said, and are an error.
"""

import argparse
import ctypes
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[3]
PRELUDE, NOW = ROOT / "kernels/src/cuda/prelude.cu", ROOT / "kernels/src/linear.cu"
BASE = "b49d26e:kernels/src/linear.cu"
LIB = pathlib.Path(os.environ.get("PIPO_NVRTC_DIR", ROOT / "target/nvrtc/nvidia/cu13/lib"))
FEW = "template <int TILES, int COLUMNS, int DEPTH"
INT4 = 3  # unit.rs, `code`
ARCHITECTURES = {"wide": "sm_90a"}  # Whatever is asked for.


def load():
    ctypes.CDLL(LIB / "libnvrtc-builtins.so.13.0", ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(LIB / "libnvrtc.so.13")


def source(name):
    """Of a variant."""
    if name == "now":
        return NOW.read_text()
    base = output(["git", "-C", str(ROOT), "show", BASE])
    patch, own = HERE / f"{name}.patch", HERE / f"{name}.cu"
    if not patch.exists():
        return base[: base.index(FEW)] + own.read_text() if own.exists() else base
    text = patch.read_text()
    of = HERE / text.split()[1]
    with tempfile.NamedTemporaryFile("w", suffix=".cu") as file:
        file.write(of.read_text() if of.exists() else base)
        file.flush()
        patched = output(["patch", "--quiet", "--output=-", file.name, str(patch)])
    return base[: base.index(FEW)] + patched if of.exists() else patched


def output(command):
    """What it prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compile(nvrtc, name, arch):
    """Machine code, or none where it failed, and the log."""
    text = f"{PRELUDE.read_text()}\n{source(name)}".encode()
    options = [f"-DFORMAT={INT4}", f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v"]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def call(function, *arguments):
        if code := getattr(nvrtc, function)(*arguments):
            sys.exit(f"{function}: {code}")

    def bytes_of(what):
        call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{what}", program, data)
        return data.raw

    call("nvrtcCreateProgram", ctypes.byref(program), text, f"{name}.cu".encode(), 0, None, None)
    array = (ctypes.c_char_p * len(options))(*map(str.encode, options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), array)
    log = bytes_of("ProgramLog").rstrip(b"\0").decode()
    image = None if failed else bytes_of("CUBIN")
    call("nvrtcDestroyProgram", ctypes.byref(program))
    return image, log


def kernels(log):
    """Of every kernel: name, registers, static shared bytes, stack bytes, bytes of spill stores and loads."""
    number = lambda pattern, text: int((re.search(pattern, text) or [0, 0])[1])
    for part in re.split(r"Compiling entry function '", log)[1:]:
        yield (
            part.split("'")[0],
            number(r"Used (\d+) registers", part),
            number(r"(\d+) bytes smem", part),
            number(r"(\d+) bytes stack frame", part),
            number(r"(\d+) bytes spill stores", part),
            number(r"(\d+) bytes spill loads", part),
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--to", type=pathlib.Path, default=ROOT / "target/variants")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    files = (path for path in HERE.iterdir() if path.suffix in (".cu", ".patch"))
    sources = ["base", "now"] + sorted(path.stem for path in files)
    arguments.to.mkdir(parents=True, exist_ok=True)
    nvrtc, bad = load(), False
    print(f"{'variant':20} {'kernel':20} {'regs':>4} {'smem':>6} {'stack':>5}")
    for name in arguments.names or sources:
        image, log = compile(nvrtc, name, ARCHITECTURES.get(name, arguments.arch))
        cubin = arguments.to / f"{name}.cubin"
        if image is None:
            cubin.unlink(missing_ok=True)
            print(f"{name:20} DOES NOT COMPILE\n{log}")
            bad = True
            continue
        cubin.write_bytes(image)
        found = list(kernels(log))
        for kernel, registers, shared, stack, stores, loads in found:
            line = f"{name:20} {kernel:20} {registers:4} {shared:6} {stack:5}"
            if stack or stores or loads:
                line += f"  !!!!!! SPILLS: {stores} bytes stored, {loads} loaded, {stack} of stack"
                bad = True
            print(line, flush=True)
        # What else the compiler has to say.
        warnings = [line for line in log.splitlines() if "warning" in line.lower()]
        if warnings or not found:
            print("\n".join(warnings or [log]))
    sys.exit(bad)


if __name__ == "__main__":
    main()
