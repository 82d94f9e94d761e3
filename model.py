"""The GPT that every stage shares: Llama's architecture with the paper's initialization (arXiv 2509.14786, section 2).

RMSNorm before each block, rotary positions, SwiGLU, grouped-query attention, no biases, an untied head. Attention
stays inside a document by default. Shapes in comments: B sequences, T positions, C width, H heads, D head width,
V vocabulary.
"""
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2 ** 28  # above 1 GiB of fp32 logits the loss is computed in chunks; below, the plain loss is faster


ROPE_SCALING_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass
class GPTConfig:
    vocab_size: int
    end_of_text: int  # this token starts a document
    context: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    doc_mask: bool = True  # attention does not cross documents; False: plain causal
    # what other models of the Llama family vary
    inner: int = 0  # width of the MLP; 0: 3.5 x width, as the paper
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = None  # Llama 3's: factor, low_freq_factor, high_freq_factor, original context
    tied: bool = False  # the head is the embedding

    def __post_init__(self):
        self.inner = self.inner or 7 * self.width // 2
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(f"width {self.width}, heads {self.heads} and kv_heads {self.kv_heads} must divide")


# The ladder: the paper's four sizes, then the same ladder with N and D divided by 10, 100 and 1000. Context and batch
# size (sequences a step) belong to the scale. Of each size: width, layers, heads, kv_heads.
LADDER = {1: dict(context=4096, batch_size=64, sizes={"150m": (512, 6, 8, 8), "300m": (768, 12, 12, 12),
                                                      "600m": (1024, 24, 16, 8), "1.4b": (2048, 16, 16, 8)}),
          10: dict(context=1024, batch_size=32, sizes={"15m": (384, 4, 6, 6), "30m": (512, 6, 8, 8),
                                                       "60m": (768, 6, 12, 12), "140m": (1024, 8, 16, 8)}),
          100: dict(context=512, batch_size=8, sizes={"1.5m": (128, 2, 4, 4), "3m": (192, 3, 6, 6),
                                                      "6m": (256, 4, 8, 8), "14m": (384, 5, 12, 12)}),
          1000: dict(context=256, batch_size=4, sizes={"150k": (48, 2, 3, 3), "300k": (64, 3, 4, 4),
                                                       "600k": (96, 3, 6, 6), "1.4m": (128, 5, 8, 8)})}
SCALE_OF = {size: scale for scale, rung in LADDER.items() for size in rung["sizes"]}
SIZES = {size: dict(zip(("width", "layers", "heads", "kv_heads"), shape))
         for rung in LADDER.values() for size, shape in rung["sizes"].items()}


# --------------------------------------------------------------------------------------------------------------------
# Blocks

def rotary_tables(config):
    """cos and sin of the rotary angles, each (context, head width), for the two-halves layout of Llama."""
    D = config.width // config.heads
    frequencies = config.rope_theta ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)  # (D / 2,)
    if config.rope_scaling:  # Llama 3: slow frequencies are divided by factor, fast ones kept, those between blended
        factor, low, high, original = (config.rope_scaling[key] for key in ROPE_SCALING_KEYS)
        turns = original * frequencies / (2 * math.pi)  # over the original context
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (kept + (1 - kept) / factor)
    angles = torch.arange(config.context, dtype=torch.float64)[:, None] * frequencies  # (T, D / 2)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    """Rotary position embedding of x (B, H, T, D) by cos and sin (T, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_width = config.width // config.heads
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * self.head_width, bias=False)
        self.out = nn.Linear(config.heads * self.head_width, config.width, bias=False)

    def forward(self, x, rotary, mask, cache=None):
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.head_width).transpose(1, 2)  # (B, H + 2 KV, T, D)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.append(k, v)

        # one fused kernel per kind of mask: Flash or cuDNN for causal, FlexAttention for blocks, SDPA for a dense mask
        gqa = self.heads != self.kv_heads
        if mask is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        elif isinstance(mask, torch.Tensor):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)
        else:  # contiguous: compiled for a CPU, torch 2.13's FlexAttention misreads the permuted strides of rotate()
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            y = flex_attention(q, k, v, block_mask=mask, enable_gqa=gqa)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.inner, bias=False)
        self.down = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm_mlp = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, rotary, mask, cache=None):
        x = x + self.attention(self.norm_attention(x), rotary, mask, cache)
        return x + self.mlp(self.norm_mlp(x))


# --------------------------------------------------------------------------------------------------------------------
# Attention masks and loss

def dense_document_mask(tokens, end_of_text):
    """Who may see whom: bool (B, 1, T, T), True for earlier-or-same positions of the same document."""
    document = (tokens == end_of_text).cumsum(1)  # (B, T); an end-of-text belongs to the document it starts
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).tril()


def block_document_mask(tokens, end_of_text):
    """The same mask for FlexAttention, which skips the blocks that are empty."""
    document = (tokens == end_of_text).cumsum(1)

    def visible(b, h, q, k):
        return (q >= k) & (document[b, q] == document[b, k])
    return create_block_mask(visible, len(tokens), None, tokens.shape[1], tokens.shape[1], device=tokens.device)


def token_nats(x, head, targets):
    """Negative log-likelihood of each target in nats, fp32 (B, T), 0 where the target is -1. x: (B, T, C)."""
    def nats(x, targets):
        logits = head(x).float().flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="none").view(targets.shape)

    chunks = math.ceil(targets.numel() * head.out_features / CHUNK_LOGITS)
    if chunks == 1:
        return nats(x, targets)
    # recompute each chunk's logits in the backward pass: one chunk of logits in memory instead of all
    parts = zip(x.chunk(chunks, dim=1), targets.chunk(chunks, dim=1))
    return torch.cat([checkpoint(nats, *part, use_reentrant=False) for part in parts], dim=1)


# --------------------------------------------------------------------------------------------------------------------
# The model

class GPT(nn.Module):
    def __init__(self, config, seed=0):
        """A freshly initialized model; `seed` alone decides its weights."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialize(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def initialize(self, generator):
        """The paper's code: every Linear, the head included, std 1/sqrt(fan_in), no depth scaling; embedding std
        1/width; both truncated at 3 sigma; norms 1."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:  # (fan_out, fan_in) of a Linear, (vocab_size, width) of the embedding
                std = 1 / parameter.shape[1] if name == "embedding.weight" else parameter.shape[1] ** -0.5
                nn.init.trunc_normal_(parameter, std=std, a=-3 * std, b=3 * std, generator=generator)

    def document_mask(self, tokens):
        """The mask that the device's fused kernel takes; None means plain causal."""
        if not self.config.doc_mask:
            return None
        compiled_on_cuda = tokens.is_cuda and torch.compiler.is_compiling()  # FlexAttention has no CPU backward
        return (block_document_mask if compiled_on_cuda else dense_document_mask)(tokens, self.config.end_of_text)

    def forward(self, tokens, targets=None):
        """Logits (B, T, V) in fp32 or, given targets, the nats of each: fp32 (B, T), 0 where the target is -1.

        tokens, targets: int64 (B, T), T at most the context.
        """
        x = self.states(tokens)
        return self.head(x).float() if targets is None else token_nats(x, self.head, targets)

    def states(self, tokens):
        """What the head reads: (B, T, C)."""
        T = tokens.shape[1]
        rotary, mask = (self.cos[:T], self.sin[:T]), self.document_mask(tokens)
        x = self.embedding(tokens)  # (B, T, C)
        for block in self.blocks:
            x = block(x, rotary, mask)
        return self.norm(x)

    # sizes and costs

    def parameter_count(self, embeddings=True):
        """N: all parameters, or without embedding and head."""
        tables = () if embeddings else {self.embedding.weight, self.head.weight}  # one if tied
        return sum(parameter.numel() for parameter in self.parameters()) - sum(table.numel() for table in tables)

    def flops_per_token(self):
        """Forward and backward: 6 per weight of a Linear, the head included (the embedding is a lookup), plus causal
        attention's two products, 12 x layers x width x context, halved because half is masked."""
        weights = sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Linear))
        return 6 * weights + 6 * self.config.layers * self.config.width * self.config.context

    def training_bytes(self, tokens, dtype):
        """Memory to train with `tokens` tokens a pass: 16 bytes a parameter for weight, gradient and AdamW's moments,
        the logits at hand in fp32 with their gradient, and what eager blocks keep for the backward pass: 27 fp32
        numbers per token, layer and unit of width (counted: 26.7 to 27.2), two thirds of that in bf16."""
        c, kept = self.config, 27 * 4 if dtype == "fp32" else 18 * 4
        logits = 2 * 4 * min(tokens * c.vocab_size, CHUNK_LOGITS)
        return 16 * self.parameter_count() + logits + kept * tokens * c.layers * c.width

    # weights in and out

    def save(self, file):
        """Write configuration and weights to a path or binary file; GPT.load reads them with weights_only=True."""
        torch.save({"config": asdict(self.config), "weights": self.state_dict()}, file)

    @classmethod
    def load(cls, path, device="cpu"):
        """The model that save() wrote. Raises ValueError for a truncated or foreign file."""
        try:
            saved = torch.load(path, map_location=device, weights_only=True)
            model = cls(GPTConfig(**saved["config"])).to(device)
            model.load_state_dict(saved["weights"])
        except FileNotFoundError:
            raise
        except Exception as error:  # torch raises a dozen kinds here, from pickle's to zip's
            raise ValueError(f"{path} is not a whole model file ({type(error).__name__})") from error
        return model

    @classmethod
    def from_pretrained(cls, folder):
        """The model of a local Hugging Face folder of the Llama family (config.json, *.safetensors), tied or untied,
        with plain or Llama-3 rotary positions. Raises ValueError for anything else."""
        try:
            config, weights = read_hugging_face(folder)
            model = cls(config)
            model.load_state_dict(weights)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:  # fields or shapes of another layout
            raise ValueError(f"{folder} is not a Llama folder that this GPT can hold ({error})") from error
        return model


# --------------------------------------------------------------------------------------------------------------------
# Hugging Face's layout of a Llama folder: config.json and *.safetensors

def hugging_face_names(config):
    """Each of our parameters and those that make it up there, joined by rows: {ours: [(theirs, rows)]}."""
    C, D = config.width, config.width // config.heads
    names = {"embedding.weight": [("model.embed_tokens.weight", config.vocab_size)],
             "norm.weight": [("model.norm.weight", C)], "head.weight": [("lm_head.weight", config.vocab_size)]}
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        heads = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
        parts = {"norm_attention": [("input_layernorm", C)], "norm_mlp": [("post_attention_layernorm", C)],
                 "attention.qkv": [(f"self_attn.{x}_proj", n * D) for x, n in heads.items()],
                 "attention.out": [("self_attn.o_proj", C)], "mlp.down": [("mlp.down_proj", C)],
                 "mlp.gate_up": [("mlp.gate_proj", config.inner), ("mlp.up_proj", config.inner)]}
        names |= {f"{ours}{part}.weight": [(f"{theirs}{name}.weight", rows) for name, rows in found]
                  for part, found in parts.items()}
    if config.tied:
        del names["head.weight"]
    return names


def export_hugging_face(model, folder):
    """Write config.json and model.safetensors that transformers' LlamaForCausalLM loads."""
    from safetensors.torch import save_file  # optional
    c, weights, state = model.config, {}, model.state_dict()
    for ours, theirs in hugging_face_names(c).items():
        pieces = state[ours].split([rows for _, rows in theirs])
        weights |= {name: piece.contiguous().cpu() for (name, _), piece in zip(theirs, pieces)}
    rope = {"rope_type": "llama3", **c.rope_scaling} if c.rope_scaling else {"rope_type": "default"}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "vocab_size": c.vocab_size, "hidden_size": c.width, "intermediate_size": c.inner,
              "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads,
              "head_dim": c.width // c.heads, "max_position_embeddings": c.context, "rms_norm_eps": c.norm_eps,
              "rope_theta": c.rope_theta, "rope_parameters": {"rope_theta": c.rope_theta, **rope},
              "tie_word_embeddings": c.tied, "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32",
              "bos_token_id": c.end_of_text, "eos_token_id": c.end_of_text}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def read_hugging_face(folder):
    """(GPTConfig, our weights) of a local Llama folder. Plain causal attention, as such models are trained. Raises
    ValueError for another architecture or a damaged folder."""
    try:
        from safetensors.torch import load_file  # optional
    except ImportError:
        raise ValueError("reading *.safetensors needs the package safetensors: pip install safetensors") from None
    folder, weights = Path(folder), {}
    try:
        there = json.loads((folder / "config.json").read_text())
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
    except Exception as error:  # safetensors raises its own kind for a damaged file
        raise ValueError(f"{folder} has no whole config.json and *.safetensors ({error})") from error
    rope = there.get("rope_parameters") or {"rope_theta": there.get("rope_theta", 10_000.0),
                                            **(there.get("rope_scaling") or {})}
    kind, end = rope.get("rope_type", rope.get("type", "default")), there.get("bos_token_id")
    absent = [key for key in ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                              "num_attention_heads", "max_position_embeddings") if key not in there]
    if absent:
        raise ValueError(f"{folder}/config.json is not a Llama's: it lacks {', '.join(absent)}")
    unlike = {"model_type": there["model_type"] != "llama", "hidden_act": there.get("hidden_act", "silu") != "silu",
              "attention_bias": there.get("attention_bias"), "mlp_bias": there.get("mlp_bias"),
              "rope_type": kind not in ("default", "llama3"),
              "head_dim": there["hidden_size"] != there["num_attention_heads"] * there.get(
                  "head_dim", there["hidden_size"] // there["num_attention_heads"])}
    differing = ", ".join(key for key in unlike if unlike[key])
    if differing:
        raise ValueError(f"{folder} is not a Llama that this GPT can hold: {differing}")
    config = GPTConfig(
        vocab_size=there["vocab_size"], end_of_text=there["vocab_size"] - 1 if end is None else end,
        context=there["max_position_embeddings"], width=there["hidden_size"], layers=there["num_hidden_layers"],
        heads=there["num_attention_heads"], kv_heads=there.get("num_key_value_heads", there["num_attention_heads"]),
        doc_mask=False, inner=there["intermediate_size"], norm_eps=there.get("rms_norm_eps", 1e-6),
        rope_theta=rope["rope_theta"], tied=there.get("tie_word_embeddings", False),
        rope_scaling={key: rope[key] for key in ROPE_SCALING_KEYS} if kind == "llama3" else None)
    names = hugging_face_names(config)
    missing = [name for theirs in names.values() for name, _ in theirs if name not in weights]
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]} and {len(missing) - 1} more weights")
    joined = {ours: torch.cat([weights[name] for name, _ in theirs]) for ours, theirs in names.items()}
    return config, joined | ({"head.weight": joined["embedding.weight"]} if config.tied else {})


# --------------------------------------------------------------------------------------------------------------------
# Sampling

class Cache:
    """Keys and values of one block for positions 0..T-1 of B sequences, each (B, KV, context, D)."""

    def __init__(self, config, batch, like):
        shape = (batch, config.kv_heads, config.context, config.width // config.heads)
        self.k, self.v, self.length = like.new_empty(shape), like.new_empty(shape), 0

    def append(self, k, v):
        """Store the next positions; returns all keys and values so far."""
        end = self.length + k.shape[2]
        self.k[:, :, self.length:end], self.v[:, :, self.length:end], self.length = k, v, end
        return self.k[:, :, :end], self.v[:, :, :end]


class Stepper:
    """Runs a model one position at a time: step(token) gives the logits of the next one, equal to a full forward."""

    def __init__(self, model, batch):
        self.model, self.t = model, 0
        self.caches = [Cache(model.config, batch, model.head.weight) for _ in model.blocks]
        # a key is visible from its own document only: where each sequence's present document starts
        self.start = torch.zeros(batch, 1, dtype=torch.long, device=model.head.weight.device)

    @torch.no_grad()
    def step(self, token):
        """token: int64 (B,), the one at position t. Returns the logits of position t + 1, fp32 (B, V)."""
        model, t = self.model, self.t
        if model.config.doc_mask:
            self.start[token == model.config.end_of_text] = t
        mask = (torch.arange(t + 1, device=token.device) >= self.start)[:, None, None]  # (B, 1, 1, t + 1)
        x = model.embedding(token[:, None])  # (B, 1, C)
        for block, cache in zip(model.blocks, self.caches):
            x = block(x, (model.cos[t:t + 1], model.sin[t:t + 1]), mask, cache)
        self.t += 1
        return model.head(model.norm(x))[:, 0].float()


@torch.no_grad()
def sample(models, batch, length, generator, temperature=1.0):
    """Windows of text from one model or from the logit average of several: int64 (batch, length).

    Each starts with end-of-text; one drawn later starts the next document, as in training. `length` is at most the
    context; `generator` lives on the models' device.
    """
    token = torch.full((batch,), models[0].config.end_of_text, device=models[0].head.weight.device)
    steppers, tokens = [Stepper(model, batch) for model in models], [token]
    for _ in range(length - 1):
        logits = torch.stack([stepper.step(token) for stepper in steppers]).mean(0)  # (B, V)
        # one uniform number a sequence into the cumulative distribution; torch.multinomial would draw V of them
        cumulative = (logits / temperature).softmax(-1).cumsum(-1)
        uniform = torch.rand(batch, 1, generator=generator, device=token.device)
        token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
        token = token.clamp(max=logits.shape[1] - 1)  # a product rounded up to the total would fall off the end
        tokens.append(token)
    return torch.stack(tokens, dim=1)
