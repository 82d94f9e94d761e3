"""What this GPT does on CUDA, found out on a computer without a GPU.

    python results/without_gpu.py compile               # registers and spills on an H100
    python results/without_gpu.py interpret             # run the generated kernels on the CPU
    python results/without_gpu.py memory                # peak memory of the ladder, in minutes
    python results/without_gpu.py memory 150m 128256 4    # of one size, in passes of 4 windows
    python results/without_gpu.py memory 150m 128256 4 8  # of a student of 8 teachers as large
    python results/without_gpu.py eager                 # the same peaks where nothing is compiled

--short: the first case of compile or interpret alone. It needs the CPU build of torch 2.13 with
triton 3.7.1 beside it, and g++. A few lines of C++ make torch believe in a CUDA device and
torch.cuda answers as an H100 would. Tensors are fake: they have shapes and no numbers. The
compiler's kernels are kept instead of launched; ptxas, which comes with triton, turns them into
machine code, and triton's interpreter runs them on real CPU tensors. Times and NVIDIA's own
libraries are beyond its reach. It uses private parts of torch, so it goes with these versions
alone.
"""
import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import types
import warnings
import weakref
from pathlib import Path
from unittest import mock

SHORT = "--short" in sys.argv
MODE, *ASKED = [word for word in sys.argv[1:] if word != "--short"] or ["compile"]
SCRATCH = Path(tempfile.gettempdir()) / "limitgpt_without_gpu"
# set before torch and triton are imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(SCRATCH / "inductor"))
os.environ.setdefault("TRITON_CACHE_DIR", str(SCRATCH / "triton"))
if MODE == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"

GUARD = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
struct Guard final : impl::DeviceGuardImplInterface {
  Device zero{DeviceType::CUDA, 0};
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return zero; }
  Device getDevice() const override { return zero; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, zero); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, zero); }
  Stream exchangeStream(Stream) const override { return Stream(Stream::DEFAULT, zero); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
namespace at {
struct CUDAHooks : CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
};
REGISTER_CUDA_HOOKS(CUDAHooks);
}
"""
H100 = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=85_028_896_768,
    multi_processor_count=132, regs_per_multiprocessor=65536, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, gcnArchName="",
    shared_memory_per_block_optin=232448, L2_cache_size=50 * 2 ** 20)


# --------------------------------------------------------------------------------------------------
# The pretence

def answer(value):
    """A function of anything that returns the value."""
    return lambda *_, **__: value


def pretend():
    """Torch, as if an H100 were there. To be called before anything else imports torch."""
    home = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
    digest = hashlib.sha256((GUARD + str(home)).encode()).hexdigest()[:12]
    library = SCRATCH / f"guard-{digest}.so"
    if not library.exists():
        SCRATCH.mkdir(exist_ok=True)
        half = library.with_suffix(f".{os.getpid()}")  # renamed when whole: two may build it
        command = ["g++", "-std=c++20", "-shared", "-fPIC", "-x", "c++", "-", f"-I{home}/include",
                   f"-L{home}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home}/lib", "-o", half]
        subprocess.run(command, input=GUARD, text=True, check=True)
        half.rename(library)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)

    import torch
    import torch.cuda.random
    answers = {
        torch._C: dict(_cuda_getCurrentRawStream=0, _cuda_getDevice=0, _cuda_getDeviceCount=1,
                       _cuda_cudaCachingAllocator_is_enabled=True),
        torch.cuda: dict(is_available=True, _is_compiled=True, is_initialized=True,
                         is_bf16_supported=True, device_count=1, current_device=0,
                         _exchange_device=0, _maybe_exchange_device=0, get_device_properties=H100,
                         get_device_name=H100.name, get_device_capability=(9, 0), _lazy_init=None,
                         init=None, synchronize=None, set_device=None,
                         is_current_stream_capturing=False, set_rng_state=None,
                         get_rng_state=torch.zeros(16, dtype=torch.uint8)),
        torch.cuda.random: dict(set_rng_state=None,
                                get_rng_state=torch.zeros(16, dtype=torch.uint8)),
    }
    for module, values in answers.items():
        for name, value in values.items():
            setattr(module, name, answer(value))
    for name in ("device", "device_of", "_DeviceGuard"):
        setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    torch.version.cuda = "13.0"
    return torch


torch = pretend()
import torch._functorch.config  # noqa: E402  (after the pretence)
import torch._inductor.codecache  # noqa: E402
import torch._inductor.config  # noqa: E402
import triton  # noqa: E402
from torch._inductor import compile_fx, graph  # noqa: E402
from torch._inductor.async_compile import (  # noqa: E402
    AsyncCompile, _load_triton_kernel_from_source)
from torch._inductor.fx_passes import joint_graph, pad_mm, post_grad  # noqa: E402
from torch._inductor.runtime import triton_helpers  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

import model as kit  # noqa: E402

KERNELS = {}  # name: source in Triton's language
WRAPPERS = []  # source of the code that launches them: forward, then backward
RECORDS = []  # (inputs, outputs) of each call of a wrapper, fake tensors
guards = torch._C._dynamo.guards


class Driver:
    """What triton asks of a driver."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0


def keep_kernel(_, name, source, device_str="cuda"):
    """In place of Inductor's compilation of a kernel: keep its source, launch nothing."""
    KERNELS[name] = source
    return types.SimpleNamespace(run=answer(None))


def on_cpu(function):
    """Inductor traces its patterns on small real tensors; let them be the CPU's."""
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        kept = torch.cuda.is_available
        torch.cuda.is_available = answer(False)
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.is_available = kept
    return wrapped


def fold_on_cpu(self, node, deduce=joint_graph.UniformValueConstantFolder._deduce_value):
    """Inductor's constant folding, which would allocate on the device."""
    kept = node.kwargs
    if "device" in kept:
        node.kwargs = {**kept, "device": torch.device("cpu")}
    try:
        return deduce(self, node)
    finally:
        node.kwargs = kept


def keep_wrapper(self, codegen=graph.GraphLowering.codegen):
    """Inductor's code generation, whose result is kept."""
    out = codegen(self)
    WRAPPERS.append(out[0].value)
    return out


def strided(tensor, size, stride, offset=0):
    return torch.as_strided(tensor, size, stride, tensor.storage_offset() + offset)


def empty_fake(size, stride, dtype):
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda:0")


def redirect_compiler():
    """Let Inductor keep what it generates instead of running it."""
    torch._inductor.config.force_disable_caches = True
    torch._inductor.config.compile_threads = 1
    torch._functorch.config.force_non_lazy_backward_lowering = True
    joint_graph.lazy_init = on_cpu(joint_graph.lazy_init)
    post_grad.lazy_init = on_cpu(post_grad.lazy_init)
    joint_graph.UniformValueConstantFolder._deduce_value = fold_on_cpu
    pad_mm.should_pad = answer(False)  # it would time products
    AsyncCompile.triton = keep_kernel
    graph.GraphLowering.codegen = keep_wrapper
    triton_helpers.set_driver_to_gpu = answer(None)
    driver.set_active(Driver())
    guards._empty_strided_cuda = empty_fake
    guards._reinterpret_tensor = strided


def recording_backend(gm, inputs):
    """Inductor, with inputs and outputs of what it compiles in RECORDS, to be interpreted."""
    def inner(gm, inputs, **kwargs):
        compiled = compile_fx.compile_fx_inner(gm, inputs, **kwargs)
        call = compiled.current_callable

        def recorded(args):
            given = list(args)
            out = call(args)
            if MODE == "interpret":  # what is recorded stays alive
                RECORDS.append((given, out))
            return out
        compiled.current_callable = recorded
        return compiled
    return compile_fx.compile_fx(gm, inputs, inner_compile=inner)


def fake_model(config):
    """A model without its initial values, which fake tensors could not have."""
    with mock.patch.object(kit.GPT, "initialize"):
        return kit.GPT(config)


def trace(config, batch, autocast, mode=None, passes=1, compiled=True, teachers=0):
    """Compile a training pass for CUDA and run it on fake tensors: (model, tokens, targets, guide).

    passes: how many add up their gradients; compiled: False to run it eagerly; teachers: how many
    guide it, as large as the model.
    """
    torch._dynamo.reset()
    for kept in (KERNELS, WRAPPERS, RECORDS):
        kept.clear()
    with mode or FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda:0"):
            model = fake_model(config)
            tokens = torch.zeros(batch, config.context, dtype=torch.long)
            targets = torch.zeros(batch, config.context, dtype=torch.long)
            guide = None
            if teachers:
                width = teachers * config.width
                guide = kit.Guide(torch.zeros(batch, config.context, width),
                                  torch.zeros(config.vocab_size, width), torch.zeros(batch, 1), 1.0)
        forward = model
        if compiled:
            forward = torch.compile(model, backend=recording_backend, dynamic=False)
        number = autocast or torch.bfloat16
        for _ in range(passes):
            with torch.autocast("cuda", dtype=number, enabled=autocast is not None):
                loss = forward(tokens, targets, guide, total=True)
            loss.sum().backward()
    assert all(p.grad.device.type == "cuda" for p in model.parameters())
    return model, tokens, targets, guide


# --------------------------------------------------------------------------------------------------
# Machine code

def machine_code(part=""):
    """Yields (kernel, registers, bytes of stack, of shared memory, warps, tensor-core instructions)
    of each configuration of the kernels with `part` in their names."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

    def dump(flag, path):
        done = subprocess.run([tool, flag, path], capture_output=True, text=True, check=True)
        return done.stdout

    for name, source in KERNELS.items():
        if part not in name:
            continue
        kernel = _load_triton_kernel_from_source(name, source)
        kernel.precompile(warm_cache_only=True)
        for result in kernel.compile_results:
            binary = result.kernel
            if hasattr(binary, "asm"):
                code = binary.asm["cubin"]
            else:
                code = Path(binary.cubin_path).read_bytes()
            path = SCRATCH / f"kernel-{os.getpid()}.cubin"
            path.write_bytes(code)
            usage = re.search(r"REG:(\d+) STACK:(\d+)", dump("-res-usage", path))
            products = len(re.findall(r"\bHG?MMA", dump("-sass", path)))
            path.unlink()
            meta = getattr(binary, "metadata", binary)
            yield name, int(usage[1]), int(usage[2]), meta.shared, meta.num_warps, products


def compile_step(context):
    """A step of sampling, one layer that looks at all positions."""
    config = kit.GPTConfig(vocab_size=1024, end_of_text=0, context=context, width=1024, layers=1,
                           heads=16, kv_heads=8)
    torch._dynamo.reset()
    KERNELS.clear()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device("cuda:0"), torch.autocast("cuda", dtype=torch.bfloat16):
            stepper = kit.Stepper(fake_model(config), 8, context)
            token = torch.zeros(8, dtype=torch.long)
            step = torch.compile(kit.Stepper.step, backend=recording_backend, dynamic=False)
            step(stepper, token, context)
    rows = list(machine_code())
    spilling = [row for row in rows if row[2]]
    print(f"a step of sampling, context {context}: {len(KERNELS)} kernels, {len(rows)} "
          f"configurations assembled, {len(spilling)} with spills", flush=True)


def compile_all():
    """Forward and backward of one layer for each kind of shape on the ladder; a sampling step."""
    shapes = [(64, 4, 2, 256), (48, 3, 3, 256), (128, 4, 2, 96), (128, 4, 4, 512),
              (512, 8, 8, 4096), (1024, 16, 8, 4096), (512, 4, 2, 4096)]
    for width, heads, kv_heads, context in shapes[:1] if SHORT else shapes:
        config = kit.GPTConfig(vocab_size=1024, end_of_text=0, context=context, width=width,
                               layers=1, heads=heads, kv_heads=kv_heads)
        trace(config, 2, torch.bfloat16)
        # of the first shape every kernel is assembled, unless time is short
        part = "" if width == 64 and not SHORT else "triton_tem"
        rows = list(machine_code(part))
        spilling = [row for row in rows if row[2]]
        print(f"head width {width // heads}, {heads}/{kv_heads} heads, context {context}: "
              f"{len(KERNELS)} kernels, {len(rows)} configurations assembled, {len(spilling)} with "
              f"spills", flush=True)
        for name, registers, stack, shared, warps, products in rows:
            if "triton_tem" in name:
                way = "backward" if "backward" in name else "forward"
                print(f"  {way:8} {registers} registers, {stack} bytes of stack, {shared} of "
                      f"shared memory, {warps} warps, {products} matrix instructions")
                assert products > 0, "no tensor cores"
    if not SHORT:
        compile_step(4096)


# --------------------------------------------------------------------------------------------------
# The generated code, interpreted

def key_of(tensor):
    """Which part of which memory a tensor is."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape),
            tuple(tensor.stride()), tensor.dtype)


def interpret_kernel(_, name, source, device_str="cuda"):
    kernel = getattr(torch._inductor.codecache.PyCodeCache.load(source), name)

    def run(*args, stream=None, **kwargs):
        kernel.run(*args, stream=0, **kwargs)
    return types.SimpleNamespace(run=run)


def empty_real(size, stride, dtype):
    """Memory full of nan, so that nothing is read unseen that was not written."""
    flat = torch.zeros(sum((n - 1) * s for n, s in zip(size, stride)) + 1, dtype=dtype)
    if dtype.is_floating_point:
        flat.fill_(float("nan"))
    return flat.as_strided(size, stride)


def redirect_to_interpreter():
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder as builder

    def atomic(self, op, ptr, value, mask, sem, scope, rmw=builder.create_atomic_rmw):
        # the interpreter omits to spread the mask
        mask.data = np.ascontiguousarray(np.broadcast_to(mask.data, ptr.data.shape))
        return rmw(self, op, ptr, value, mask, sem, scope)
    builder.create_atomic_rmw = atomic
    AsyncCompile.triton = interpret_kernel
    guards._empty_strided_cuda = empty_real
    triton_helpers.libdevice = tl.math


def run_wrappers(known):
    """The outputs of the generated forward and backward code. known: the real tensor of each fake
    one, by key_of; the only other input is the gradient of the loss, ones."""
    def real(fake):
        if not isinstance(fake, torch.Tensor):
            return fake
        return known.get(key_of(fake), torch.ones(fake.shape, dtype=fake.dtype))

    outputs = []
    for source, (given, out) in zip(WRAPPERS, RECORDS):
        code = types.ModuleType("generated")
        code.__file__ = str(SCRATCH / "generated.py")
        exec(compile(source, "generated", "exec"), code.__dict__)
        outputs.append(code.call([real(tensor) for tensor in given]))
        for fake, found in zip(out, outputs[-1]):
            if isinstance(fake, torch.Tensor):
                known[key_of(fake)] = found
    return outputs


def interpret(config, autocast, bound, teachers=0):
    """Compare loss and gradients of the generated code with those of plain torch on the CPU."""
    model, fake_tokens, fake_targets, fake_guide = trace(config, 1, autocast, teachers=teachers)
    end = config.end_of_text
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, end, (1, config.context), generator=generator)
    tokens[:, 0] = tokens[:, config.context // 3] = end
    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-1)
    plain = kit.GPT(config)
    pairs = [*zip(model.parameters(), plain.parameters()), *zip(model.buffers(), plain.buffers()),
             (fake_tokens, tokens), (fake_targets, targets)]
    guide = None
    if teachers:
        states, head, _, t = fake_guide
        guide = kit.Guide(torch.randn(states.shape, generator=generator),
                          torch.randn(head.shape, generator=generator) / head.shape[1] ** 0.5,
                          torch.full((1, 1), 0.9), t)
        pairs += zip(fake_guide[:3], guide[:3])
    known = {key_of(fake): value.detach() for fake, value in pairs}

    # the head's operator runs as it is, on the CPU and without a compiler
    kept = AsyncCompile.triton, guards._empty_strided_cuda, torch.compile
    redirect_to_interpreter()
    torch.compile = lambda function, **_: function
    (loss, *_), gradients = run_wrappers(known)
    AsyncCompile.triton, guards._empty_strided_cuda, torch.compile = kept

    nats = plain(tokens, targets, guide).sum()
    nats.backward()
    place = {}
    for i, tensor in enumerate(RECORDS[0][0]):
        if isinstance(tensor, torch.Tensor):
            place[key_of(tensor)] = i
    errors = {"loss": abs(float(loss.sum() / nats) - 1)}
    for (name, fake), parameter in zip(model.named_parameters(), plain.parameters()):
        difference = gradients[place[key_of(fake)]] - parameter.grad
        errors[name] = float(difference.norm() / parameter.grad.norm())
    worst = max(errors, key=errors.get)
    head = "in one operator" if "head_loss" in WRAPPERS[0] else "in the graph"
    print(f"context {config.context}, head width {config.width // config.heads}, "
          f"{autocast or 'fp32'}, {teachers} teachers, loss {head}: {len(KERNELS)} kernels, worst "
          f"relative error {errors[worst]:.1e} ({worst})", flush=True)
    assert errors[worst] < bound, errors


def interpret_all():
    """The loss in one operator, GQA; plain; both of a student; and in mixed precision (the
    interpreter lacks bf16)."""
    small = dict(vocab_size=64, end_of_text=63, layers=1)
    kit.CHUNK_LOGITS = 2 ** 13  # two chunks in the first case
    interpret(kit.GPTConfig(**small, context=256, width=32, heads=2, kv_heads=1), None, 1e-5)
    if SHORT:
        return
    interpret(kit.GPTConfig(**small, context=256, width=32, heads=2, kv_heads=1), None, 1e-5, 2)
    interpret(kit.GPTConfig(**small, context=96, width=32, heads=2, kv_heads=1), None, 1e-5)
    interpret(kit.GPTConfig(**small, context=96, width=32, heads=2, kv_heads=1), None, 1e-5, 2)
    causal = kit.GPTConfig(**small, context=128, width=32, heads=2, kv_heads=1, doc_mask=False)
    interpret(causal, None, 1e-5)
    wide = dict(width=128, heads=2, kv_heads=2)
    for logits in (2 ** 13, 2 ** 28):
        kit.CHUNK_LOGITS = logits
        interpret(kit.GPTConfig(**small, context=200, **wide), torch.float16, 1e-2)


# --------------------------------------------------------------------------------------------------
# Memory

class Counted(FakeTensorMode):
    """Adds up the memory that is alive outside of the compiler's own tracing."""
    now = peak = 0
    alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if torch._guards.TracingContext.try_get() is not None:
            return out
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage):
        place = storage._cdata
        if place not in self.alive:
            self.alive[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, place)

    def forget(self, place):
        self.now -= self.alive.pop(place)


def efficient_attention(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False):
    """What eager attention with a mask is on a GPU: a fused kernel, which torch does not choose for
    fake tensors. The mask becomes what is added to the scores, and is kept in each layer."""
    assert not enable_gqa  # which this kernel does not know
    number = torch.float32
    if torch.is_autocast_enabled("cuda"):
        number = torch.get_autocast_dtype("cuda")
    added = torch.zeros_like(attn_mask, dtype=number).expand(-1, q.shape[1], -1, -1)
    q, k, v = (x.to(number) for x in (q, k, v))
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, added, True)[0]


def memory(size, vocab_size, windows, teachers=0, dtype="bf16", compiled=True):
    """Print the peak of a step in passes of some windows, AdamW's moments included, beside what
    GPT.training_bytes estimates."""
    rung = kit.LADDER[kit.SCALE_OF[size]]
    config = kit.GPTConfig(vocab_size=vocab_size, end_of_text=0, context=rung["context"],
                           **kit.SIZES[size])
    # gradients of the first pass are there in the second, where there is one
    passes = min(2, rung["batch_size"] // windows)
    counter = Counted(allow_non_fake_inputs=True)
    autocast = torch.bfloat16 if dtype == "bf16" else None
    model, *_ = trace(config, windows, autocast, counter, passes, compiled, teachers)
    peak = counter.peak + 8 * model.parameter_count()
    estimate = model.training_bytes(windows * config.context, dtype, compiled,
                                    teachers * config.width)
    way = f"{'compiled' if compiled else 'eager'} {dtype}"
    print(f"| {way} | {size} | {vocab_size:,} | {windows} | {teachers} | {peak / 1e9:.4f} | "
          f"{estimate / 1e9:.4f} | {estimate / peak:.2f} |", flush=True)


def memory_table(dtype="bf16", compiled=True):
    """Every size of the ladder, with the windows a pass that a card of 80 GB gets."""
    vocabularies = {1: (128256, 50257), 10: (8192,), 100: (4096,), 1000: (1024,)}
    for size, scale in kit.SCALE_OF.items():
        rung = kit.LADDER[scale]
        for vocab_size in vocabularies[scale]:
            with torch.device("meta"):
                model = kit.GPT(kit.GPTConfig(vocab_size=vocab_size, end_of_text=0,
                                              context=rung["context"], **kit.SIZES[size]))
            # of each scale a student of eight, too
            students = [8] if size in ("150m", "30m", "1.5m", "300k") else []
            for teachers in (0, *students):
                windows = rung["batch_size"]
                width = teachers * model.config.width
                while model.training_bytes(windows * rung["context"], dtype, compiled,
                                           width) > 0.7 * 85e9:
                    windows //= 2
                memory(size, vocab_size, windows, teachers, dtype, compiled)


if __name__ == "__main__":
    if MODE not in ("compile", "interpret", "memory", "eager"):
        print(f"without_gpu.py: error: no mode {MODE}; give compile, interpret, memory or eager",
              file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    redirect_compiler()
    if MODE == "compile":
        compile_all()
    elif MODE == "interpret":
        interpret_all()
    elif MODE == "memory" and ASKED:
        memory(ASKED[0], *map(int, ASKED[1:]))
    elif MODE == "memory":
        memory_table()
    else:
        torch.nn.functional.scaled_dot_product_attention = efficient_attention
        memory_table("bf16", compiled=False)
        memory_table("fp32", compiled=False)
    sys.stdout.flush()
    os._exit(0)  # threads of a device that is not there may not be joined
