"""Times variants of the int4 products of few rows, compiled by compile.py, beside each other on a GPU.

python3 bench.py [--cubins target/variants] [--rounds 9] [--calls 60] [--out FILE.csv] [NAME...]

Weights rotate through 512 MiB, so they come from device memory. x and the result stay in the second level, as
after the kernel that made x. Bytes are those of weights, scales, x and result, once. Every result is checked
against a product in fp32 and, bit for bit, with that of `base`. Needs PyTorch.
"""

import argparse
import csv
import ctypes
import os
import pathlib
import statistics
import sys
import time

import torch



def entry(
    kernel, outputs_per_block, columns, threads=256, cluster=1, shared=0, cubin=None, rows=None, outputs=0, blocks=0
):
    """A kernel and its launch: `columns` are rows of x of a block, `cluster` is in y, `shared` is dynamic, or
    says what it is for so many inputs.

    It is taken for `rows` (first, last; 1-8 or 9-16 by its columns, unless said) and for at least `outputs`
    outputs. `blocks` is a fixed number of blocks in y, for a kernel that goes through its tiles itself.
    """
    rows = rows or ((1, 8) if columns == 8 else (9, 16))
    return dict(locals())


def scales(inputs):
    """Bytes of those of 64 outputs, 16 more for each."""
    return 64 * (inputs // 16 + 16)


# What linear.rs launched of `base`: of a variant's entries, the first that fits a shape.
BASE = [
    entry("few_32_8", 32, 8, outputs=6144),
    entry("few_16_8", 16, 8),
    entry("few_64_16", 64, 16, outputs=8192),
    entry("few_32_16", 32, 16),
]

# By name. There are 132 multiprocessors on an H200.
VARIANTS = {
    "base": BASE,
    "eight-bytes": BASE,
    **{
        f"cluster-{c}": [
            entry(f"e{c}", 32, 8, cluster=c, cubin="cluster"),
            entry(f"c{c}", 64, 16, cluster=c, cubin="cluster"),
        ]
        for c in (2, 4, 8)
    },
    "ranges": [entry("r8", 64, 8, blocks=132), entry("r16", 64, 16, blocks=132)],
    "ahead": [entry("ahead8", 64, 8, blocks=132), entry("ahead16", 64, 16, blocks=132)],
    "pairs": [
        entry("pairs8", 64, 8, threads=512, shared=189440, cubin="ring", blocks=132),
        entry("pairs16", 64, 16, threads=512, shared=231424, cubin="ring", blocks=132),
    ],
    # What linear.rs chooses for the shapes below.
    "now": [
        entry("few_32_1", 32, 8, rows=(1, 1), outputs=4225),
        entry("few_16_1", 16, 8, rows=(1, 1)),
        entry("few_32_8", 32, 8, rows=(2, 8), outputs=4225),
        entry("few_16_8", 16, 8, rows=(2, 8)),
        entry("few_32_16", 32, 16, outputs=4225),
        entry("few_16_16", 16, 16),
    ],
    "slots": [
        entry("q2", 32, 8, shared=18432, outputs=4225),
        entry("q1", 16, 8, shared=16384),
        entry("p2", 32, 16, shared=32768, outputs=4225),
        entry("p1", 16, 16, shared=32768),
    ],
    "shared": [entry("s8", 64, 8, threads=512, shared=34816), entry("s16", 64, 16, threads=512, shared=67584)],
    "shared-ranges": [entry("sr16", 64, 16, threads=512, shared=67584, cubin="shared", blocks=132)],
    "shared-scales": [
        entry("sc8", 64, 8, threads=512, shared=lambda inputs: 34816 + scales(inputs), cubin="shared"),
        entry("sc16", 64, 16, threads=512, shared=lambda inputs: 67584 + scales(inputs), cubin="shared"),
    ],
    "halves": [
        entry("h8", 32, 8, cluster=2, shared=26624, cubin="halves"),
        entry("h16", 32, 16, cluster=2, shared=52224, cubin="halves"),
    ],
    "halves-scales": [
        entry("hs8", 32, 8, cluster=2, shared=lambda inputs: 26624 + scales(inputs), cubin="halves"),
        entry("hs16", 32, 16, cluster=2, shared=lambda inputs: 52224 + scales(inputs), cubin="halves"),
    ],
    "wide-4-deep": [entry("w4_4", 64, 16, threads=512, shared=50688, cubin="wide")],
    "wide-4-deep-scales": [
        entry("w4_4s", 64, 16, threads=512, shared=lambda inputs: 50688 + scales(inputs), cubin="wide")
    ],
    "ring": [entry("ring8", 64, 8, shared=189440, blocks=132), entry("ring16", 64, 16, shared=231424, blocks=132)],
}

# outputs, inputs, rows.
SHAPES = [
    (8192, 8192, (16, 8, 1)),
    (28672, 8192, (16, 8, 1)),
    (8192, 28672, (16,)),
    (4096, 14336, (16,)),
    (4096, 4096, (16,)),
]

ROTATED = 512 << 20
# Matrices whose results are checked; they are computed back to back, as in a model.
CHECKED = 3
DEVICE = "cuda"


class Attribute(ctypes.Structure):  # CUlaunchAttribute
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint32 * 16)]


class Config(ctypes.Structure):  # CUlaunchConfig
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    ]


assert ctypes.sizeof(Attribute) == 72 and Attribute.value.offset == 8
assert ctypes.sizeof(Config) == 56 and Config.stream.offset == 32 and Config.count.offset == 48
STREAM_SERIALIZATION, CLUSTER_DIMENSION = 6, 4
MAX_DYNAMIC_SHARED, NON_PORTABLE_CLUSTER = 8, 14

driver = ctypes.CDLL("libcuda.so.1")
driver.cuLaunchKernelEx.argtypes = [ctypes.c_void_p] * 4
driver.cuModuleLoadData.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
driver.cuModuleGetFunction.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p]
driver.cuFuncSetAttribute.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]


class DriverError(Exception):
    pass


def check(result, what):
    if result:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(result, ctypes.byref(text))
        raise DriverError(f"{what}: {result} {(text.value or b'').decode()}")


class Functions:
    """Loaded kernels."""

    def __init__(self, folder):
        self.folder, self.modules, self.functions = folder, {}, {}

    def get(self, cubin, e):
        key = cubin, e["kernel"]
        if key not in self.functions:
            if cubin not in self.modules:
                image, module = (self.folder / f"{cubin}.cubin").read_bytes(), ctypes.c_void_p()
                check(driver.cuModuleLoadData(ctypes.byref(module), image), f"load {cubin}")
                self.modules[cubin] = module
            function = ctypes.c_void_p()
            result = driver.cuModuleGetFunction(ctypes.byref(function), self.modules[cubin], e["kernel"].encode())
            check(result, f"find {key}")
            self.functions[key] = function
        function = self.functions[key]
        if e["shared"]:
            check(driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, e["shared"]), f"shared memory of {key}")
        if e["cluster"] > 8:
            check(driver.cuFuncSetAttribute(function, NON_PORTABLE_CLUSTER, 1), f"cluster of {key}")
        return function


class Variant:
    """A variant for one shape."""

    def __init__(self, functions, stream, name, e, outputs, inputs, rows):
        e = {**e, "shared": e["shared"](inputs) if callable(e["shared"]) else e["shared"]}
        self.name, self.kernel, self.times = name, e["kernel"], []
        self.function = functions.get(e["cubin"] or name, e)
        up = lambda n, step: -(-n // step)
        tiles, cluster = e["blocks"] or up(outputs, e["outputs_per_block"]), e["cluster"]
        self.attributes = (Attribute * 2)()
        self.attributes[0].id, self.attributes[0].value[0] = STREAM_SERIALIZATION, 1
        self.attributes[1].id, self.attributes[1].value[0:3] = CLUSTER_DIMENSION, [1, cluster, 1]
        grid = (up(rows, e["columns"]), up(tiles, cluster) * cluster, 1)
        count = 1 if cluster == 1 else 2
        self.config = Config(grid, (e["threads"], 1, 1), e["shared"], stream.cuda_stream, self.attributes, count)
        self.address = ctypes.addressof(self.config)

    def launch(self, parameters):
        result = driver.cuLaunchKernelEx(self.address, self.function, parameters, None)
        if result:
            check(result, f"launch {self.name}")


class Parameters:
    """Arguments of a launch: x, rows, inputs, then, Parts; each eight bytes."""

    def __init__(self, x, rows, inputs, weights, scales, out, outputs):
        part = [weights, scales, 0, 0, out, 0, outputs]
        self.values = (ctypes.c_uint64 * 25)(x, rows, inputs, 0, *part)
        first = ctypes.addressof(self.values)
        self.pointers = (ctypes.c_void_p * 5)(*[first + 8 * i for i in range(5)])
        self.address = ctypes.addressof(self.pointers)


class Matrices:
    """Copies of random weights: nibbles, then pairs of scale and minimum."""

    def __init__(self, outputs, inputs):
        self.outputs, self.inputs, self.groups = outputs, inputs, inputs // 64
        self.plane = outputs * self.groups * 32
        self.bytes = outputs * self.groups * 36
        self.copies = max(CHECKED, -(-ROTATED // self.bytes))
        self.data = torch.randint(0, 256, (self.copies, self.bytes), dtype=torch.uint8, device=DEVICE)
        for copy in self.data:
            scales = torch.full((outputs, self.groups, 2), -0.08, dtype=torch.half, device=DEVICE)
            scales[..., 0] = 0.01 * torch.rand(outputs, self.groups, device=DEVICE)
            copy[self.plane :] = scales.view(torch.uint8).flatten()

    def addresses(self, copy):
        weights = self.data.data_ptr() + copy * self.bytes
        return weights, weights + self.plane

    def decoded(self, copy):
        """What the kernels multiply by, in fp32: rounded to fp16."""
        data = self.data[copy]
        bytes = data[: self.plane].view(self.outputs, self.groups, 32)
        scales = data[self.plane :].view(torch.half).view(self.outputs, self.groups, 2).float()
        weights = torch.cat((bytes & 15, bytes >> 4), 2).float()
        weights = weights.mul_(scales[..., :1]).add_(scales[..., 1:])
        return weights.half().float().view(self.outputs, self.inputs)


def event():
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def wait(last, what):
    """Until an event has come. A kernel that hangs or touches what it must not ends the program."""
    end = time.monotonic() + 10
    try:
        while not last.query():
            if time.monotonic() > end:
                print(f"HANGS: {what}", flush=True)
                os._exit(1)
    except RuntimeError as error:
        print(f"FAILS: {what}: {error}", flush=True)
        os._exit(1)


sleep = 2_000_000


def timed(work, count, what):
    """Microseconds per call. All calls wait in the stream behind a sleep, so that the host takes no part in it."""
    global sleep
    for _ in range(4):
        torch.cuda._sleep(sleep)
        first = event()
        for _ in range(count):
            work()
        last = event()
        late = first.query()
        wait(last, what)
        if not late:
            break
        sleep *= 2
    else:
        print(f"the host is too slow for {what}", flush=True)
    return 1000 * first.elapsed_time(last) / count


def rates():
    """Bytes per second of a copy, read and written, and of a sum."""
    a = torch.randint(0, 256, (1 << 30,), dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    ints = a[: 512 << 20].view(torch.int32)
    best = []
    for work, bytes in ((lambda: b.copy_(a), 2 * a.numel()), (lambda: torch.sum(ints), 4 * ints.numel())):
        work()
        best.append(bytes / statistics.median(timed(work, 3, "rates") for _ in range(5)) * 1e6)
    return best


def differences(out, base, reference):
    """In words."""
    unwritten = int((out.view(torch.int16) == -1).sum())
    error = float((out.float() - reference).norm() / reference.norm())
    words = f"to fp32 {error:.1e} (max {float((out.float() - reference).abs().max()):.1e})"
    if base is not None:
        if torch.equal(out.view(torch.int16), base.view(torch.int16)):
            words = "same bits"
        else:
            words = f"to base max {float((out.float() - base.float()).abs().max()):.1e}, {words}"
    # Not `error > ...`, which is false for what is not a number.
    return ("" if error < 2e-3 else "WRONG ") + (f"{unwritten} UNWRITTEN " if unwritten else "") + words


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cubins", type=pathlib.Path, default=pathlib.Path("target/variants"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--out", default="bench.csv")
    parser.add_argument("names", nargs="*")
    a = parser.parse_args()
    if unknown := set(a.names) - set(VARIANTS):
        sys.exit(f"no such variant: {unknown}")
    names = ["base"] + [name for name in (a.names or VARIANTS) if name != "base"]

    began = time.monotonic()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(1)
    torch.zeros(1, device=DEVICE)  # The primary context is current from here on.
    stream, functions = torch.cuda.Stream(), Functions(a.cubins)
    with torch.cuda.stream(stream), torch.no_grad(), open(a.out, "w", newline="") as file:
        table = csv.writer(file)
        fields = "outputs inputs rows variant kernel median_us min_us max_us bytes tb_s percent_of_copy percent_of_read"
        table.writerow([*fields.split(), "copy_tb_s", "read_tb_s", "check", "rounds_us"])
        print(torch.cuda.get_device_name(), f"torch {torch.__version__}", flush=True)
        turn = 0
        for outputs, inputs, all_rows in SHAPES:
            matrices = Matrices(outputs, inputs)
            copy_rate, read_rate = rates()
            print(f"\n{outputs} x {inputs}: {matrices.copies} matrices of {matrices.bytes / 2**20:.1f} MiB; "
                  f"copy {copy_rate / 1e12:.2f} TB/s, read (sum) {read_rate / 1e12:.2f} TB/s", flush=True)
            x = torch.randn(max(all_rows), inputs, device=DEVICE).half()
            references = torch.stack([x.float() @ matrices.decoded(copy).T for copy in range(CHECKED)])
            for rows in all_rows:
                out = torch.empty(CHECKED, rows, outputs, dtype=torch.half, device=DEVICE)
                all_parameters = [
                    Parameters(x.data_ptr(), rows, inputs, *matrices.addresses(copy),
                               out.data_ptr() + copy % CHECKED * rows * outputs * 2, outputs)
                    for copy in range(matrices.copies)
                ]
                base, checks, variants = None, {}, []
                for name in names:
                    fits = lambda e: e["rows"][0] <= rows <= e["rows"][1] and outputs >= e["outputs"]
                    e = next(filter(fits, VARIANTS.get(name, BASE)), None)
                    if e is None:
                        continue
                    try:
                        variant = Variant(functions, stream, name, e, outputs, inputs, rows)
                        out.view(torch.int16).fill_(-1)
                        for parameters in all_parameters[:CHECKED]:
                            variant.launch(parameters.address)
                    except DriverError as error:
                        print(f" LEFT OUT: {error}", flush=True)
                        continue
                    wait(event(), f"{name} ({e['kernel']}), {rows} rows")
                    checks[name] = differences(out, base, references[:, :rows])
                    base = out.clone() if name == "base" else base
                    variants.append(variant)

                for round in range(-1, a.rounds):  # The first one warms up.
                    for i in range(len(variants)):
                        variant = variants[(i + round) % len(variants)]

                        def work():
                            nonlocal turn
                            turn += 1
                            variant.launch(all_parameters[turn % len(all_parameters)].address)

                        took = timed(work, a.calls, variant.name)
                        if round >= 0:
                            variant.times.append(took)

                bytes = matrices.bytes + 2 * rows * (inputs + outputs)
                print(f" rows {rows:<11} {'kernel':12} {'us':>8} {'min':>8} {'max':>8} {'TB/s':>5} "
                      f"{'%copy':>6} {'%read':>6} {'/base':>6}  check")
                of_base = statistics.median(variants[0].times)
                for v in variants:
                    median, least, most = statistics.median(v.times), min(v.times), max(v.times)
                    rate = bytes / median * 1e6
                    percents = 100 * rate / copy_rate, 100 * rate / read_rate
                    print(f" {v.name:16} {v.kernel:12} {median:8.2f} {least:8.2f} {most:8.2f} "
                          f"{rate / 1e12:5.2f} {percents[0]:6.1f} {percents[1]:6.1f} {median / of_base:6.3f}  "
                          f"{checks[v.name]}", flush=True)
                    table.writerow([
                        outputs, inputs, rows, v.name, v.kernel, f"{median:.3f}", f"{least:.3f}", f"{most:.3f}", bytes,
                        f"{rate / 1e12:.4f}", *(f"{p:.2f}" for p in percents), f"{copy_rate / 1e12:.4f}",
                        f"{read_rate / 1e12:.4f}", checks[v.name], " ".join(f"{t:.3f}" for t in v.times),
                    ])
                file.flush()
            del matrices, references
    print(f"\n{time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
