"""The GPT that every stage shares: Llama's architecture with the paper's initialization.

RMSNorm before each block, rotary positions, SwiGLU, grouped-query attention, no biases, an untied
head (arXiv 2509.14786, section 2). Attention stays inside a document by default. The file goes from
configuration, blocks, masks and loss to the model, then to sampling and to Hugging Face's format.

Shapes in comments: B sequences, T positions, C width, H query heads, KV key and value heads,
D head width, V vocabulary.
"""
import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

# --------------------------------------------------------------------------------------------------
# Configuration

@dataclass
class GPTConfig:
    """The shape of a model. Raises ValueError for heads that do not divide."""
    vocab_size: int
    end_of_text: int  # this token starts a document
    context: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    doc_mask: bool = True  # attention does not cross documents; False: plain causal

    # The paper fixes the rest; other models of the Llama family vary it.
    inner: int = 0  # width of the MLP; 0: 3.5 x width, as in the paper
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = None  # Llama 3's, with the keys ROPE_SCALING_KEYS
    tied: bool = False  # True: the head is the embedding

    def __post_init__(self):
        self.inner = self.inner or 7 * self.width // 2
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(f"heads must divide width and kv_heads must divide heads: width is "
                             f"{self.width}, heads is {self.heads}, kv_heads is {self.kv_heads}")
        if self.width // self.heads % 2:  # rotary positions turn pairs
            raise ValueError(f"a head must have an even width, not {self.width // self.heads}")


# The ladder: the paper's four sizes, then the same ladder with N and D divided by 10, 100 and 1000,
# so that a laptop meets the same tokens per parameter as the paper's GPUs. Context and batch size
# (sequences a step) belong to the scale. Of each size: width, layers, heads, kv_heads.
LADDER = {
    1: dict(context=4096, batch_size=64, sizes={
        "150m": (512, 6, 8, 8), "300m": (768, 12, 12, 12),
        "600m": (1024, 24, 16, 8), "1.4b": (2048, 16, 16, 8)}),
    10: dict(context=1024, batch_size=32, sizes={
        "15m": (384, 4, 6, 6), "30m": (512, 6, 8, 8),
        "60m": (768, 6, 12, 12), "140m": (1024, 8, 16, 8)}),
    100: dict(context=512, batch_size=8, sizes={
        "1.5m": (128, 2, 4, 4), "3m": (192, 3, 6, 6),
        "6m": (256, 4, 8, 8), "14m": (384, 5, 12, 12)}),
    1000: dict(context=256, batch_size=4, sizes={
        "150k": (48, 2, 3, 3), "300k": (64, 3, 4, 4),
        "600k": (96, 3, 6, 6), "1.4m": (128, 5, 8, 8)}),
}
SHAPE = ("width", "layers", "heads", "kv_heads")
SCALE_OF = {size: scale for scale, rung in LADDER.items() for size in rung["sizes"]}
SIZES = {size: dict(zip(SHAPE, shape))
         for rung in LADDER.values() for size, shape in rung["sizes"].items()}

# Above 1 GiB of fp32 logits the loss is computed in chunks; below, the plain loss is faster.
CHUNK_LOGITS = 2 ** 28

# FlexAttention's tiles by head width: of those tried, compiled for an H100, what spills the fewest
# registers to memory. Candidates to time, because nothing was timed yet.
TILES = {
    64: dict(fwd_BLOCK_N=64),
    128: dict(bwd_BLOCK_M1=64, bwd_BLOCK_N1=64, bwd_BLOCK_M2=64, bwd_BLOCK_N2=64,
              bwd_num_warps=8),
}

ROPE_SCALING_KEYS = ("factor", "low_freq_factor", "high_freq_factor",
                     "original_max_position_embeddings")


# --------------------------------------------------------------------------------------------------
# Blocks

def rotary_tables(config):
    """cos and sin of the rotary angles, each (context, D), for the two-halves layout of Llama."""
    D = config.width // config.heads
    # Dimensions i and i + D/2 form a pair that turns by theta^(-2i/D) a position. In fp64, because
    # angles of late positions are large and would lose their last digits.
    frequencies = config.rope_theta ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)  # (D / 2,)

    if config.rope_scaling:
        # Llama 3 stretches positions for a longer context: slow frequencies are divided by a
        # factor, fast ones are kept, and those between are blended.
        factor, low, high, original = (config.rope_scaling[key] for key in ROPE_SCALING_KEYS)
        turns = original * frequencies / (2 * math.pi)  # within the original context
        share_kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (share_kept + (1 - share_kept) / factor)

    angles = torch.arange(config.context, dtype=torch.float64)[:, None] * frequencies  # (T, D / 2)
    angles = torch.cat([angles, angles], dim=1)  # both halves turn alike
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    """Rotary position embedding of x (B, H, T, D) by cos and sin (T, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention in which H / KV query heads share each key and value head."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads
        self.head_width = config.width // config.heads
        # queries, keys and values of all heads come out of one matrix product
        rows = (config.heads + 2 * config.kv_heads) * self.head_width
        self.qkv = nn.Linear(config.width, rows, bias=False)
        self.out = nn.Linear(config.heads * self.head_width, config.width, bias=False)

    def forward(self, x, rotary, mask, cache=None):
        """x: (B, T, C); rotary: (cos, sin); mask: None, a bool tensor or a BlockMask."""
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.head_width).transpose(1, 2)  # (B, H + 2 KV, T, D)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q = rotate(q, *rotary)
        k = rotate(k, *rotary)
        if cache is not None:
            # sampling feeds one position at a time; the earlier keys and values are remembered
            t, kept = cache
            kept.index_copy_(3, t, torch.stack([k, v]).to(kept.dtype))
            k, v = kept[:, :, :, :mask.shape[-1]]

        # One fused kernel for each kind of mask, so that no (T, T) scores are ever stored on a GPU.
        if cache is not None and torch.compiler.is_compiling():
            y = attend_once(q, k, v, mask)
        elif q.device.type == "cpu" and isinstance(mask, torch.Tensor) and cache is None:
            y = attend_in_blocks(q, k, v, mask)
        elif mask is None or isinstance(mask, torch.Tensor):
            if q.is_cuda:
                # CUDA's kernels for masks and for fp32 want keys and values for each query head
                k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                               enable_gqa=k.shape[1] != self.heads)
        else:
            # Contiguous, because FlexAttention of torch 2.13, compiled for a CPU, misreads the
            # permuted strides that rotate() leaves; and because v would keep all of qkv alive.
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            # BACKEND: below 128 positions it would take a kernel for decoding, which does not
            # compile for every length
            options = {"BACKEND": "TRITON", **TILES.get(self.head_width, {})}
            y = flex_attention(q, k, v, block_mask=mask, enable_gqa=self.heads != self.kv_heads,
                               kernel_options=options)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


def attend_once(q, k, v, visible):
    """Attention of one query a head in plain sums, (B, H, 1, D): compiled they are one pass over
    keys and values, on a CPU at three times the speed of one small matrix product a head."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)  # (B, H, t, D)
    scores = (q * k).sum(-1) * q.shape[-1] ** -0.5  # (B, H, t)
    weights = scores.masked_fill(~visible[:, :, 0], float("-inf")).softmax(-1)
    return (weights[..., None] * v).sum(2, keepdim=True)


def attend_in_blocks(q, k, v, visible, size=64):
    """Attention of `size` queries at a time, each block beside the keys that come no later,
    (B, H, T, D). A CPU's kernel computes what a dense mask hides, and this spares almost half."""
    blocks = []
    for start in range(0, q.shape[2], size):
        end = start + size
        y = F.scaled_dot_product_attention(
            q[:, :, start:end], k[:, :, :end], v[:, :, :end],
            attn_mask=visible[:, :, start:end, :end], enable_gqa=q.shape[1] != k.shape[1])
        blocks.append(y)
    return torch.cat(blocks, dim=2)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.inner, bias=False)
        self.down = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config):
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm_mlp = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, rotary, mask, cache=None):
        x = x + self.attention(self.norm_attention(x), rotary, mask, cache)
        return x + self.mlp(self.norm_mlp(x))


# --------------------------------------------------------------------------------------------------
# Attention masks and loss

def dense_document_mask(tokens, end_of_text):
    """Which positions see which: bool (B, 1, T, T), True for earlier ones of the same document."""
    # Counting end-of-texts numbers the documents: each end-of-text starts one and belongs to it.
    document = (tokens == end_of_text).cumsum(1)  # (B, T)
    same = document[:, None, :, None] == document[:, None, None, :]
    T = tokens.shape[1]
    return same & torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril()


def block_document_mask(tokens, end_of_text):
    """The same mask for FlexAttention, which skips the blocks of it that are empty."""
    document = (tokens == end_of_text).cumsum(1, dtype=torch.int32)  # half the bytes to load

    def visible(b, h, q, k):
        return (q >= k) & (document[b, q] == document[b, k])

    B, T = tokens.shape
    return create_block_mask(visible, B, None, T, T, device=tokens.device)


class Guide(NamedTuple):
    """What teachers say of a batch, for a student whose loss follows them (see guided_nats)."""
    states: torch.Tensor  # the inputs of all teachers' heads side by side, (B, T, sum of C)
    # the heads' weights side by side, over the number of teachers, (V, sum of C): states times
    # these, transposed, are the mean logits
    head: torch.Tensor
    weight: torch.Tensor  # (B, 1): the share of the divergence in the loss of each window
    temperature: float


def token_nats(x, head, targets):
    """Negative log-likelihood of each target in nats.

    x: (B, T, C), the input of the Linear `head`; targets: int64 (B, T), -1 where nothing is
    predicted. Returns fp32 (B, T), 0 where the target is -1.
    """
    def nats(x, targets):
        return target_nats(head(x).float(), targets)

    return by_chunks(nats, head.out_features, x, targets)


def total_nats(x, head, targets, guide=None):
    """The sum of token_nats, or of guided_nats given a Guide, (), with gradients that the forward
    pass makes: see head_loss."""
    products = [x.flatten(0, 1), head.weight]
    rest = ()
    if guide is not None:
        products += [guide.states.flatten(0, 1), guide.head]
        # a window's share of the divergence is that of all its positions
        rest = guide.weight.expand(targets.shape).flatten(), guide.temperature
    # autocast does not look into an operator of our own
    if torch.is_autocast_enabled(x.device.type):
        low = torch.get_autocast_dtype(x.device.type)
        products = [tensor.to(low) for tensor in products]
    x, weight, *teachers = products
    chunks = math.ceil(targets.numel() * head.out_features / CHUNK_LOGITS)
    total, _, _ = torch.ops.limitgpt.head_loss(x, weight, targets.flatten(), chunks, *teachers,
                                               *rest)
    return total


def nats_and_gradient(logits, targets, vocab_size, mean=None, share=None, t=1.0):
    """The loss of each row of logits, (P,), whose gradient by the logits is written over them.

    Columns from vocab_size on are no tokens. mean: the teachers' logits, (P, V), for the loss of
    guided_nats, with the divergence's share in it, (P, 1), and the temperature t.
    """
    token = torch.arange(logits.shape[1], device=logits.device)
    no_token = token >= vocab_size
    # not minus infinity: the divergence subtracts such logits, and inf - inf is nan
    wide = logits.float().masked_fill(no_token, -1e30)
    kept = (targets >= 0)[:, None]
    log_sum = wide.logsumexp(1, keepdim=True)
    at_target = wide.gather(1, targets.clamp(min=0)[:, None])
    hit = token == targets[:, None]
    nats = log_sum - at_target
    gradient = (wide - log_sum).exp() - hit.float()
    if mean is not None:
        student = (wide / t).log_softmax(1)
        teacher = (mean.float() / t).masked_fill(no_token, -1e30).log_softmax(1)
        divergence = (teacher.exp() * (teacher - student)).sum(1, keepdim=True)
        nats = torch.lerp(nats, t ** 2 * divergence, share)
        gradient = torch.lerp(gradient, t * (student.exp() - teacher.exp()), share)
    logits.copy_(torch.where(kept, gradient, 0.0))
    return torch.where(kept, nats, 0.0)[:, 0]


@torch.library.custom_op("limitgpt::head_loss", mutates_args=())
def head_loss(x: Tensor, weight: Tensor, targets: Tensor, chunks: int,
              states: Tensor | None = None, teacher: Tensor | None = None,
              share: Tensor | None = None, t: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of all rows as one sum, and its gradients by x (P, C) and by the head's weight
    (V, C).

    states (P, S), teacher (V, S), share (P,), t: what a Guide says, if there is one; see
    guided_nats. One operator that the compiler does not look into: of checkpointed chunks it would
    keep the gradients of all logits until the backward pass ends, and chunks would save no memory.
    Here each chunk's logits turn into their gradient and are gone before the next chunk, and no
    product is computed twice. The weight's gradient is summed in fp32.
    """
    step = torch.compile(nats_and_gradient, dynamic=False)
    total = x.new_zeros((), dtype=torch.float32)
    vocab_size = len(weight)
    # tensor cores are slow with rows of an odd length, as GPT-2's 50,257 are
    weight = pad_vocabulary(weight)
    dx = torch.empty_like(x)
    dweight = torch.zeros_like(weight, dtype=torch.float32)
    whole = [x, targets, dx]
    if states is not None:
        teacher = pad_vocabulary(teacher)
        whole += [states, share]
    for rows, their_targets, their_dx, *guide in zip(*(tensor.chunk(chunks) for tensor in whole)):
        logits = rows @ weight.T
        of_teachers = ()
        if guide:
            of_teachers = guide[0] @ teacher.T, guide[1][:, None], t
        total += step(logits, their_targets, vocab_size, *of_teachers).sum()
        torch.mm(logits, weight, out=their_dx)
        dweight += logits.T @ rows
    return total, dx, dweight[:vocab_size]


def pad_vocabulary(weight):
    """A head's weight, (V, C), with rows of zeros up to a multiple of 64."""
    if len(weight) % 64 == 0:
        return weight
    return F.pad(weight, (0, 0, 0, -len(weight) % 64))


@head_loss.register_fake
def describe_head_loss(x, weight, targets, chunks, states=None, teacher=None, share=None, t=1.0):
    """Shapes and dtypes of head_loss, for the compiler."""
    return (x.new_empty((), dtype=torch.float32), torch.empty_like(x),
            torch.empty_like(weight, dtype=torch.float32))


def keep_gradients(ctx, inputs, output):
    """What the backward pass of head_loss needs: the gradients that are there already."""
    ctx.save_for_backward(*output[1:])


def scale_gradients(ctx, scale, *_):
    """The backward pass of head_loss; scale: the gradient of its sum."""
    dx, dweight = ctx.saved_tensors
    # none for targets, chunks and what teachers say
    return dx * scale, dweight * scale, *[None] * 6


head_loss.register_autograd(scale_gradients, setup_context=keep_gradients)


def guided_nats(x, head, targets, guide):
    """The loss of a student at each position: nats of the target mixed with a divergence.

    (1 - w) x nats + w x t^2 x KL(teachers || student), where w is guide.weight and both predictions
    have temperature t: logits are divided by it. The teachers' prediction is that of their mean
    logits, as in an ensemble. t^2 keeps the size of the gradient (arXiv 1503.02531). Shapes as in
    token_nats.
    """
    t = guide.temperature

    def nats(x, targets, states):
        logits = head(x).float()
        with torch.no_grad():
            mean = F.linear(states, guide.head).float()  # (B, T, V)
            teacher = (mean / t).log_softmax(-1)
        student = (logits / t).log_softmax(-1)
        divergence = (teacher.exp() * (teacher - student)).sum(-1)
        divergence = torch.where(targets >= 0, t ** 2 * divergence, 0.0)
        return torch.lerp(target_nats(logits, targets), divergence, guide.weight)

    return by_chunks(nats, head.out_features, x, targets, guide.states)


def target_nats(logits, targets):
    """Cross-entropy at each position, (B, T); logits: fp32 (B, T, V)."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1,
                             reduction="none")
    return losses.view(targets.shape)


def by_chunks(nats, vocab_size, x, targets, *others):
    """nats(x, targets, *others), all (B, T, ...), in parts along T where the logits are many.

    The logits are the largest tensor by far. So hold one chunk of them at a time, and compute it
    once more in the backward pass instead of keeping it. (F.linear_cross_entropy of torch 2.13 does
    this as well, but not under torch.compile.)
    """
    chunks = math.ceil(targets.numel() * vocab_size / CHUNK_LOGITS)
    if chunks == 1:
        return nats(x, targets, *others)
    parts = zip(*(whole.chunk(chunks, dim=1) for whole in (x, targets, *others)))
    return torch.cat([checkpoint(nats, *part, use_reentrant=False) for part in parts], dim=1)


# --------------------------------------------------------------------------------------------------
# The model

class GPT(nn.Module):
    """Embedding, blocks, norm, head. `seed` alone decides the weights of a fresh model."""

    def __init__(self, config, seed=0):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        # not persistent: the configuration says all about them, so they stay out of saved weights
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialize(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def initialize(self, generator):
        """Initialize as the paper's code does: norms 1, matrices normal, truncated at 3 sigma.

        The std is 1/sqrt(fan_in) for every Linear, the head included, without depth scaling, and
        1/width for the embedding.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            # (fan_out, fan_in) of a Linear, (vocab_size, width) of the embedding
            std = parameter.shape[1] ** -0.5
            if name == "embedding.weight":
                std = 1 / parameter.shape[1]
            nn.init.trunc_normal_(parameter, std=std, a=-3 * std, b=3 * std, generator=generator)

    def document_mask(self, tokens):
        """The mask that the device's fused kernel takes; None means plain causal."""
        if not self.config.doc_mask:
            return None
        # FlexAttention pays off where it is compiled for a GPU; it has no backward pass on a CPU.
        if tokens.is_cuda and torch.compiler.is_compiling():
            return block_document_mask(tokens, self.config.end_of_text)
        return dense_document_mask(tokens, self.config.end_of_text)

    def forward(self, tokens, targets=None, guide=None, total=False):
        """Logits (B, T, V) in fp32 or, given targets, the nats of each: fp32 (B, T).

        tokens, targets: int64 (B, T), T at most the context. A target of -1 has 0 nats. Given a
        Guide, the loss of a student instead. total: the caller needs only the sum; where that
        saves memory the sum itself is returned, ().
        """
        x = self.states(tokens)
        if targets is None:
            return self.head(x).float()
        many = targets.numel() * self.config.vocab_size > CHUNK_LOGITS
        if total and many and tokens.is_cuda and torch.compiler.is_compiling():
            return total_nats(x, self.head, targets, guide)
        if guide is not None:
            return guided_nats(x, self.head, targets, guide)
        return token_nats(x, self.head, targets)

    def states(self, tokens):
        """The input of the head: (B, T, C)."""
        T = tokens.shape[1]
        rotary = self.cos[:T], self.sin[:T]
        mask = self.document_mask(tokens)
        x = self.embedding(tokens)  # (B, T, C)
        for block in self.blocks:
            x = block(x, rotary, mask)
        return self.norm(x)

    # Sizes and costs

    def parameter_count(self, embeddings=True):
        """N as the paper counts it, all parameters, or what is left without embedding and head."""
        count = sum(parameter.numel() for parameter in self.parameters())
        if not embeddings:
            tables = {self.embedding.weight, self.head.weight}  # a set, because tied ones are one
            count -= sum(table.numel() for table in tables)
        return count

    def flops_per_token(self):
        """FLOPs of training on one token, forward and backward."""
        c = self.config
        # 6 for each weight of a Linear, the head included: a multiplication and an addition
        # forward, twice that backward. The embedding is a lookup and costs nothing.
        linears = (module for module in self.modules() if isinstance(module, nn.Linear))
        weights = sum(linear.weight.numel() for linear in linears)
        # Attention's two products are 12 x layers x width x context; causality spares half. What
        # the document mask spares as well is counted here, so MFU lies above the truth.
        return 6 * weights + 6 * c.layers * c.width * c.context

    def training_bytes(self, tokens, dtype, compiled=False, guide_width=0):
        """Estimate of the memory in bytes that training with `tokens` tokens a pass takes.

        compiled: for CUDA, where a compiled pass in bf16 keeps less than an eager one. guide_width:
        of a student's Guide, the width of its teachers' states.
        """
        c = self.config
        # weight, gradient and AdamW's two moments, each in fp32
        state = 16 * self.parameter_count()
        wide = tokens * c.layers * c.width
        logits = tokens * c.vocab_size
        if guide_width:
            # in fp32 the teachers' heads and states; what their logits add is fitted as below
            state += 4 * (c.vocab_size + tokens) * guide_width
            added = 13
            if compiled:
                # in the head's operator a chunk's mean logits, and its gradient before it replaces
                # the student's
                added = 6 if logits <= CHUNK_LOGITS else 8
            state += added * min(logits, CHUNK_LOGITS)
        if compiled and dtype == "bf16":
            # Fitted to peaks of the generated code. Beside the blocks: weights in bf16, and the
            # logits in bf16 with a part of their gradient.
            copies = 2 * self.parameter_count()
            head = 3 * logits
            if logits > CHUNK_LOGITS:
                # one chunk, and of the head's weight: a copy in bf16, a chunk's gradient in bf16,
                # and sums of these in fp32 (see head_loss)
                head = 2 * CHUNK_LOGITS + 24 * self.head.weight.numel()
            return state + copies + 48 * wide + head
        # Fitted to peaks of eager passes, in bytes. kept: what blocks keep for the backward pass, a
        # token, layer and unit of width. chunk: a chunk's logits (product, fp32 copy, log-softmax,
        # gradient), each. entry: one of the mask, which each layer keeps to add to its scores.
        kept, chunk, entry = 64, 14, 2
        if dtype == "fp32":
            kept, chunk, entry = 104, 12, 4
        mask = entry * tokens * c.context * c.layers * c.doc_mask
        return state + kept * wide + chunk * min(logits, CHUNK_LOGITS) + mask

    # Weights in and out

    def save(self, file):
        """Write configuration and weights to a path or a binary file; GPT.load reads them."""
        torch.save({"config": asdict(self.config), "weights": self.state_dict()}, file)

    @classmethod
    def load(cls, path):
        """The model that save() wrote, on the CPU. Raises FileNotFoundError where there is none,
        ValueError for a truncated or foreign file."""
        try:
            # weights_only: a file from somebody else must not be able to run code here
            saved = torch.load(path, map_location="cpu", weights_only=True)
            model = cls(GPTConfig(**saved["config"]))
            model.load_state_dict(saved["weights"])
        except FileNotFoundError:
            raise
        except Exception as error:  # torch raises a dozen kinds here, from pickle's to zip's
            kind = type(error).__name__
            raise ValueError(f"{path} is not a whole model file ({kind})") from error
        return model

    @classmethod
    def from_pretrained(cls, folder):
        """The model of a local Hugging Face folder (config.json, *.safetensors).

        It must be of the Llama family, tied or untied, with plain or Llama-3 rotary positions.
        Raises ValueError for anything else.
        """
        try:
            config, weights = read_hugging_face(folder)
            model = cls(config)
            model.load_state_dict(weights)
        except KeyError as error:
            raise ValueError(f"{folder} is not a Llama that this GPT can hold: it lacks "
                             f"{error.args[0]}") from error
        except (TypeError, AttributeError, RuntimeError, ZeroDivisionError) as error:
            # fields or shapes of some other layout
            # torch lists the shapes that differ in lines of their own
            reason = " ".join(str(error).split())
            raise ValueError(f"{folder} is not a Llama that this GPT can hold "
                             f"({reason})") from error
        return model


# --------------------------------------------------------------------------------------------------
# Sampling

class Stepper:
    """Runs a model on up to `length` positions, one at a time, with the same logits as a forward
    pass over all."""

    def __init__(self, model, batch, length):
        self.model = model
        config, weight = model.config, model.head.weight
        device, dtype = weight.device, weight.dtype
        # keys and values are the memory of sampling: under autocast they take half
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        # the next position, on the device: to a compiled step a number in Python would be another
        # program at every step
        self.t = torch.zeros(1, dtype=torch.long, device=device)
        # where the present document of each sequence starts: (B, 1)
        self.start = torch.zeros(batch, 1, dtype=torch.long, device=device)
        # keys and values of each block, (2, B, KV, length, D); zeros, because what is not written
        # yet has weight 0, and 0 x nan would be nan
        shape = (2, batch, config.kv_heads, length, config.width // config.heads)
        self.kept = [torch.zeros(shape, device=device, dtype=dtype) for _ in model.blocks]

    def step(self, token, count):
        """token: int64 (B,), the one at position t. Returns the logits of t + 1, fp32 (B, V).

        count: how many positions to look at, more than t. Few different numbers of them are few
        programs to compile.
        """
        model = self.model
        if model.config.doc_mask:
            ends = (token == model.config.end_of_text)[:, None]
            self.start.copy_(torch.where(ends, self.t, self.start))
        # a key is visible from its own document only, and from its own position on
        positions = torch.arange(count, device=token.device)
        mask = (positions >= self.start) & (positions <= self.t)  # (B, count)
        rotary = model.cos[self.t], model.sin[self.t]
        x = model.embedding(token[:, None])  # (B, 1, C)
        for block, kept in zip(model.blocks, self.kept):
            x = block(x, rotary, mask[:, None, None], (self.t, kept))
        self.t += 1
        return model.head(model.norm(x))[:, 0].float()


def draw_tokens(logits, uniform):
    """Tokens (B,) from the mean of logits, a list of (B, V): where the cumulative distribution
    passes a uniform number a sequence, (B, 1)."""
    # torch.multinomial would draw V random numbers, which costs more than the model at our sizes
    cumulative = torch.stack(logits).mean(0).softmax(-1).cumsum(-1)
    token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
    # a product that is rounded up to the total would fall off the end
    return token.clamp(max=cumulative.shape[1] - 1)


@torch.no_grad()
def sample(models, batch, length, generator, compiled=False, prompt=()):
    """Windows of text from one model, or from the logit average of several: int64 (batch, length).

    Each starts with end-of-text and the tokens of `prompt`; an end-of-text that is drawn later
    starts the next document, as in training. `length` is at most the context; `generator` lives on
    the models' device. compiled: almost twice as fast on a CPU, after some seconds for each power
    of two that the length reaches.
    """
    device = models[0].head.weight.device
    steppers = [Stepper(model, batch, length) for model in models]
    step, draw = Stepper.step, draw_tokens
    if compiled:
        # beyond its limit of programs torch would go on eagerly, and teachers may differ in shape
        step = torch.compile(step, dynamic=False, recompile_limit=64)
        draw = torch.compile(draw, dynamic=False)
    given = [models[0].config.end_of_text, *prompt]
    tokens = [torch.full((batch,), token, device=device) for token in given]
    for t in range(length - 1):
        # of the keys as many as the next power of two, so that a few compiled steps serve all
        count = min(length, max(64, 2 ** t.bit_length()))
        logits = [step(stepper, tokens[t], count) for stepper in steppers]
        if t + 1 == len(tokens):  # the prompt is read
            uniform = torch.rand(batch, 1, generator=generator, device=device)
            tokens.append(draw(logits, uniform))
    return torch.stack(tokens, dim=1)


# --------------------------------------------------------------------------------------------------
# Hugging Face's layout of a Llama folder: config.json and *.safetensors

def hugging_face_names(config):
    """The tensors there that make up each of ours, joined by rows: {ours: [(theirs, rows)]}."""
    C = config.width
    q_rows = C
    kv_rows = C // config.heads * config.kv_heads
    names = {
        "embedding.weight": [("model.embed_tokens.weight", config.vocab_size)],
        "norm.weight": [("model.norm.weight", C)],
    }
    if not config.tied:
        names["head.weight"] = [("lm_head.weight", config.vocab_size)]
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        names |= {
            ours + "norm_attention.weight": [(theirs + "input_layernorm.weight", C)],
            ours + "attention.qkv.weight": [(theirs + "self_attn.q_proj.weight", q_rows),
                                            (theirs + "self_attn.k_proj.weight", kv_rows),
                                            (theirs + "self_attn.v_proj.weight", kv_rows)],
            ours + "attention.out.weight": [(theirs + "self_attn.o_proj.weight", C)],
            ours + "norm_mlp.weight": [(theirs + "post_attention_layernorm.weight", C)],
            ours + "mlp.gate_up.weight": [(theirs + "mlp.gate_proj.weight", config.inner),
                                          (theirs + "mlp.up_proj.weight", config.inner)],
            ours + "mlp.down.weight": [(theirs + "mlp.down_proj.weight", C)],
        }
    return names


MADE_BY = "limitGPT"  # what tells our exports from other people's models
EXPORTED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json"}


def check_export(folder):
    """The folder as an absolute path. Raises OSError where it holds anything but an export of this
    kit: a second file of weights would be read with ours, and nobody's files are removed."""
    folder = Path(folder).absolute()
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    others = sorted(names - EXPORTED)
    if others:
        raise OSError(f"{folder} holds {others[0]}, which is no part of an export; give another "
                      f"folder")
    ours = "config.json" in names and MADE_BY in (folder / "config.json").read_text()
    if names and not ours:
        raise OSError(f"{folder} holds a model that this kit has not exported; give another folder")
    return folder


def export_hugging_face(model, folder, tokenizer=None):
    """Write a folder that transformers' LlamaForCausalLM and AutoTokenizer load.

    tokenizer: the content of its tokenizer.json, if it goes there as well. The folder appears whole
    or not at all, and takes the place of an earlier export. Raises OSError where it cannot be
    written or holds anything else.
    """
    from safetensors import SafetensorError  # optional, so imported where it is used
    from safetensors.torch import save_file

    folder = check_export(folder)
    state = model.state_dict()
    weights = {}
    for ours, theirs in hugging_face_names(model.config).items():
        pieces = state[ours].split([rows for _, rows in theirs])
        for (name, _), piece in zip(theirs, pieces):
            weights[name] = piece.contiguous().cpu()

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        try:
            save_file(weights, whole / "model.safetensors", metadata={"format": "pt"})
            for name, content in hugging_face_texts(model.config, tokenizer).items():
                (whole / name).write_text(content)
        except (SafetensorError, OSError) as error:  # a full disk, for instance
            raise OSError(f"cannot write {folder} ({error}); free some disk space") from error
        if folder.exists():  # the earlier export goes with the temporary folder
            folder.rename(Path(temporary) / "earlier")
        whole.rename(folder)


def hugging_face_texts(config, tokenizer):
    """{name: content} of an export's files beside the weights. tokenizer: tokenizer.json or
    None."""
    ends = {"bos_token_id": config.end_of_text, "eos_token_id": config.end_of_text}
    files = {"config.json": hugging_face_config(config),
             "generation_config.json": {**ends, "do_sample": True}}
    if tokenizer:
        added = {token["id"]: token["content"]
                 for token in json.loads(tokenizer).get("added_tokens", ())}
        name = added.get(config.end_of_text)  # null there says that no token has this part
        files["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": name, "eos_token": name,
            "model_max_length": config.context, "clean_up_tokenization_spaces": False}
    texts = {name: json.dumps(content, indent=1) + "\n" for name, content in files.items()}
    if tokenizer:
        texts["tokenizer.json"] = tokenizer
    return texts


def hugging_face_config(config):
    """The content of config.json for a model of ours."""
    rope = {"rope_type": "default"}
    if config.rope_scaling:
        rope = {"rope_type": "llama3", **config.rope_scaling}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "made_by": MADE_BY,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width // config.heads,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        # older versions of transformers read rope_theta, newer ones rope_parameters
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": config.end_of_text,
        "eos_token_id": config.end_of_text,
    }


def read_hugging_face(folder):
    """(GPTConfig, our weights) of a local Llama folder. Such models attend across documents.

    Raises ValueError for another architecture or a damaged folder, KeyError for the name of a field
    or a weight that is not there.
    """
    fields, tensors = read_llama_files(Path(folder))
    config = config_of_llama(fields, folder)
    weights = {}
    for ours, parts in hugging_face_names(config).items():
        weights[ours] = torch.cat([tensors.pop(name) for name, _ in parts])
    if config.tied:
        weights["head.weight"] = weights["embedding.weight"]
        tensors.pop("lm_head.weight", None)  # a copy of the embedding
    # Weights that have no place in the model say that it is another one; but rotary tables, which
    # older files hold, follow from config.json.
    unknown = [name for name in tensors if not name.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise ValueError(f"{folder} holds {unknown[0]} and {len(unknown) - 1} more weights that "
                         f"its config.json does not tell of")
    return config, weights


def read_llama_files(folder):
    """(fields of config.json, tensors by name). Raises ValueError."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError("reading *.safetensors needs the package safetensors; install it with "
                         "pip install safetensors") from None
    files = {}
    try:
        fields = json.loads((folder / "config.json").read_text())
        for file in sorted(folder.glob("*.safetensors")):
            files[file.name] = load_file(file)
    except Exception as error:  # safetensors raises its own kind for a damaged file
        raise ValueError(f"{folder} has no whole config.json and *.safetensors "
                         f"({error})") from error
    tensors = {}
    sources = {}
    for file, content in files.items():
        for name in content:
            if name in tensors:  # one of the two is stale, and nothing says which
                raise ValueError(f"{folder} holds {name} in {sources[name]} and in {file}; remove "
                                 f"the file that does not belong there")
            sources[name] = file
        tensors |= content
    # null says "the default" there, as an absent field does
    return {key: value for key, value in fields.items() if value is not None}, tensors


def config_of_llama(fields, folder):
    """The GPTConfig of a Llama's config.json. Raises ValueError for what our GPT cannot hold.

    Where the file names no first token (bos_token_id), end-of-text is taken to be the last token.
    """
    # older versions of transformers call them rope_scaling, with theta beside them
    rope = {"rope_theta": fields.get("rope_theta"),
            **fields.get("rope_parameters", fields.get("rope_scaling", {}))}
    rope = {key: value for key, value in rope.items() if value is not None}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    scaling = None
    if rope_type == "llama3":
        scaling = {key: rope[key] for key in ROPE_SCALING_KEYS}

    config = GPTConfig(
        vocab_size=fields["vocab_size"],
        end_of_text=fields.get("bos_token_id", fields["vocab_size"] - 1),
        context=fields["max_position_embeddings"],
        width=fields["hidden_size"],
        layers=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"],
        kv_heads=fields.get("num_key_value_heads", fields["num_attention_heads"]),
        doc_mask=False,
        inner=fields["intermediate_size"],
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta", 10_000.0),
        rope_scaling=scaling,
        tied=fields.get("tie_word_embeddings", False),
    )

    # The weights would load, but compute something else, if one of these were not as we write it.
    ours = hugging_face_config(config)
    decisive = ("model_type", "hidden_act", "attention_bias", "mlp_bias", "head_dim")
    wrong = [f"{key} is {fields[key]}, not {ours[key]}"
             for key in decisive if fields.get(key, ours[key]) != ours[key]]
    if rope_type not in ("default", "llama3"):
        wrong.append(f"rope_type is {rope_type}, not default or llama3")
    if wrong:
        raise ValueError(f"{folder} is not a Llama that this GPT can hold: {'; '.join(wrong)}")
    return config
